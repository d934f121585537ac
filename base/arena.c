/* Chunks double from 4 KiB to 1 MiB; a request larger than a chunk gets one of its own. */

#include "base/arena.h"

#include "base/err.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 16u
#define FIRST_CHUNK 4096u
#define LAST_CHUNK (1u << 20)

struct arena_chunk {
    struct arena_chunk *next;
    size_t size, used;
    _Alignas(16) char data[];
};

void arena_init(struct arena *arena, size_t limit)
{
    *arena = (struct arena){.limit = limit};
}

void arena_deinit(struct arena *arena)
{
    struct arena_chunk *chunk = arena->chunks;
    while (chunk != NULL) {
        struct arena_chunk *next = chunk->next;
        free(chunk);
        chunk = next;
    }
    *arena = (struct arena){.limit = arena->limit};
}

static struct arena_chunk *arena_grow(struct arena *arena, size_t size)
{
    size_t last = arena->chunks == NULL ? 0 : arena->chunks->size;
    size_t next = last == 0 ? FIRST_CHUNK : last > LAST_CHUNK / 2 ? LAST_CHUNK : last * 2;
    next = next < size ? size : next;
    struct arena_chunk *chunk = calloc(1, sizeof(*chunk) + next);
    if (chunk != NULL) {
        chunk->size = next;
        chunk->next = arena->chunks;
        arena->chunks = chunk;
    }
    return chunk;
}

void *arena_alloc(struct arena *arena, size_t size)
{
    if (arena->failed || size > SIZE_MAX / 2 ||
        (arena->limit > 0 && (size > arena->limit || arena->used > arena->limit - size))) {
        arena->failed = true;
        return NULL;
    }
    size_t rounded = (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    struct arena_chunk *chunk = arena->chunks;
    if (chunk == NULL || chunk->size - chunk->used < rounded) {
        chunk = arena_grow(arena, rounded);
        if (chunk == NULL) {
            arena->failed = true;
            return NULL;
        }
    }
    void *result = chunk->data + chunk->used;
    chunk->used += rounded;
    arena->used += size;
    return result;
}

char *arena_strndup(struct arena *arena, const char *text, size_t size)
{
    char *copy = size < SIZE_MAX ? arena_alloc(arena, size + 1) : NULL;
    if (copy != NULL && size > 0) {
        memcpy(copy, text, size);
    }
    return copy;
}

int arena_check(const struct arena *arena)
{
    return arena->failed ? err_raise(ERR_HOST_OUT_OF_MEMORY, "more than %zu bytes needed for one input", arena->used)
                         : 0;
}
