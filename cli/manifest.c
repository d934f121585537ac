/* Manifests. */

#include "cli/manifest.h"

#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <stdlib.h>
#include <string.h>

#define COMPONENT_MAX 200 /* a file system has 255 bytes; the suffix of an unfinished file fits too */

static const char *component_fault(const char *name, size_t size)
{
    if (size == 0) {
        return "it has an empty component";
    }
    if ((size == 1 && name[0] == '.') || (size == 2 && name[0] == '.' && name[1] == '.')) {
        return "it leaves its directory";
    }
    if (size > COMPONENT_MAX) {
        return "it is too long";
    }
    if (memmem(name, size, ".quantctl-", 10) != NULL) {
        return "it is a name of quantctl's own";
    }
    return NULL;
}

const char *manifest_path_fault(const char *path, size_t size)
{
    if (size == 0 || size > MANIFEST_PATH_MAX) {
        return size == 0 ? "it is empty" : "it is too long";
    }
    if (path[0] == '/') {
        return "it is absolute";
    }
    for (size_t at = 0; at < size;) {
        unsigned code = 0;
        size_t length = safe_decode(path + at, size - at, &code);
        if (length == 0 || code < 0x20 || (code >= 0x7f && code < 0xa0) || code == '\\') {
            return "it has a byte that no file name should have";
        }
        at += length;
    }
    for (size_t at = 0; at <= size;) {
        const char *slash = memchr(path + at, '/', size - at);
        size_t end = slash != NULL ? (size_t)(slash - path) : size;
        const char *fault = component_fault(path + at, end - at);
        if (fault != NULL) {
            return fault;
        }
        at = end + 1;
    }
    return NULL;
}

int manifest_check_path(const char *path, size_t size)
{
    const char *fault = manifest_path_fault(path, size);

    return fault == NULL ? 0
                         : status_fail(STATUS_MISMATCH, "the manifest names the file \"%.*s\", which is refused: %s",
                                       (int)(size < 200 ? size : 200), path, fault);
}

static int read_file(const json_t *object, struct manifest_file *file)
{
    const json_t *path = json_object_get(object, "path");
    const char *sha256 = json_get_string(object, "sha256");

    if (!json_is_string(path)) {
        return status_fail(STATUS_SERVER, "a file of the manifest has no path");
    }
    TRY(manifest_check_path(json_string_value(path), json_string_length(path)));
    if (json_get_int(object, "bytes", 0, INT64_MAX / 2, &file->bytes) != 1) {
        return status_fail(STATUS_SERVER, "the manifest does not say how long \"%.200s\" is", json_string_value(path));
    }
    if (sha256 == NULL || strlen(sha256) != DIGEST_HEX_SIZE - 1 || strspn(sha256, "0123456789abcdef") != 64) {
        return status_fail(STATUS_SERVER, "the manifest has no SHA-256 of \"%.200s\"", json_string_value(path));
    }
    memcpy(file->sha256, sha256, sizeof(file->sha256));
    return mem_strdup(&file->path, json_string_value(path));
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct manifest_file *)a)->path, ((const struct manifest_file *)b)->path);
}

/* No path twice, and none that is a directory of another: in order, a path's directories are right before it but for
 * names with smaller characters, so each prefix is looked up. */
static int manifest_check_paths(const struct manifest *manifest)
{
    for (size_t i = 0; i < manifest->count; i++) {
        char path[MANIFEST_PATH_MAX + 1];
        if (i > 0 && by_path(&manifest->files[i - 1], &manifest->files[i]) == 0) {
            return status_fail(STATUS_MISMATCH, "the manifest names \"%.200s\" twice", manifest->files[i].path);
        }
        memcpy(path, manifest->files[i].path, strlen(manifest->files[i].path) + 1); /* it was checked to fit */
        for (char *slash = strrchr(path, '/'); slash != NULL; slash = strrchr(path, '/')) {
            *slash = '\0';
            const struct manifest_file key = {.path = path};
            if (bsearch(&key, manifest->files, manifest->count, sizeof(key), by_path) != NULL) {
                return status_fail(STATUS_MISMATCH, "the manifest has \"%.200s\" as a file and as a directory", path);
            }
        }
    }
    return 0;
}

int manifest_read(const json_t *artifact, struct manifest *manifest)
{
    AUTO(manifest) struct manifest read = {0};
    const json_t *files = json_object_get(artifact, "files");
    size_t count = json_array_size(files);

    if (!json_is_array(files) || count == 0 || count > MANIFEST_FILES_MAX) {
        return status_fail(STATUS_SERVER, "the artifact has no list of files, or one that is too long");
    }
    TRY(mem_array(&read.files, count));
    for (size_t i = 0; i < count; i++) {
        TRY(read_file(json_array_get(files, i), &read.files[i]));
        read.count++;
        if (__builtin_add_overflow(read.bytes, read.files[i].bytes, &read.bytes)) {
            return status_fail(STATUS_SERVER, "the sizes of the manifest are not possible");
        }
    }
    qsort(read.files, read.count, sizeof(*read.files), by_path);
    TRY(manifest_check_paths(&read));
    *manifest = read;
    memset(&read, 0, sizeof(read));
    return 0;
}

void manifest_deinit(struct manifest *manifest)
{
    for (size_t i = 0; i < manifest->count; i++) {
        free(manifest->files[i].path);
    }
    free(manifest->files);
    memset(manifest, 0, sizeof(*manifest));
}
