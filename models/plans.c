/* The plans of a model: one for each distinct kind of layer. */

#include "models/plan_internal.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

#define PLANS_MEMORY_MAX ((size_t)256 << 20)
#define PLANS_MODULES_MAX ((size_t)1 << 20) /* of all layers: more than ten times the largest models of today */

struct plans {
    struct model_config config;
    struct arena arena;
    const struct plan **kinds;
    int kind_count;
    int *kind_of;         /* [layers] */
    size_t *first_module; /* [layers + 1] */
};

static bool same_text(const char *a, const char *b)
{
    return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

static bool same_experts(const struct plan_experts *a, const struct plan_experts *b);

static bool same_rope(const struct plan_rope *a, const struct plan_rope *b)
{
    return a->head_dim == b->head_dim && a->rotated == b->rotated && a->interleaved == b->interleaved &&
           a->table == b->table;
}

static bool same_attention(const struct plan_attention *a, const struct plan_attention *b)
{
    return a->heads == b->heads && a->kv_heads == b->kv_heads && a->head_dim == b->head_dim &&
           a->value_dim == b->value_dim && a->window == b->window && a->chunk == b->chunk && a->scale == b->scale &&
           a->cap == b->cap && a->has_sinks == b->has_sinks && a->sinks == b->sinks;
}

static bool same_columns(const struct plan_step *a, const struct plan_step *b)
{
    return a->select.stride == b->select.stride && a->select.first == b->select.first &&
           a->select.count == b->select.count && a->join.heads == b->join.heads && a->join.shared == b->join.shared;
}

static bool same_norm(const struct plan_norm *a, const struct plan_norm *b)
{
    return same_text(a->path, b->path) && a->size == b->size && a->kind == b->kind &&
           a->unit_offset == b->unit_offset && a->bias == b->bias && a->eps == b->eps;
}

static bool same_parameter(const struct plan_parameter *a, const struct plan_parameter *b)
{
    return same_text(a->path, b->path) && a->rank == b->rank && memcmp(a->shape, b->shape, sizeof(a->shape)) == 0;
}

static bool same_stored(const struct plan_stored *a, const struct plan_stored *b)
{
    return a == b || (a != NULL && b != NULL && same_text(a->weight, b->weight) && same_text(a->bias, b->bias) &&
                      a->transposed == b->transposed && a->entries == b->entries && a->entry == b->entry &&
                      memcmp(&a->rows, &b->rows, sizeof(a->rows)) == 0);
}

static bool same_step(const struct plan_step *a, const struct plan_step *b)
{
    return a->kind == b->kind && memcmp(a->in, b->in, sizeof(a->in)) == 0 && a->module == b->module &&
           a->norm == b->norm && a->factor == b->factor && a->has_parameter == b->has_parameter &&
           a->parameter == b->parameter && a->activation == b->activation && same_rope(&a->rope, &b->rope) &&
           same_columns(a, b) && same_attention(&a->attention, &b->attention) && plan_recurrent_same(a, b) &&
           same_experts(a->experts, b->experts);
}

/* As they were written: what is derived follows. */
static bool same_plan(const struct plan *a, const struct plan *b)
{
    bool same = a->step_count == b->step_count && a->module_count == b->module_count &&
                a->norm_count == b->norm_count && a->parameter_count == b->parameter_count &&
                a->fused_count == b->fused_count && a->output == b->output && a->value_count == b->value_count;

    for (int v = 0; same && v < a->value_count; v++) {
        same = a->values[v].shared == b->values[v].shared && a->values[v].width == b->values[v].width;
    }
    for (int i = 0; same && i < a->step_count; i++) {
        same = same_step(&a->steps[i], &b->steps[i]);
    }
    for (int i = 0; same && i < a->module_count; i++) {
        const struct plan_module *m = &a->modules[i], *n = &b->modules[i];
        same = same_text(m->path, n->path) && same_text(m->gguf, n->gguf) && m->rows == n->rows && m->cols == n->cols &&
               m->bias == n->bias && m->fixed == n->fixed && m->optional == n->optional && m->expert == n->expert &&
               same_stored(m->stored, n->stored);
    }
    for (int i = 0; same && i < a->norm_count; i++) {
        same = same_norm(&a->norms[i], &b->norms[i]);
    }
    for (int i = 0; same && i < a->parameter_count; i++) {
        same = same_parameter(&a->parameters[i], &b->parameters[i]);
    }
    for (int i = 0; same && i < a->fused_count; i++) {
        same = a->fused[i].count == b->fused[i].count &&
               memcmp(a->fused[i].modules, b->fused[i].modules, (size_t)a->fused[i].count * sizeof(int)) == 0;
    }
    return same;
}

static bool same_experts(const struct plan_experts *a, const struct plan_experts *b)
{
    return a == b ||
           (a != NULL && b != NULL && a->count == b->count && a->top_k == b->top_k && a->scores == b->scores &&
            a->normalize == b->normalize && a->factor == b->factor && a->epsilon == b->epsilon &&
            a->groups == b->groups && a->group_top_k == b->group_top_k && a->group_pairs == b->group_pairs &&
            a->has_bias == b->has_bias && a->bias == b->bias && a->has_scale == b->has_scale && a->scale == b->scale &&
            a->scale_input == b->scale_input && same_plan(a->plan, b->plan));
}

static int build_layer(const struct model_config *config, int64_t layer, struct arena *arena, const struct plan **out)
{
    struct plan_builder *b = plan_builder_new(arena, config->hidden_size);

    if (b == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a plan");
    }
    int output = config->arch->plan(config, layer, b);
    int rc = plan_derive(b, output);
    *out = &b->plan;
    return rc;
}

/* The plan of one layer: one that there is already, or a new kind. */
static int add_layer(struct plans *plans, int64_t layer)
{
    const struct plan *plan = NULL;
    AUTO(arena) struct arena trial;

    arena_init(&trial, PLANS_MEMORY_MAX);
    TRY(build_layer(&plans->config, layer, &trial, &plan));
    for (int kind = plans->kind_count - 1; kind >= 0; kind--) {
        if (same_plan(plan, plans->kinds[kind])) {
            plans->kind_of[layer] = kind;
            return 0;
        }
    }
    TRY(build_layer(&plans->config, layer, &plans->arena, &plan));
    plans->kind_of[layer] = plans->kind_count;
    plans->kinds[plans->kind_count++] = plan;
    return 0;
}

static int add_layers(struct plans *plans, size_t layers)
{
    TRY(mem_array(&plans->kinds, layers));
    TRY(mem_array(&plans->kind_of, layers));
    TRY(mem_array(&plans->first_module, layers + 1));
    for (size_t layer = 0; layer < layers; layer++) {
        TRY(add_layer(plans, (int64_t)layer));
        plans->first_module[layer + 1] =
            plans->first_module[layer] + (size_t)plans->kinds[plans->kind_of[layer]]->module_count;
        if (plans->first_module[layer + 1] > PLANS_MODULES_MAX) {
            return err_raise(
                ERR_INVALID_MODEL, "config.json: num_hidden_layers %lld with %lld experts makes more than %zu modules",
                (long long)plans->config.num_layers, (long long)plans->config.num_experts, PLANS_MODULES_MAX);
        }
    }
    return 0;
}

int plans_new(const struct model_config *config, struct plans **out)
{
    AUTO(plans) struct plans *plans = NULL;

    TRY(mem_new(&plans));
    plans->config = *config;
    arena_init(&plans->arena, PLANS_MEMORY_MAX);
    int rc = add_layers(plans, (size_t)config->num_layers);
    if (rc != 0) {
        return err_pass(rc, "plan the layers of a %s", config->arch->name);
    }
    *out = MOVE(plans);
    return 0;
}

/* A plan of modules alone: each is an input group of its own. */
static const struct plan *list_layer(struct arena *arena, const struct plan_module *modules, size_t count)
{
    struct plan *plan = arena_alloc(arena, sizeof(*plan));
    struct plan_module *own = arena_alloc(arena, count * sizeof(*own));
    struct plan_group *groups = arena_alloc(arena, count * sizeof(*groups));
    int *numbers = arena_alloc(arena, count * sizeof(*numbers));

    if (plan == NULL || own == NULL || groups == NULL || numbers == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        own[i] = modules[i];
        own[i].group = numbers[i] = (int)i;
        groups[i] = (struct plan_group){.expert = -1,
                                        .modules = &numbers[i],
                                        .count = 1,
                                        .columns = own[i].cols,
                                        .step = -1,
                                        .fold = {.norm = -1, .module = -1},
                                        .branch = -1,
                                        .residual = -1};
        plan->widest_input = own[i].cols > plan->widest_input ? own[i].cols : plan->widest_input;
        plan->tallest = own[i].rows > plan->tallest ? own[i].rows : plan->tallest;
    }
    plan->modules = own;
    plan->groups = groups;
    plan->module_count = plan->group_count = (int)count;
    return plan;
}

static int list_layers(struct plans *plans, const struct plan_module *modules, const size_t *ends)
{
    size_t layers = (size_t)plans->config.num_layers;

    if (ends[layers - 1] > PLANS_MODULES_MAX) {
        return err_raise(ERR_INVALID_MODEL, "the checkpoint has %zu weights, more than %zu", ends[layers - 1],
                         PLANS_MODULES_MAX);
    }
    TRY(mem_array(&plans->kinds, layers));
    TRY(mem_array(&plans->kind_of, layers));
    TRY(mem_array(&plans->first_module, layers + 1));
    for (size_t l = 0; l < layers; l++) {
        size_t first = plans->first_module[l];
        plans->kinds[l] = list_layer(&plans->arena, modules + first, ends[l] - first);
        plans->kind_of[l] = (int)l;
        plans->first_module[l + 1] = ends[l];
    }
    plans->kind_count = (int)layers;
    return arena_check(&plans->arena);
}

int plans_new_listed(const struct model_config *config, const struct plan_module *modules, const size_t *ends,
                     struct plans **out)
{
    AUTO(plans) struct plans *plans = NULL;

    TRY(mem_new(&plans));
    plans->config = *config;
    arena_init(&plans->arena, PLANS_MEMORY_MAX);
    TRY(list_layers(plans, modules, ends));
    *out = MOVE(plans);
    return 0;
}

void plans_free(struct plans *plans)
{
    if (plans != NULL) {
        arena_deinit(&plans->arena);
        free(plans->kinds);
        free(plans->kind_of);
        free(plans->first_module);
        free(plans);
    }
}

const struct model_config *plans_config(const struct plans *plans)
{
    return &plans->config;
}

int plans_kinds(const struct plans *plans)
{
    return plans->kind_count;
}

const struct plan *plans_kind(const struct plans *plans, int kind)
{
    return plans->kinds[kind];
}

const struct plan *plans_layer(const struct plans *plans, int64_t layer)
{
    return plans->kinds[plans->kind_of[layer]];
}

size_t plans_modules(const struct plans *plans)
{
    return plans->first_module[plans->config.num_layers];
}

size_t plans_first_module(const struct plans *plans, int64_t layer)
{
    return plans->first_module[layer];
}

int64_t plans_module_at(const struct plans *plans, size_t index, int *module)
{
    int64_t low = 0, high = plans->config.num_layers - 1;

    while (low < high) {
        int64_t middle = (low + high + 1) / 2;
        if (plans->first_module[middle] <= index) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    *module = (int)(index - plans->first_module[low]);
    return low;
}
