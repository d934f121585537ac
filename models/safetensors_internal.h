#pragma once
/* What safetensors.c (files) and safetensors_header.c (their headers) share. Not for other files. */

#include "base/arena.h"
#include "base/digest.h"
#include "models/safetensors.h"

#include <stdbool.h>

#define SAFETENSORS_PREFIX 8 /* bytes of header size before the header */

struct safetensors_pair {
    const char *key, *value;
};

struct safetensors {
    int fd;
    char *label;
    int64_t size;
    uint64_t data_begin; /* SAFETENSORS_PREFIX + header size */
    char header_digest[DIGEST_HEX_SIZE];
    struct arena arena;
    struct safetensors_entry *entries; /* by begin */
    const struct safetensors_entry **by_name;
    size_t count, capacity;
    struct safetensors_pair *metadata; /* by key */
    size_t metadata_count, metadata_capacity;
    bool metadata_seen;
};

/* Parse and check the header against file->size; fills entries, by_name, metadata, digest. */
int safetensors_header_load(struct safetensors *file, const char *header, size_t size);
/* For bsearch: file->by_name, file->metadata. */
int safetensors_header_by_name(const void *a, const void *b);
int safetensors_header_by_key(const void *a, const void *b);
