#pragma once
/* Bump memory with one owner: many small allocations, one free. Overflow is sticky, so that a
 * long construction needs one check at its end. Not for sharing between threads. */

#include "base/cleanup.h"

#include <stdbool.h>
#include <stddef.h>

struct arena {
    struct arena_chunk *chunks; /* newest first */
    size_t used;                /* bytes handed out */
    size_t limit;               /* 0 = no limit */
    bool failed;                /* sticky: an allocation failed or passed the limit */
};

void arena_init(struct arena *arena, size_t limit);
void arena_deinit(struct arena *arena);
/* Zeroed, 16-byte aligned; NULL (and sticky failure) when out of memory or over the limit. */
void *arena_alloc(struct arena *arena, size_t size);
char *arena_strndup(struct arena *arena, const char *text, size_t size);
/* 0, or raises ERR_HOST_OUT_OF_MEMORY when anything failed. */
int arena_check(const struct arena *arena);

CLEANUP_DEINIT(arena, struct arena, arena_deinit)
