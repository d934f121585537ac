/* The neutral quantized tensor in host memory: one byte a code, whatever its bits, so that methods and formats need no
 * bit arithmetic in common. */

#include "models/qtensor.h"

#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_scheme(const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    if (strlen(name) >= sizeof(((struct qtensor *)0)->name)) {
        return err_raise(ERR_INVALID_MODEL, "the module name \"%.160s\" is too long", name);
    }
    if (rows < 1 || cols < 1 || rows > INT32_MAX || cols > INT32_MAX) {
        return err_raise(ERR_INVALID_MODEL, "%s: a quantized tensor of [%lld, %lld]", name, (long long)rows,
                         (long long)cols);
    }
    if (scheme->kind != QTENSOR_INT || scheme->bits < 2 || scheme->bits > 8 ||
        (scheme->scale_dtype != DTYPE_F32 && scheme->scale_dtype != DTYPE_F16 && scheme->scale_dtype != DTYPE_BF16)) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "%s: no scheme of kind %d, %d bits, %s scales", name,
                         (int)scheme->kind, scheme->bits,
                         scheme->scale_dtype < DTYPE_COUNT ? dtype_rows[scheme->scale_dtype].name : "unknown");
    }
    if (scheme->group_size < 1 || scheme->group_size > cols || cols % scheme->group_size != 0) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "%s: group_size %lld does not divide its %lld inputs", name,
                         (long long)scheme->group_size, (long long)cols);
    }
    return 0;
}

int qtensor_new(const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols, struct qtensor *out)
{
    int rc = check_scheme(name, scheme, rows, cols);
    if (rc != 0) {
        return rc;
    }
    struct qtensor q = {.scheme = *scheme, .rows = rows, .cols = cols, .groups = cols / scheme->group_size};
    snprintf(q.name, sizeof(q.name), "%s", name);
    q.codes = calloc((size_t)rows, (size_t)cols);
    q.scales = calloc((size_t)rows * (size_t)q.groups, sizeof(*q.scales));
    q.zeros = calloc((size_t)rows, (size_t)q.groups);
    if (q.codes == NULL || q.scales == NULL || q.zeros == NULL) {
        qtensor_deinit(&q);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "%s: no memory for [%lld, %lld] codes", name, (long long)rows,
                         (long long)cols);
    }
    *out = q;
    return 0;
}

void qtensor_deinit(struct qtensor *q)
{
    free(q->codes);
    free(q->scales);
    free(q->zeros);
    *q = (struct qtensor){0};
}

void qtensor_dequantize(const struct qtensor *q, float *out)
{
    int64_t size = q->scheme.group_size;

    for (int64_t n = 0; n < q->rows; n++) {
        for (int64_t g = 0; g < q->groups; g++) {
            float scale = q->scales[n * q->groups + g];
            int zero = q->zeros[n * q->groups + g];
            const uint8_t *codes = q->codes + n * q->cols + g * size;
            float *w = out + n * q->cols + g * size;
            for (int64_t k = 0; k < size; k++) {
                w[k] = scale * (float)((int)codes[k] - zero);
            }
        }
    }
}

double qtensor_bits_per_weight(const struct qtensor *q)
{
    int per_group = 8 * dtype_rows[q->scheme.scale_dtype].bytes + (q->scheme.sym ? 0 : q->scheme.bits);

    return (double)q->scheme.bits + (double)per_group / (double)q->scheme.group_size;
}
