/* Files of finished blocks: whatever opens has arrays of its schemes' shapes, and what reads can be given back as
 * floats and saved again. */

#include "models/qtensor.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define ELEMENTS_MAX ((int64_t)1 << 20) /* of a weight that is computed */

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

static void check_item(struct qtensor_file *file, int i)
{
    const struct qtensor *meta = qtensor_file_meta(file, i);
    struct qtensor q, beside;

    if (meta->rows < 1 || meta->cols < 1 || meta->name[0] == '\0') {
        abort();
    }
    bool readable = qtensor_file_read(file, i, &q) == 0;
    if (qtensor_file_read_without_codes(file, i, &beside) == 0) {
        if (beside.codes != NULL || beside.entries != NULL) {
            abort();
        }
        qtensor_deinit(&beside);
    } else if (readable) {
        abort(); /* a part of what could be read */
    }
    if (!readable) {
        return;
    }
    if (q.rows != meta->rows || q.cols != meta->cols || !(qtensor_bits_per_weight(&q) > 0)) {
        abort();
    }
    if (q.cols <= ELEMENTS_MAX / q.rows) {
        float *weight = malloc((size_t)(q.rows * q.cols) * sizeof(*weight));
        if (weight != NULL) {
            qtensor_dequantize(&q, weight);
        }
        free(weight);
    }
    qtensor_deinit(&q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct qtensor_file *file;
    char path[64];
    int fd = file_of(data, size);

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    if (qtensor_file_open(path, NULL, &file) == 0) {
        for (int i = 0; i < qtensor_file_count(file); i++) {
            check_item(file, i);
        }
        qtensor_file_close(file);
    }
    close(fd);
    return 0;
}
