/* compressed-tensors: what transformers and vLLM load in tree. One container, several ways to store a weight, each in a
 * file of its own:
 *
 *   integers, inputs as they are   pack-quantized    compressed_tensors_pack.c
 *   INT8, INT8 inputs              int-quantized     compressed_tensors_int.c
 *   E4M3, E4M3 inputs              float-quantized   compressed_tensors_float.c
 *   E4M3, inputs as they are       naive-quantized   compressed_tensors_float.c
 *
 * Modules that are stored in different ways make a "mixed-precision" config whose groups name their own, which
 * libraries read from 0.18 on. Until that version the library also left padding bits in packed words of 3, 5, 6 and 7
 * bits; it reads the dense stream that is written here, hence the version in the config; 2, 4 and 8 bits are the same
 * in every version. The config objects forbid unknown members. */

#include "formats/compressed_tensors.h"

#include "base/err.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define CT_VERSION "0.15.0"
#define CT_VERSION_MIXED "0.18.0"
#define CT_GROUPS_MAX 64

static enum dtype ct_scale_dtype(enum dtype model_dtype)
{
    return model_dtype;
}

/* How a weight of this scheme is stored. */
static const struct ct_form *form_of(const struct qscheme *scheme)
{
    bool inputs = scheme->input.element != DTYPE_F32;

    if (scheme->kind == QTENSOR_FLOAT8) {
        return inputs ? &ct_float : &ct_naive;
    }
    return scheme->kind == QTENSOR_INT && inputs ? &ct_int : &ct_pack;
}

static int ct_accepts(const struct qscheme *scheme, int64_t rows, int64_t cols)
{
    return form_of(scheme)->accepts(scheme, rows, cols);
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

static int ct_accepts_all(const struct format_config *config)
{
    const struct qscheme *schemes[CT_GROUPS_MAX];

    if (geometries(config, schemes) > CT_GROUPS_MAX) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "more than %d different geometries in one model", CT_GROUPS_MAX);
    }
    return 0;
}

static int ct_tensors(const struct qscheme *scheme, int64_t rows, int64_t cols,
                      struct format_tensor out[FORMAT_TENSORS_MAX])
{
    return form_of(scheme)->tensors(scheme, rows, cols, out);
}

static int ct_encode(const struct qtensor *q, int index, void *out)
{
    return form_of(&q->scheme)->encode(q, index, out);
}

static const char *ct_stored(const struct qtensor *q, int index)
{
    const struct ct_form *form = form_of(&q->scheme);

    return form->stored != NULL ? form->stored(q, index) : NULL;
}

int ct_input_tensor(const struct qscheme *scheme, struct format_tensor *out)
{
    *out = (struct format_tensor){".input_scale", scheme->scale_dtype, 1, {1}};
    return scheme->input.element != DTYPE_F32 && !scheme->input.dynamic;
}

int ct_encode_input(const struct qtensor *q, void *out)
{
    return format_encode_scales(&q->input_scale, 1, 1, q->scheme.scale_dtype, out);
}

json_t *ct_arguments(int bits, bool is_float, bool sym, const char *strategy, int64_t group_size, int64_t block,
                     bool dynamic)
{
    json_t *size = group_size > 0 ? json_integer(group_size) : json_null();
    json_t *structure = block > 0 ? json_pack("[I, I]", (json_int_t)block, (json_int_t)block) : json_null();
    json_t *observer = dynamic ? json_null() : json_string("minmax");

    return json_pack("{s:i, s:s, s:b, s:s, s:o, s:b, s:o, s:n, s:o, s:{}}", "num_bits", bits, "type",
                     is_float ? "float" : "int", "symmetric", (int)sym, "strategy", strategy, "group_size", size,
                     "dynamic", (int)dynamic, "block_structure", structure, "actorder", "observer", observer,
                     "observer_kwargs");
}

static json_t *inputs_object(const struct gpu_input *input)
{
    const char *strategy = !input->dynamic ? "tensor" : input->group_size > 0 ? "group" : "token";

    if (input->element == DTYPE_F32) {
        return json_null();
    }
    return ct_arguments(8, input->element == DTYPE_F8_E4M3, true, strategy, input->group_size, 0, input->dynamic);
}

/* The head, expressions for what passes through, and exact names of every linear left in float. */
static json_t *ignore_list(const struct format_config *config, const struct format_module *const *table)
{
    if (model_is_bare(config->model)) {
        return format_bare_ignored(config, table);
    }
    json_t *list = json_array(), *left = format_left_in_float(config, table);
    char pattern[2 * PLAN_NAME_MAX];

    format_add_name(list, config->model, model_head_module(config->model));
    for (const char *const *extra = model_extras(config->model); *extra != NULL; extra++) {
        format_below(*extra, "re:", pattern);
        json_array_append_new(list, json_string(pattern));
    }
    json_array_extend(list, left);
    json_decref(left);
    return list;
}

/* The name of the form that all modules have, "dense" where there are none; NULL when they are stored in different
 * ways. */
static const char *common_form(const struct format_config *config)
{
    if (config->count == 0) {
        return "dense";
    }
    const struct ct_form *first = form_of(&config->modules[0].scheme);

    for (int i = 1; i < config->count; i++) {
        if (form_of(&config->modules[i].scheme) != first) {
            return NULL;
        }
    }
    return first->name;
}

/* "re:^model\.layers\.0\.mlp\.experts\..+$", for all modules of a layer's experts. */
static void add_experts_target(json_t *targets, const struct format_config *config, int64_t layer,
                               const struct plan_experts *experts)
{
    char name[PLAN_NAME_MAX], target[2 * MODEL_NAME_MAX], spellings[MODEL_SPELLINGS_MAX][PLAN_NAME_MAX];

    snprintf(name, sizeof(name), "%.60s%lld.%.40s.", model_layers_prefix(config->model), (long long)layer,
             experts->path);
    int count = model_spellings(config->model, name, spellings);
    for (int i = 0; i < count; i++) {
        size_t used = (size_t)snprintf(target, sizeof(target), "re:^");
        used += format_escape(spellings[i], target + used, sizeof(target) - used);
        snprintf(target + used, sizeof(target) - used, ".+$");
        json_array_append_new(targets, json_string(target));
    }
}

/* Whether all modules of a layer's experts are quantized, and have this geometry. */
static bool experts_have(const struct format_module *const *modules, const struct plan_experts *experts,
                         const struct qscheme *scheme)
{
    int64_t count = experts->count * experts->plan->module_count;

    for (int64_t i = 0; i < count; i++) {
        const struct format_module *m = modules[experts->first_module + i];
        if (m == NULL || !format_same_geometry(scheme, &m->scheme)) {
            return false;
        }
    }
    return true;
}

/* The modules of one geometry where there are several. Experts that all have it are named together: loaders whose
 * experts are one tensor know the group that is theirs by an expression with "experts" in it, and have no module with
 * an expert's name. */
static json_t *group_targets(const struct format_config *config, const struct format_module *const *table,
                             const struct qscheme *scheme)
{
    const struct plans *plans = model_plans(config->model);
    json_t *targets = json_array();

    for (int64_t layer = 0; layer < plans_config(plans)->num_layers; layer++) {
        const struct plan *plan = plans_layer(plans, layer);
        const struct format_module *const *modules = table + plans_first_module(plans, layer);
        int step = plan_find_step(plan, STEP_EXPERTS);
        const struct plan_experts *experts = step >= 0 ? plan->steps[step].experts : NULL;
        bool together = experts != NULL && experts_have(modules, experts, scheme);
        for (int i = 0; i < plan->module_count; i++) {
            if (together && i == experts->first_module) {
                add_experts_target(targets, config, layer, experts);
            }
            if (modules[i] != NULL && format_same_geometry(scheme, &modules[i]->scheme) &&
                !(together && plan->modules[i].expert >= 0)) {
                format_add_name(targets, config->model, modules[i]->name);
            }
        }
    }
    return targets;
}

/* One group per geometry. A single one targets the class; several name their modules, and their forms where these
 * differ. */
static json_t *config_groups(const struct format_config *config, const struct format_module *const *table)
{
    const struct qscheme *schemes[CT_GROUPS_MAX];
    json_t *groups = json_object();
    int count = geometries(config, schemes);

    assert(count <= CT_GROUPS_MAX); /* accepts_all */
    for (int g = 0; g < count; g++) {
        char name[16];
        snprintf(name, sizeof(name), "group_%d", g);
        json_t *targets = count == 1 ? json_pack("[s]", "Linear") : group_targets(config, table, schemes[g]);
        const struct ct_form *form = form_of(schemes[g]);
        json_t *group = json_pack("{s:o, s:o, s:o, s:n}", "targets", targets, "weights", form->weights(schemes[g]),
                                  "input_activations", inputs_object(&schemes[g]->input), "output_activations");
        if (common_form(config) == NULL) {
            json_object_set_new(group, "format", json_string(form->name));
        }
        json_object_set_new(groups, name, group);
    }
    return groups;
}

/* The oldest library that reads this. */
static const char *version(const struct format_config *config)
{
    if (common_form(config) == NULL) {
        return CT_VERSION_MIXED;
    }
    for (int i = 0; i < config->count; i++) {
        if (form_of(&config->modules[i].scheme) == &ct_pack && 32 % config->modules[i].scheme.bits != 0) {
            return CT_VERSION_MIXED;
        }
    }
    return CT_VERSION;
}

static json_t *ct_config_object(const struct format_config *config)
{
    const struct format_module **table;
    const char *form = common_form(config);

    if (format_module_table(config, &table) != 0) {
        return NULL;
    }
    json_t *object = json_pack("{s:s, s:s, s:s, s:s, s:n, s:o, s:o, s:o}", "quant_method", "compressed-tensors",
                               "version", version(config), "format", form != NULL ? form : "mixed-precision",
                               "quantization_status", "compressed", "global_compression_ratio", "ignore",
                               ignore_list(config, (const struct format_module *const *)table), "kv_cache_scheme",
                               format_cache_config(&config->cache), "config_groups",
                               config_groups(config, (const struct format_module *const *)table));
    free(table);
    return object;
}

const struct format format_compressed_tensors = {
    .name = "compressed-tensors",
    .title = "compressed-tensors",
    .help =
        "Weight-only integers, 2 to 8 bits symmetric or 4 bits asymmetric, groups or channels; INT8 weights with INT8 "
        "inputs; FP8 weights with or without FP8 inputs. Loads in transformers (with the compressed-tensors package; "
        "3, 5, 6 and 7 bits and mixtures need 0.18 or newer) and in vLLM (4 and 8 bits on every device, the other "
        "widths on CUDA).",
    .bare = true,
    .fuses = true,
    .scale_dtype = ct_scale_dtype,
    .accepts = ct_accepts,
    .accepts_all = ct_accepts_all,
    .accepts_cache = format_accepts_cache,
    .warn = ct_warn,
    .tensors = ct_tensors,
    .encode = ct_encode,
    .stored = ct_stored,
    .config = ct_config_object,
};
