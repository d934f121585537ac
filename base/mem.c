/* Pointers are stored through memcpy: `out` points to a pointer of any type. */

#include "base/mem.h"

#include "base/err.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static int mem_store(void *out, void *memory, size_t count, size_t size)
{
    if (memory == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot allocate %zu elements of %zu bytes", count, size);
    }
    memcpy(out, &memory, sizeof(memory));
    return 0;
}

/* malloc and realloc may answer NULL when they are asked for nothing, which is not a failure. */
static bool mem_bytes(size_t count, size_t size, size_t *bytes)
{
    if (__builtin_mul_overflow(count, size, bytes)) {
        return false;
    }
    *bytes = *bytes > 0 ? *bytes : 1;
    return true;
}

int mem_zeroed(void *out, size_t count, size_t size)
{
    size_t bytes;
    return mem_store(out, mem_bytes(count, size, &bytes) ? calloc(1, bytes) : NULL, count, size);
}

int mem_uninitialized(void *out, size_t count, size_t size)
{
    size_t bytes;
    return mem_store(out, mem_bytes(count, size, &bytes) ? malloc(bytes) : NULL, count, size);
}

int mem_resized(void *out, size_t count, size_t size)
{
    size_t bytes;
    void *old;

    memcpy(&old, out, sizeof(old));
    return mem_store(out, mem_bytes(count, size, &bytes) ? realloc(old, bytes) : NULL, count, size);
}

int mem_strdup(char **out, const char *text)
{
    return mem_store(out, strdup(text), strlen(text) + 1, 1);
}
