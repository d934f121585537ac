/* The step EXPERTS in reverse: each expert's rows are computed again, with all of their values, and taken in reverse.
 * Which tokens went to it is known from the forward pass. */

#include "models/block_grad_internal.h"

#include "base/err.h"

bool tape_wants_experts(const struct block_grads *grads, const struct plan_experts *experts)
{
    int64_t count = experts->count * experts->plan->module_count;

    for (int64_t i = 0; grads != NULL && grads->modules != NULL && i < count; i++) {
        const struct block_module_grad *own = &grads->modules[experts->first_module + i];
        if (own->weight.data != NULL || own->bias.data != NULL || own->moments.data != NULL) {
            return true;
        }
    }
    return false;
}

/* What all experts of a step have of it. */
struct reverse_experts {
    const struct tape_pass *pass;
    const struct plan_experts *experts;
    struct block_scratch *s;
    struct tensor tokens;   /* [T, h] */
    struct tensor out;      /* gradient of the step's output */
    struct tensor dtokens;  /* data NULL: not needed */
    struct tensor dweights; /* [T, k], likewise */
};

/* The gradient of what an expert made of its rows. */
static int begin_expert(const struct reverse_experts *r, int64_t e, const struct tensor *made,
                        const struct tensor *gradient)
{
    const struct gpu_ops *ops = r->s->gpu->ops;
    const struct plan_experts *experts = r->experts;
    const struct tensor places = block_expert_places(r->s, e), weights = block_expert_weights(r->s, experts);

    if (experts->scale_input) {
        return ops->gather_rows(r->s->stream, gradient, &r->out, &places, NULL, experts->top_k);
    }
    if (r->dweights.data != NULL) {
        TRY(ops->row_dots(r->s->stream, &r->dweights, &r->out, made, &places, experts->top_k));
    }
    return ops->gather_rows(r->s->stream, gradient, &r->out, &places, &weights, experts->top_k);
}

/* What the gradient of an expert's rows is to the tokens, and to the weights where those are of its input. */
static int end_expert(const struct reverse_experts *r, int64_t e, const struct tensor *gradient)
{
    const struct gpu_ops *ops = r->s->gpu->ops;
    const struct plan_experts *experts = r->experts;
    const struct tensor places = block_expert_places(r->s, e), weights = block_expert_weights(r->s, experts);

    if (experts->scale_input && r->dweights.data != NULL) {
        TRY(ops->row_dots(r->s->stream, &r->dweights, &r->tokens, gradient, &places, experts->top_k));
    }
    if (r->dtokens.data == NULL) {
        return 0;
    }
    return ops->scatter_rows(r->s->stream, &r->dtokens, gradient, &places, experts->scale_input ? &weights : NULL,
                             experts->top_k);
}

static int reverse_expert(const struct reverse_experts *r, int64_t e)
{
    struct block_tape *tape = r->pass->tape;
    const struct tape_layout *layout = &tape->expert;
    float *memory = r->s->experts.memory.data;
    int64_t count = block_expert_count(r->s, e);

    if (count == 0) {
        return 0;
    }
    struct block_values rows = block_expert_rows(r->s, r->experts, e, count);
    tape_layout_place(layout, &rows, memory);
    struct tape_pass pass = {.block = r->pass->block,
                             .tape = tape,
                             .layout = layout,
                             .values = &rows,
                             .memory = memory,
                             .grads = r->pass->grads};
    const struct tensor in = block_value(&rows, 0), made = block_value(&rows, layout->plan.output);
    const struct tensor dmade = tape_gradient(&pass, layout->plan.output), din = tape_gradient(&pass, 0);
    bool want = r->dtokens.data != NULL || (r->experts->scale_input && r->dweights.data != NULL);
    TRY(block_expert_gather(r->s, r->experts, e, &r->tokens, &in));
    TRY(block_run(r->pass->block, &rows, ~(plan_set)0));
    TRY(begin_expert(r, e, &made, &dmade));
    TRY(tape_reverse(&pass, PLAN_BIT(layout->plan.output), want ? PLAN_BIT(0) : 0));
    return want ? end_expert(r, e, &din) : 0;
}

/* The weights' gradients on to the router's logits. */
static int reverse_route(const struct reverse_experts *r, const struct block_step *step, const struct tensor *dlogits)
{
    const struct plan_experts *experts = r->experts;
    const struct gpu_route spec = block_route_spec(experts);
    const struct tensor ids = tensor_2d(r->s->experts.ids.data, DTYPE_I32, r->s->tokens, spec.top_k);
    const struct tensor logits = block_value(step->values, step->step->in[1]);

    if (experts->has_scale) {
        r->pass->tape->routed = -1; /* its places are lost */
        TRY(block_scale_weights(r->s, &ids, &r->dweights, &step->block->parameters[experts->scale]));
    }
    return r->s->gpu->ops->route_grad(r->s->stream, dlogits, &r->dweights, &ids, &logits, &spec);
}

int tape_vjp_experts(const struct tape_pass *pass, const struct block_step *step, const struct tensor *out,
                     const struct tensor *grads)
{
    const struct plan_experts *experts = step->step->experts;
    struct block_tape *tape = pass->tape;
    struct reverse_experts r = {.pass = pass,
                                .experts = experts,
                                .s = step->s,
                                .tokens = block_value(step->values, step->step->in[0]),
                                .out = *out,
                                .dtokens = grads[0]};

    if (tape->routed != step->number) {
        TRY(block_route(step->block, step->values, step->number));
        tape->routed = step->number;
    }
    if (grads[1].data != NULL) {
        r.dweights = tensor_2d(tape->dweights.data, DTYPE_F32, step->s->tokens, experts->top_k);
        TRY(tape->gpu.ops->fill_zero(tape->stream, r.dweights.data, tensor_bytes(&r.dweights)));
    }
    tape_layout_make(experts->plan, &tape->expert);
    for (int64_t e = 0; e < experts->count; e++) {
        TRY(reverse_expert(&r, e));
    }
    return grads[1].data != NULL ? reverse_route(&r, step, &grads[1]) : 0;
}
