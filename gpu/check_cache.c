/* Arguments of the operations on keys and values. */

#include "gpu/check.h"

#include "base/err.h"

int check_cache(const struct tensor *y, const struct tensor *x, const struct gpu_cache *spec)
{
    int64_t rows = matrix_rows(x), cols = matrix_cols(x);
    int rc = check_matrix("quantize_cache", "x", x, DTYPE_F32, -1, -1);

    rc = rc != 0 ? rc : check_matrix("quantize_cache", "y", y, DTYPE_F32, rows, cols);
    if (rc == 0 && (spec->run < 1 || cols % spec->run != 0)) {
        rc = err_raise(ERR_INTERNAL, "quantize_cache: runs of %lld in rows of %lld", (long long)spec->run,
                       (long long)cols);
    }
    if (rc == 0 && spec->number != GPU_NUMBER_NONE) {
        if (spec->scale == NULL || (spec->number != GPU_NUMBER_INT8 && spec->number != GPU_NUMBER_E4M3)) {
            return err_raise(ERR_INTERNAL, "quantize_cache: number %d without a scale", (int)spec->number);
        }
        return check_vector("quantize_cache", "scale", spec->scale, cols / spec->run);
    }
    if (rc == 0 &&
        (spec->bits < 1 || spec->bits > 8 || spec->tokens < 1 || spec->length < 1 || rows % spec->length != 0)) {
        rc = err_raise(ERR_INTERNAL, "quantize_cache: %d bits, groups of %lld in %lld rows of sequences of %lld",
                       spec->bits, (long long)spec->tokens, (long long)rows, (long long)spec->length);
    }
    return rc;
}

int check_attention_error(const struct tensor *q, const struct tensor *k, const struct tensor *v,
                          const struct tensor *kq, const struct tensor *vq, const struct gpu_attention *spec,
                          int64_t recent)
{
    int rc = check_attention(q, q, k, v, spec);

    rc = rc != 0 ? rc : check_matrix("attention_error", "kq", kq, DTYPE_F32, matrix_rows(k), matrix_cols(k));
    rc = rc != 0 ? rc : check_matrix("attention_error", "vq", vq, DTYPE_F32, matrix_rows(v), matrix_cols(v));
    if (rc == 0 && recent < 0) {
        rc = err_raise(ERR_INTERNAL, "attention_error: a recent window of %lld", (long long)recent);
    }
    return rc;
}
