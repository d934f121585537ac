/* float-quantized and naive-quantized: E4M3 weights with E4M3 inputs, and without.
 *
 *   M.weight        F8_E4M3 [N, K]
 *   M.weight_scale  [1] per tensor, [N, 1], or [ceil(N/b), ceil(K/b)] for blocks of b x b: w = q * scale
 *   M.input_scale   [1]  static inputs only
 *
 * Runtimes bring fused linears (q, k, v; gate, up) with a scale each to the largest of them; the method gave them one.
 */

#include "formats/compressed_tensors.h"

#include "base/err.h"

#include <assert.h>
#include <string.h>

enum float_tensor { FLOAT_CODES, FLOAT_SCALE, FLOAT_INPUT };

static bool ct_float_is_block(const struct qscheme *scheme)
{
    return !scheme->per_channel;
}

static bool is_per_tensor(const struct qscheme *scheme)
{
    return scheme->per_channel && scheme->group_rows > 1;
}

static int accepts_weights(const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    if (scheme->kind != QTENSOR_FLOAT8 || rows <= 0 || cols <= 0 || scheme->group_size <= 0) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "FP8 weights were expected");
    }
    if (scheme->scale_dtype == DTYPE_F8_E4M3 || scheme->scale_dtype == DTYPE_F8_E8M0) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "FP8 weights have scales of F32, F16 or BF16, not %s",
                         dtype_rows[scheme->scale_dtype].name);
    }
    if (scheme->element != DTYPE_F8_E4M3) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS, "compressed-tensors has no E5M2"), "fmt e4m3");
    }
    if (ct_float_is_block(scheme) && scheme->group_rows != scheme->group_size) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "blocks of %lld x %lld are not square",
                         (long long)scheme->group_rows, (long long)scheme->group_size);
    }
    if (!ct_float_is_block(scheme) &&
        (scheme->group_size != cols || (is_per_tensor(scheme) && scheme->group_rows != rows))) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "FP8 scales are per channel, per tensor or per square block");
    }
    return 0;
}

static int accepts_naive(const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    return accepts_weights(scheme, rows, cols);
}

static int ct_float_accepts(const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    int64_t group_size = ct_float_is_block(scheme) ? scheme->group_size : 0;
    int rc = accepts_weights(scheme, rows, cols);

    if (rc == 0 && (scheme->input.element != DTYPE_F8_E4M3 || scheme->input.group_size != group_size ||
                    (group_size > 0 && !scheme->input.dynamic))) {
        rc = err_raise(ERR_INCOMPATIBLE_OPTIONS, "FP8 weights go with FP8 inputs, in runs as wide as the blocks");
    }
    return rc;
}

static int ct_float_tensors(const struct qscheme *scheme, int64_t rows, int64_t cols,
                            struct format_tensor out[FORMAT_TENSORS_MAX])
{
    int64_t down = (rows + scheme->group_rows - 1) / (scheme->group_rows > 0 ? scheme->group_rows : 1);
    int64_t across = (cols + scheme->group_size - 1) / scheme->group_size;

    out[FLOAT_CODES] = (struct format_tensor){".weight", DTYPE_F8_E4M3, 2, {rows, cols}};
    out[FLOAT_SCALE] = is_per_tensor(scheme)
                           ? (struct format_tensor){".weight_scale", scheme->scale_dtype, 1, {1}}
                           : (struct format_tensor){".weight_scale", scheme->scale_dtype, 2, {down, across}};
    return FLOAT_INPUT + ct_input_tensor(scheme, &out[FLOAT_INPUT]);
}

static int ct_float_encode(const struct qtensor *q, int index, void *out)
{
    switch ((enum float_tensor)index) {
    case FLOAT_CODES:
        memcpy(out, q->codes, (size_t)(q->rows * q->cols));
        return 0;
    case FLOAT_SCALE:
        return format_encode_scales(q->scales, 1, q->row_groups * q->groups, q->scheme.scale_dtype, out);
    case FLOAT_INPUT:
        return ct_encode_input(q, out);
    }
    assert(false);
    return ERR_INTERNAL;
}

static const char *ct_float_stored(const struct qtensor *q, int index)
{
    (void)q;
    return index == FLOAT_CODES ? "codes" : NULL;
}

static json_t *ct_float_weights(const struct qscheme *scheme)
{
    const char *strategy = ct_float_is_block(scheme) ? "block" : is_per_tensor(scheme) ? "tensor" : "channel";

    return ct_arguments(8, true, true, strategy, 0, ct_float_is_block(scheme) ? scheme->group_size : 0, false);
}

const struct ct_form ct_float = {.name = "float-quantized",
                                 .accepts = ct_float_accepts,
                                 .tensors = ct_float_tensors,
                                 .encode = ct_float_encode,
                                 .stored = ct_float_stored,
                                 .weights = ct_float_weights};

const struct ct_form ct_naive = {.name = "naive-quantized",
                                 .accepts = accepts_naive,
                                 .tensors = ct_float_tensors,
                                 .encode = ct_float_encode,
                                 .stored = ct_float_stored,
                                 .weights = ct_float_weights};
