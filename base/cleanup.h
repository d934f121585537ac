#pragma once
/* Scopes that release what they own (gcc's and clang's cleanup attribute), so that a function can return where it
 * fails.
 *
 *     AUTO_FREE char *text = NULL;
 *     AUTO_CLOSE int fd = -1;
 *     AUTO(digest) struct digest *digest = digest_new();
 *     TRY(fs_read_file(path, MAX, &text, &size));
 *     *out = MOVE(text);
 *
 * Each such variable is set where it is declared, and released when its scope ends, in reverse order. What a caller is
 * to own leaves by MOVE. errno survives a release. */

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AUTO_FREE __attribute__((cleanup(cleanup_free)))   /* a pointer from malloc, or NULL */
#define AUTO_CLOSE __attribute__((cleanup(cleanup_close))) /* a descriptor, or a negative number */
#define AUTO_FILE __attribute__((cleanup(cleanup_file)))   /* a FILE *, or NULL; not for files whose fclose may fail */
#define AUTO_JSON __attribute__((cleanup(cleanup_json)))   /* a reference to a json_t, or NULL */
#define AUTO(name) __attribute__((cleanup(cleanup_##name)))

/* Define AUTO(name), next to the function that releases the type:
 *     CLEANUP_FREE(digest, struct digest, digest_free)    for pointers; release takes the pointer, which may be NULL
 *     CLEANUP_DEINIT(arena, struct arena, arena_deinit)   for structs in place; release takes the struct's address */
#define CLEANUP_FREE(name, type, release)                \
    static inline void cleanup_##name(type *const *held) \
    {                                                    \
        int saved_errno = errno;                         \
        if (*held != NULL) {                             \
            release(*held);                              \
        }                                                \
        errno = saved_errno;                             \
    }
#define CLEANUP_DEINIT(name, type, release)       \
    static inline void cleanup_##name(type *held) \
    {                                             \
        int saved_errno = errno;                  \
        release(held);                            \
        errno = saved_errno;                      \
    }

/* The pointer's value; the variable is NULL from then on, so that its scope releases nothing. */
#define MOVE(pointer)                            \
    __extension__({                              \
        __typeof__(pointer) *from_ = &(pointer); \
        __typeof__(pointer) moved_ = *from_;     \
        *from_ = NULL;                           \
        moved_;                                  \
    })

/* The same of a descriptor, which becomes -1. */
static inline int cleanup_move_fd(int *fd)
{
    int moved = *fd;
    *fd = -1;
    return moved;
}

/* `held` is the address of a pointer of any type. */
static inline void cleanup_free(const void *held)
{
    void *memory;
    memcpy(&memory, held, sizeof(memory));
    free(memory);
}

static inline void cleanup_close(const int *fd)
{
    int saved_errno = errno;
    if (*fd >= 0) {
        close(*fd);
    }
    errno = saved_errno;
}

CLEANUP_FREE(file, FILE, (void)fclose)
CLEANUP_FREE(json, json_t, json_decref)
