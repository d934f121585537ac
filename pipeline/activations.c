/* Activation stores: device and host memory within stated budgets, files beyond them, durable between blocks.
 *
 * A store on the device is copied there by `convert` from F32 to F32, and passes through the staging buffer when it is
 * written to a file or read from one.
 *
 * Files hold raw little-endian F32 rows. Reads and writes use pread and pwrite, never a mapping, so spilled activations
 * cost page cache and not resident memory. A commit is temp -> fsync -> rename -> fsync directory. */

#include "pipeline/activations.h"

#include "base/cleanup.h"
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

#define ACTIVATIONS_PIECE (4 << 20) /* bytes hashed or copied at a time */

struct activations {
    char directory[512];
    char name[32];
    int64_t rows, width;
    size_t bytes;
    struct activations_budget *budget;
    float *device; /* not NULL: on the device */
    float *memory; /* not NULL: in host memory; else on disk */
    int in, out;   /* descriptors when on disk, -1 = none */
    float *bounce; /* staging between memory and disk */
    size_t bounce_bytes;
};

static bool on_disk(const struct activations *store)
{
    return store->device == NULL && store->memory == NULL;
}

static int activations_path(const struct activations *store, const char *file, char *out, size_t size)
{
    return fs_path(out, size, "%s/%s", store->directory, file);
}

static int open_work_file(const struct activations *store, const char *suffix, int *fd)
{
    char file[64];
    char path[600];

    snprintf(file, sizeof(file), "%s.%s.tmp", store->name, suffix);
    int rc = activations_path(store, file, path, sizeof(path));
    if (rc != 0) {
        return rc;
    }
    int opened = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (opened < 0) {
        return err_raise_errno(errno, "cannot create %s", path);
    }
    if (ftruncate(opened, (off_t)store->bytes) != 0) {
        int saved = errno;
        close(opened);
        return err_raise_errno(saved, "cannot size %s to %zu bytes", path, store->bytes);
    }
    *fd = opened;
    return 0;
}

int activations_new(const char *directory, const char *name, int64_t rows, int64_t width,
                    struct activations_budget *budget, struct activations **out)
{
    int64_t bytes;

    if (__builtin_mul_overflow(rows, width, &bytes) || __builtin_mul_overflow(bytes, (int64_t)sizeof(float), &bytes)) {
        return err_raise(ERR_INSUFFICIENT_MEMORY, "activations of %lld x %lld overflow", (long long)rows,
                         (long long)width);
    }
    struct activations *store = calloc(1, sizeof(*store));
    if (store == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an activation store");
    }
    snprintf(store->directory, sizeof(store->directory), "%s", directory);
    snprintf(store->name, sizeof(store->name), "%s", name);
    store->rows = rows;
    store->width = width;
    store->bytes = (size_t)bytes;
    store->budget = budget;
    store->in = -1;
    store->out = -1;
    if (bytes > 0 && budget->device_used + bytes <= budget->device_limit) {
        void *device;
        if (budget->gpu->ops->alloc(budget->gpu->device, store->bytes, false, &device) == 0) {
            store->device = device;
            budget->device_used += bytes;
        }
    }
    if (store->device == NULL && bytes > 0 && budget->used + bytes <= budget->limit) {
        void *memory = mmap(NULL, store->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory != MAP_FAILED) {
            store->memory = memory;
            budget->used += bytes;
        }
    }
    if (on_disk(store)) {
        int rc = open_work_file(store, "out", &store->out);
        if (rc != 0) {
            activations_free(store);
            return rc;
        }
    }
    *out = store;
    return 0;
}

static void remove_work_file(const struct activations *store, const char *suffix)
{
    char file[64];
    char path[600];
    snprintf(file, sizeof(file), "%s.%s.tmp", store->name, suffix);
    if (activations_path(store, file, path, sizeof(path)) == 0) {
        (void)unlink(path);
    }
}

size_t activations_bytes(const struct activations *store)
{
    return store->bytes;
}

void activations_free(struct activations *store)
{
    if (store == NULL) {
        return;
    }
    if (store->device != NULL) {
        store->budget->gpu->ops->free(store->budget->gpu->device, store->device);
        store->budget->device_used -= (int64_t)store->bytes;
    }
    if (store->memory != NULL) {
        munmap(store->memory, store->bytes);
        store->budget->used -= (int64_t)store->bytes;
    }
    if (store->in >= 0) {
        close(store->in);
    }
    if (store->out >= 0) {
        close(store->out);
        remove_work_file(store, "out");
    }
    free(store->bounce);
    free(store);
}

static int bounce_reserve(struct activations *store, size_t bytes)
{
    if (store->bounce_bytes >= bytes) {
        return 0;
    }
    float *grown = realloc(store->bounce, bytes);
    if (grown == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %zu bytes of activations", bytes);
    }
    store->bounce = grown;
    store->bounce_bytes = bytes;
    return 0;
}

/* As many elements as `tensor` has, from row `first` of the store on the device. */
static struct tensor device_view(const struct activations *store, int64_t first, const struct tensor *tensor)
{
    return tensor_1d(store->device + first * store->width, DTYPE_F32, tensor_count(tensor));
}

/* Row `first` where the device can work on it; NULL: it cannot. */
static float *in_place(const struct activations *store, int64_t first, const struct gpu *gpu)
{
    float *held = store->device != NULL ? store->device : gpu->info.host_memory ? store->memory : NULL;
    return held != NULL ? held + first * store->width : NULL;
}

void activations_place(const struct activations *store, int64_t first, struct tensor *rows, const struct gpu *gpu)
{
    float *place = in_place(store, first, gpu);

    rows->data = place != NULL ? place : rows->data;
}

int activations_open(struct activations *store, enum activations_side side, int64_t first, struct tensor *rows,
                     const struct gpu *gpu, struct gpu_stream *stream)
{
    if (in_place(store, first, gpu) != NULL) {
        activations_place(store, first, rows, gpu);
        return 0;
    }
    return activations_read(store, side, first, rows, gpu, stream);
}

int activations_read(struct activations *store, enum activations_side side, int64_t first, const struct tensor *to,
                     const struct gpu *gpu, struct gpu_stream *stream)
{
    size_t bytes = tensor_bytes(to);
    size_t offset = (size_t)first * (size_t)store->width * sizeof(float);

    if (store->device != NULL) {
        struct tensor from = device_view(store, first, to);
        return gpu->ops->convert(stream, to, &from);
    }
    if (store->memory != NULL) {
        return gpu->ops->upload(stream, to->data, (const char *)store->memory + offset, bytes);
    }
    int fd = side == ACTIVATIONS_IN ? store->in : store->out;
    int rc = bounce_reserve(store, bytes);
    if (rc == 0) {
        rc = fs_pread_full(fd, store->bounce, bytes, (int64_t)offset);
    }
    if (rc == 0) {
        rc = gpu->ops->upload(stream, to->data, store->bounce, bytes);
    }
    return rc != 0 ? err_pass(rc, "read %s rows at %lld", store->name, (long long)first) : 0;
}

int activations_write(struct activations *store, int64_t first, const struct tensor *from, const struct gpu *gpu,
                      struct gpu_stream *stream)
{
    size_t bytes = tensor_bytes(from);
    size_t offset = (size_t)first * (size_t)store->width * sizeof(float);

    if (from->data == in_place(store, first, gpu)) {
        return 0;
    }
    if (store->device != NULL) {
        struct tensor to = device_view(store, first, from);
        return gpu->ops->convert(stream, &to, from);
    }
    if (store->memory != NULL) {
        return gpu->ops->download(stream, (char *)store->memory + offset, from->data, bytes);
    }
    int rc = bounce_reserve(store, bytes);
    if (rc == 0) {
        rc = gpu->ops->download(stream, store->bounce, from->data, bytes);
    }
    if (rc == 0) {
        rc = fs_pwrite_full(store->out, store->bounce, bytes, (int64_t)offset);
    }
    return rc != 0 ? err_pass(rc, "write %s rows at %lld", store->name, (long long)first) : 0;
}

/* Bytes [at, at + size) of a store in memory, on the host. */
static int memory_piece(struct activations *store, size_t at, size_t size, const void **piece)
{
    if (store->memory != NULL) {
        *piece = (const char *)store->memory + at;
        return 0;
    }
    *piece = store->bounce;
    return store->budget->gpu->ops->download(store->budget->stream, store->bounce, (const char *)store->device + at,
                                             size);
}

static int write_pieces(struct activations *store, int fd, struct digest *digest)
{
    if (store->device != NULL) {
        TRY(bounce_reserve(store, ACTIVATIONS_PIECE));
    }
    for (size_t at = 0; at < store->bytes; at += ACTIVATIONS_PIECE) {
        size_t size = store->bytes - at < ACTIVATIONS_PIECE ? store->bytes - at : ACTIVATIONS_PIECE;
        const void *piece;
        TRY(memory_piece(store, at, size, &piece));
        digest_update(digest, piece, size);
        TRY(fs_pwrite_full(fd, piece, size, (int64_t)at));
    }
    return 0;
}

static int write_memory(struct activations *store, const char *path, char sha256[DIGEST_HEX_SIZE])
{
    AUTO(digest) struct digest *digest = digest_new();
    AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0) {
        return err_raise_errno(errno, "cannot create %s", path);
    }
    if (digest == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a digest");
    }
    TRY(write_pieces(store, fd, digest));
    TRY(fs_sync(fd));
    digest_finish(MOVE(digest), sha256);
    return 0;
}

int activations_commit(struct activations *store, int64_t block, char file[64], char sha256[DIGEST_HEX_SIZE])
{
    char work[64];
    char from[600];
    char to[600];
    int64_t size;
    int rc;

    snprintf(work, sizeof(work), "%s.out.tmp", store->name);
    snprintf(file, 64, "%s-%05lld.act", store->name, (long long)block);
    if ((rc = activations_path(store, work, from, sizeof(from))) != 0 ||
        (rc = activations_path(store, file, to, sizeof(to))) != 0) {
        return rc;
    }
    if (!on_disk(store)) {
        rc = write_memory(store, from, sha256);
    } else {
        rc = digest_file(store->out, sha256, &size);
        rc = rc == 0 ? fs_sync(store->out) : rc;
    }
    if (rc != 0) {
        return err_pass(rc, "save %s after block %lld", store->name, (long long)block);
    }
    if (rename(from, to) != 0) {
        return err_raise_errno(errno, "cannot rename to %s", to);
    }
    if ((rc = fs_sync_dir(store->directory)) != 0) {
        return rc;
    }
    if (on_disk(store)) {
        if (store->in >= 0) {
            close(store->in);
        }
        store->in = store->out;
        store->out = -1;
        return open_work_file(store, "out", &store->out);
    }
    return 0;
}

int activations_turn(struct activations *store)
{
    if (!on_disk(store)) {
        return 0;
    }
    if (store->in >= 0) {
        close(store->in);
    }
    store->in = store->out; /* without a name it exists as long as its descriptor */
    store->out = -1;
    remove_work_file(store, "out");
    return open_work_file(store, "out", &store->out);
}

/* Read the file in pieces, into memory where the store lives there, and hash it. */
static int load_and_hash(struct activations *store, int fd, char sha256[DIGEST_HEX_SIZE])
{
    size_t piece = ACTIVATIONS_PIECE;
    AUTO(digest) struct digest *digest = digest_new();

    if (digest == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a digest");
    }
    TRY(bounce_reserve(store, piece));
    for (size_t done = 0; done < store->bytes; done += piece) {
        if (piece > store->bytes - done) {
            piece = store->bytes - done;
        }
        char *into = store->memory != NULL ? (char *)store->memory + done : (char *)store->bounce;
        TRY(fs_pread_full(fd, into, piece, (int64_t)done));
        digest_update(digest, into, piece);
        if (store->device != NULL) {
            TRY(store->budget->gpu->ops->upload(store->budget->stream, (char *)store->device + done, into, piece));
        }
    }
    digest_finish(MOVE(digest), sha256);
    return 0;
}

int activations_load(struct activations *store, const char *file, const char *sha256)
{
    char path[600];
    char found[DIGEST_HEX_SIZE];

    int rc = activations_path(store, file, path, sizeof(path));
    if (rc != 0) {
        return rc;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT ? err_raise(ERR_NOT_FOUND, "checkpoint file %s is missing", file)
                               : err_raise_errno(errno, "cannot open checkpoint file %s", file);
    }
    rc = load_and_hash(store, fd, found);
    if (rc == 0 && strcmp(found, sha256) != 0) {
        rc = err_raise(ERR_SOURCE_CORRUPT, "checkpoint file %s does not have its digest", file);
    }
    if (rc != 0 || !on_disk(store)) {
        close(fd);
        return rc;
    }
    if (store->in >= 0) {
        close(store->in);
    }
    store->in = fd;
    return 0;
}

int activations_sweep(struct activations *store, const char *keep)
{
    size_t stem = strlen(store->name);
    DIR *directory = opendir(store->directory);

    if (directory == NULL) {
        return err_raise_errno(errno, "cannot list %s", store->directory);
    }
    for (struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory)) {
        size_t length = strlen(entry->d_name);
        bool ours = length > stem + 5 && strncmp(entry->d_name, store->name, stem) == 0 && entry->d_name[stem] == '-' &&
                    strcmp(entry->d_name + length - 4, ".act") == 0;
        if (ours && (keep == NULL || strcmp(entry->d_name, keep) != 0)) {
            (void)unlinkat(dirfd(directory), entry->d_name, 0);
        }
    }
    closedir(directory);
    return 0;
}
