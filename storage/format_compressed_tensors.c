/* compressed-tensors, pack-quantized: what transformers and vLLM load in tree.
 *
 *   M.weight_packed      I32 [N, ceil(K*b/32)]   codes u = q + 2^(b-1), dense little-endian stream along K
 *   M.weight_scale       [N, K/g] (or [N, 1])    in the model's own dtype
 *   M.weight_shape       I64 [2] = [N, K]
 *   M.weight_zero_point  I32 [ceil(N*b/32), K/g] asymmetric only, packed along N
 *
 * Until version 0.17 the library left padding bits in words of 3, 5, 6 and 7 bits; 0.18 reads the dense stream that is
 * written here, hence the version in the config; 2, 4 and 8 bits are the same in every version. Symmetric artifacts
 * carry no zero points (runtimes have no parameter for them) and asymmetric ones are 4-bit only (no kernel takes
 * others). The config objects forbid unknown members. */

#include "storage/format_common.h"

#include "base/err.h"
#include "storage/pack.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define CT_VERSION "0.15.0"
#define CT_VERSION_DENSE "0.18.0"
#define CT_GROUPS_MAX 64

enum ct_tensor { CT_PACKED, CT_SCALE, CT_SHAPE, CT_ZERO };

static enum dtype scale_dtype(enum dtype model_dtype)
{
    return model_dtype;
}

static int accepts(const struct qscheme *scheme, int64_t rows, int64_t cols)
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

/* The geometries of a config, in order of appearance; CT_GROUPS_MAX + 1 when there are more than can be said. */
static int geometries(const struct format_config *config, const struct qscheme *out[CT_GROUPS_MAX])
{
    int count = 0;

    for (int i = 0; i < config->count; i++) {
        int g = 0;
        while (g < count && !format_same_geometry(out[g], &config->modules[i].scheme)) {
            g++;
        }
        if (g == CT_GROUPS_MAX) {
            return CT_GROUPS_MAX + 1;
        }
        if (g == count) {
            out[count++] = &config->modules[i].scheme;
        }
    }
    return count;
}

static int accepts_all(const struct format_config *config)
{
    const struct qscheme *schemes[CT_GROUPS_MAX];

    if (geometries(config, schemes) > CT_GROUPS_MAX) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "more than %d different geometries in one model", CT_GROUPS_MAX);
    }
    return format_check_fused(config);
}

static int tensors(const struct qscheme *scheme, int64_t rows, int64_t cols,
                   struct format_tensor out[FORMAT_TENSORS_MAX])
{
    int64_t groups = cols / scheme->group_size;

    out[CT_PACKED] = (struct format_tensor){".weight_packed", DTYPE_I32, 2, {rows, pack_words(cols, scheme->bits)}};
    out[CT_SCALE] = (struct format_tensor){".weight_scale", scheme->scale_dtype, 2, {rows, groups}};
    out[CT_SHAPE] = (struct format_tensor){".weight_shape", DTYPE_I64, 1, {2}};
    out[CT_ZERO] = (struct format_tensor){".weight_zero_point", DTYPE_I32, 2, {pack_words(rows, scheme->bits), groups}};
    return scheme->sym ? CT_ZERO : CT_ZERO + 1;
}

static int encode(const struct qtensor *q, int index, void *out)
{
    int64_t words = pack_words(q->cols, q->scheme.bits);
    const int64_t shape[2] = {q->rows, q->cols};

    switch ((enum ct_tensor)index) {
    case CT_PACKED:
        for (int64_t n = 0; n < q->rows; n++) {
            pack_stream(q->codes + n * q->cols, q->cols, 1, q->scheme.bits, (uint32_t *)out + n * words, 1);
        }
        return 0;
    case CT_SCALE:
        return format_encode_scales(q->scales, 1, q->rows * q->groups, q->scheme.scale_dtype, out);
    case CT_SHAPE:
        memcpy(out, shape, sizeof(shape));
        return 0;
    case CT_ZERO:
        for (int64_t g = 0; g < q->groups; g++) {
            pack_stream(q->zeros + g, q->rows, q->groups, q->scheme.bits, (uint32_t *)out + g, q->groups);
        }
        return 0;
    }
    assert(false);
    return ERR_INTERNAL;
}

static json_t *weights_object(const struct qscheme *scheme)
{
    json_t *group_size = scheme->per_channel ? json_null() : json_integer(scheme->group_size);

    return json_pack("{s:i, s:s, s:b, s:s, s:o, s:b, s:n, s:n, s:s, s:{}}", "num_bits", scheme->bits, "type", "int",
                     "symmetric", (int)scheme->sym, "strategy", scheme->per_channel ? "channel" : "group", "group_size",
                     group_size, "dynamic", 0, "block_structure", "actorder", "observer", "minmax", "observer_kwargs");
}

/* Exact names of every linear left in float, and the head. */
static json_t *ignore_list(const struct format_config *config, const struct format_module *const *table)
{
    json_t *list = json_array();
    int64_t layers = model_config(config->model)->num_layers;
    char name[128];

    json_array_append_new(list, json_string("lm_head"));
    for (int64_t layer = 0; layer < layers; layer++) {
        for (int role = 0; role < LINEAR_COUNT; role++) {
            if (table[layer * LINEAR_COUNT + role] == NULL) {
                model_linear_name(config->model, layer, (enum linear_role)role, name);
                json_array_append_new(list, json_string(name));
            }
        }
    }
    return list;
}

/* One group per geometry. A single one targets the class; several name their modules. */
static json_t *config_groups(const struct format_config *config)
{
    const struct qscheme *schemes[CT_GROUPS_MAX];
    json_t *groups = json_object();
    int count = geometries(config, schemes);

    assert(count <= CT_GROUPS_MAX); /* accepts_all */
    for (int g = 0; g < count; g++) {
        char name[16];
        snprintf(name, sizeof(name), "group_%d", g);
        json_t *targets = count == 1 ? json_pack("[s]", "Linear") : json_array();
        for (int i = 0; count > 1 && i < config->count; i++) {
            if (format_same_geometry(schemes[g], &config->modules[i].scheme)) {
                json_array_append_new(targets, json_string(config->modules[i].name));
            }
        }
        json_object_set_new(groups, name,
                            json_pack("{s:o, s:o, s:n, s:n}", "targets", targets, "weights", weights_object(schemes[g]),
                                      "input_activations", "output_activations"));
    }
    return groups;
}

/* The oldest library that reads these words. */
static const char *version(const struct format_config *config)
{
    for (int i = 0; i < config->count; i++) {
        if (32 % config->modules[i].scheme.bits != 0) {
            return CT_VERSION_DENSE;
        }
    }
    return CT_VERSION;
}

static json_t *config_object(const struct format_config *config)
{
    const struct format_module **table;

    if (format_module_table(config, &table) != 0) {
        return NULL;
    }
    json_t *object =
        json_pack("{s:s, s:s, s:s, s:s, s:n, s:o, s:n, s:o}", "quant_method", "compressed-tensors", "version",
                  version(config), "format", "pack-quantized", "quantization_status", "compressed",
                  "global_compression_ratio", "ignore", ignore_list(config, (const struct format_module *const *)table),
                  "kv_cache_scheme", "config_groups", config_groups(config));
    free(table);
    return object;
}

static const char *const runtimes[] = {"transformers", "vllm", NULL};

const struct format format_compressed_tensors = {
    .name = "compressed-tensors",
    .title = "compressed-tensors, pack-quantized",
    .help =
        "Weight-only integers, 2 to 8 bits symmetric or 4 bits asymmetric, groups or channels. Loads in transformers "
        "(with the compressed-tensors package; 3, 5, 6 and 7 bits need 0.18 or newer) and in vLLM (4 and 8 bits).",
    .runtimes = runtimes,
    .scale_dtype = scale_dtype,
    .accepts = accepts,
    .accepts_all = accepts_all,
    .tensors = tensors,
    .encode = encode,
    .config = config_object,
};
