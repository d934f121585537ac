/* AWQ checkpoints, version "gemm", as transformers (with GPTQModel or AutoAWQ) and vLLM read them.
 *
 *   M.qweight  I32 [K, N/8]    eight codes of one input, packed along N
 *   M.qzeros   I32 [K/g, N/8]  zero points as they are, packed alike
 *   M.scales   F16 [K/g, N]
 *
 * Within a word the eight outputs are interleaved: nibble i holds output 8c + order[i]. The factors that AWQ moves
 * between linears are in the norms and weights already; nothing of them is stored. The sibling layouts (gemv,
 * gemv_fast, marlin) are others. A symmetric grid is written as what it is, zero points of 8: loaders have no packing
 * without zero points. The config's list of linears in float is complete or absent, since loaders look for the head by
 * themselves only when there is no list; they match it by substring, so each module is listed by its complete path.
 * GPTQModel reads none of it: without `dynamic` it takes the words of quantized linears that it never finds for what a
 * float one holds, and says nothing. */

#include "formats/common.h"

#include "base/err.h"

#include <assert.h>
#include <stdlib.h>

#define AWQ_BITS 4
#define AWQ_PACK 8 /* codes in a word */

enum awq_tensor { AWQ_QWEIGHT, AWQ_QZEROS, AWQ_SCALES, AWQ_COUNT };

static const int order[AWQ_PACK] = {0, 2, 4, 6, 1, 3, 5, 7};

static int awq_accepts(const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    int rc = format_check_shape(scheme, rows, cols);

    if (rc != 0) {
        return rc;
    }
    if (scheme->bits != AWQ_BITS) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS, "awq packs 4 bits and not %d", scheme->bits),
                            "bits 4, or another output.format");
    }
    if (rows % AWQ_PACK != 0) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS,
                                      "awq packs eight outputs in a word; a weight is [%lld, %lld]", (long long)rows,
                                      (long long)cols),
                            "format compressed-tensors pads");
    }
    return 0;
}

static int awq_accepts_all(const struct format_config *config)
{
    return format_check_one_geometry(config, "awq", "format compressed-tensors takes several");
}

static int awq_warn(const struct format_config *config, json_t *warnings)
{
    return format_warn_experts(config, warnings,
                               "transformers 5.24 does not load experts of this format: it leaves them as they were "
                               "initialized, and lists their tensors as UNEXPECTED. GPTQModel's own loader 7.7 loads "
                               "those of Qwen3-MoE; format dense loads everywhere");
}

static int awq_tensors(const struct qscheme *scheme, int64_t rows, int64_t cols,
                       struct format_tensor out[FORMAT_TENSORS_MAX])
{
    int64_t groups = cols / scheme->group_size;

    out[AWQ_QWEIGHT] = (struct format_tensor){".qweight", DTYPE_I32, 2, {cols, rows / AWQ_PACK}};
    out[AWQ_QZEROS] = (struct format_tensor){".qzeros", DTYPE_I32, 2, {groups, rows / AWQ_PACK}};
    out[AWQ_SCALES] = (struct format_tensor){".scales", DTYPE_F16, 2, {groups, rows}};
    return AWQ_COUNT;
}

/* codes [rows, cols] to words [cols, rows / 8]. */
static void pack(const uint8_t *codes, int64_t rows, int64_t cols, uint32_t *words)
{
    int64_t width = rows / AWQ_PACK;

    for (int64_t c = 0; c < width; c++) {
        for (int64_t k = 0; k < cols; k++) {
            uint32_t word = 0;
            for (int i = 0; i < AWQ_PACK; i++) {
                uint32_t code = codes[(c * AWQ_PACK + order[i]) * cols + k] & 0xFu;
                word |= code << (AWQ_BITS * i);
            }
            words[k * width + c] = word;
        }
    }
}

static int awq_encode(const struct qtensor *q, int index, void *out)
{
    switch ((enum awq_tensor)index) {
    case AWQ_QWEIGHT:
        pack(q->codes, q->rows, q->cols, out);
        return 0;
    case AWQ_QZEROS:
        pack(q->zeros, q->rows, q->groups, out);
        return 0;
    case AWQ_SCALES:
        for (int64_t g = 0; g < q->groups; g++) {
            int rc = format_encode_scales(q->scales + g, q->groups, q->rows, DTYPE_F16, (uint16_t *)out + g * q->rows);
            if (rc != 0) {
                return rc;
            }
        }
        return 0;
    case AWQ_COUNT:
        break;
    }
    assert(false);
    return ERR_INTERNAL;
}

/* Every linear in float by its path, the head among them; NULL when only the head is. */
static json_t *in_float(const struct format_config *config, const struct format_module *const *table)
{
    json_t *names = format_not_quantized(config, table);

    if (json_array_size(names) == 1) {
        json_decref(names);
        return NULL;
    }
    return names;
}

static json_t *awq_config_object(const struct format_config *config)
{
    const struct format_module **table;

    if (config->count == 0 || format_module_table(config, &table) != 0) {
        return NULL;
    }
    const struct qscheme *scheme = &config->modules[0].scheme;
    json_t *object =
        json_pack("{s:s, s:i, s:I, s:b, s:s, s:o?}", "quant_method", "awq", "bits", scheme->bits, "group_size",
                  (json_int_t)(scheme->per_channel ? -1 : scheme->group_size), "zero_point", 1, "version", "gemm",
                  "modules_to_not_convert", in_float(config, (const struct format_module *const *)table));
    json_t *dynamic = format_dynamic_skips(config, (const struct format_module *const *)table);
    if (dynamic != NULL) {
        json_object_set_new(object, "dynamic", dynamic);
    }
    free(table);
    return object;
}

const struct format format_awq = {
    .name = "awq",
    .title = "AWQ, gemm",
    .help =
        "4 bits, symmetric or asymmetric, one geometry for the model. Loads in transformers (with gptqmodel) and in "
        "vLLM.",
    .fuses = true,
    .scale_dtype = format_scale_f16,
    .accepts = awq_accepts,
    .accepts_all = awq_accepts_all,
    .warn = awq_warn,
    .tensors = awq_tensors,
    .encode = awq_encode,
    .config = awq_config_object,
};
