/* safetensors files: whatever opens must tile its data, be findable by name and readable to its last byte. */

#include "models/safetensors.h"

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int file_of(const uint8_t *data, size_t size)
{
    int fd = memfd_create("input", MFD_CLOEXEC);

    for (size_t at = 0; fd >= 0 && at < size;) {
        ssize_t n = write(fd, data + at, size - at);
        if (n <= 0) {
            abort();
        }
        at += (size_t)n;
    }
    return fd >= 0 ? fd : (abort(), -1);
}

static void check_entry(const struct safetensors *file, const struct safetensors_entry *entry)
{
    uint64_t bytes = dtype_rows[entry->dtype].bytes;
    _Alignas(8) unsigned char values[512];
    char byte;

    for (int i = 0; i < entry->rank; i++) {
        bytes *= (uint64_t)entry->shape[i];
    }
    if (bytes != entry->end - entry->begin || safetensors_find(file, entry->name) != entry) {
        abort();
    }
    uint64_t seen = bytes < sizeof(values) ? bytes : sizeof(values);
    int64_t count = (int64_t)(seen / dtype_rows[entry->dtype].bytes), found = -1;
    if (safetensors_read(file, entry, 0, values, (size_t)seen) != 0) {
        abort();
    }
    found = dtype_find_nonfinite(entry->dtype, values, count);
    if (found < -1 || found >= count || (found > 0 && dtype_find_nonfinite(entry->dtype, values, found) >= 0)) {
        abort(); /* the first, or none */
    }
    if (bytes > 0 && safetensors_read(file, entry, bytes - 1, &byte, 1) != 0) {
        abort();
    }
    if (safetensors_read(file, entry, bytes, &byte, 1) == 0) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors *file;
    uint64_t at;

    if (safetensors_open_fd_take(file_of(data, size), "input", &file) != 0) {
        return 0;
    }
    at = safetensors_count(file) > 0 ? safetensors_at(file, 0)->begin : (uint64_t)size;
    for (size_t i = 0; i < safetensors_count(file); i++) {
        const struct safetensors_entry *entry = safetensors_at(file, i);
        if (entry->begin != at) {
            abort();
        }
        at = entry->end;
        check_entry(file, entry);
    }
    if (at != (uint64_t)size || safetensors_file_bytes(file) != (int64_t)size) {
        abort();
    }
    safetensors_close(file);
    return 0;
}
