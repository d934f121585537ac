/* The loop of methods that learn on a block: steps over batches of sequences in seeded order, the loss measured now and
 * then on the same sequences, and what had the smallest kept. Gradients of a batch are summed over lanes (tune_lane) in
 * their order, and sums are in fixed order on every device, so results depend on the seed and the device alone.
 *
 * A loss that is not finite ends the steps: they begin once more from the solver's result at half the rates, and after
 * a second time what had the smallest loss by then is kept. */

#include "quantizers/learn.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/mem.h"
#include "base/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct learn_state {
    const struct tune_context *context;
    const struct learn_plan *plan;
    struct learn_parts parts;
    struct tensor target;  /* F32 [batch * length, hidden] */
    struct tensor none;    /* the same, zeros */
    struct tensor weights; /* F32 [batch * length] */
    float *host_weights;
    int64_t *order;        /* sequences: first those of measured losses that are held out */
    int64_t held, learned; /* how many of each */
    int64_t *measured; /* [plan->checked]: of measured losses, the same each time, since batches shuffle the order */
    double *losses;    /* [steps]: of single steps, NAN: not made */
    double share;      /* of the rates: 1, or less after a loss that was not finite */
    double least;      /* measured */
    int64_t least_step, stale;
    bool diverged, enough;
};

static int64_t state_rest(const struct learn_state *s, int64_t count)
{
    return count < s->context->batch ? count : s->context->batch;
}

/* --- passes */

/* A lane of `count` sequences into the tape, with its target. */
static int learn_open(const struct learn_state *s, const int64_t *sequences, int64_t count, struct tensor *target)
{
    const struct tune_context *c = s->context;
    const struct plan *plan = c->block->plan;
    AUTO_FREE int32_t *ids = NULL;

    TRY(mem_buffer(&ids, (size_t)(count * c->length)));
    for (int64_t i = 0; i < count; i++) {
        memcpy(ids + i * c->length, c->ids + sequences[i] * c->length, (size_t)c->length * sizeof(*ids));
    }
    TRY(block_tape_begin(c->tape, plan, count, ids));
    for (int64_t i = 0; i < count; i++) {
        for (int v = 0; v < plan->value_count; v++) {
            if ((plan->inputs & PLAN_BIT(v)) != 0) {
                const struct tensor value = block_tape_value(c->tape, v);
                const struct tensor rows = tensor_rows(&value, i * c->length, c->length);
                TRY(c->input(c->data, sequences[i], v, &rows));
            }
        }
        const struct tensor rows = tensor_rows(&s->target, i * c->length, c->length);
        TRY(c->target(c->data, sequences[i], &rows));
    }
    *target = tensor_rows(&s->target, 0, count * c->length);
    return block_tape_forward(c->block, c->tape);
}

/* The sum over tokens of |y - t|^2 / (|t|^2 / columns): what reads the residual stream normalizes it, so that a token
 * whose values are large is not worth more than another. target: overwritten. */
static int learn_loss(const struct learn_state *s, const struct tensor *out, const struct tensor *target, double factor,
                      const struct tensor *gradient, double *lost)
{
    const struct tune_context *c = s->context;
    const struct gpu_ops *ops = c->gpu->ops;
    int64_t rows = target->shape[0];
    const struct tensor none = tensor_rows(&s->none, 0, rows);
    struct tensor weights = s->weights;

    weights.shape[0] = rows;
    TRY(ops->row_dot(c->stream, &weights, target, target));
    TRY(ops->download(c->stream, s->host_weights, weights.data, tensor_bytes(&weights)));
    for (int64_t i = 0; i < rows; i++) {
        s->host_weights[i] = 1.0f / sqrtf(s->host_weights[i] / (float)target->shape[1] + 1e-12f);
    }
    TRY(gpu_tensor_upload(c->gpu, c->stream, &weights, s->host_weights));
    TRY(ops->combine(c->stream, target, 1, out, -1, target));
    TRY(ops->scale(c->stream, target, &weights, NULL));
    TRY(ops->mse_grad(c->stream, gradient, target, &none, factor, lost));
    return gradient != NULL ? ops->scale(c->stream, gradient, &weights, NULL) : 0;
}

/* The sum of squares of sequences' errors; with gradients of their mean over `total` sequences where backward. */
static int learn_pass(const struct learn_state *s, const int64_t *sequences, int64_t count, bool backward, double *sum)
{
    const struct tune_context *c = s->context;
    const struct plan *plan = c->block->plan;
    double factor = 1.0 / ((double)count * (double)c->length * (double)s->target.shape[1]);

    *sum = 0;
    for (int64_t first = 0; first < count; first += c->batch) {
        int64_t part = state_rest(s, count - first);
        struct tensor target;
        double lost = 0;
        TRY(learn_open(s, sequences + first, part, &target));
        const struct tensor out = block_tape_value(c->tape, plan->output);
        const struct tensor gradient = block_tape_gradient(c->tape, plan->output);
        TRY(learn_loss(s, &out, &target, factor, backward ? &gradient : NULL, &lost));
        TRY(backward ? block_tape_backward(c->block, c->tape, &s->parts.grads, 0) : 0);
        *sum += lost;
    }
    *sum *= factor;
    return 0;
}

static int learn_keep(struct learn_state *s)
{
    for (int i = 0; i < s->parts.linear_count; i++) {
        TRY(learn_linear_keep(s->context, &s->parts.linears[i]));
    }
    for (int i = 0; i < s->parts.float_count; i++) {
        TRY(learn_vector_keep(s->context, &s->parts.floats[i]));
    }
    return 0;
}

/* The loss of everything as it is now, on the sequences that it is measured on. */
static int learn_measure(struct learn_state *s, int64_t step)
{
    struct tune_curve *curve = s->context->curve;

    TRY(learn_parts_apply(s->context, &s->parts));
    TRY(learn_pass(s, s->measured, s->plan->checked, false, &curve->last));
    if (step == 0) {
        curve->first = curve->last;
    }
    s->diverged = !isfinite(curve->last);
    if (!s->diverged && (step == 0 || curve->last < s->least)) {
        s->least = curve->last;
        s->least_step = step;
        s->stale = 0;
        return learn_keep(s);
    }
    s->stale++;
    s->enough = s->plan->patience > 0 && s->stale >= s->plan->patience;
    return 0;
}

/* --- steps */

static double learn_decay(const struct learn_plan *plan, int64_t step)
{
    return tune_decay(plan->cosine, plan->floor, (double)(step - 1) / (double)plan->steps);
}

static int learn_clear(const struct learn_state *s)
{
    const struct tune_context *c = s->context;

    for (int i = 0; i < s->parts.linear_count; i++) {
        const struct tensor *grad = &s->parts.linears[i].grad;
        TRY(c->gpu->ops->fill_zero(c->stream, grad->data, tensor_bytes(grad)));
    }
    for (int i = 0; i < s->parts.float_count; i++) {
        const struct tensor *grad = &s->parts.floats[i].grad;
        TRY(c->gpu->ops->fill_zero(c->stream, grad->data, tensor_bytes(grad)));
    }
    return 0;
}

static int learn_step(struct learn_state *s, const int64_t *sequences, int64_t step)
{
    const struct learn_plan *plan = s->plan;
    double share = s->share * learn_decay(plan, step), loss;

    TRY(learn_clear(s));
    TRY(learn_parts_apply(s->context, &s->parts));
    TRY(learn_pass(s, sequences, plan->batch, true, &loss));
    s->losses[step - 1] = loss;
    s->diverged = !isfinite(loss);
    if (s->diverged) {
        return 0;
    }
    TRY(learn_parts_step(s->context, plan, share, step, &s->parts));
    const struct tune_progress progress = {
        .step = step, .steps = plan->steps, .rate = share, .loss = loss, .first = s->context->curve->first};
    return s->context->tick(s->context->data, &progress);
}

/* Whether the loss is measured after this step. */
static bool learn_checks(const struct learn_plan *plan, int64_t step)
{
    return step * plan->checks / plan->steps != (step - 1) * plan->checks / plan->steps;
}

static int learn_steps(struct learn_state *s)
{
    const struct learn_plan *plan = s->plan;
    uint64_t seed = s->context->seed;
    int64_t *learned = s->order + s->held, next = s->learned;

    for (int64_t step = 1; step <= plan->steps && !s->diverged && !s->enough; step++) {
        if (next + plan->batch > s->learned) {
            random_shuffle(learned, s->learned, &seed);
            next = 0;
        }
        TRY(learn_step(s, learned + next, step));
        next += plan->batch;
        s->context->curve->steps = step;
        if (!s->diverged && learn_checks(plan, step)) {
            TRY(learn_measure(s, step));
        }
    }
    return 0;
}

static int learn_reset(struct learn_state *s)
{
    for (int i = 0; i < s->parts.linear_count; i++) {
        TRY(learn_linear_reset(s->context, s->plan, &s->parts.linears[i]));
    }
    for (int i = 0; i < s->parts.float_count; i++) {
        TRY(learn_vector_reset(s->context, &s->parts.floats[i]));
    }
    return 0;
}

static int learn_attempts(struct learn_state *s)
{
    struct tune_curve *curve = s->context->curve;
    AUTO_FREE int64_t *order = NULL;
    size_t bytes = (size_t)s->context->sequences * sizeof(*order);

    TRY(mem_buffer(&order, (size_t)s->context->sequences));
    memcpy(order, s->order, bytes);
    TRY(learn_reset(s));
    TRY(learn_measure(s, 0));
    if (s->diverged) {
        tune_note(curve, "the solved block's loss is not finite: nothing was learned");
        return 0;
    }
    TRY(learn_steps(s));
    if (s->diverged) {
        s->share = 0.5;
        s->diverged = s->enough = false;
        s->stale = 0;
        memcpy(s->order, order, bytes);
        tune_note(curve, "the loss was not finite after %lld steps: again at half the rates", (long long)curve->steps);
        TRY(learn_reset(s));
        TRY(learn_steps(s));
    }
    if (s->diverged) {
        tune_note(curve, "not finite at these too: %s kept",
                  s->least_step > 0 ? "the smallest was" : "the solver's result was");
    }
    return 0;
}

/* --- the state */

static int64_t learn_hidden(const struct tune_context *context)
{
    const struct plan *plan = context->block->plan;

    return plan->values[plan->output].width;
}

static int state_init(const struct tune_context *context, const struct learn_plan *plan, struct learn_state *s)
{
    uint64_t seed = context->seed ^ 0x9e3779b97f4a7c15u;

    *s = (struct learn_state){.context = context, .plan = plan, .share = 1, .least = NAN};
    TRY(mem_buffer(&s->order, (size_t)context->sequences));
    TRY(mem_buffer(&s->measured, (size_t)plan->checked));
    TRY(mem_array(&s->losses, (size_t)plan->steps));
    for (int64_t i = 0; i < context->sequences; i++) {
        s->order[i] = i;
    }
    random_shuffle(s->order, context->sequences, &seed);
    memcpy(s->measured, s->order, (size_t)plan->checked * sizeof(*s->measured));
    s->held = plan->held_out ? plan->checked : 0;
    s->learned = context->sequences - s->held;
    TRY(learn_parts_init(context, plan, &s->parts));
    const int64_t tokens = context->batch * context->length;
    TRY(mem_buffer(&s->host_weights, (size_t)tokens));
    TRY(gpu_tensor_uninitialized(context->gpu, DTYPE_F32, 1, &tokens, &s->weights));
    TRY(gpu_tensor_new(context->gpu, DTYPE_F32, 2, (const int64_t[]){tokens, learn_hidden(context)}, &s->none));
    return gpu_tensor_uninitialized(context->gpu, DTYPE_F32, 2,
                                    (const int64_t[]){context->batch * context->length, learn_hidden(context)},
                                    &s->target);
}

static void state_deinit(struct learn_state *s)
{
    const struct gpu *gpu = s->context->gpu;

    learn_parts_deinit(gpu, &s->parts);
    gpu_tensor_free(gpu, &s->target);
    gpu_tensor_free(gpu, &s->none);
    gpu_tensor_free(gpu, &s->weights);
    free(s->host_weights);
    free(s->order);
    free(s->measured);
    free(s->losses);
}

/* --- the end */

static void learn_curve(const struct learn_state *s, double started)
{
    struct tune_curve *curve = s->context->curve;
    int64_t made = curve->steps, points = made < TUNE_POINTS_MAX ? made : TUNE_POINTS_MAX;

    for (int64_t i = 0; i < points; i++) {
        int64_t step = points > 1 ? 1 + i * (made - 1) / (points - 1) : 1;
        curve->points[i] =
            (struct tune_point){.step = step, .lr = s->share * learn_decay(s->plan, step), .loss = s->losses[step - 1]};
    }
    curve->count = (int)points;
    curve->best = s->least;
    curve->best_step = s->least_step;
    curve->sequences = s->learned;
    curve->held_out = s->held;
    curve->seconds = clock_monotonic_seconds() - started;
    curve->done = true;
}

int learn_block(const struct tune_context *context, const struct learn_plan *asked)
{
    const struct learn_plan plan = learn_fit(asked, context->sequences, context->curve);
    double started = clock_monotonic_seconds();
    struct learn_state state;

    if (plan.steps == 0) {
        return 0;
    }
    int rc = state_init(context, &plan, &state);
    rc = rc != 0 ? rc : learn_attempts(&state);
    rc = rc != 0 ? rc : learn_parts_finish(context, state.least_step > 0, &state.parts);
    if (rc == 0) {
        learn_curve(&state, started);
    }
    state_deinit(&state);
    return rc;
}
