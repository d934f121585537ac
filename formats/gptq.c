/* GPTQ checkpoints, versions 1 and 2, as optimum/GPTQModel and vLLM read them.
 *
 *   M.qweight  I32 [K*b/32, N]   dense little-endian stream down K, one column per output
 *   M.qzeros   I32 [K/g, N*b/32] zero points along N: z - 1 in version 1, z in version 2
 *   M.scales   F16 [K/g, N]
 *   M.g_idx    I32 [K] = k / g
 *
 * Version 1 cannot say z = 0 (z - 1 wraps, and loaders undo it in ways that disagree), so it is symmetric only here: a
 * symmetric z is 2^(b-1). There is one geometry for the complete checkpoint. Linears left in float must be left in
 * every block, since the config names them by their place in a block; `dynamic` names them again, for GPTQModel. */

#include "formats/common.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "models/pack.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum gptq_tensor { GPTQ_QWEIGHT, GPTQ_QZEROS, GPTQ_SCALES, GPTQ_G_IDX, GPTQ_COUNT };

static int accepts_v2(const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    int rc = format_check_shape(scheme, rows, cols);

    if (rc != 0) {
        return rc;
    }
    if (scheme->bits != 2 && scheme->bits != 3 && scheme->bits != 4 && scheme->bits != 8) {
        return err_set_hint(
            err_raise(ERR_INCOMPATIBLE_OPTIONS, "gptq packs 2, 3, 4 or 8 bits and not %d", scheme->bits),
            "choose bits 4 or format compressed-tensors");
    }
    int64_t multiple = scheme->bits == 3 ? 32 : 32 / scheme->bits;
    if (rows % multiple != 0 || cols % multiple != 0) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS,
                                      "gptq packs %d bits in multiples of %lld; a weight is [%lld, %lld]", scheme->bits,
                                      (long long)multiple, (long long)rows, (long long)cols),
                            "format compressed-tensors pads");
    }
    return 0;
}

static int accepts_v1(const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    int rc = accepts_v2(scheme, rows, cols);

    if (rc == 0 && !scheme->sym) {
        rc = err_raise(ERR_INCOMPATIBLE_OPTIONS,
                       "gptq version 1 cannot carry every zero point, so it is symmetric only");
        return err_set_hint(rc, "sym true, or format gptq_v2");
    }
    return rc;
}

/* Whether a module of this path is quantized in a layer; *there: the layer has one. */
static bool gptq_is_quantized(const struct format_config *config, const struct format_module *const *table,
                              int64_t layer, const char *path, bool *there)
{
    const struct plans *plans = model_plans(config->model);
    int module = plan_find_module(plans_layer(plans, layer), path);

    *there = module >= 0;
    return *there && table[plans_first_module(plans, layer) + (size_t)module] != NULL;
}

/* Modules of one path are quantized in every layer that has them, or in none. */
static int gptq_check_paths(const struct format_config *config)
{
    AUTO_FREE const struct format_module **table = NULL;
    const struct plans *plans = model_plans(config->model);

    TRY(format_module_table(config, &table));
    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        const struct plan *plan = plans_kind(plans, kind);
        for (int i = 0; i < plan->module_count; i++) {
            const char *path = plan->modules[i].path;
            bool any = false, all = true, there;
            for (int64_t layer = 0; layer < plans_config(plans)->num_layers; layer++) {
                bool quantized =
                    gptq_is_quantized(config, (const struct format_module *const *)table, layer, path, &there);
                any = any || quantized;
                all = all && (quantized || !there);
            }
            if (any && !all) {
                int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS,
                                   "%s is quantized in some blocks only, which gptq cannot say", path);
                return err_set_hint(rc, "leave it out everywhere, or format compressed-tensors");
            }
        }
    }
    return 0;
}

static int gptq_accepts_all(const struct format_config *config)
{
    TRY(format_check_one_geometry(config, "gptq", "format compressed-tensors takes several"));
    return gptq_check_paths(config);
}

static int gptq_warn(const struct format_config *config, json_t *warnings)
{
    return format_warn_experts(config, warnings,
                               "transformers 5.24 does not load experts of this format: it leaves them as they were "
                               "initialized, and lists their tensors as UNEXPECTED. GPTQModel's own loader 7.7 loads "
                               "those of Qwen3-MoE; format dense loads everywhere");
}

static int gptq_tensors(const struct qscheme *scheme, int64_t rows, int64_t cols,
                        struct format_tensor out[FORMAT_TENSORS_MAX])
{
    int64_t groups = cols / scheme->group_size;

    out[GPTQ_QWEIGHT] = (struct format_tensor){".qweight", DTYPE_I32, 2, {pack_words(cols, scheme->bits), rows}};
    out[GPTQ_QZEROS] = (struct format_tensor){".qzeros", DTYPE_I32, 2, {groups, pack_words(rows, scheme->bits)}};
    out[GPTQ_SCALES] = (struct format_tensor){".scales", DTYPE_F16, 2, {groups, rows}};
    out[GPTQ_G_IDX] = (struct format_tensor){".g_idx", DTYPE_I32, 1, {cols}};
    return GPTQ_COUNT;
}

static int gptq_encode_zeros(const struct qtensor *q, int subtract, uint32_t *out)
{
    int64_t words = pack_words(q->rows, q->scheme.bits);
    AUTO_FREE uint8_t *stored = NULL;

    TRY(mem_buffer(&stored, (size_t)q->rows));
    for (int64_t g = 0; g < q->groups; g++) {
        for (int64_t n = 0; n < q->rows; n++) {
            stored[n] = (uint8_t)(q->zeros[n * q->groups + g] - subtract);
        }
        pack_stream(stored, q->rows, 1, q->scheme.bits, out + g * words, 1);
    }
    return 0;
}

static int gptq_encode(const struct qtensor *q, int index, int subtract, void *out)
{
    switch ((enum gptq_tensor)index) {
    case GPTQ_QWEIGHT:
        pack_down(q->codes, q->rows, q->cols, q->scheme.bits, out);
        return 0;
    case GPTQ_QZEROS:
        return gptq_encode_zeros(q, subtract, out);
    case GPTQ_SCALES:
        for (int64_t g = 0; g < q->groups; g++) {
            int rc = format_encode_scales(q->scales + g, q->groups, q->rows, DTYPE_F16, (uint16_t *)out + g * q->rows);
            if (rc != 0) {
                return rc;
            }
        }
        return 0;
    case GPTQ_G_IDX:
        for (int64_t k = 0; k < q->cols; k++) {
            ((int32_t *)out)[k] = (int32_t)(k / q->scheme.group_size);
        }
        return 0;
    case GPTQ_COUNT:
        break;
    }
    assert(false);
    return ERR_INTERNAL;
}

static int encode_v1(const struct qtensor *q, int index, void *out)
{
    return gptq_encode(q, index, 1, out);
}

static int encode_v2(const struct qtensor *q, int index, void *out)
{
    return gptq_encode(q, index, 0, out);
}

static bool lists_path(const json_t *groups, const char *path)
{
    size_t i, k;
    json_t *names, *name;

    json_array_foreach((json_t *)groups, i, names)
    {
        json_array_foreach(names, k, name)
        {
            if (strcmp(json_string_value(name), path) == 0) {
                return true;
            }
        }
    }
    return false;
}

/* Paths of the quantized modules by shared input, when some are left in float: loaders replace every linear else. */
static json_t *inside_blocks(const struct format_config *config, const struct format_module *const *table)
{
    const struct plans *plans = model_plans(config->model);
    const struct plan *listed = NULL; /* the last kind of layer that was looked at */
    json_t *groups = json_array();
    bool all = true;

    for (int64_t layer = 0; layer < plans_config(plans)->num_layers; layer++) {
        const struct plan *plan = plans_layer(plans, layer);
        const struct format_module *const *modules = table + plans_first_module(plans, layer);
        for (int g = 0; plan != listed && g < plan->group_count; g++) {
            json_t *names = json_array();
            for (int i = 0; i < plan->groups[g].count; i++) {
                const char *path = plan->modules[plan->groups[g].modules[i]].path;
                bool quantized = modules[plan->groups[g].modules[i]] != NULL;
                if (quantized && !lists_path(groups, path)) {
                    json_array_append_new(names, json_string(path));
                }
                all = all && quantized;
            }
            if (json_array_size(names) > 0) {
                json_array_append(groups, names);
            }
            json_decref(names);
        }
        listed = plan;
    }
    if (all) {
        json_decref(groups);
        return NULL;
    }
    return groups;
}

/* The job's parameter, or what loaders expect where the method has none. They refuse a damp_percent that is not
 * strictly between 0 and 1. */
static int true_sequential(const struct format_config *config)
{
    const json_t *value = json_object_get(config->parameters, "true_sequential");

    return json_is_boolean(value) ? json_is_true(value) : 1;
}

static double damp_percent(const struct format_config *config)
{
    double value = json_number_value(json_object_get(config->parameters, "damp_percent"));

    return value > 0 && value < 1 ? value : 0.01;
}

static json_t *gptq_config_object(const struct format_config *config, const char *checkpoint_format)
{
    const struct format_module **table;

    if (config->count == 0 || format_module_table(config, &table) != 0) {
        return NULL;
    }
    const struct qscheme *scheme = &config->modules[0].scheme;
    json_t *object =
        json_pack("{s:s, s:s, s:i, s:I, s:b, s:b, s:b, s:b, s:b, s:f, s:s, s:{s:[s]}}", "quant_method", "gptq",
                  "checkpoint_format", checkpoint_format, "bits", scheme->bits, "group_size",
                  (json_int_t)(scheme->per_channel ? -1 : scheme->group_size), "desc_act", 0, "sym", (int)scheme->sym,
                  "lm_head", 0, "true_sequential", true_sequential(config), "static_groups", 0, "damp_percent",
                  damp_percent(config), "pack_dtype", "int32", "meta", "quantizer", "quantd:" QUANTD_VERSION);
    json_t *inside = inside_blocks(config, (const struct format_module *const *)table);
    if (inside != NULL) {
        json_object_set_new(object, "modules_in_block_to_quantize", inside);
    }
    json_t *dynamic = format_dynamic_skips(config, (const struct format_module *const *)table);
    if (dynamic != NULL) {
        json_object_set_new(object, "dynamic", dynamic);
    }
    free(table);
    return object;
}

static json_t *config_v1(const struct format_config *config)
{
    return gptq_config_object(config, "gptq");
}

static json_t *config_v2(const struct format_config *config)
{
    return gptq_config_object(config, "gptq_v2");
}

const struct format format_gptq = {
    .name = "gptq",
    .title = "GPTQ, version 1",
    .help = "2, 3, 4 or 8 bits, symmetric, one geometry for the model. Loads in transformers (with gptqmodel) and in "
            "vLLM (4 "
            "and 8 bits).",
    .fuses = true,
    .conv1d = true,
    .side_file = "quantize_config.json",
    .scale_dtype = format_scale_f16,
    .accepts = accepts_v1,
    .accepts_all = gptq_accepts_all,
    .warn = gptq_warn,
    .tensors = gptq_tensors,
    .encode = encode_v1,
    .config = config_v1,
};

const struct format format_gptq_v2 = {
    .name = "gptq_v2",
    .title = "GPTQ, version 2",
    .help = "2, 3, 4 or 8 bits, symmetric or asymmetric, one geometry for the model. Loads in transformers (with "
            "gptqmodel) and, symmetric with 4 or 8 bits, in vLLM.",
    .fuses = true,
    .conv1d = true,
    .side_file = "quantize_config.json",
    .scale_dtype = format_scale_f16,
    .accepts = accepts_v2,
    .accepts_all = gptq_accepts_all,
    .warn = gptq_warn,
    .tensors = gptq_tensors,
    .encode = encode_v2,
    .config = config_v2,
};
