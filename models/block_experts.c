/* The step EXPERTS: tokens are routed to experts, whose plans run over the rows of their tokens, one expert at a time.
 */

#include "models/block_internal.h"

#include "base/err.h"
#include "base/mem.h"

#include <stdlib.h>

void block_experts_free(struct block_scratch *s)
{
    struct expert_scratch *e = &s->experts;

    gpu_tensor_free(s->gpu, &e->ids);
    gpu_tensor_free(s->gpu, &e->places);
    gpu_tensor_free(s->gpu, &e->weights);
    gpu_tensor_free(s->gpu, &e->memory);
    free(e->offsets);
    free(s->rows);
}

struct expert_sizes {
    int64_t count, top_k, columns;
};

static struct expert_sizes largest_experts(const struct plans *plans)
{
    struct expert_sizes sizes = {0};

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        const struct plan *plan = plans_kind(plans, kind);
        for (int s = 0; s < plan->step_count; s++) {
            const struct plan_experts *e = plan->steps[s].experts;
            int64_t columns = e != NULL ? e->plan->columns[REGION_KEPT] + e->plan->columns[REGION_WORK] : 0;
            sizes.count = e != NULL && e->count > sizes.count ? e->count : sizes.count;
            sizes.top_k = e != NULL && e->top_k > sizes.top_k ? e->top_k : sizes.top_k;
            sizes.columns = columns > sizes.columns ? columns : sizes.columns;
        }
    }
    return sizes;
}

int64_t block_experts_bytes(const struct plans *plans, int64_t tokens, int64_t columns)
{
    const struct expert_sizes sizes = largest_experts(plans);
    const int64_t memory = columns > sizes.columns ? columns : sizes.columns;

    return 4 * (3 * tokens * sizes.top_k + block_padded(tokens) * memory);
}

static int allocate_experts(struct block_scratch *s, int64_t columns)
{
    struct expert_scratch *e = &s->experts;
    const struct expert_sizes sizes = largest_experts(s->plans);
    const int64_t choices = s->tokens * sizes.top_k;
    const int64_t elements = block_padded(s->tokens) * (columns > sizes.columns ? columns : sizes.columns);

    TRY(gpu_tensor_uninitialized(s->gpu, DTYPE_I32, 1, &choices, &e->ids));
    TRY(gpu_tensor_uninitialized(s->gpu, DTYPE_I32, 1, &choices, &e->places));
    TRY(gpu_tensor_uninitialized(s->gpu, DTYPE_F32, 1, &choices, &e->weights));
    TRY(gpu_tensor_uninitialized(s->gpu, DTYPE_F32, 1, &elements, &e->memory));
    TRY(mem_array(&e->offsets, (size_t)sizes.count + 1));
    return mem_new(&s->rows);
}

int block_experts_make(struct block_scratch *s, int64_t columns)
{
    if (s->rows != NULL) {
        return 0;
    }
    int rc = allocate_experts(s, columns);
    if (rc != 0) {
        block_experts_free(s);
        s->experts = (struct expert_scratch){0};
    }
    return rc;
}

struct gpu_route block_route_spec(const struct plan_experts *experts)
{
    static const enum gpu_scores scores[] = {[SCORES_SOFTMAX_ALL] = GPU_SCORES_ALL,
                                             [SCORES_SOFTMAX_CHOSEN] = GPU_SCORES_CHOSEN,
                                             [SCORES_SIGMOID] = GPU_SCORES_SIGMOID};

    return (struct gpu_route){.top_k = experts->top_k,
                              .scores = scores[experts->scores],
                              .normalize = experts->normalize,
                              .groups = experts->groups,
                              .group_top_k = experts->group_top_k,
                              .group_pairs = experts->group_pairs,
                              .factor = (float)experts->factor,
                              .epsilon = (float)experts->epsilon};
}

/* The factors are gathered where places are going to be. */
int block_scale_weights(struct block_scratch *s, const struct tensor *ids, const struct tensor *weights,
                        const struct tensor *scale)
{
    const struct gpu_ops *ops = s->gpu->ops;
    int64_t choices = tensor_count(ids);
    const struct tensor factors = tensor_2d(s->experts.places.data, DTYPE_F32, choices, 1);
    const struct tensor of_experts = tensor_2d(scale->data, DTYPE_F32, tensor_count(scale), 1);
    const struct tensor list = tensor_1d(ids->data, DTYPE_I32, choices);
    const struct tensor column = tensor_2d(weights->data, DTYPE_F32, choices, 1);

    TRY(ops->gather_rows(s->stream, &factors, &of_experts, &list, NULL, 1));
    return ops->scale(s->stream, &column, &factors, NULL);
}

int block_route(const struct block *block, const struct block_values *values, int step)
{
    const struct plan_step *of = &values->plan->steps[step];
    const struct plan_experts *experts = of->experts;
    struct block_scratch *s = values->scratch;
    const struct gpu_ops *ops = s->gpu->ops;
    const struct gpu_route spec = block_route_spec(experts);
    TRY(block_experts_make(s, 0));
    const struct expert_scratch *e = &s->experts;
    const struct tensor ids = tensor_2d(e->ids.data, DTYPE_I32, s->tokens, spec.top_k);
    const struct tensor places = tensor_2d(e->places.data, DTYPE_I32, s->tokens, spec.top_k);
    const struct tensor weights = tensor_2d(e->weights.data, DTYPE_F32, s->tokens, spec.top_k);
    const struct tensor logits = block_value(values, of->in[1]);
    TRY(ops->route(s->stream, &ids, &weights, &logits, experts->has_bias ? &block->parameters[experts->bias] : NULL,
                   &spec));
    TRY(experts->has_scale ? block_scale_weights(s, &ids, &weights, &block->parameters[experts->scale]) : 0);
    return ops->group_places(s->stream, &places, e->offsets, &ids, experts->count);
}

struct block_values block_expert_rows(struct block_scratch *s, const struct plan_experts *experts, int64_t expert,
                                      int64_t count)
{
    *s->rows = (struct block_scratch){.owner = s,
                                      .plans = s->plans,
                                      .gpu = s->gpu,
                                      .stream = s->stream,
                                      .sequences = 1,
                                      .length = count,
                                      .tokens = count};
    return (struct block_values){.plan = experts->plan,
                                 .scratch = s->rows,
                                 .first_module = experts->first_module + (int)expert * experts->plan->module_count};
}

int64_t block_expert_count(const struct block_scratch *s, int64_t expert)
{
    return s->experts.offsets[expert + 1] - s->experts.offsets[expert];
}

struct tensor block_expert_places(const struct block_scratch *s, int64_t expert)
{
    return tensor_1d((int32_t *)s->experts.places.data + s->experts.offsets[expert], DTYPE_I32,
                     block_expert_count(s, expert));
}

struct tensor block_expert_weights(const struct block_scratch *s, const struct plan_experts *experts)
{
    return tensor_2d(s->experts.weights.data, DTYPE_F32, s->tokens, experts->top_k);
}

int block_expert_gather(struct block_scratch *s, const struct plan_experts *experts, int64_t expert,
                        const struct tensor *tokens, const struct tensor *in)
{
    const struct tensor places = block_expert_places(s, expert), weights = block_expert_weights(s, experts);

    return s->gpu->ops->gather_rows(s->stream, in, tokens, &places, experts->scale_input ? &weights : NULL,
                                    experts->top_k);
}

/* `count` rows of an expert, whose values are in the memory for experts. */
static void place_rows(struct block_scratch *s, const struct plan_experts *experts, int64_t expert, int64_t count,
                       struct block_values *rows)
{
    const struct plan *plan = experts->plan;
    float *memory = s->experts.memory.data;

    *rows = block_expert_rows(s, experts, expert, count);
    for (int i = 0; i < plan->storage_count; i++) {
        const struct plan_storage *storage = &plan->storages[i];
        int64_t first = storage->region == REGION_WORK ? plan->columns[REGION_KEPT] : 0;
        rows->at[i] = memory + block_padded(s->tokens) * (first + storage->offset);
    }
}

/* All tokens as the expert would get them: where they are multiplied by their scores, by those that it gives them. */
static int take_all(const struct block_values *values, const struct plan_step *step, int64_t expert,
                    const struct tensor *in)
{
    const struct tensor tokens = block_value(values, step->in[0]), logits = block_value(values, step->in[1]);
    struct block_scratch *s = values->scratch;
    const struct tensor own = tensor_2d(s->experts.weights.data, DTYPE_F32, s->tokens, 1);
    const struct gpu_columns column = {
        .heads = 1, .count = 1, .to_stride = 1, .from = expert, .from_stride = step->experts->count};

    if (!step->experts->scale_input) {
        return s->gpu->ops->convert(s->stream, in, &tokens);
    }
    TRY(s->gpu->ops->copy_columns(s->stream, &own, &logits, &column));
    return s->gpu->ops->activate(s->stream, in, &own, &tokens, GPU_SIGMOID);
}

int block_expert(const struct block *block, const struct block_values *values, int step, int64_t expert, bool all,
                 plan_set steps, struct block_values *rows)
{
    const struct plan_experts *experts = values->plan->steps[step].experts;
    struct block_scratch *s = values->scratch;
    const struct tensor tokens = block_value(values, values->plan->steps[step].in[0]);
    TRY(block_experts_make(s, 0));
    int64_t count = all ? s->tokens : block_expert_count(s, expert);
    place_rows(s, experts, expert, count, rows);
    if (count == 0) {
        return 0;
    }
    const struct tensor in = block_value(rows, 0);
    TRY(all ? take_all(values, &values->plan->steps[step], expert, &in)
            : block_expert_gather(s, experts, expert, &tokens, &in));
    return block_run(block, rows, steps);
}

int block_experts_begin(const struct block_values *values, int step)
{
    const struct tensor out = block_value(values, values->plan->steps[step].out);

    return values->scratch->gpu->ops->fill_zero(values->scratch->stream, out.data, tensor_bytes(&out));
}

/* Each expert's weighted outputs are added in the order of the experts. */
int block_experts_add(const struct block *block, const struct block_values *values, int step, int64_t first,
                      int64_t count)
{
    const struct plan_experts *experts = values->plan->steps[step].experts;
    const struct tensor out = block_value(values, values->plan->steps[step].out);
    struct block_scratch *s = values->scratch;

    TRY(block_route(block, values, step));
    for (int64_t i = first; i < first + count; i++) {
        struct block_values rows;
        TRY(block_expert(block, values, step, i, false, ~(plan_set)0, &rows));
        if (block_values_rows(&rows) > 0) {
            const struct tensor places = block_expert_places(s, i), weights = block_expert_weights(s, experts);
            const struct tensor made = block_value(&rows, experts->plan->output);
            TRY(s->gpu->ops->scatter_rows(s->stream, &out, &made, &places, experts->scale_input ? NULL : &weights,
                                          experts->top_k));
        }
    }
    return 0;
}

int64_t block_values_rows(const struct block_values *values)
{
    return values->scratch->tokens;
}

int block_group_input(const struct block *block, const struct block_values *values, const struct plan_group *group,
                      bool all, struct block_values *rows)
{
    plan_set steps, used;

    if (group->expert < 0) {
        *rows = *values;
        return 0;
    }
    const struct plan_experts *experts = values->plan->steps[group->step].experts;
    if (!plan_steps(experts->plan, PLAN_BIT(0), PLAN_BIT(group->input), &steps, &used)) {
        return err_raise(ERR_INTERNAL, "value %d of an expert does not follow from its rows", group->input);
    }
    if (!all) {
        TRY(block_route(block, values, group->step));
    }
    return block_expert(block, values, group->step, group->expert, all, steps, rows);
}
