/* Activation chains: device and host memory within stated budgets, files beyond them, durable between blocks.
 *
 * A chain on the device is copied there by `convert` from F32 to F32, and passes through the staging buffer when it is
 * written to a file or read from one.
 *
 * Files hold raw little-endian F32 rows. Reads and writes use pread and pwrite, never a mapping, so spilled activations
 * cost page cache and not resident memory. A commit is temp -> fsync -> rename -> fsync directory. */

#include "pipeline/activations.h"

#include "base/err.h"
#include "base/fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHAIN_PIECE (4 << 20) /* bytes hashed or copied at a time */

struct chain {
    char directory[512];
    char name[32];
    int64_t rows, width;
    size_t bytes;
    struct chain_budget *budget;
    float *device; /* not NULL: on the device */
    float *memory; /* not NULL: in host memory; else on disk */
    int in, out;   /* descriptors when on disk, -1 = none */
    float *bounce; /* staging between memory and disk */
    size_t bounce_bytes;
};

static bool on_disk(const struct chain *chain)
{
    return chain->device == NULL && chain->memory == NULL;
}

static int chain_path(const struct chain *chain, const char *file, char *out, size_t size)
{
    return fs_path(out, size, "%s/%s", chain->directory, file);
}

static int open_work_file(const struct chain *chain, const char *suffix, int *fd)
{
    char file[64];
    char path[600];

    snprintf(file, sizeof(file), "%s.%s.tmp", chain->name, suffix);
    int rc = chain_path(chain, file, path, sizeof(path));
    if (rc != 0) {
        return rc;
    }
    int opened = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (opened < 0) {
        return err_raise_errno(errno, "cannot create %s", path);
    }
    if (ftruncate(opened, (off_t)chain->bytes) != 0) {
        int saved = errno;
        close(opened);
        return err_raise_errno(saved, "cannot size %s to %zu bytes", path, chain->bytes);
    }
    *fd = opened;
    return 0;
}

int chain_new(const char *directory, const char *name, int64_t rows, int64_t width, struct chain_budget *budget,
              struct chain **out)
{
    int64_t bytes;

    if (__builtin_mul_overflow(rows, width, &bytes) || __builtin_mul_overflow(bytes, (int64_t)sizeof(float), &bytes)) {
        return err_raise(ERR_INSUFFICIENT_MEMORY, "activations of %lld x %lld overflow", (long long)rows,
                         (long long)width);
    }
    struct chain *chain = calloc(1, sizeof(*chain));
    if (chain == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a chain");
    }
    snprintf(chain->directory, sizeof(chain->directory), "%s", directory);
    snprintf(chain->name, sizeof(chain->name), "%s", name);
    chain->rows = rows;
    chain->width = width;
    chain->bytes = (size_t)bytes;
    chain->budget = budget;
    chain->in = -1;
    chain->out = -1;
    if (bytes > 0 && budget->device_used + bytes <= budget->device_limit) {
        void *device;
        if (budget->gpu->ops->alloc(budget->gpu->device, chain->bytes, false, &device) == 0) {
            chain->device = device;
            budget->device_used += bytes;
        }
    }
    if (chain->device == NULL && bytes > 0 && budget->used + bytes <= budget->limit) {
        void *memory = mmap(NULL, chain->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory != MAP_FAILED) {
            chain->memory = memory;
            budget->used += bytes;
        }
    }
    if (on_disk(chain)) {
        int rc = open_work_file(chain, "out", &chain->out);
        if (rc != 0) {
            chain_free(chain);
            return rc;
        }
    }
    *out = chain;
    return 0;
}

static void remove_work_file(const struct chain *chain, const char *suffix)
{
    char file[64];
    char path[600];
    snprintf(file, sizeof(file), "%s.%s.tmp", chain->name, suffix);
    if (chain_path(chain, file, path, sizeof(path)) == 0) {
        (void)unlink(path);
    }
}

void chain_free(struct chain *chain)
{
    if (chain == NULL) {
        return;
    }
    if (chain->device != NULL) {
        chain->budget->gpu->ops->free(chain->budget->gpu->device, chain->device);
        chain->budget->device_used -= (int64_t)chain->bytes;
    }
    if (chain->memory != NULL) {
        munmap(chain->memory, chain->bytes);
        chain->budget->used -= (int64_t)chain->bytes;
    }
    if (chain->in >= 0) {
        close(chain->in);
    }
    if (chain->out >= 0) {
        close(chain->out);
        remove_work_file(chain, "out");
    }
    free(chain->bounce);
    free(chain);
}

static int bounce_reserve(struct chain *chain, size_t bytes)
{
    if (chain->bounce_bytes >= bytes) {
        return 0;
    }
    float *grown = realloc(chain->bounce, bytes);
    if (grown == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %zu bytes of activations", bytes);
    }
    chain->bounce = grown;
    chain->bounce_bytes = bytes;
    return 0;
}

/* As many elements as `tensor` has, from row `first` of the chain on the device. */
static struct tensor device_view(const struct chain *chain, int64_t first, const struct tensor *tensor)
{
    return tensor_1d(chain->device + first * chain->width, DTYPE_F32, tensor_count(tensor));
}

/* Row `first` where the device can work on it; NULL: it cannot. */
static float *in_place(const struct chain *chain, int64_t first, const struct gpu *gpu)
{
    float *held = chain->device != NULL ? chain->device : gpu->info.host_memory ? chain->memory : NULL;
    return held != NULL ? held + first * chain->width : NULL;
}

void chain_place(const struct chain *chain, int64_t first, struct tensor *rows, const struct gpu *gpu)
{
    float *place = in_place(chain, first, gpu);

    rows->data = place != NULL ? place : rows->data;
}

int chain_open(struct chain *chain, enum chain_side side, int64_t first, struct tensor *rows, const struct gpu *gpu,
               struct gpu_stream *stream)
{
    if (in_place(chain, first, gpu) != NULL) {
        chain_place(chain, first, rows, gpu);
        return 0;
    }
    return chain_read(chain, side, first, rows, gpu, stream);
}

int chain_read(struct chain *chain, enum chain_side side, int64_t first, const struct tensor *to, const struct gpu *gpu,
               struct gpu_stream *stream)
{
    size_t bytes = tensor_bytes(to);
    size_t offset = (size_t)first * (size_t)chain->width * sizeof(float);

    if (chain->device != NULL) {
        struct tensor from = device_view(chain, first, to);
        return gpu->ops->convert(stream, to, &from);
    }
    if (chain->memory != NULL) {
        return gpu->ops->upload(stream, to->data, (const char *)chain->memory + offset, bytes);
    }
    int fd = side == CHAIN_IN ? chain->in : chain->out;
    int rc = bounce_reserve(chain, bytes);
    if (rc == 0) {
        rc = fs_pread_full(fd, chain->bounce, bytes, (int64_t)offset);
    }
    if (rc == 0) {
        rc = gpu->ops->upload(stream, to->data, chain->bounce, bytes);
    }
    return rc != 0 ? err_pass(rc, "read %s rows at %lld", chain->name, (long long)first) : 0;
}

int chain_write(struct chain *chain, int64_t first, const struct tensor *from, const struct gpu *gpu,
                struct gpu_stream *stream)
{
    size_t bytes = tensor_bytes(from);
    size_t offset = (size_t)first * (size_t)chain->width * sizeof(float);

    if (from->data == in_place(chain, first, gpu)) {
        return 0;
    }
    if (chain->device != NULL) {
        struct tensor to = device_view(chain, first, from);
        return gpu->ops->convert(stream, &to, from);
    }
    if (chain->memory != NULL) {
        return gpu->ops->download(stream, (char *)chain->memory + offset, from->data, bytes);
    }
    int rc = bounce_reserve(chain, bytes);
    if (rc == 0) {
        rc = gpu->ops->download(stream, chain->bounce, from->data, bytes);
    }
    if (rc == 0) {
        rc = fs_pwrite_full(chain->out, chain->bounce, bytes, (int64_t)offset);
    }
    return rc != 0 ? err_pass(rc, "write %s rows at %lld", chain->name, (long long)first) : 0;
}

/* Bytes [at, at + size) of a chain in memory, on the host. */
static int memory_piece(struct chain *chain, size_t at, size_t size, const void **piece)
{
    if (chain->memory != NULL) {
        *piece = (const char *)chain->memory + at;
        return 0;
    }
    *piece = chain->bounce;
    return chain->budget->gpu->ops->download(chain->budget->stream, chain->bounce, (const char *)chain->device + at,
                                             size);
}

static int write_pieces(struct chain *chain, int fd, struct digest *digest)
{
    int rc = chain->device != NULL ? bounce_reserve(chain, CHAIN_PIECE) : 0;

    for (size_t at = 0; rc == 0 && at < chain->bytes; at += CHAIN_PIECE) {
        size_t size = chain->bytes - at < CHAIN_PIECE ? chain->bytes - at : CHAIN_PIECE;
        const void *piece;
        rc = memory_piece(chain, at, size, &piece);
        if (rc == 0) {
            digest_update(digest, piece, size);
            rc = fs_pwrite_full(fd, piece, size, (int64_t)at);
        }
    }
    return rc;
}

static int write_memory(struct chain *chain, const char *path, char sha256[DIGEST_HEX_SIZE])
{
    struct digest *digest = digest_new();
    if (digest == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a digest");
    }
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        int saved = errno;
        digest_free(digest);
        return err_raise_errno(saved, "cannot create %s", path);
    }
    int rc = write_pieces(chain, fd, digest);
    rc = rc != 0 ? rc : fs_sync(fd);
    close(fd);
    if (rc != 0) {
        digest_free(digest);
        return rc;
    }
    digest_finish(digest, sha256);
    return 0;
}

int chain_commit(struct chain *chain, int64_t block, char file[64], char sha256[DIGEST_HEX_SIZE])
{
    char work[64];
    char from[600];
    char to[600];
    int64_t size;
    int rc;

    snprintf(work, sizeof(work), "%s.out.tmp", chain->name);
    snprintf(file, 64, "%s-%05lld.act", chain->name, (long long)block);
    if ((rc = chain_path(chain, work, from, sizeof(from))) != 0 ||
        (rc = chain_path(chain, file, to, sizeof(to))) != 0) {
        return rc;
    }
    if (!on_disk(chain)) {
        rc = write_memory(chain, from, sha256);
    } else {
        rc = digest_file(chain->out, sha256, &size);
        rc = rc == 0 ? fs_sync(chain->out) : rc;
    }
    if (rc != 0) {
        return err_pass(rc, "save %s after block %lld", chain->name, (long long)block);
    }
    if (rename(from, to) != 0) {
        return err_raise_errno(errno, "cannot rename to %s", to);
    }
    if ((rc = fs_sync_dir(chain->directory)) != 0) {
        return rc;
    }
    if (on_disk(chain)) {
        if (chain->in >= 0) {
            close(chain->in);
        }
        chain->in = chain->out;
        chain->out = -1;
        return open_work_file(chain, "out", &chain->out);
    }
    return 0;
}

int chain_turn(struct chain *chain)
{
    if (!on_disk(chain)) {
        return 0;
    }
    if (chain->in >= 0) {
        close(chain->in);
    }
    chain->in = chain->out; /* lives on without a name for as long as its descriptor */
    chain->out = -1;
    remove_work_file(chain, "out");
    return open_work_file(chain, "out", &chain->out);
}

/* Read the file in pieces into memory (when kept there), hashing on the way. */
static int load_and_hash(struct chain *chain, int fd, char sha256[DIGEST_HEX_SIZE])
{
    size_t piece = CHAIN_PIECE;
    struct digest *digest = digest_new();
    int rc = bounce_reserve(chain, piece);

    if (digest == NULL || rc != 0) {
        digest_free(digest);
        return rc != 0 ? rc : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a digest");
    }
    for (size_t done = 0; rc == 0 && done < chain->bytes; done += piece) {
        if (piece > chain->bytes - done) {
            piece = chain->bytes - done;
        }
        char *into = chain->memory != NULL ? (char *)chain->memory + done : (char *)chain->bounce;
        rc = fs_pread_full(fd, into, piece, (int64_t)done);
        if (rc == 0) {
            digest_update(digest, into, piece);
        }
        if (rc == 0 && chain->device != NULL) {
            rc = chain->budget->gpu->ops->upload(chain->budget->stream, (char *)chain->device + done, into, piece);
        }
    }
    if (rc != 0) {
        digest_free(digest);
        return rc;
    }
    digest_finish(digest, sha256);
    return 0;
}

int chain_load(struct chain *chain, const char *file, const char *sha256)
{
    char path[600];
    char found[DIGEST_HEX_SIZE];

    int rc = chain_path(chain, file, path, sizeof(path));
    if (rc != 0) {
        return rc;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT ? err_raise(ERR_NOT_FOUND, "checkpoint file %s is missing", file)
                               : err_raise_errno(errno, "cannot open checkpoint file %s", file);
    }
    rc = load_and_hash(chain, fd, found);
    if (rc == 0 && strcmp(found, sha256) != 0) {
        rc = err_raise(ERR_SOURCE_CORRUPT, "checkpoint file %s does not have its digest", file);
    }
    if (rc != 0 || !on_disk(chain)) {
        close(fd);
        return rc;
    }
    if (chain->in >= 0) {
        close(chain->in);
    }
    chain->in = fd;
    return 0;
}

int chain_sweep(struct chain *chain, const char *keep)
{
    size_t stem = strlen(chain->name);
    DIR *directory = opendir(chain->directory);

    if (directory == NULL) {
        return err_raise_errno(errno, "cannot list %s", chain->directory);
    }
    for (struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory)) {
        size_t length = strlen(entry->d_name);
        bool ours = length > stem + 5 && strncmp(entry->d_name, chain->name, stem) == 0 && entry->d_name[stem] == '-' &&
                    strcmp(entry->d_name + length - 4, ".act") == 0;
        if (ours && (keep == NULL || strcmp(entry->d_name, keep) != 0)) {
            (void)unlinkat(dirfd(directory), entry->d_name, 0);
        }
    }
    closedir(directory);
    return 0;
}
