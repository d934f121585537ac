/* The steps of a plan that go along a sequence: a family adds them here. */

#include "models/plan_internal.h"

#include "gpu/gpu.h"

static int64_t recurrent_width(const struct plan_builder *b, int value)
{
    return value >= 0 && value < b->plan.value_count ? b->values[value].width : 0;
}

int plan_conv(struct plan_builder *b, int in, const struct plan_conv *conv)
{
    const struct plan_step step = {.kind = STEP_CONV, .in = {in}, .inputs = 1, .module = -1, .norm = -1, .conv = *conv};

    return plan_add_step(b, &step, recurrent_width(b, in));
}

int plan_delta(struct plan_builder *b, int in, int a, int beta, const struct plan_delta *delta)
{
    const struct plan_step step = {
        .kind = STEP_DELTA, .in = {in, a, beta}, .inputs = 3, .module = -1, .norm = -1, .delta = *delta};

    return plan_add_step(b, &step, delta->value_heads * delta->value_dim);
}

int plan_scan(struct plan_builder *b, int in, int dt, const struct plan_scan *scan)
{
    const struct plan_step step = {
        .kind = STEP_SCAN, .in = {in, dt}, .inputs = 2, .module = -1, .norm = -1, .scan = *scan};

    return plan_add_step(b, &step, scan->heads * scan->head_dim);
}

int plan_gated_norm(struct plan_builder *b, int in, int gate, const struct plan_norm *norm,
                    const struct plan_gated_norm *gated)
{
    const struct plan_step step = {.kind = STEP_GATED_NORM,
                                   .in = {in, gate},
                                   .inputs = 2,
                                   .module = -1,
                                   .norm = b->plan.norm_count,
                                   .gated = *gated};

    if (b->plan.norm_count < PLAN_STEPS_MAX) {
        b->norms[b->plan.norm_count++] = *norm;
    }
    return plan_add_step(b, &step, recurrent_width(b, in));
}

static bool is_vector(const struct plan_builder *b, int parameter, int64_t size)
{
    return parameter >= 0 && parameter < b->plan.parameter_count && b->parameters[parameter].rank == 1 &&
           b->parameters[parameter].shape[0] == size;
}

static bool conv_fits(const struct plan_builder *b, const struct plan_conv *conv, int64_t width)
{
    const struct plan_parameter *weight =
        conv->weight >= 0 && conv->weight < b->plan.parameter_count ? &b->parameters[conv->weight] : NULL;

    return weight != NULL && weight->rank == 3 && weight->shape[0] == width && weight->shape[1] == 1 &&
           weight->shape[2] == conv->width && conv->width > 0 && (!conv->biased || is_vector(b, conv->bias, width));
}

static bool delta_fits(const struct plan_builder *b, const struct plan_step *step)
{
    const struct plan_delta *d = &step->delta;

    return d->key_heads > 0 && d->value_heads > 0 && d->value_heads % d->key_heads == 0 && d->key_dim > 0 &&
           d->key_dim <= GPU_STATE_MAX && d->value_dim > 0 &&
           recurrent_width(b, step->in[0]) == 2 * d->key_heads * d->key_dim + d->value_heads * d->value_dim &&
           recurrent_width(b, step->in[1]) == d->value_heads && recurrent_width(b, step->in[2]) == d->value_heads &&
           is_vector(b, d->a_log, d->value_heads) && is_vector(b, d->dt_bias, d->value_heads);
}

static bool scan_fits(const struct plan_builder *b, const struct plan_step *step)
{
    const struct plan_scan *s = &step->scan;

    return s->heads > 0 && s->groups > 0 && s->heads % s->groups == 0 && s->head_dim > 0 && s->state > 0 &&
           s->state <= GPU_STATE_MAX &&
           recurrent_width(b, step->in[0]) == s->heads * s->head_dim + 2 * s->groups * s->state &&
           recurrent_width(b, step->in[1]) == s->heads && is_vector(b, s->a_log, s->heads) &&
           is_vector(b, s->dt_bias, s->heads) && is_vector(b, s->d, s->heads);
}

bool plan_recurrent_fits(const struct plan_builder *b, const struct plan_step *step)
{
    int64_t width = recurrent_width(b, step->in[0]), size = step->gated.size;

    switch (step->kind) {
    case STEP_CONV:
        return conv_fits(b, &step->conv, width);
    case STEP_DELTA:
        return delta_fits(b, step);
    case STEP_SCAN:
        return scan_fits(b, step);
    default:
        return size > 0 && width % size == 0 && recurrent_width(b, step->in[1]) == width &&
               (b->norms[step->norm].size == size || b->norms[step->norm].size == width);
    }
}

static bool same_conv(const struct plan_conv *a, const struct plan_conv *b)
{
    return a->weight == b->weight && a->biased == b->biased && a->bias == b->bias && a->silu == b->silu &&
           a->width == b->width;
}

static bool same_delta(const struct plan_delta *a, const struct plan_delta *b)
{
    return a->key_heads == b->key_heads && a->value_heads == b->value_heads && a->key_dim == b->key_dim &&
           a->value_dim == b->value_dim && a->a_log == b->a_log && a->dt_bias == b->dt_bias;
}

static bool same_scan(const struct plan_scan *a, const struct plan_scan *b)
{
    return a->heads == b->heads && a->groups == b->groups && a->head_dim == b->head_dim && a->state == b->state &&
           a->dt_min == b->dt_min && a->dt_max == b->dt_max && a->a_log == b->a_log && a->dt_bias == b->dt_bias &&
           a->d == b->d;
}

bool plan_recurrent_same(const struct plan_step *a, const struct plan_step *b)
{
    return same_conv(&a->conv, &b->conv) && same_delta(&a->delta, &b->delta) && same_scan(&a->scan, &b->scan) &&
           a->gated.size == b->gated.size && a->gated.gate_first == b->gated.gate_first;
}
