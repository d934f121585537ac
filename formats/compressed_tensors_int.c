/* int-quantized: INT8 weights, one scale a row, with INT8 inputs.
 *
 *   M.weight        I8 [N, K]   q = code - 128
 *   M.weight_scale  [N, 1]      in the model's own dtype
 *   M.input_scale   [1]         static inputs only: x = q * scale, q in -128 .. 127
 *
 * No runtime of this format has outlier columns. */

#include "formats/compressed_tensors.h"

#include "base/err.h"

#include <assert.h>

enum int_tensor { INT_CODES, INT_SCALE, INT_INPUT };

static int ct_int_accepts(const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    if (scheme->kind != QTENSOR_INT || scheme->input.element != DTYPE_I8 || scheme->input.group_size > 0 || rows <= 0 ||
        cols <= 0) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS,
                         "integer weights go with INT8 inputs, one scale a token or one in all");
    }
    if (scheme->bits != 8 || !scheme->sym || scheme->group_size != cols || scheme->group_rows > 1) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS,
                                      "INT8 inputs go with symmetric 8-bit weights of one scale a channel, not %d bits "
                                      "in groups of %lld",
                                      scheme->bits, (long long)scheme->group_size),
                            "bits 8, group_size -1, sym true");
    }
    if (scheme->input_threshold > 0) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS, "no runtime of this format has outlier columns"),
                            "format bitsandbytes, or llm_int8_threshold 0");
    }
    return 0;
}

static int ct_int_tensors(const struct qscheme *scheme, int64_t rows, int64_t cols,
                          struct format_tensor out[FORMAT_TENSORS_MAX])
{
    out[INT_CODES] = (struct format_tensor){".weight", DTYPE_I8, 2, {rows, cols}};
    out[INT_SCALE] = (struct format_tensor){".weight_scale", scheme->scale_dtype, 2, {rows, 1}};
    return INT_INPUT + ct_input_tensor(scheme, &out[INT_INPUT]);
}

static int ct_int_encode(const struct qtensor *q, int index, void *out)
{
    switch ((enum int_tensor)index) {
    case INT_CODES:
        for (int64_t i = 0; i < q->rows * q->cols; i++) {
            ((int8_t *)out)[i] = (int8_t)(q->codes[i] - 128);
        }
        return 0;
    case INT_SCALE:
        return format_encode_scales(q->scales, 1, q->rows, q->scheme.scale_dtype, out);
    case INT_INPUT:
        return ct_encode_input(q, out);
    }
    assert(false);
    return ERR_INTERNAL;
}

static json_t *ct_int_weights(const struct qscheme *scheme)
{
    return ct_arguments(scheme->bits, false, true, "channel", 0, 0, false);
}

const struct ct_form ct_int = {.name = "int-quantized",
                               .accepts = ct_int_accepts,
                               .tensors = ct_int_tensors,
                               .encode = ct_int_encode,
                               .weights = ct_int_weights};
