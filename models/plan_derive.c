/* What follows from a plan's steps: where values are stored, which modules read the same input, what is stored between
 * passes. Each is one look over the steps, which are few. Where factors can go: plan_folds.c.
 *
 * The residual stream. Steps that only change their first input work in place where nobody reads it afterwards, so the
 * layer's input and the sums that take its place share one storage: a layer must end in it, since its output is the
 * next one's input.
 *
 * What is kept for the pass after a group is what lives there, less what one norm makes of it again. What a layer gives
 * to later ones lives to its end, in a store of its own number, and so does what it takes until it is read. */

#include "models/plan_internal.h"

#include "base/err.h"

#include <string.h>

static bool in_set(plan_set set, int number)
{
    return (set & PLAN_BIT(number)) != 0;
}

static void find_last(struct plan_builder *b)
{
    for (int s = 0; s < b->plan.step_count; s++) {
        for (int i = 0; i < b->steps[s].inputs; i++) {
            b->values[b->steps[s].in[i]].last = s;
        }
    }
    b->plan.inputs = b->plan.given = 0;
    for (int v = 0; v < b->plan.value_count; v++) {
        struct plan_value *value = &b->values[v];
        b->plan.inputs |= value->producer < 0 ? PLAN_BIT(v) : 0;
        b->plan.given |= value->producer >= 0 && value->shared > 0 ? PLAN_BIT(v) : 0;
        value->last = value->producer >= 0 && value->shared > 0 ? b->plan.step_count : value->last;
    }
}

/* --- storages */

static bool works_in_place(const struct plan_builder *b, int s)
{
    const struct plan_step *step = &b->steps[s];
    bool kind = step->kind == STEP_NORM || step->kind == STEP_ROPE || step->kind == STEP_ACTIVATE ||
                step->kind == STEP_ADD || step->kind == STEP_SCALE || step->kind == STEP_GATED_NORM;

    return kind && b->values[step->in[0]].last == s && step->in[0] != b->plan.output &&
           b->values[step->in[0]].width == b->values[step->out].width &&
           (step->inputs < 2 || step->in[1] != step->in[0]);
}

static void share_storages(struct plan_builder *b, struct plan_storage *storages)
{
    struct plan *plan = &b->plan;

    storages[0] = (struct plan_storage){.region = REGION_KEPT, .width = b->values[0].width, .store = -1};
    b->values[0].storage = 0;
    b->values[0].residual = true;
    plan->storage_count = 1;
    for (int v = 1; v < plan->value_count; v++) {
        if (b->values[v].producer < 0) {
            b->values[v].storage = plan->storage_count++;
            storages[b->values[v].storage] =
                (struct plan_storage){.region = REGION_WORK, .width = b->values[v].width, .store = -1};
        }
    }
    for (int s = 0; s < plan->step_count; s++) {
        struct plan_value *out = &b->values[b->steps[s].out];
        if (works_in_place(b, s)) {
            out->storage = b->values[b->steps[s].in[0]].storage;
        } else {
            out->storage = plan->storage_count++;
            storages[out->storage] = (struct plan_storage){.region = REGION_WORK, .width = out->width, .store = -1};
        }
        out->residual = out->storage == 0;
    }
    for (int v = 0; v < plan->value_count; v++) {
        if (b->values[v].shared > 0) {
            storages[b->values[v].storage].store = PLAN_SHARED_STORE + b->values[v].shared - 1;
        }
    }
}

/* The next addition to the residual stream at or after step s, or -1. */
static int next_addition(const struct plan_builder *b, int s)
{
    for (; s < b->plan.step_count; s++) {
        if (b->steps[s].kind == STEP_ADD && b->values[b->steps[s].out].residual) {
            return s;
        }
    }
    return -1;
}

/* From the first step that writes a storage to the last that reads it. What is kept stays until the branch that it is
 * part of is added to the residual stream, so that the branch can be run again. */
static void storage_life(const struct plan_builder *b, const struct plan_storage *storages, int storage, int *from,
                         int *to)
{
    *from = b->plan.step_count;
    *to = -1;
    for (int v = 0; v < b->plan.value_count; v++) {
        const struct plan_value *value = &b->values[v];
        if (value->storage == storage) {
            int end = v == b->plan.output             ? b->plan.step_count
                      : value->last > value->producer ? value->last
                                                      : value->producer;
            *from = value->producer < *from ? value->producer : *from;
            *to = end > *to ? end : *to;
        }
    }
    if (storages[storage].region == REGION_KEPT) {
        int addition = next_addition(b, *to);
        *to = storage == 0 || addition < 0 ? b->plan.step_count : addition > *to ? addition : *to;
    }
}

/* Each storage at the lowest offset of its region that none has which lives at the same time. */
static void place_storages(struct plan_builder *b, struct plan_storage *storages)
{
    struct plan *plan = &b->plan;
    int from[PLAN_VALUES_MAX], to[PLAN_VALUES_MAX];

    for (int i = 0; i < plan->storage_count; i++) {
        struct plan_storage *mine = &storages[i];
        storage_life(b, storages, i, &from[i], &to[i]);
        for (int k = 0; k < i; k++) {
            const struct plan_storage *other = &storages[k];
            bool meets = other->region == mine->region && from[i] <= to[k] && from[k] <= to[i] &&
                         mine->offset < other->offset + other->width && other->offset < mine->offset + mine->width;
            if (meets) {
                mine->offset = other->offset + other->width;
                k = -1; /* it may meet one that it has passed */
            }
        }
        int64_t end = mine->offset + mine->width;
        plan->columns[mine->region] = end > plan->columns[mine->region] ? end : plan->columns[mine->region];
    }
}

/* --- input groups */

static void add_group(struct plan_builder *b, struct plan_group *groups, int s)
{
    const struct plan_step *step = &b->steps[s];

    for (int g = 0; g < b->plan.group_count; g++) {
        if (groups[g].expert < 0 && groups[g].input == step->in[0]) {
            groups[g].count++;
            return;
        }
    }
    groups[b->plan.group_count++] = (struct plan_group){.input = step->in[0],
                                                        .expert = -1,
                                                        .count = 1,
                                                        .columns = b->values[step->in[0]].width,
                                                        .step = s,
                                                        .branch = -1,
                                                        .residual = -1};
}

/* The groups of every expert, one expert after another, with their modules as the layer numbers them. */
static bool add_expert_groups(struct plan_builder *b, struct plan_group *groups, int s)
{
    const struct plan_experts *experts = b->steps[s].experts;

    for (int64_t e = 0; e < experts->count; e++) {
        int first = experts->first_module + (int)e * experts->plan->module_count;
        for (int g = 0; g < experts->plan->group_count; g++) {
            struct plan_group group = experts->plan->groups[g];
            int *modules = arena_alloc(b->arena, (size_t)group.count * sizeof(*modules));
            if (modules == NULL) {
                return false;
            }
            for (int i = 0; i < group.count; i++) {
                modules[i] = first + group.modules[i];
                b->modules[modules[i]].group = b->plan.group_count;
            }
            group.modules = modules;
            group.expert = (int)e;
            group.step = s;
            group.fold.module += group.fold.module >= 0 ? first : 0;
            groups[b->plan.group_count++] = group;
        }
    }
    return true;
}

/* Where the modules of a group stand in the list: known when all groups are. */
static bool list_modules(struct plan_builder *b, struct plan_group *groups)
{
    for (int g = 0; g < b->plan.group_count; g++) {
        if (groups[g].expert >= 0) {
            continue;
        }
        int *modules = arena_alloc(b->arena, (size_t)groups[g].count * sizeof(*modules));
        int count = 0;
        for (int s = 0; modules != NULL && s < b->plan.step_count; s++) {
            if (b->steps[s].kind == STEP_LINEAR && b->steps[s].in[0] == groups[g].input) {
                modules[count++] = b->steps[s].module;
                b->modules[b->steps[s].module].group = g;
                b->modules[b->steps[s].module].step = s;
            }
        }
        if (modules == NULL) {
            return false;
        }
        groups[g].modules = modules;
    }
    return true;
}

static int find_groups(struct plan_builder *b, struct plan_group **out)
{
    size_t capacity = PLAN_STEPS_MAX;
    bool ok = true;

    for (int s = 0; s < b->plan.step_count; s++) {
        const struct plan_experts *experts = b->steps[s].experts;
        capacity += experts != NULL ? (size_t)experts->count * (size_t)experts->plan->group_count : 0;
    }
    struct plan_group *groups = arena_alloc(b->arena, capacity * sizeof(*groups));
    for (int s = 0; groups != NULL && ok && s < b->plan.step_count; s++) {
        if (b->steps[s].kind == STEP_LINEAR) {
            add_group(b, groups, s);
        } else if (b->steps[s].kind == STEP_EXPERTS) {
            ok = add_expert_groups(b, groups, s);
        }
    }
    if (groups == NULL || !ok || !list_modules(b, groups)) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the input groups of a plan");
    }
    *out = groups;
    return 0;
}

/* --- passes */

/* What lives when all before step s is done. */
static plan_set live_at(const struct plan_builder *b, int s)
{
    plan_set live = 0;

    for (int v = 0; v < b->plan.value_count; v++) {
        int last = v == b->plan.output ? b->plan.step_count : b->values[v].last;
        live |= b->values[v].producer < s && last >= s ? PLAN_BIT(v) : 0;
    }
    return live;
}

/* The same less what a norm makes of the rest. */
static plan_set kept_at(const struct plan_builder *b, int s)
{
    plan_set live = live_at(b, s);

    for (int k = s - 1; k >= 0; k--) {
        const struct plan_step *step = &b->steps[k];
        if (step->kind == STEP_NORM && in_set(live, step->out) && in_set(live, step->in[0])) {
            live &= ~PLAN_BIT(step->out);
        }
    }
    return live;
}

static void add_store(struct plan *plan, struct plan_storage *storage)
{
    if (storage->store < 0) {
        plan->store_columns[plan->store_count] = storage->width;
        storage->store = plan->store_count++;
    }
}

static void find_kept(struct plan_builder *b, struct plan_group *groups, struct plan_storage *storages)
{
    struct plan *plan = &b->plan;

    add_store(plan, &storages[0]);
    for (int g = 0; g < plan->group_count; g++) {
        groups[g].kept = kept_at(b, groups[g].step);
        for (int v = 0; v < plan->value_count; v++) {
            struct plan_storage *storage = &storages[b->values[v].storage];
            if (in_set(groups[g].kept, v)) {
                add_store(plan, storage);
            }
            if (in_set(groups[g].kept, v) || (groups[g].expert < 0 && v == groups[g].input)) {
                storage->region = REGION_KEPT;
            }
        }
    }
    for (int s = 0; s < plan->step_count; s++) { /* the sum of the experts that have run */
        if (b->steps[s].kind == STEP_EXPERTS) {
            add_store(plan, &storages[b->values[b->steps[s].out].storage]);
        }
    }
}

/* --- branches */

/* Experts come and go: what runs them is more than a search runs for each candidate. */
static bool runs_experts(const struct plan_builder *b, plan_set steps)
{
    for (int s = 0; s < b->plan.step_count; s++) {
        if (in_set(steps, s) && b->steps[s].kind == STEP_EXPERTS) {
            return true;
        }
    }
    return false;
}

/* What is added to the residual stream as `branch`, or where that is a sum itself or its norm, as in layers whose
 * attention and MLP run side by side, the part of it that follows from `input`; -1: none. */
static int branch_from(const struct plan_builder *b, int input, int branch)
{
    plan_set steps, used;

    plan_set have = PLAN_BIT(input) | plan_taken(&b->plan);

    if (plan_steps(&b->plan, have, PLAN_BIT(branch), &steps, &used) && !runs_experts(b, steps)) {
        return branch;
    }
    int s = b->values[branch].producer;
    while (s >= 0 && b->steps[s].kind == STEP_NORM) {
        s = b->values[b->steps[s].in[0]].producer;
    }
    for (int i = 0; s >= 0 && b->steps[s].kind == STEP_ADD && i < 2; i++) {
        int part = branch_from(b, input, b->steps[s].in[i]);
        if (part >= 0) {
            return part;
        }
    }
    return -1;
}

/* What a group's modules end in. An expert's plan ends in its output. */
static void find_branches(struct plan_builder *b, struct plan_group *groups)
{
    struct plan *plan = &b->plan;

    for (int g = 0; g < plan->group_count; g++) {
        struct plan_group *group = &groups[g];
        int addition = b->expert ? -1 : next_addition(b, group->step);
        int branch = b->expert ? plan->output : addition >= 0 ? b->steps[addition].in[1] : -1;
        if (group->expert >= 0 || branch < 0) {
            continue;
        }
        group->branch = branch_from(b, group->input, branch);
        bool alone = group->count == 1 && b->steps[b->modules[group->modules[0]].step].out == branch;
        if (alone && addition >= 0 && plan_only_reader(b, branch) == addition && !b->values[group->input].residual) {
            group->residual = group->modules[0];
        }
    }
}

/* Whether all that read a value are selections of its columns, or norms. */
static bool only_parts_read(const struct plan_builder *b, int value)
{
    bool any = false;

    for (int s = 0; s < b->plan.step_count; s++) {
        if (plan_step_reads(&b->steps[s], value)) {
            if (b->steps[s].kind != STEP_SELECT && b->steps[s].kind != STEP_NORM) {
                return false;
            }
            any = true;
        }
    }
    return any;
}

/* Whether a module's outputs, or some of them, reach a step of this kind, through norms, factors and rotations alone,
 * as its input below `inputs`. */
static bool reaches(const struct plan_builder *b, int value, enum plan_step_kind kind, int inputs)
{
    int s = plan_only_reader(b, value);

    for (int k = 0; s < 0 && only_parts_read(b, value) && k < b->plan.step_count; k++) {
        if (plan_step_reads(&b->steps[k], value) && reaches(b, b->steps[k].out, kind, inputs)) {
            return true;
        }
    }
    if (s < 0) {
        return false;
    }
    const struct plan_step *step = &b->steps[s];
    for (int i = 0; step->kind == kind && i < inputs; i++) {
        if (step->in[i] == value) {
            return true;
        }
    }
    return (step->kind == STEP_NORM || step->kind == STEP_SCALE || step->kind == STEP_ROPE ||
            step->kind == STEP_SELECT) &&
           reaches(b, step->out, kind, inputs);
}

static void describe_modules(struct plan_builder *b)
{
    struct plan *plan = &b->plan;

    for (int i = 0; i < plan->module_count; i++) {
        struct plan_module *module = &b->modules[i];
        plan->widest_input = module->cols > plan->widest_input ? module->cols : plan->widest_input;
        plan->tallest = module->rows > plan->tallest ? module->rows : plan->tallest;
        if (module->expert < 0) {
            int out = b->steps[module->step].out;
            module->rotated = reaches(b, out, STEP_ROPE, 1);
            module->scores = reaches(b, out, STEP_ATTENTION, 2);
        }
    }
}

int plan_derive(struct plan_builder *b, int output)
{
    struct plan *plan = &b->plan;
    struct plan_group *groups = NULL;
    struct plan_storage *storages = arena_alloc(b->arena, PLAN_VALUES_MAX * sizeof(*storages));

    TRY(b->rc);
    TRY(arena_check(b->arena));
    TRY(plan_check_steps(b));
    plan->output = output;
    plan->steps = b->steps;
    plan->values = b->values;
    plan->norms = b->norms;
    plan->parameters = b->parameters;
    plan->modules = b->modules;
    plan->fused = b->fused;
    plan->storages = storages;
    find_last(b);
    share_storages(b, storages);
    if (!b->expert && (output <= 0 || b->values[output].storage != 0)) {
        return err_raise(ERR_INTERNAL, "a layer's output is not a sum with its input");
    }
    TRY(find_groups(b, &groups));
    plan->groups = groups;
    find_kept(b, groups, storages);
    plan_find_folds(b, groups);
    find_branches(b, groups);
    TRY(b->expert ? 0 : plan_check_stream(plan));
    TRY(plan_check_given(plan));
    place_storages(b, storages);
    describe_modules(b);
    return arena_check(b->arena);
}
