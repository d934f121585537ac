/* bitsandbytes: NF4 and LLM.int8() as its library serializes them, which transformers loads without a pass of its own.
 *
 *   NF4    M.weight                                     U8 [ceil(NK/2), 1]   two codes a byte, the even one high
 *          M.weight.absmax                              F32 [blocks]; nested: U8, codes of the dynamic map
 *          M.weight.quant_map                           F32 [16]             the levels, which kernels know by heart
 *          M.weight.nested_absmax, .nested_quant_map    F32 [ceil(blocks/256)], [256]
 *          M.weight.quant_state.bitsandbytes__nf4       U8 [n]               JSON, in the library's own words
 *   INT8   M.weight I8 [N, K], M.SCB F32 [N] = 127 * scale, M.weight_format U8 [] = 0 (rows)
 *
 * The JSON's length must be known before its numbers are, so the offset of nested scales is written with nine
 * significant digits always: enough to give back any single. Outlier columns are not stored: the runtime finds them in
 * each batch by the config's threshold, a number that must have a decimal point. */

#include "formats/common.h"

#include "base/err.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STATE_BYTES 320

enum nf4_tensor { NF4_CODES, NF4_ABSMAX, NF4_MAP, NF4_STATE, NF4_NESTED_ABSMAX, NF4_NESTED_MAP };
enum int8_tensor { INT8_CODES, INT8_RANGE, INT8_LAYOUT };

static enum dtype bnb_scale_dtype(enum dtype model_dtype)
{
    (void)model_dtype;
    return DTYPE_F32;
}

static int accepts_nf4(const struct qscheme *scheme)
{
    int64_t size = scheme->group_size;

    if (scheme->input.element != DTYPE_F32) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "no runtime multiplies NF4 weights by quantized inputs");
    }
    if (size < 32 || size > 4096 || (size & (size - 1)) != 0) {
        return err_set_hint(
            err_raise(ERR_INCOMPATIBLE_OPTIONS, "bitsandbytes has no blocks of %lld weights", (long long)size),
            "bnb_4bit_blocksize 64");
    }
    return 0;
}

static int accepts_int8(const struct qscheme *scheme, int64_t cols)
{
    if (scheme->input.element != DTYPE_I8 || !scheme->input.dynamic || scheme->input.group_size > 0) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS,
                                      "bitsandbytes quantizes the inputs of INT8 weights, with one scale a token"),
                            "method llm_int8, or another output.format");
    }
    if (scheme->bits != 8 || !scheme->sym || scheme->group_size != cols || scheme->group_rows > 1) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS,
                                      "bitsandbytes carries integers of 8 bits, symmetric, one scale a channel"),
                            "method llm_int8");
    }
    return 0;
}

static int bnb_accepts(const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    if (rows <= 0 || cols <= 0 || scheme->group_size <= 0) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "a [%lld, %lld] weight cannot have groups of %lld", (long long)rows,
                         (long long)cols, (long long)scheme->group_size);
    }
    switch (scheme->kind) {
    case QTENSOR_NF4:
        return accepts_nf4(scheme);
    case QTENSOR_INT:
        return accepts_int8(scheme, cols);
    default:
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS, "bitsandbytes carries NF4 and INT8, not %s",
                                      qtensor_kind_names[scheme->kind]),
                            "another output.format");
    }
}

static json_t *skipped(const struct format_config *config);

/* Whether transformers takes a module for one that the list's name means: it begins or ends with it. */
static bool bnb_matches(const char *name, const char *module)
{
    size_t length = strlen(name), full = strlen(module);

    return (strncmp(module, name, length) == 0 && (module[length] == '.' || module[length] == '\0')) ||
           (full >= length && strcmp(module + full - length, name) == 0);
}

/* The list is made of names that no row has looked at: one may also mean a module that is quantized. */
static int bnb_check_skips(const struct format_config *config)
{
    AUTO_JSON json_t *names = model_is_bare(config->model) ? skipped(config) : NULL;
    const json_t *name;
    size_t i;

    json_array_foreach(names, i, name)
    {
        for (int m = 0; m < config->count; m++) {
            if (bnb_matches(json_string_value(name), config->modules[m].name)) {
                int rc =
                    err_raise(ERR_INCOMPATIBLE_OPTIONS,
                              "bitsandbytes cannot leave %.100s in float and quantize %.100s: transformers takes the "
                              "one for the other",
                              json_string_value(name), config->modules[m].name);
                return err_set_hint(rc, "leave both in float, or format compressed-tensors");
            }
        }
    }
    return 0;
}

/* One config says of all modules which kind they are. */
static int bnb_accepts_all(const struct format_config *config)
{
    TRY(bnb_check_skips(config));
    return format_check_one_geometry(config, "bitsandbytes", "format dense takes several");
}

static int bnb_warn(const struct format_config *config, json_t *warnings)
{
    return format_warn_experts(config, warnings,
                               "transformers 5.24 does not load experts of this format; format dense loads there");
}

static const char *torch_name(enum dtype dtype)
{
    return dtype == DTYPE_F32 ? "float32" : dtype == DTYPE_F16 ? "float16" : "bfloat16";
}

/* The quant_state, as Python's json writes it; returns its length, the same whatever the offset. */
static int state_text(const struct qscheme *scheme, int64_t rows, int64_t cols, float offset, char out[STATE_BYTES])
{
    char nested[112] = "";

    if (scheme->nested) {
        snprintf(nested, sizeof(nested),
                 ", \"nested_blocksize\": %d, \"nested_dtype\": \"float32\", \"nested_offset\": %.8e",
                 QTENSOR_NESTED_BLOCK, (double)offset);
    }
    int length = snprintf(
        out, STATE_BYTES,
        "{\"quant_type\": \"nf4\", \"blocksize\": %lld, \"dtype\": \"%s\", \"shape\": [%lld, %lld]%s}",
        (long long)scheme->group_size, torch_name(scheme->weight_dtype), (long long)rows, (long long)cols, nested);
    assert(length > 0 && length < STATE_BYTES);
    return length;
}

static int bnb_tensors(const struct qscheme *scheme, int64_t rows, int64_t cols,
                       struct format_tensor out[FORMAT_TENSORS_MAX])
{
    int64_t blocks = (rows * cols + scheme->group_size - 1) / scheme->group_size;
    int64_t nested = (blocks + QTENSOR_NESTED_BLOCK - 1) / QTENSOR_NESTED_BLOCK;
    char state[STATE_BYTES];

    if (scheme->kind == QTENSOR_INT) {
        out[INT8_CODES] = (struct format_tensor){".weight", DTYPE_I8, 2, {rows, cols}};
        out[INT8_RANGE] = (struct format_tensor){".SCB", DTYPE_F32, 1, {rows}};
        out[INT8_LAYOUT] = (struct format_tensor){".weight_format", DTYPE_U8, 0, {0}};
        return INT8_LAYOUT + 1;
    }
    out[NF4_CODES] = (struct format_tensor){".weight", DTYPE_U8, 2, {(rows * cols + 1) / 2, 1}};
    out[NF4_ABSMAX] = (struct format_tensor){".weight.absmax", scheme->nested ? DTYPE_U8 : DTYPE_F32, 1, {blocks}};
    out[NF4_MAP] = (struct format_tensor){".weight.quant_map", DTYPE_F32, 1, {16}};
    out[NF4_STATE] = (struct format_tensor){
        ".weight.quant_state.bitsandbytes__nf4", DTYPE_U8, 1, {state_text(scheme, rows, cols, 0, state)}};
    out[NF4_NESTED_ABSMAX] = (struct format_tensor){".weight.nested_absmax", DTYPE_F32, 1, {nested}};
    out[NF4_NESTED_MAP] = (struct format_tensor){".weight.nested_quant_map", DTYPE_F32, 1, {256}};
    return scheme->nested ? NF4_NESTED_MAP + 1 : NF4_STATE + 1;
}

static void bnb_encode_codes(const struct qtensor *q, uint8_t *out)
{
    int64_t count = q->rows * q->cols;

    for (int64_t i = 0; i < count; i += 2) {
        /* an odd end is padded with the code of zero's lower neighbour, which nobody reads */
        out[i / 2] = (uint8_t)(q->codes[i] << 4 | (i + 1 < count ? q->codes[i + 1] : 0));
    }
}

static int encode_nf4(const struct qtensor *q, enum nf4_tensor index, void *out)
{
    int64_t nested = (q->groups + QTENSOR_NESTED_BLOCK - 1) / QTENSOR_NESTED_BLOCK;
    char state[STATE_BYTES];

    switch (index) {
    case NF4_CODES:
        bnb_encode_codes(q, out);
        return 0;
    case NF4_ABSMAX:
        memcpy(out, q->scheme.nested ? (const void *)q->zeros : q->scales,
               (size_t)q->groups * (q->scheme.nested ? 1 : sizeof(float)));
        return 0;
    case NF4_MAP:
        memcpy(out, dtype_nf4_levels, sizeof(dtype_nf4_levels));
        return 0;
    case NF4_STATE: {
        float offset = q->scheme.nested ? q->tables[nested] : 0;
        memcpy(out, state, (size_t)state_text(&q->scheme, q->rows, q->cols, offset, state));
        return 0;
    }
    case NF4_NESTED_ABSMAX:
        memcpy(out, q->tables, (size_t)nested * sizeof(float));
        return 0;
    case NF4_NESTED_MAP:
        qtensor_nested_levels(out);
        return 0;
    }
    assert(false);
    return ERR_INTERNAL;
}

static int encode_int8(const struct qtensor *q, enum int8_tensor index, void *out)
{
    switch (index) {
    case INT8_CODES:
        for (int64_t i = 0; i < q->rows * q->cols; i++) {
            ((int8_t *)out)[i] = (int8_t)(q->codes[i] - 128);
        }
        return 0;
    case INT8_RANGE:
        for (int64_t n = 0; n < q->rows; n++) {
            ((float *)out)[n] = q->scales[n] * 127.0f;
        }
        return 0;
    case INT8_LAYOUT:
        *(uint8_t *)out = 0;
        return 0;
    }
    assert(false);
    return ERR_INTERNAL;
}

static int bnb_encode(const struct qtensor *q, int index, void *out)
{
    return q->scheme.kind == QTENSOR_INT ? encode_int8(q, (enum int8_tensor)index, out)
                                         : encode_nf4(q, (enum nf4_tensor)index, out);
}

/* What is left in float. */
static json_t *skipped(const struct format_config *config)
{
    const struct format_module **table;

    if (format_module_table(config, &table) != 0) {
        return NULL;
    }
    json_t *list = format_not_quantized(config, (const struct format_module *const *)table);
    free(table);
    return list;
}

static json_t *bnb_config_object(const struct format_config *config)
{
    const struct qscheme *scheme = &config->modules[0].scheme;
    bool four = scheme->kind == QTENSOR_NF4;
    json_t *skip = skipped(config);

    if (skip == NULL) {
        return NULL;
    }
    return json_pack("{s:s, s:b, s:b, s:s, s:b, s:s, s:s, s:f, s:o, s:b, s:b}", "quant_method", "bitsandbytes",
                     "load_in_4bit", (int)four, "load_in_8bit", (int)!four, "bnb_4bit_quant_type", "nf4",
                     "bnb_4bit_use_double_quant", (int)scheme->nested, "bnb_4bit_compute_dtype",
                     torch_name(model_dtype(config->model)), "bnb_4bit_quant_storage", "uint8", "llm_int8_threshold",
                     four ? 6.0 : (double)scheme->input_threshold, "llm_int8_skip_modules", skip,
                     "llm_int8_enable_fp32_cpu_offload", 0, "llm_int8_has_fp16_weight", 0);
}

const struct format format_bitsandbytes = {
    .name = "bitsandbytes",
    .title = "bitsandbytes",
    .help =
        "NF4, plain or with double quantization, and LLM.int8(), as the bitsandbytes library serializes them. Loads in "
        "transformers, and in vLLM with the vllm-bnb-plugin package.",
    .bare = true,
    .conv1d = true,
    .scale_dtype = bnb_scale_dtype,
    .accepts = bnb_accepts,
    .accepts_all = bnb_accepts_all,
    .warn = bnb_warn,
    .tensors = bnb_tensors,
    .encode = bnb_encode,
    .config = bnb_config_object,
};
