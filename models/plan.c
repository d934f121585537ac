/* Plans as families write them, and questions to them. What is derived: plan_derive.c; a model's: plans.c. */

#include "models/plan_internal.h"

#include "base/err.h"

#include <stdio.h>
#include <string.h>

#define MODULES_MAX (1 << 20) /* of a layer */

int plan_fail(struct plan_builder *b, int rc)
{
    if (b->rc == 0) {
        b->rc = rc;
    }
    return 0;
}

/* Capacity for one more of a list in the arena; the old list stays there. */
static void *plan_grow(struct plan_builder *b, void *list, int count, int *capacity, size_t size)
{
    if (count < *capacity) {
        return list;
    }
    int more = *capacity > 0 ? 2 * *capacity : 16;
    void *grown = count < MODULES_MAX ? arena_alloc(b->arena, (size_t)more * size) : NULL;
    if (grown == NULL) {
        (void)plan_fail(b, err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a plan of %d modules", more));
        return NULL;
    }
    if (count > 0) {
        memcpy(grown, list, (size_t)count * size);
    }
    *capacity = more;
    return grown;
}

struct plan_builder *plan_builder_new(struct arena *arena, int64_t width)
{
    struct plan_builder *b = arena_alloc(arena, sizeof(*b));

    if (b != NULL) {
        b->arena = arena;
        b->values[0] = (struct plan_value){.width = width, .producer = -1, .last = -1};
        b->plan.value_count = 1;
    }
    return b;
}

static int64_t plan_width(const struct plan_builder *b, int value)
{
    return value >= 0 && value < b->plan.value_count ? b->values[value].width : 0;
}

static int add_step(struct plan_builder *b, const struct plan_step *step, int64_t width)
{
    struct plan *plan = &b->plan;

    if (b->rc != 0) {
        return 0;
    }
    for (int i = 0; i < step->inputs; i++) {
        if (step->in[i] < 0 || step->in[i] >= plan->value_count) {
            return plan_fail(b, err_raise(ERR_INTERNAL, "step %d of a plan reads value %d, which nothing has made",
                                          plan->step_count, step->in[i]));
        }
    }
    if (plan->step_count == PLAN_STEPS_MAX || plan->value_count == PLAN_VALUES_MAX) {
        return plan_fail(b, err_raise(ERR_INTERNAL, "a plan has more than %d steps", PLAN_STEPS_MAX));
    }
    b->steps[plan->step_count] = *step;
    b->steps[plan->step_count].out = plan->value_count;
    b->values[plan->value_count] = (struct plan_value){.width = width, .producer = plan->step_count++, .last = -1};
    return plan->value_count++;
}

int plan_add_step(struct plan_builder *b, const struct plan_step *step, int64_t width)
{
    return add_step(b, step, width);
}

static int plan_add_module(struct plan_builder *b, const struct plan_module *module)
{
    struct plan_module *grown = plan_grow(b, b->modules, b->plan.module_count, &b->module_room, sizeof(*grown));

    if (grown == NULL) {
        return -1;
    }
    b->modules = grown;
    b->modules[b->plan.module_count] = *module;
    return b->plan.module_count++;
}

/* `module` as far as it is not decided by its input. */
static int add_linear(struct plan_builder *b, int in, struct plan_module module)
{
    module.cols = plan_width(b, in);
    module.expert = -1;
    int index = plan_add_module(b, &module);
    struct plan_step step = {.kind = STEP_LINEAR, .in = {in}, .inputs = 1, .module = index, .norm = -1};

    return index < 0 ? 0 : add_step(b, &step, module.rows);
}

int plan_linear(struct plan_builder *b, int in, const char *path, const char *gguf, int64_t rows, bool bias)
{
    return add_linear(b, in, (struct plan_module){.path = path, .gguf = gguf, .rows = rows, .bias = bias});
}

int plan_optional(struct plan_builder *b, int in, const char *path, const char *gguf, int64_t rows, bool bias)
{
    return add_linear(b, in,
                      (struct plan_module){.path = path, .gguf = gguf, .rows = rows, .bias = bias, .optional = true});
}

int plan_router(struct plan_builder *b, int in, const char *path, const char *gguf, int64_t rows, bool bias)
{
    return add_linear(b, in,
                      (struct plan_module){.path = path, .gguf = gguf, .rows = rows, .bias = bias, .fixed = true});
}

int plan_normalize(struct plan_builder *b, int in, const struct plan_norm *norm)
{
    struct plan_step step = {.kind = STEP_NORM, .in = {in}, .inputs = 1, .module = -1, .norm = b->plan.norm_count};

    if (b->plan.norm_count < PLAN_STEPS_MAX) {
        b->norms[b->plan.norm_count++] = *norm;
    }
    return add_step(b, &step, plan_width(b, in));
}

int plan_head_norm(struct plan_builder *b, int in, const char *path, const char *gguf, int64_t head_dim)
{
    return plan_normalize(b, in, &(struct plan_norm){.path = path, .gguf = gguf, .size = head_dim});
}

int plan_row_norm(struct plan_builder *b, int in, const char *path, const char *gguf)
{
    return plan_head_norm(b, in, path, gguf, plan_width(b, in));
}

int plan_rope(struct plan_builder *b, int in, int64_t head_dim)
{
    return plan_rotate(b, in, &(struct plan_rope){.head_dim = head_dim, .rotated = head_dim});
}

int plan_rotate(struct plan_builder *b, int in, const struct plan_rope *rope)
{
    struct plan_step step = {.kind = STEP_ROPE, .in = {in}, .inputs = 1, .module = -1, .norm = -1, .rope = *rope};

    return add_step(b, &step, plan_width(b, in));
}

int plan_attend(struct plan_builder *b, int q, int k, int v, const struct plan_attention *attention)
{
    struct plan_step step = {
        .kind = STEP_ATTENTION, .in = {q, k, v}, .inputs = 3, .module = -1, .norm = -1, .attention = *attention};

    if (attention->value_dim == 0) {
        step.attention.value_dim = attention->head_dim;
    }
    return add_step(b, &step, attention->heads * step.attention.value_dim);
}

int plan_activate(struct plan_builder *b, enum plan_activation activation, int gate, int up)
{
    struct plan_step step = {.kind = STEP_ACTIVATE,
                             .in = {gate, up},
                             .inputs = up >= 0 ? 2 : 1,
                             .module = -1,
                             .norm = -1,
                             .activation = activation};

    return add_step(b, &step, plan_width(b, up >= 0 ? up : gate));
}

int plan_select(struct plan_builder *b, int in, const struct plan_select *select)
{
    struct plan_step step = {.kind = STEP_SELECT, .in = {in}, .inputs = 1, .module = -1, .norm = -1, .select = *select};

    return add_step(b, &step, select->stride > 0 ? plan_width(b, in) / select->stride * select->count : 0);
}

int plan_join(struct plan_builder *b, int first, int second, const struct plan_join *join)
{
    struct plan_step step = {
        .kind = STEP_JOIN, .in = {first, second}, .inputs = 2, .module = -1, .norm = -1, .join = *join};

    return add_step(b, &step, plan_width(b, first) + (join->shared ? join->heads : 1) * plan_width(b, second));
}

int plan_parameter(struct plan_builder *b, const struct plan_parameter *parameter)
{
    if (b->plan.parameter_count == PLAN_STEPS_MAX) {
        return plan_fail(b, err_raise(ERR_INTERNAL, "a plan has more than %d parameters", PLAN_STEPS_MAX));
    }
    b->parameters[b->plan.parameter_count] = *parameter;
    return b->plan.parameter_count++;
}

int plan_add(struct plan_builder *b, int to, int what)
{
    struct plan_step step = {.kind = STEP_ADD, .in = {to, what}, .inputs = 2, .module = -1, .norm = -1};

    return add_step(b, &step, plan_width(b, to));
}

int plan_scale(struct plan_builder *b, int in, double factor)
{
    struct plan_step step = {.kind = STEP_SCALE, .in = {in}, .inputs = 1, .module = -1, .norm = -1, .factor = factor};

    return add_step(b, &step, plan_width(b, in));
}

int plan_scale_by(struct plan_builder *b, int in, double factor, const struct plan_parameter *parameter)
{
    struct plan_step step = {.kind = STEP_SCALE,
                             .in = {in},
                             .inputs = 1,
                             .module = -1,
                             .norm = -1,
                             .factor = factor,
                             .has_parameter = true,
                             .parameter = plan_parameter(b, parameter)};

    return add_step(b, &step, plan_width(b, in));
}

/* modules: the arena's; NULL where it has no memory left. */
static void add_fused(struct plan_builder *b, const char *title, const int *modules, int count)
{
    struct plan_fused *grown = plan_grow(b, b->fused, b->plan.fused_count, &b->fused_room, sizeof(*grown));

    if (grown != NULL && modules != NULL) {
        b->fused = grown;
        b->fused[b->plan.fused_count++] = (struct plan_fused){.title = title, .modules = modules, .count = count};
    }
}

void plan_fuse(struct plan_builder *b, const char *title, const int *values, int count)
{
    int *modules = arena_alloc(b->arena, (size_t)count * sizeof(*modules));

    for (int i = 0; modules != NULL && b->rc == 0 && i < count; i++) {
        modules[i] = b->steps[b->values[values[i]].producer].module;
    }
    add_fused(b, title, modules, count);
}

void plan_store(struct plan_builder *b, int value, const struct plan_stored *stored)
{
    struct plan_stored *copy = arena_alloc(b->arena, sizeof(*copy));

    if (copy != NULL && b->rc == 0) {
        *copy = *stored;
        b->modules[b->steps[b->values[value].producer].module].stored = copy;
    }
}

struct plan_builder *plan_expert(struct plan_builder *b, int64_t width)
{
    struct plan_builder *expert = plan_builder_new(b->arena, width);

    if (expert == NULL) {
        (void)plan_fail(b, err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the plan of an expert"));
        return b; /* which has failed: what is added to it goes nowhere */
    }
    expert->expert = true;
    return expert;
}

/* Of one expert, where its tensors hold all experts'. */
static const struct plan_stored *expert_stored(struct plan_builder *b, const struct plan_stored *stored, int64_t expert)
{
    struct plan_stored *own = stored != NULL && stored->entries > 0 ? arena_alloc(b->arena, sizeof(*own)) : NULL;

    if (own == NULL) {
        return stored;
    }
    *own = *stored;
    own->entry = expert;
    return own;
}

/* The modules of every expert, and what of them is fused, by their paths in the layer. */
static void add_expert_modules(struct plan_builder *b, const struct plan_experts *experts)
{
    const struct plan *plan = experts->plan;
    char path[PLAN_NAME_MAX];

    for (int64_t e = 0; e < experts->count && b->rc == 0; e++) {
        int first = b->plan.module_count;
        for (int m = 0; m < plan->module_count && b->rc == 0; m++) {
            struct plan_module module = plan->modules[m];
            int length = snprintf(path, sizeof(path), "%s.%lld.%s", experts->path, (long long)e, plan->modules[m].path);
            module.path = arena_strndup(b->arena, path, (size_t)length);
            module.expert = (int)e;
            module.stored = expert_stored(b, module.stored, e);
            (void)plan_add_module(b, &module);
        }
        for (int f = 0; f < plan->fused_count && b->rc == 0; f++) {
            int count = plan->fused[f].count, *modules = arena_alloc(b->arena, (size_t)count * sizeof(*modules));
            for (int i = 0; modules != NULL && i < count; i++) {
                modules[i] = first + plan->fused[f].modules[i];
            }
            add_fused(b, plan->fused[f].title, modules, count);
        }
    }
}

int plan_experts(struct plan_builder *b, int in, int logits, const struct plan_experts *experts,
                 struct plan_builder *expert, int output)
{
    struct plan_experts *copy = arena_alloc(b->arena, sizeof(*copy));
    struct plan_step step = {
        .kind = STEP_EXPERTS, .in = {in, logits}, .inputs = 2, .module = -1, .norm = -1, .experts = copy};

    if (b->rc != 0) {
        return 0;
    }
    if (copy == NULL) {
        return plan_fail(b, err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the plan of experts"));
    }
    int rc = plan_derive(expert, output);
    int64_t groups = experts->groups > 1 ? experts->groups : 1, taken = groups > 1 ? experts->group_top_k : 1;
    bool grouped = experts->count % groups == 0 && taken >= 1 && taken <= groups &&
                   experts->top_k <= taken * (experts->count / groups);
    bool scales =
        !experts->scale_input || (experts->scores == SCORES_SIGMOID && !experts->normalize && experts->factor == 1);
    if (rc == 0 && (!grouped || !scales || experts->count < 1 || experts->top_k < 1 ||
                    experts->top_k > experts->count || experts->count * expert->plan.module_count > MODULES_MAX ||
                    plan_width(b, logits) != experts->count || plan_width(b, in) != expert->values[0].width)) {
        rc = err_raise(ERR_INTERNAL, "%lld experts of which %lld are taken, by a router of %lld",
                       (long long)experts->count, (long long)experts->top_k, (long long)plan_width(b, logits));
    }
    if (rc != 0) {
        return plan_fail(b, rc);
    }
    *copy = *experts;
    copy->plan = &expert->plan;
    copy->first_module = b->plan.module_count;
    add_expert_modules(b, copy);
    return add_step(b, &step, expert->values[output].width);
}

/* --- questions */

bool plan_steps(const struct plan *plan, plan_set have, plan_set want, plan_set *steps, plan_set *used)
{
    plan_set needed = want, run = 0;

    for (int s = plan->step_count - 1; s >= 0; s--) {
        const struct plan_step *step = &plan->steps[s];
        if ((needed & ~have & PLAN_BIT(step->out)) == 0) {
            continue;
        }
        needed &= ~PLAN_BIT(step->out);
        run |= PLAN_BIT(s);
        for (int i = 0; i < step->inputs; i++) {
            needed |= PLAN_BIT(step->in[i]);
        }
    }
    *steps = run;
    *used = needed & have;
    return (needed & ~have) == 0;
}

int plan_find_module(const struct plan *plan, const char *path)
{
    for (int i = 0; i < plan->module_count; i++) {
        if (strcmp(plan->modules[i].path, path) == 0) {
            return i;
        }
    }
    return -1;
}

int64_t plan_stored_outputs(const struct plan_module *module)
{
    const struct plan_select *rows = module->stored != NULL ? &module->stored->rows : NULL;

    return rows != NULL && rows->stride > 0 ? module->rows / rows->count * rows->stride : module->rows;
}

bool plan_reads(const struct plan *plan, const struct plan_group *group, int module)
{
    const struct plan_module *m = &plan->modules[module];

    if (m->expert == group->expert) {
        return m->group == (int)(group - plan->groups);
    }
    for (int s = 0; group->expert < 0 && s < plan->step_count; s++) {
        const struct plan_experts *experts = plan->steps[s].experts;
        int own = experts != NULL ? module - experts->first_module : -1;
        if (own >= 0 && own < experts->count * experts->plan->module_count && plan->steps[s].in[0] == group->input) {
            const struct plan_module *of_expert = &experts->plan->modules[own % experts->plan->module_count];
            return experts->plan->steps[of_expert->step].in[0] == 0;
        }
    }
    return false;
}

int plan_residual_before(const struct plan *plan, int group)
{
    int value = 0;

    if (group >= plan->group_count) {
        return plan->output;
    }
    for (int v = 0; v < plan->value_count; v++) {
        value = plan->values[v].residual && plan->values[v].producer < plan->groups[group].step ? v : value;
    }
    return value;
}

int plan_attention_group(const struct plan *plan)
{
    int step = plan_find_step(plan, STEP_ATTENTION), found = -1;

    for (int g = 0; g < plan->group_count; g++) {
        found = plan->groups[g].step < step ? g : found;
    }
    return found;
}

plan_set plan_sources(const struct plan *plan, const struct plan_group *group)
{
    const struct plan_step *step = &plan->steps[group->step];

    return group->expert < 0 ? PLAN_BIT(group->input) : PLAN_BIT(step->in[0]) | PLAN_BIT(step->in[1]);
}

const struct plan *plan_of_group(const struct plan *plan, const struct plan_group *group)
{
    return group->expert < 0 ? plan : plan->steps[group->step].experts->plan;
}

int plan_find_step(const struct plan *plan, enum plan_step_kind kind)
{
    for (int i = 0; i < plan->step_count; i++) {
        if (plan->steps[i].kind == kind) {
            return i;
        }
    }
    return -1;
}

double plan_flops(const struct plan *plan, plan_set steps, int64_t rows, int64_t length)
{
    double flops = 0;

    for (int s = 0; s < plan->step_count; s++) {
        const struct plan_step *step = &plan->steps[s];
        if ((steps & PLAN_BIT(s)) == 0) {
            continue;
        }
        if (step->kind == STEP_LINEAR) {
            const struct plan_module *m = &plan->modules[step->module];
            flops += 2.0 * (double)rows * (double)m->rows * (double)m->cols;
        } else if (step->kind == STEP_ATTENTION) {
            const struct plan_attention *a = &step->attention;
            flops += (double)rows * (double)length * (double)(a->heads * (a->head_dim + a->value_dim));
        } else if (step->kind == STEP_DELTA) {
            const struct plan_delta *d = &step->delta;
            flops += 6.0 * (double)rows * (double)(d->value_heads * d->key_dim * d->value_dim);
        } else if (step->kind == STEP_SCAN) {
            const struct plan_scan *c = &step->scan;
            flops += 5.0 * (double)rows * (double)(c->heads * c->state * c->head_dim);
        } else if (step->kind == STEP_EXPERTS) {
            const struct plan_experts *e = step->experts;
            flops += plan_flops(e->plan, ~(plan_set)0, rows * e->top_k, length);
        }
    }
    return flops;
}

const char *plan_short_path(const char *path)
{
    const char *dot = strrchr(path, '.');

    return dot != NULL ? dot + 1 : path;
}
