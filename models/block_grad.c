/* The steps of a plan in reverse: for each kind the product of its output's gradient with its Jacobian, which is added
 * to the gradients of its inputs. The forwards are in block.c, EXPERTS in block_grad_experts.c. */

#include "models/block_grad_internal.h"

#include "base/err.h"

static const struct tensor *grad_present(const struct tensor *tensor)
{
    return tensor->data != NULL ? tensor : NULL;
}

static const struct block_module_grad *module_grad(const struct tape_pass *pass, int module)
{
    static const struct block_module_grad none;
    const struct block_grads *grads = pass->grads;

    return grads != NULL && grads->modules != NULL ? &grads->modules[module] : &none;
}

static const struct block_norm_grad *norm_grad_of(const struct tape_pass *pass, int norm)
{
    static const struct block_norm_grad none;
    const struct block_grads *grads = pass->grads;

    return grads != NULL && grads->norms != NULL ? &grads->norms[norm] : &none;
}

static const struct tensor *sinks_grad(const struct tape_pass *pass, const struct plan_attention *attention)
{
    const struct block_grads *grads = pass->grads;

    return grads != NULL && grads->sinks != NULL && attention->has_sinks ? grad_present(&grads->sinks[attention->sinks])
                                                                         : NULL;
}

/* Through an input that is quantized at run time. A static range has no gradient beyond it, which takes memory for the
 * product: where the quantized input was. */
static int vjp_quantized(const struct block_step *r, const struct tensor *out, const struct tensor *in,
                         const struct tensor *dx)
{
    const struct block_module *module = block_step_module(r);
    const struct gpu_ops *ops = r->s->gpu->ops;
    struct tensor product;

    if (module->input.dynamic) {
        return ops->linear_grad(r->s->stream, dx, out, &module->weight);
    }
    TRY(block_rounded(r->s, in, &product));
    TRY(ops->fill_zero(r->s->stream, product.data, tensor_bytes(&product)));
    TRY(ops->linear_grad(r->s->stream, &product, out, &module->weight));
    return ops->quantize_input_grad(r->s->stream, dx, &product, in, grad_present(&module->outliers), &module->input);
}

static int vjp_linear(const struct tape_pass *pass, const struct block_step *r, const struct tensor *out,
                      const struct tensor *in, const struct tensor *grads)
{
    const struct block_module *module = block_step_module(r);
    const struct block_module_grad *own = module_grad(pass, r->values->first_module + r->step->module);
    const struct gpu_ops *ops = r->s->gpu->ops;
    const bool quantized = module->input.element != DTYPE_F32;

    if (own->weight.data != NULL) {
        struct tensor input = in[0];
        TRY(quantized ? block_round_input(r, module, &in[0], &input) : 0);
        TRY(ops->cross(r->s->stream, &own->weight, out, &input));
    }
    TRY(own->bias.data != NULL ? ops->column_sums(r->s->stream, &own->bias, out) : 0);
    TRY(own->moments.data != NULL ? ops->gram(r->s->stream, &own->moments, out) : 0);
    if (grads[0].data == NULL) {
        return 0;
    }
    return quantized ? vjp_quantized(r, out, &in[0], &grads[0])
                     : ops->linear_grad(r->s->stream, &grads[0], out, &module->weight);
}

static int vjp_norm(const struct tape_pass *pass, const struct block_step *r, const struct tensor *out,
                    const struct tensor *in, const struct tensor *grads)
{
    const struct block_norm *tensors = &r->block->norms[r->step->norm];
    const struct block_norm_grad *own = norm_grad_of(pass, r->step->norm);
    const struct gpu_norm spec = block_norm_spec(r);

    return r->s->gpu->ops->norm_grad(r->s->stream, grad_present(&grads[0]), grad_present(&own->weight),
                                     grad_present(&own->bias), out, &in[0], grad_present(&tensors->weight), &spec);
}

static int vjp_rope(const struct tape_pass *pass, const struct block_step *r, const struct tensor *out,
                    const struct tensor *in, const struct tensor *grads)
{
    (void)pass;
    (void)in;
    TRY(block_step_rotate(r, out, true));
    return r->s->gpu->ops->add(r->s->stream, &grads[0], out);
}

/* Keys and values are there as the cache gave them back, through which gradients pass straight. */
static int vjp_attention(const struct tape_pass *pass, const struct block_step *r, const struct tensor *out,
                         const struct tensor *in, const struct tensor *grads)
{
    const struct gpu_attention spec = block_attention_spec(r);

    return r->s->gpu->ops->attention_grad(r->s->stream, grad_present(&grads[0]), grad_present(&grads[1]),
                                          grad_present(&grads[2]), sinks_grad(pass, &r->step->attention), out, &in[0],
                                          &in[1], &in[2], &spec);
}

static int vjp_activate(const struct tape_pass *pass, const struct block_step *r, const struct tensor *out,
                        const struct tensor *in, const struct tensor *grads)
{
    bool gated = r->step->inputs > 1;

    (void)pass;
    return r->s->gpu->ops->activate_grad(r->s->stream, grad_present(&grads[0]), gated ? grad_present(&grads[1]) : NULL,
                                         out, &in[0], gated ? &in[1] : NULL, block_activation(r->step->activation));
}

/* Back to where the columns came from. */
static int vjp_columns(const struct block_step *r, const struct tensor *grad, const struct tensor *out,
                       const struct gpu_columns *columns)
{
    const struct gpu_columns back = {.heads = columns->heads,
                                     .count = columns->count,
                                     .to = columns->from,
                                     .to_stride = columns->from_stride,
                                     .from = columns->to,
                                     .from_stride = columns->to_stride};

    return grad->data != NULL ? r->s->gpu->ops->add_columns(r->s->stream, grad, out, &back) : 0;
}

static int vjp_select(const struct tape_pass *pass, const struct block_step *r, const struct tensor *out,
                      const struct tensor *in, const struct tensor *grads)
{
    const struct gpu_columns columns = block_select_columns(&r->step->select, in[0].shape[1]);

    (void)pass;
    return vjp_columns(r, &grads[0], out, &columns);
}

static int vjp_join(const struct tape_pass *pass, const struct block_step *r, const struct tensor *out,
                    const struct tensor *in, const struct tensor *grads)
{
    struct gpu_columns columns[2];

    (void)pass;
    block_join_columns(&r->step->join, in[0].shape[1], in[1].shape[1], columns);
    TRY(vjp_columns(r, &grads[0], out, &columns[0]));
    return vjp_columns(r, &grads[1], out, &columns[1]);
}

static int vjp_add(const struct tape_pass *pass, const struct block_step *r, const struct tensor *out,
                   const struct tensor *in, const struct tensor *grads)
{
    (void)pass;
    (void)in;
    for (int i = 0; i < 2; i++) {
        TRY(grads[i].data != NULL ? r->s->gpu->ops->add(r->s->stream, &grads[i], out) : 0);
    }
    return 0;
}

static int vjp_scale(const struct tape_pass *pass, const struct block_step *r, const struct tensor *out,
                     const struct tensor *in, const struct tensor *grads)
{
    (void)pass;
    (void)in;
    TRY(block_step_scale(r, out, out));
    return r->s->gpu->ops->add(r->s->stream, &grads[0], out);
}

static int vjp_experts(const struct tape_pass *pass, const struct block_step *r, const struct tensor *out,
                       const struct tensor *in, const struct tensor *grads)
{
    (void)in;
    return tape_vjp_experts(pass, r, out, grads);
}

/* A constant. */
static int vjp_tokens(const struct tape_pass *pass, const struct block_step *r, const struct tensor *out,
                      const struct tensor *in, const struct tensor *grads)
{
    (void)pass;
    (void)r;
    (void)out;
    (void)in;
    (void)grads;
    return 0;
}

/* `out` is the gradient of the step's output, which nothing reads afterwards; in[] are its inputs, grads[] their
 * gradients, of which at least one is needed where no parameter's is. */
static int (*const backwards[])(const struct tape_pass *, const struct block_step *, const struct tensor *out,
                                const struct tensor *in, const struct tensor *grads) = {
    [STEP_LINEAR] = vjp_linear,       [STEP_NORM] = vjp_norm,         [STEP_ROPE] = vjp_rope,
    [STEP_ATTENTION] = vjp_attention, [STEP_ACTIVATE] = vjp_activate, [STEP_ADD] = vjp_add,
    [STEP_SCALE] = vjp_scale,         [STEP_EXPERTS] = vjp_experts,   [STEP_SELECT] = vjp_select,
    [STEP_JOIN] = vjp_join,           [STEP_TOKENS] = vjp_tokens,
};

/* What the steps without one are called. */
static const char *const without[] = {
    [STEP_CONV] = "a convolution along the sequence (CONV)",
    [STEP_DELTA] = "the gated delta rule (DELTA)",
    [STEP_SCAN] = "a selective state space (SCAN)",
    [STEP_GATED_NORM] = "a gated norm of a recurrence (GATED_NORM)",
};

static bool vjp_exists(enum plan_step_kind kind)
{
    return (size_t)kind < sizeof(backwards) / sizeof(backwards[0]) && backwards[kind] != NULL;
}

static const char *not_differentiable(const struct plan *plan)
{
    if (plan->step_count == 0) {
        return "layers whose steps are not known";
    }
    for (int s = 0; s < plan->step_count; s++) {
        const struct plan_step *step = &plan->steps[s];
        bool named = (size_t)step->kind < sizeof(without) / sizeof(without[0]) && without[step->kind] != NULL;
        const char *reason = vjp_exists(step->kind) ? NULL : named ? without[step->kind] : "an unknown step";
        if (reason == NULL && step->kind == STEP_EXPERTS) {
            reason = not_differentiable(step->experts->plan);
        }
        if (reason != NULL) {
            return reason;
        }
    }
    return NULL;
}

bool plan_differentiable(const struct plan *plan, const char **reason)
{
    const char *found = not_differentiable(plan);

    if (found != NULL && reason != NULL) {
        *reason = found;
    }
    return found == NULL;
}

bool plans_differentiable(const struct plans *plans, const char **reason)
{
    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        if (!plan_differentiable(plans_kind(plans, kind), reason)) {
            return false;
        }
    }
    return true;
}

struct tensor tape_gradient(const struct tape_pass *pass, int value)
{
    int64_t rows = pass->values->scratch->tokens;

    return tensor_2d(pass->memory + block_padded(rows) * pass->layout->gradients[value], DTYPE_F32, rows,
                     pass->layout->values[value].width);
}

/* Whether a step has parameters whose gradients are wanted. */
static bool wants_parameters(const struct tape_pass *pass, const struct plan_step *step)
{
    if (step->kind == STEP_LINEAR) {
        const struct block_module_grad *own = module_grad(pass, pass->values->first_module + step->module);
        return own->weight.data != NULL || own->bias.data != NULL || own->moments.data != NULL;
    }
    if (step->kind == STEP_NORM) {
        const struct block_norm_grad *own = norm_grad_of(pass, step->norm);
        return own->weight.data != NULL || own->bias.data != NULL;
    }
    if (step->kind == STEP_EXPERTS) {
        return tape_wants_experts(pass->grads, step->experts);
    }
    return step->kind == STEP_ATTENTION && sinks_grad(pass, &step->attention) != NULL;
}

/* The values whose gradients lead to what is wanted. */
static plan_set needed_values(const struct tape_pass *pass, plan_set want)
{
    const struct plan *plan = &pass->layout->plan;
    plan_set needed = want;

    for (int s = 0; s < plan->step_count; s++) {
        const struct plan_step *step = &plan->steps[s];
        bool needs = wants_parameters(pass, step);
        for (int i = 0; i < step->inputs; i++) {
            needs = needs || (needed & PLAN_BIT(step->in[i])) != 0;
        }
        needed |= needs ? PLAN_BIT(step->out) : 0;
    }
    return needed;
}

static int zero_gradient(const struct tape_pass *pass, int value)
{
    const struct tensor gradient = tape_gradient(pass, value);

    return pass->tape->gpu.ops->fill_zero(pass->tape->stream, gradient.data, tensor_bytes(&gradient));
}

/* One step; *there: values whose gradients have begun. */
static int reverse_step(const struct tape_pass *pass, int s, plan_set *there)
{
    const struct plan_step *step = &pass->layout->plan.steps[s];
    const struct block_step run = {
        .block = pass->block, .values = pass->values, .s = pass->values->scratch, .step = step, .number = s};
    const struct tensor out = tape_gradient(pass, step->out);
    struct tensor in[PLAN_INPUTS_MAX], grads[PLAN_INPUTS_MAX] = {0};

    for (int i = 0; i < step->inputs; i++) {
        plan_set bit = PLAN_BIT(step->in[i]);
        in[i] = block_value(pass->values, step->in[i]);
        if ((pass->needed & bit) == 0) {
            continue;
        }
        TRY((*there & bit) == 0 ? zero_gradient(pass, step->in[i]) : 0);
        *there |= bit;
        grads[i] = tape_gradient(pass, step->in[i]);
    }
    if (!vjp_exists(step->kind)) {
        return err_raise(ERR_INTERNAL, "step %d has no backward pass", s);
    }
    return backwards[step->kind](pass, &run, &out, in, grads);
}

int tape_reverse(struct tape_pass *pass, plan_set from, plan_set want)
{
    const struct plan *plan = &pass->layout->plan;
    plan_set there = from;

    pass->needed = needed_values(pass, want);
    for (int s = plan->step_count - 1; s >= 0; s--) {
        plan_set out = PLAN_BIT(plan->steps[s].out);
        TRY((pass->needed & there & out) != 0 ? reverse_step(pass, s, &there) : 0);
    }
    for (int v = 0; v < plan->value_count; v++) {
        TRY((want & ~there & PLAN_BIT(v)) != 0 ? zero_gradient(pass, v) : 0);
    }
    return 0;
}
