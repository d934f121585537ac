/* quantd-tensors < MEMBERS > CHECKPOINTS: what a small checkpoint of every architecture holds, for tests that write
 * one.
 *
 * MEMBERS is an object: under a row's model_type what its config.json says in place of the sample of models/parts.h,
 * and under "*" what that of every row says. CHECKPOINTS is a list of objects, one for each row:
 *
 *   architecture, model_type
 *   config    its config.json
 *   error     why there is no such model, or null; then also
 *   kinds     the number of the plan of each layer: [0, 0, 1, 1]
 *   turned    whether linears are stored by inputs, which compressed-tensors does not carry
 *   tensors   by name: {"shape": [...], "what": "embedding" | "matrix" | "norm" | "vector", "fixed": true where no
 *             method changes it, whatever it does to linears} */

#include "base/cleanup.h"
#include "base/err.h"
#include "models/model.h"
#include "models/parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Several modules may be stored in one tensor: the first to name it adds it. */
static void add_tensor(json_t *tensors, const char *name, const int64_t *shape, int rank, const char *what, bool fixed)
{
    json_t *sizes = json_array();

    for (int i = 0; i < rank; i++) {
        json_array_append_new(sizes, json_integer((json_int_t)shape[i]));
    }
    json_t *tensor = json_pack("{s:o, s:s, s:b}", "shape", sizes, "what", what, "fixed", (int)fixed);
    if (json_object_get(tensors, name) == NULL) {
        json_object_set_new(tensors, name, tensor);
    } else {
        json_decref(tensor);
    }
}

/* One outside the layers; cols 0: a vector. */
static void add_outside(json_t *tensors, const char *module, const char *member, int64_t rows, int64_t cols,
                        const char *what)
{
    char name[MODEL_NAME_MAX];

    snprintf(name, sizeof(name), "%s.%s", module, member);
    add_tensor(tensors, name, (const int64_t[]){rows, cols}, cols > 0 ? 2 : 1, what, true);
}

static void add_outsides(json_t *tensors, const struct model_config *c)
{
    const struct arch *row = c->arch;

    add_outside(tensors, row->embedding, "weight", c->vocab_size, c->hidden_size, "embedding");
    if (row->positions != NULL) {
        add_outside(tensors, row->positions, "weight", c->max_position + row->position_row, c->hidden_size,
                    "embedding");
    }
    add_outside(tensors, row->norm, "weight", c->hidden_size, 0, "norm");
    if (row->norm_biases) {
        add_outside(tensors, row->norm, "bias", c->hidden_size, 0, "vector");
    }
    if (!c->tie_word_embeddings) {
        add_outside(tensors, row->head, "weight", c->vocab_size, c->hidden_size, "matrix");
    }
    if (row->head_bias) {
        add_outside(tensors, row->head, "bias", c->vocab_size, 0, "vector");
    }
    if (c->token_columns > 0) {
        int64_t columns = c->num_layers * c->token_columns;
        add_outside(tensors, row->tokens[MODEL_TOKENS_TABLE], "weight", c->token_rows, columns, "embedding");
        add_outside(tensors, row->tokens[MODEL_TOKENS_PROJECTION], "weight", columns, c->hidden_size, "matrix");
        add_outside(tensors, row->tokens[MODEL_TOKENS_NORM], "weight", c->token_columns, 0, "norm");
    }
}

/* "<prefix><path>", or what the plan says instead of the path's own member. */
static void layer_name(char out[MODEL_NAME_MAX], const char *prefix, const char *stored, const char *path,
                       const char *member)
{
    if (stored != NULL) {
        snprintf(out, MODEL_NAME_MAX, "%s%s", prefix, stored);
    } else {
        snprintf(out, MODEL_NAME_MAX, "%s%s.%s", prefix, path, member);
    }
}

static bool is_turned(const struct plan *plan)
{
    for (int i = 0; i < plan->module_count; i++) {
        const struct plan_stored *stored = plan->modules[i].stored;
        if (stored != NULL && stored->transposed && stored->entries == 0) {
            return true;
        }
    }
    return false;
}

static void add_module(json_t *tensors, const char *prefix, const struct plan_module *module)
{
    const struct plan_stored *stored = module->stored;
    char name[MODEL_NAME_MAX];
    int64_t shape[3];

    layer_name(name, prefix, stored != NULL ? stored->weight : NULL, module->path, "weight");
    int rank = model_part_shape(module, false, shape);
    add_tensor(tensors, name, shape, rank, "matrix", false);
    if (module->bias) {
        layer_name(name, prefix, stored != NULL ? stored->bias : NULL, module->path, "bias");
        rank = model_part_shape(module, true, shape);
        add_tensor(tensors, name, shape, rank, "vector", false);
    }
}

static bool takes_factors(const struct plan *plan, int norm)
{
    for (int g = 0; g < plan->group_count; g++) {
        if (plan->groups[g].fold.kind == FOLD_NORM && plan->groups[g].fold.norm == norm) {
            return true;
        }
    }
    return false;
}

static void add_layer(json_t *tensors, const char *prefix, const struct plan *plan)
{
    char name[MODEL_NAME_MAX];

    for (int i = 0; i < plan->norm_count; i++) {
        const struct plan_norm *norm = &plan->norms[i];
        if (norm->path != NULL) {
            layer_name(name, prefix, NULL, norm->path, "weight");
            add_tensor(tensors, name, &norm->size, 1, "norm", !takes_factors(plan, i));
        }
        if (norm->path != NULL && norm->bias) {
            layer_name(name, prefix, NULL, norm->path, "bias");
            add_tensor(tensors, name, &norm->size, 1, "vector", !takes_factors(plan, i));
        }
    }
    for (int i = 0; i < plan->module_count; i++) {
        add_module(tensors, prefix, &plan->modules[i]);
    }
    for (int i = 0; i < plan->parameter_count; i++) {
        const struct plan_parameter *parameter = &plan->parameters[i];
        layer_name(name, prefix, parameter->path, NULL, NULL);
        add_tensor(tensors, name, parameter->shape, parameter->rank, "vector", true);
    }
}

static int kind_of(const struct plans *plans, int64_t layer)
{
    int kind = 0;

    while (plans_kind(plans, kind) != plans_layer(plans, layer)) {
        kind++;
    }
    return kind;
}

/* The members of the answer that follow from the plans of a configuration. */
static int describe_plans(const json_t *config, json_t *out)
{
    AUTO(plans) struct plans *plans = NULL;
    struct model_config parsed;
    json_t *kinds = json_array(), *tensors = json_object();
    bool turned = false;
    char prefix[MODEL_NAME_MAX];

    json_object_set_new(out, "kinds", kinds);
    json_object_set_new(out, "tensors", tensors);
    TRY(arch_parse_config(config, &parsed));
    TRY(plans_new(&parsed, &plans));
    add_outsides(tensors, &parsed);
    for (int64_t layer = 0; layer < parsed.num_layers; layer++) {
        json_array_append_new(kinds, json_integer(kind_of(plans, layer)));
        snprintf(prefix, sizeof(prefix), "%s%lld.", parsed.arch->layers, (long long)layer);
        add_layer(tensors, prefix, plans_layer(plans, layer));
        turned = turned || is_turned(plans_layer(plans, layer));
    }
    json_object_set_new(out, "turned", json_boolean(turned));
    return 0;
}

static json_t *describe_row(const struct arch *row, const json_t *members)
{
    json_t *config = arch_sample(row);
    json_t *out = json_pack("{s:s, s:s, s:o, s:n}", "architecture", row->name, "model_type", row->model_type, "config",
                            config, "error");

    json_object_set_new(config, "model_type", json_string(row->model_type));
    json_object_update(config, json_object_get(members, "*"));
    json_object_update(config, json_object_get(members, row->model_type));
    if (describe_plans(config, out) != 0) {
        json_object_set_new(out, "error", json_string(err_last()->message));
    }
    return out;
}

int main(void)
{
    json_error_t error;
    AUTO_JSON json_t *members = json_loadf(stdin, 0, &error);
    AUTO_JSON json_t *list = json_array();

    if (!json_is_object(members)) {
        fprintf(stderr, "usage: quantd-tensors < MEMBERS > CHECKPOINTS: no object, %s\n", error.text);
        return 2;
    }
    for (const struct arch *const *row = arch_list(); *row != NULL; row++) {
        json_array_append_new(list, describe_row(*row, members));
    }
    return json_dumpf(list, stdout, JSON_COMPACT) == 0 && fflush(stdout) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
