#pragma once
/* Checked heap memory: sizes are multiplied without overflow, and a failure raises
 * ERR_HOST_OUT_OF_MEMORY. Released by free(). Any thread.
 *
 *     AUTO_FREE double *sums = NULL;
 *     TRY(mem_array(&sums, columns));
 *
 * `out` is the address of a typed pointer; it is set on success only, its type gives the size of an element. */

#include <stddef.h>

/* One zeroed element. */
#define mem_new(out) mem_array((out), 1)
/* `count` zeroed elements; a count of 0 gives memory that may be freed and not read. */
#define mem_array(out, count) mem_zeroed((out), (count), sizeof(**(out)))
/* `count` uninitialized elements, for buffers that are written before they are read. */
#define mem_buffer(out, count) mem_uninitialized((out), (count), sizeof(**(out)))
/* Change the size of *out (NULL: none yet) to `count` elements; new ones are uninitialized. Unchanged on
 * failure. */
#define mem_resize(out, count) mem_resized((out), (count), sizeof(**(out)))

int mem_zeroed(void *out, size_t count, size_t size);
int mem_uninitialized(void *out, size_t count, size_t size);
int mem_resized(void *out, size_t count, size_t size);
/* A copy of text. */
int mem_strdup(char **out, const char *text);
