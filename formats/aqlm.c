/* AQLM checkpoints as the aqlm package and transformers read them.
 *
 *   M.codes      I8 (to 8 bits) or I16 [N/og, K/ig, C]  codes from 2^(b-1) on less 2^b, whatever the container's width
 *   M.codebooks  F16 [C, 2^b, og, ig]
 *   M.scales     F16 [N/og, 1, 1, 1]
 *
 * w = scale * sum over C of the codebooks' vectors. There is one geometry for the complete checkpoint, and every linear
 * that the config does not name is taken to be quantized: loaders know its members by "M.weight" (transformers 4) or by
 * "M" (transformers 5), so both are written, for lm_head too. */

#include "formats/common.h"

#include "base/err.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum aqlm_tensor { AQLM_CODES, AQLM_CODEBOOKS, AQLM_SCALES, AQLM_COUNT };

static int aqlm_accepts(const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    int64_t group_rows = scheme->group_rows > 0 ? scheme->group_rows : 1;

    if (scheme->kind != QTENSOR_CODEBOOKS || scheme->input.element != DTYPE_F32) {
        int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS, "aqlm carries sums of codebook vectors alone, not %s%s",
                           qtensor_kind_names[scheme->kind],
                           scheme->input.element != DTYPE_F32 ? " with quantized inputs" : "");
        return err_set_hint(rc, "method aqlm, or kmeans with an in_group_size above 1");
    }
    if (rows < 1 || cols < 1 || scheme->group_size < 1 || scheme->codebooks < 1 || scheme->bits < 1 ||
        scheme->bits > 16 || rows % group_rows != 0 || cols % scheme->group_size != 0) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "a [%lld, %lld] weight cannot have vectors of [%lld, %lld]",
                         (long long)rows, (long long)cols, (long long)group_rows, (long long)scheme->group_size);
    }
    return 0;
}

static int aqlm_accepts_all(const struct format_config *config)
{
    return format_check_one_geometry(config, "aqlm", "format dense takes several");
}

static int aqlm_tensors(const struct qscheme *scheme, int64_t rows, int64_t cols,
                        struct format_tensor out[FORMAT_TENSORS_MAX])
{
    int64_t group_rows = scheme->group_rows > 0 ? scheme->group_rows : 1;
    int64_t outputs = rows / group_rows, inputs = cols / scheme->group_size;

    out[AQLM_CODES] = (struct format_tensor){
        ".codes", scheme->bits <= 8 ? DTYPE_I8 : DTYPE_I16, 3, {outputs, inputs, scheme->codebooks}};
    out[AQLM_CODEBOOKS] = (struct format_tensor){
        ".codebooks", DTYPE_F16, 4, {scheme->codebooks, (int64_t)1 << scheme->bits, group_rows, scheme->group_size}};
    out[AQLM_SCALES] = (struct format_tensor){".scales", DTYPE_F16, 4, {outputs, 1, 1, 1}};
    return AQLM_COUNT;
}

static void aqlm_encode_codes(const struct qtensor *q, void *out)
{
    int32_t codes = (int32_t)1 << q->scheme.bits;

    for (int64_t i = 0; i < q->row_groups * q->groups * q->scheme.codebooks; i++) {
        int32_t code = q->entries[i], wrapped = code >= codes / 2 ? code - codes : code;
        if (q->scheme.bits <= 8) {
            ((int8_t *)out)[i] = (int8_t)wrapped;
        } else {
            ((int16_t *)out)[i] = (int16_t)wrapped;
        }
    }
}

/* Values that half precision holds as they are: codes were chosen for them. */
static int encode_halves(const char *name, const float *values, int64_t count, void *out)
{
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(values[i]) || dtype_round(values[i], DTYPE_F16) != values[i]) {
            return err_raise(ERR_INTERNAL, "value %lld of the %s is %.9g and was not rounded to F16", (long long)i,
                             name, (double)values[i]);
        }
    }
    format_narrow(values, count, DTYPE_F16, out);
    return 0;
}

static int aqlm_encode(const struct qtensor *q, int index, void *out)
{
    int64_t codes = (int64_t)1 << q->scheme.bits;

    switch ((enum aqlm_tensor)index) {
    case AQLM_CODES:
        aqlm_encode_codes(q, out);
        return 0;
    case AQLM_CODEBOOKS:
        return encode_halves("codebooks", q->tables,
                             q->scheme.codebooks * codes * q->scheme.group_rows * q->scheme.group_size, out);
    case AQLM_SCALES:
        return encode_halves("scales", q->scales, q->row_groups, out);
    case AQLM_COUNT:
        break;
    }
    assert(false);
    return ERR_INTERNAL;
}

static void add_both(json_t *list, const char *module)
{
    char name[160];

    snprintf(name, sizeof(name), "%.140s.weight", module);
    json_array_append_new(list, json_string(name));
    json_array_append_new(list, json_string(module));
}

/* The head and the linears that were left in float, as `M.weight` and as `M`. */
static json_t *left_in_float(const struct format_config *config)
{
    const struct format_module **table;
    json_t *list = json_array(), *names, *name;
    size_t i;

    if (list == NULL || format_module_table(config, &table) != 0) {
        json_decref(list);
        return NULL;
    }
    names = format_not_quantized(config, (const struct format_module *const *)table);
    json_array_foreach(names, i, name)
    {
        add_both(list, json_string_value(name));
    }
    json_decref(names);
    free(table);
    return list;
}

static json_t *aqlm_config_object(const struct format_config *config)
{
    json_t *left = config->count > 0 ? left_in_float(config) : NULL;

    if (left == NULL) {
        return NULL;
    }
    const struct qscheme *scheme = &config->modules[0].scheme;
    return json_pack("{s:s, s:i, s:i, s:I, s:I, s:o}", "quant_method", "aqlm", "num_codebooks", scheme->codebooks,
                     "nbits_per_codebook", scheme->bits, "in_group_size", (json_int_t)scheme->group_size,
                     "out_group_size", (json_int_t)(scheme->group_rows > 0 ? scheme->group_rows : 1),
                     "linear_weights_not_to_quantize", left);
}

/* Seen with aqlm 1.1.7: a perplexity of 59 for 8.8. */
static int warn(const struct format_config *config, json_t *warnings)
{
    if (config->count > 0 && config->modules[0].scheme.bits == 8) {
        format_warn(warnings, "cpu_kernel",
                    "the aqlm package's kernel for CPUs gives wrong sums on several threads: set NUMBA_NUM_THREADS=1 "
                    "in the environment of a runtime without a GPU");
    }
    return 0;
}

const struct format format_aqlm = {
    .name = "aqlm",
    .title = "AQLM",
    .help =
        "Sums of codebook vectors of methods aqlm and kmeans, one geometry for the model. Loads in transformers with "
        "the aqlm package; kernels are fast for 1 codebook of 16 bits and 2 of 8, groups of 8, and on the CPU for "
        "codebooks of 8 bits.",
    .scale_dtype = format_scale_f16,
    .accepts = aqlm_accepts,
    .accepts_all = aqlm_accepts_all,
    .warn = warn,
    .tensors = aqlm_tensors,
    .encode = aqlm_encode,
    .config = aqlm_config_object,
};
