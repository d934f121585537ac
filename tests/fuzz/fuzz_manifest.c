/* Manifests as quantctl reads them: JSON -> manifest_read. What is accepted stays below a directory. */

#include "base/err.h"
#include "base/json.h"
#include "cli/manifest.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The plain reading of what a path must not be. */
static void check_path(const char *path)
{
    size_t size = strlen(path);

    if (size == 0 || path[0] == '/' || path[size - 1] == '/' || strstr(path, "//") != NULL || strcmp(path, "..") == 0 ||
        strncmp(path, "../", 3) == 0 || strstr(path, "/../") != NULL ||
        (size > 2 && strcmp(path + size - 3, "/..") == 0)) {
        abort();
    }
    for (size_t i = 0; i < size; i++) {
        if ((unsigned char)path[i] < 0x20 || path[i] == 0x7f || path[i] == '\\') {
            abort();
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct manifest manifest = {0};
    json_t *artifact = NULL;

    if (json_parse((const char *)data, size, 16, &artifact) != 0) {
        return 0;
    }
    if (manifest_read(artifact, &manifest) == 0) {
        int64_t bytes = 0;
        for (size_t i = 0; i < manifest.count; i++) {
            check_path(manifest.files[i].path);
            bytes += manifest.files[i].bytes;
            if (i > 0 && strcmp(manifest.files[i - 1].path, manifest.files[i].path) >= 0) {
                abort();
            }
        }
        if (manifest.count == 0 || bytes != manifest.bytes) {
            abort();
        }
        manifest_deinit(&manifest);
    } else if (manifest.files != NULL || err_last()->message[0] == '\0') {
        abort();
    }
    json_decref(artifact);
    return 0;
}
