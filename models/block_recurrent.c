/* The steps of a block that go along a sequence: convolution, recurrences and their gated norms. */

#include "models/block_internal.h"

#include "base/err.h"

static int recurrent_conv(const struct block_scratch *s, const struct block *block, const struct plan_conv *conv,
                          const struct tensor *out, const struct tensor *in)
{
    const struct tensor *bias = conv->biased ? &block->parameters[conv->bias] : NULL;

    return s->gpu->ops->causal_conv(s->stream, out, &in[0], &block->parameters[conv->weight], bias, s->length,
                                    conv->silu);
}

static int recurrent_delta(const struct block_scratch *s, const struct block *block, const struct plan_delta *delta,
                           const struct tensor *out, const struct tensor *in)
{
    const struct gpu_delta spec = {.length = s->length,
                                   .key_heads = delta->key_heads,
                                   .value_heads = delta->value_heads,
                                   .key_dim = delta->key_dim,
                                   .value_dim = delta->value_dim};

    return s->gpu->ops->delta_rule(s->stream, out, &in[0], &in[1], &in[2], &block->parameters[delta->a_log],
                                   &block->parameters[delta->dt_bias], &spec);
}

static int recurrent_scan(const struct block_scratch *s, const struct block *block, const struct plan_scan *scan,
                          const struct tensor *out, const struct tensor *in)
{
    const struct gpu_scan spec = {.length = s->length,
                                  .heads = scan->heads,
                                  .groups = scan->groups,
                                  .head_dim = scan->head_dim,
                                  .state = scan->state,
                                  .dt_min = (float)scan->dt_min,
                                  .dt_max = (float)scan->dt_max};

    return s->gpu->ops->state_scan(s->stream, out, &in[0], &in[1], &block->parameters[scan->a_log],
                                   &block->parameters[scan->dt_bias], &block->parameters[scan->d], &spec);
}

int block_run_recurrent(const struct block_scratch *s, const struct block *block, const struct plan_step *step,
                        const struct tensor *out, const struct tensor *in)
{
    switch (step->kind) {
    case STEP_CONV:
        return recurrent_conv(s, block, &step->conv, out, in);
    case STEP_DELTA:
        return recurrent_delta(s, block, &step->delta, out, in);
    case STEP_SCAN:
        return recurrent_scan(s, block, &step->scan, out, in);
    case STEP_GATED_NORM:
        return s->gpu->ops->gated_norm(s->stream, out, &in[0], &in[1], &block->norms[step->norm].weight,
                                       step->gated.size, (float)block->config->rms_norm_eps, step->gated.gate_first);
    default:
        return err_raise(ERR_INTERNAL, "a step of kind %d does not go along a sequence", (int)step->kind);
    }
}
