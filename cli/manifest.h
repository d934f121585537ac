#pragma once
/* The manifest of an artifact: files with sizes and digests. It comes from a server that need not be trusted with this
 * host's file system, so every path is checked before anything is written. */

#include "base/cleanup.h"
#include "base/digest.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#define MANIFEST_FILES_MAX 100000
#define MANIFEST_PATH_MAX 1024

struct manifest_file {
    char *path;
    int64_t bytes;
    char sha256[DIGEST_HEX_SIZE];
};

struct manifest {
    size_t count;
    struct manifest_file *files;
    int64_t bytes; /* of all files */
};

/* Why a path is refused, or NULL; see the next one. */
const char *manifest_path_fault(const char *path, size_t size);
/* 0 if path stays below a directory and can be shown: relative, of components that are neither empty nor "." nor "..",
 * without control characters and backslashes, valid UTF-8, and none that quantctl uses itself. STATUS_MISMATCH
 * otherwise, with the reason. size: bytes of path, which may have a NUL. */
int manifest_check_path(const char *path, size_t size);
/* Read the artifact object. STATUS_MISMATCH for an unsafe or repeated path; STATUS_SERVER for another fault. */
int manifest_read(const json_t *artifact, struct manifest *manifest);
void manifest_deinit(struct manifest *manifest);
CLEANUP_DEINIT(manifest, struct manifest, manifest_deinit)

/* The name of an unfinished download and of its map, next to the file's own. */
#define MANIFEST_PART ".quantctl-part"
#define MANIFEST_MAP ".quantctl-map"
