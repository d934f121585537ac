/* The memory of a block's forward and backward pass. The forward steps are those of block.c, over a copy of the layer's
 * plan in which no two values share storage. */

#include "models/block_grad_internal.h"

#include "base/err.h"
#include "base/mem.h"

#include <stdlib.h>

/* When the gradient of a value is in use: from the step that makes the value, in reverse the last to look at it, to the
 * last that reads it; what the caller sets or reads, from the beginning or to the end. */
static void tape_life(const struct plan *plan, int value, int *from, int *to)
{
    const struct plan_value *v = &plan->values[value];
    bool set = value == plan->output || (v->producer >= 0 && v->shared > 0);

    *from = v->producer;
    *to = set ? plan->step_count : v->last > v->producer ? v->last : v->producer;
}

static void tape_place_gradients(struct tape_layout *layout)
{
    const struct plan *plan = &layout->plan;
    int64_t end = 0;

    for (int i = 0; i < plan->value_count; i++) {
        int from, to;
        int64_t *mine = &layout->gradients[i], width = layout->values[i].width;
        tape_life(plan, i, &from, &to);
        *mine = 0;
        for (int k = 0; k < i; k++) {
            int other_from, other_to;
            int64_t other = layout->gradients[k], other_width = layout->values[k].width;
            tape_life(plan, k, &other_from, &other_to);
            if (from <= other_to && other_from <= to && *mine < other + other_width && other < *mine + width) {
                *mine = other + other_width;
                k = -1; /* it may meet one that it has passed */
            }
        }
        end = *mine + width > end ? *mine + width : end;
    }
    for (int i = 0; i < plan->value_count; i++) {
        layout->gradients[i] += layout->columns;
    }
    layout->columns += end;
}

void tape_layout_make(const struct plan *plan, struct tape_layout *out)
{
    *out = (struct tape_layout){.plan = *plan};
    out->plan.values = out->values;
    out->plan.storages = out->storages;
    out->plan.storage_count = plan->value_count;
    for (int i = 0; i < plan->value_count; i++) {
        out->values[i] = plan->values[i];
        out->values[i].storage = i;
        out->storages[i] = (struct plan_storage){
            .region = REGION_KEPT, .offset = out->columns, .width = plan->values[i].width, .store = -1};
        out->columns += plan->values[i].width;
    }
    out->plan.columns[REGION_KEPT] = out->columns;
    out->plan.columns[REGION_WORK] = 0;
    tape_place_gradients(out);
}

void tape_layout_place(const struct tape_layout *layout, struct block_values *values, float *memory)
{
    values->plan = &layout->plan;
    for (int i = 0; i < layout->plan.value_count; i++) {
        values->at[i] = memory + block_padded(values->scratch->tokens) * layout->storages[i].offset;
    }
}

/* Of the layers of a model, the largest of each. */
struct tape_sizes {
    int64_t columns, expert_columns, top_k;
    int64_t values, expert_values; /* columns of these but for gradients */
};

static void tape_larger(const struct tape_layout *layout, int64_t *columns, int64_t *values)
{
    int64_t kept = layout->plan.columns[REGION_KEPT];

    *columns = layout->columns > *columns ? layout->columns : *columns;
    *values = kept > *values ? kept : *values;
}

static struct tape_sizes tape_sizes(const struct plans *plans)
{
    struct tape_sizes sizes = {0};
    struct tape_layout layout;

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        const struct plan *plan = plans_kind(plans, kind);
        tape_layout_make(plan, &layout);
        tape_larger(&layout, &sizes.columns, &sizes.values);
        for (int s = 0; s < plan->step_count; s++) {
            if (plan->steps[s].kind == STEP_EXPERTS) {
                const struct plan_experts *experts = plan->steps[s].experts;
                tape_layout_make(experts->plan, &layout);
                tape_larger(&layout, &sizes.expert_columns, &sizes.expert_values);
                sizes.top_k = experts->top_k > sizes.top_k ? experts->top_k : sizes.top_k;
            }
        }
    }
    return sizes;
}

/* The tokens of a micro-batch; -1: too many. */
static int64_t tape_tokens(const struct block_tape_spec *spec)
{
    int64_t tokens;

    bool ok = spec->sequences > 0 && spec->length > 0 &&
              !__builtin_mul_overflow(spec->sequences, spec->length, &tokens) && tokens <= INT32_MAX;
    return ok ? tokens : -1;
}

int64_t block_tape_bytes(const struct block_tape_spec *spec)
{
    int64_t tokens = tape_tokens(spec);

    if (tokens < 0 || !plans_differentiable(spec->plans, NULL)) {
        return -1;
    }
    /* Columns are below 2^31 by the bounds of a configuration and tokens too: no product overflows. */
    const struct tape_sizes sizes = tape_sizes(spec->plans);
    const struct model_config *config = plans_config(spec->plans);
    int64_t bytes = 4 * block_padded(tokens) * sizes.columns;
    if (sizes.top_k > 0) {
        bytes += block_experts_bytes(spec->plans, tokens, sizes.expert_columns) + 4 * tokens * sizes.top_k;
    }
    for (int i = 0; i < config->rope_count; i++) {
        bytes += 2 * 4 * spec->length * (config->ropes[i].dims / 2);
    }
    return bytes + (spec->rounds ? block_rounded_bytes(spec->plans, tokens) : 0);
}

int64_t block_tape_gradient_bytes(const struct block_tape_spec *spec)
{
    int64_t tokens = tape_tokens(spec);

    if (tokens < 0 || !plans_differentiable(spec->plans, NULL)) {
        return 0;
    }
    const struct tape_sizes sizes = tape_sizes(spec->plans);
    int64_t columns = sizes.columns - sizes.values + sizes.expert_columns - sizes.expert_values;
    return 4 * block_padded(tokens) * columns + 4 * tokens * sizes.top_k;
}

static int tape_allocate(struct block_tape *t)
{
    const struct tape_sizes sizes = tape_sizes(t->spec.plans);
    int64_t tokens = tape_tokens(&t->spec), elements = block_padded(tokens) * sizes.columns;
    const int64_t choices[] = {tokens, sizes.top_k};

    TRY(block_scratch_bare(t->spec.plans, t->spec.sequences, t->spec.length, &t->gpu, t->stream, &t->scratch));
    TRY(t->spec.rounds ? block_rounded_new(t->scratch) : 0);
    if (sizes.top_k > 0) {
        TRY(block_experts_make(t->scratch, sizes.expert_columns));
        TRY(gpu_tensor_uninitialized(&t->gpu, DTYPE_F32, 2, choices, &t->dweights));
    }
    return gpu_tensor_uninitialized(&t->gpu, DTYPE_F32, 1, &elements, &t->memory);
}

int block_tape_new(const struct block_tape_spec *spec, const struct gpu *gpu, struct gpu_stream *stream,
                   struct block_tape **out)
{
    AUTO(block_tape) struct block_tape *tape = NULL;
    const char *reason;

    if (!plans_differentiable(spec->plans, &reason)) {
        return err_raise(ERR_INTERNAL, "a tape of layers with %s", reason);
    }
    if (tape_tokens(spec) < 0) {
        return err_raise(ERR_INTERNAL, "a tape for %lld sequences of %lld", (long long)spec->sequences,
                         (long long)spec->length);
    }
    TRY(mem_new(&tape));
    *tape = (struct block_tape){.spec = *spec, .gpu = *gpu, .stream = stream, .routed = -1};
    int rc = tape_allocate(tape);
    if (rc != 0) {
        return err_pass(rc, "a tape for %lld sequences of %lld", (long long)spec->sequences, (long long)spec->length);
    }
    *out = MOVE(tape);
    return 0;
}

void block_tape_free(struct block_tape *tape)
{
    if (tape != NULL) {
        block_scratch_free(tape->scratch);
        gpu_tensor_free(&tape->gpu, &tape->memory);
        gpu_tensor_free(&tape->gpu, &tape->dweights);
        free(tape);
    }
}

int block_tape_begin(struct block_tape *tape, const struct plan *plan, int64_t sequences, const int32_t *ids)
{
    if (sequences < 1 || sequences > tape->spec.sequences) {
        return err_raise(ERR_INTERNAL, "a tape of %lld sequences gets %lld", (long long)tape->spec.sequences,
                         (long long)sequences);
    }
    if (tape->plan != plan) {
        tape_layout_make(plan, &tape->layer);
    }
    tape->plan = plan;
    tape->routed = -1;
    tape->scratch->sequences = sequences;
    tape->scratch->tokens = sequences * tape->spec.length;
    tape->values = (struct block_values){.scratch = tape->scratch, .ids = ids};
    tape_layout_place(&tape->layer, &tape->values, tape->memory.data);
    return 0;
}

struct tensor block_tape_value(const struct block_tape *tape, int value)
{
    return block_value(&tape->values, value);
}

struct tensor block_tape_gradient(const struct block_tape *tape, int value)
{
    float *memory = tape->memory.data;

    return tensor_2d(memory + block_padded(tape->scratch->tokens) * tape->layer.gradients[value], DTYPE_F32,
                     tape->scratch->tokens, tape->layer.values[value].width);
}

/* Whether the tape is of the block, and what it needs of the tape is there. */
static int tape_check(const struct block *block, const struct block_tape *tape)
{
    if (tape->plan == NULL || tape->plan != block->plan) {
        return err_raise(ERR_INTERNAL, "block %lld runs on the tape of another layer", (long long)block->index);
    }
    for (int i = 0; i < block->plan->module_count && !tape->spec.rounds; i++) {
        if (block->modules[i].input.element != DTYPE_F32) {
            return err_raise(ERR_INTERNAL, "block %lld quantizes inputs, for which the tape has no memory",
                             (long long)block->index);
        }
    }
    return 0;
}

int block_tape_forward(const struct block *block, struct block_tape *tape)
{
    const struct plan *plan = block->plan;

    TRY(tape_check(block, tape));
    TRY(block_run(block, &tape->values, ~(plan_set)0));
    tape->routed = -1;
    for (int s = 0; s < plan->step_count; s++) {
        tape->routed = plan->steps[s].kind == STEP_EXPERTS ? s : tape->routed;
    }
    for (int v = 0; v < plan->value_count; v++) {
        if (((plan->given | PLAN_BIT(plan->output)) & PLAN_BIT(v)) != 0) {
            const struct tensor gradient = block_tape_gradient(tape, v);
            TRY(tape->gpu.ops->fill_zero(tape->stream, gradient.data, tensor_bytes(&gradient)));
        }
    }
    return 0;
}

/* Parameters are constants but for the sinks of attention. */
static int tape_check_sinks(const struct block *block, const struct block_grads *grads)
{
    const struct plan *plan = block->plan;

    for (int p = 0; grads != NULL && grads->sinks != NULL && p < plan->parameter_count; p++) {
        bool found = grads->sinks[p].data == NULL;
        for (int s = 0; s < plan->step_count; s++) {
            const struct plan_step *step = &plan->steps[s];
            found = found || (step->kind == STEP_ATTENTION && step->attention.has_sinks && step->attention.sinks == p);
        }
        if (!found) {
            return err_raise(ERR_INTERNAL, "the gradient of %s, which is a constant", plan->parameters[p].path);
        }
    }
    return 0;
}

int block_tape_backward(const struct block *block, struct block_tape *tape, const struct block_grads *grads,
                        plan_set want)
{
    struct tape_pass pass = {.block = block,
                             .tape = tape,
                             .layout = &tape->layer,
                             .values = &tape->values,
                             .memory = tape->memory.data,
                             .grads = grads};

    TRY(tape_check(block, tape));
    TRY(tape_check_sinks(block, grads));
    if ((want & ~block->plan->inputs) != 0) {
        return err_raise(ERR_INTERNAL, "gradients are wanted of values that block %lld makes", (long long)block->index);
    }
    int rc = tape_reverse(&pass, block->plan->given | PLAN_BIT(block->plan->output), want);
    return rc == 0 ? 0 : err_pass(rc, "backward of block %lld", (long long)block->index);
}
