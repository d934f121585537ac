/* Reading the container: 8 bytes of header size N, N bytes of JSON, then the data.
 *
 * Sizes come from strangers: N must lie within the file and the cap before it is believed, the rest is
 * safetensors_header.c's. Data is read with pread, so a file that shrinks under us is an error and no signal. After
 * opening nothing changes, so threads share it. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "base/text.h"
#include "models/safetensors_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAMES_MAX ((size_t)192 << 20) /* bytes of arena: the largest header, unescaped and aligned */

/* The header's size as the file states it, within the file and the cap. */
static int read_size(const struct safetensors *file, size_t *size)
{
    unsigned char prefix[SAFETENSORS_PREFIX];
    uint64_t stated = 0;

    if (file->size < SAFETENSORS_PREFIX) {
        return err_raise(ERR_INVALID_MODEL, "%.120s: %s", file->label, "shorter than the 8 bytes of its header size");
    }
    int rc = fs_pread_full(file->fd, prefix, sizeof(prefix), 0);
    if (rc != 0) {
        return err_pass(rc, "header size of %s", file->label);
    }
    for (int i = SAFETENSORS_PREFIX - 1; i >= 0; i--) {
        stated = stated << 8 | prefix[i];
    }
    char start[64] = "";
    size_t shown = (uint64_t)file->size < sizeof(start) ? (size_t)file->size : sizeof(start);
    if (memcmp(prefix, "version ", sizeof(prefix)) == 0 && fs_pread_full(file->fd, start, shown, 0) == 0 &&
        text_is_lfs_pointer(start, shown)) {
        return err_set_hint(err_raise(ERR_INVALID_MODEL,
                                      "%.120s is a pointer file of git-lfs: the weights themselves were not downloaded",
                                      file->label),
                            "run \"git lfs pull\" in the checkpoint's folder");
    }
    if (stated > SAFETENSORS_HEADER_MAX || stated > (uint64_t)file->size - SAFETENSORS_PREFIX) {
        return err_raise(ERR_INVALID_MODEL, "%.120s: a header of %llu bytes does not fit in a file of %lld",
                         file->label, (unsigned long long)stated, (long long)file->size);
    }
    *size = (size_t)stated;
    return 0;
}

static int safetensors_load(struct safetensors *file)
{
    struct stat info;
    size_t size = 0;

    if (fstat(file->fd, &info) != 0) {
        return err_raise_errno(errno, "cannot stat %.120s", file->label);
    }
    if (!S_ISREG(info.st_mode)) {
        return err_raise(ERR_INVALID_MODEL, "%.120s: %s", file->label, "not a regular file");
    }
    file->size = info.st_size;
    AUTO_FREE char *header = NULL;
    TRY(read_size(file, &size));
    TRY(mem_buffer(&header, size));
    int rc = fs_pread_full(file->fd, header, size, SAFETENSORS_PREFIX);
    return rc != 0 ? err_pass(rc, "header of %s", file->label) : safetensors_header_load(file, header, size);
}

int safetensors_open_fd_take(int fd, const char *label, struct safetensors **out)
{
    AUTO_CLOSE int taken = fd;
    AUTO(safetensors) struct safetensors *file = NULL;

    TRY(mem_new(&file));
    file->fd = cleanup_move_fd(&taken);
    arena_init(&file->arena, NAMES_MAX);
    file->label = arena_strndup(&file->arena, label, strlen(label));
    TRY(arena_check(&file->arena));
    int rc = safetensors_load(file);
    if (rc != 0) {
        return err_pass(rc, "open %s", label);
    }
    *out = MOVE(file);
    return 0;
}

void safetensors_close(struct safetensors *file)
{
    if (file == NULL) {
        return;
    }
    if (file->fd >= 0) {
        close(file->fd);
    }
    free(file->entries);
    free(file->by_name);
    free(file->metadata);
    arena_deinit(&file->arena);
    free(file);
}

size_t safetensors_count(const struct safetensors *file)
{
    return file->count;
}

const struct safetensors_entry *safetensors_at(const struct safetensors *file, size_t i)
{
    return &file->entries[i];
}

const struct safetensors_entry *safetensors_find(const struct safetensors *file, const char *name)
{
    const struct safetensors_entry key = {.name = name};
    const struct safetensors_entry *sought = &key;
    const struct safetensors_entry **found =
        bsearch(&sought, file->by_name, file->count, sizeof(struct safetensors_entry *), safetensors_header_by_name);

    return found != NULL ? *found : NULL;
}

const char *safetensors_metadata(const struct safetensors *file, const char *key)
{
    const struct safetensors_pair sought = {key, NULL};
    const struct safetensors_pair *found = NULL;

    if (file->metadata_count > 0) {
        found = bsearch(&sought, file->metadata, file->metadata_count, sizeof(sought), safetensors_header_by_key);
    }
    return found != NULL ? found->value : NULL;
}

int safetensors_read(const struct safetensors *file, const struct safetensors_entry *entry, uint64_t offset,
                     void *buffer, size_t size)
{
    uint64_t bytes = entry->end - entry->begin;

    if (offset > bytes || size > bytes - offset) {
        return err_raise(ERR_INTERNAL, "a read of %zu bytes at %llu leaves tensor %.160s", size,
                         (unsigned long long)offset, entry->name);
    }
    int rc = fs_pread_full(file->fd, buffer, size, (int64_t)(entry->begin + offset));
    return rc != 0 ? err_pass(rc, "tensor %s of %s", entry->name, file->label) : 0;
}

size_t safetensors_header_bytes(const struct safetensors *file)
{
    return (size_t)(file->data_begin - SAFETENSORS_PREFIX);
}

int64_t safetensors_file_bytes(const struct safetensors *file)
{
    return file->size;
}

const char *safetensors_header_digest(const struct safetensors *file)
{
    return file->header_digest;
}

int safetensors_fd(const struct safetensors *file)
{
    return file->fd;
}
