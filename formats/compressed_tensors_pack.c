/* pack-quantized: integers of 2 to 8 bits for weights alone.
 *
 *   M.weight_packed      I32 [N, ceil(K*b/32)]   codes u = q + 2^(b-1), dense little-endian stream along K
 *   M.weight_scale       [N, K/g] (or [N, 1])    in the model's own dtype
 *   M.weight_shape       I64 [2] = [N, K]
 *   M.weight_zero_point  I32 [ceil(N*b/32), K/g] asymmetric only, packed along N
 *
 * Symmetric artifacts carry no zero points (runtimes have no parameter for them) and asymmetric ones are 4-bit only (no
 * kernel takes others). */

#include "formats/compressed_tensors.h"

#include "base/err.h"
#include "models/pack.h"

#include <assert.h>
#include <string.h>

enum pack_tensor { PACK_CODES, PACK_SCALE, PACK_SHAPE, PACK_ZERO };

static int ct_pack_accepts(const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    int rc = format_check_shape(scheme, rows, cols);

    if (rc != 0) {
        return rc;
    }
    if (scheme->bits < 2 || scheme->bits > 8) {
        return err_set_hint(
            err_raise(ERR_INCOMPATIBLE_OPTIONS, "compressed-tensors packs 2 to 8 bits and not %d", scheme->bits),
            "choose bits 4");
    }
    if (!scheme->sym && scheme->bits != 4) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS,
                                      "compressed-tensors carries zero points at 4 bits only and not at %d",
                                      scheme->bits),
                            "sym true, bits 4 or format gptq_v2");
    }
    return 0;
}

static int ct_pack_tensors(const struct qscheme *scheme, int64_t rows, int64_t cols,
                           struct format_tensor out[FORMAT_TENSORS_MAX])
{
    int64_t groups = cols / scheme->group_size;

    out[PACK_CODES] = (struct format_tensor){".weight_packed", DTYPE_I32, 2, {rows, pack_words(cols, scheme->bits)}};
    out[PACK_SCALE] = (struct format_tensor){".weight_scale", scheme->scale_dtype, 2, {rows, groups}};
    out[PACK_SHAPE] = (struct format_tensor){".weight_shape", DTYPE_I64, 1, {2}};
    out[PACK_ZERO] =
        (struct format_tensor){".weight_zero_point", DTYPE_I32, 2, {pack_words(rows, scheme->bits), groups}};
    return scheme->sym ? PACK_ZERO : PACK_ZERO + 1;
}

static int ct_pack_encode(const struct qtensor *q, int index, void *out)
{
    int64_t words = pack_words(q->cols, q->scheme.bits);
    const int64_t shape[2] = {q->rows, q->cols};

    switch ((enum pack_tensor)index) {
    case PACK_CODES:
        for (int64_t n = 0; n < q->rows; n++) {
            pack_stream(q->codes + n * q->cols, q->cols, 1, q->scheme.bits, (uint32_t *)out + n * words, 1);
        }
        return 0;
    case PACK_SCALE:
        return format_encode_scales(q->scales, 1, q->rows * q->groups, q->scheme.scale_dtype, out);
    case PACK_SHAPE:
        memcpy(out, shape, sizeof(shape));
        return 0;
    case PACK_ZERO:
        for (int64_t g = 0; g < q->groups; g++) {
            pack_stream(q->zeros + g, q->rows, q->groups, q->scheme.bits, (uint32_t *)out + g, q->groups);
        }
        return 0;
    }
    assert(false);
    return ERR_INTERNAL;
}

/* Rows of codes that end with a word of theirs are the same stream in both files. */
static const char *ct_pack_stored(const struct qtensor *q, int index)
{
    return index == PACK_CODES && q->cols * q->scheme.bits % 32 == 0 ? "codes" : NULL;
}

static json_t *ct_pack_weights(const struct qscheme *scheme)
{
    return ct_arguments(scheme->bits, false, scheme->sym, scheme->per_channel ? "channel" : "group",
                        scheme->per_channel ? 0 : scheme->group_size, 0, false);
}

const struct ct_form ct_pack = {.name = "pack-quantized",
                                .accepts = ct_pack_accepts,
                                .tensors = ct_pack_tensors,
                                .encode = ct_pack_encode,
                                .stored = ct_pack_stored,
                                .weights = ct_pack_weights};
