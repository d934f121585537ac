/* Bodies of the operations that go along a sequence. */

#include "tests/conformance/ops_bodies.h"

#include <math.h>

struct conv {
    int64_t sequences, length, cols, width;
    bool bias, silu;
};

static const struct conv convs[] = {
    {3, 21, 70, 4, true, true},
    {2, 3, 37, 5, false, false}, /* a sequence is shorter than the kernel */
    {0, 8, 16, 4, true, true},
};

/* variant: a row of convs. */
int body_causal_conv(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct conv *c = &convs[variant];
    struct tensor x, w, bias, y;

    TRY(ops_random(rig, DTYPE_F32, c->sequences * c->length, c->cols, 201, &x));
    TRY(ops_random(rig, DTYPE_F32, c->cols, c->width, 202, &w));
    TRY(ops_random(rig, DTYPE_F32, 1, c->cols, 203, &bias));
    TRY(ops_random(rig, DTYPE_F32, c->sequences * c->length, c->cols, 204, &y)); /* must not matter */
    TRY(rig->gpu.ops->causal_conv(rig->stream, &y, &x, &w, c->bias ? &bias : NULL, c->length, c->silu));
    return ops_put(rig, out, &y);
}

static const struct gpu_delta deltas[] = {
    {.length = 150, .key_heads = 2, .value_heads = 4, .key_dim = 32, .value_dim = 40},
    {.length = 65, .key_heads = 1, .value_heads = 3, .key_dim = 37, .value_dim = 5},
    {.length = 33, .key_heads = 2, .value_heads = 2, .key_dim = 128, .value_dim = 128},
    {.length = 9, .key_heads = 1, .value_heads = 1, .key_dim = 256, .value_dim = 17},
};

/* variant: a row of deltas, over two sequences. */
int body_delta_rule(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_delta *spec = &deltas[variant];
    int64_t rows = 2 * spec->length, width = spec->value_heads * spec->value_dim;
    struct tensor x, a, beta, a_log, dt_bias, y;

    TRY(ops_random(rig, DTYPE_F32, rows, 2 * spec->key_heads * spec->key_dim + width, 205, &x));
    TRY(ops_random(rig, DTYPE_F32, rows, spec->value_heads, 206, &a));
    TRY(ops_random(rig, DTYPE_F32, rows, spec->value_heads, 207, &beta));
    TRY(ops_random(rig, DTYPE_F32, 1, spec->value_heads, 208, &a_log));
    TRY(ops_random(rig, DTYPE_F32, 1, spec->value_heads, 209, &dt_bias));
    TRY(ops_new(rig, DTYPE_F32, rows, width, &y));
    TRY(rig->gpu.ops->delta_rule(rig->stream, &y, &x, &a, &beta, &a_log, &dt_bias, spec));
    return ops_put(rig, out, &y);
}

static const struct gpu_scan scans[] = {
    {.length = 150, .heads = 4, .groups = 2, .head_dim = 40, .state = 32, .dt_max = INFINITY},
    {.length = 65, .heads = 3, .groups = 1, .head_dim = 5, .state = 37, .dt_min = 0.3f, .dt_max = 1.1f},
    {.length = 33, .heads = 2, .groups = 2, .head_dim = 64, .state = 128, .dt_max = INFINITY},
    {.length = 9, .heads = 1, .groups = 1, .head_dim = 17, .state = 256, .dt_max = INFINITY},
};

/* variant: a row of scans, over two sequences. */
int body_state_scan(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_scan *spec = &scans[variant];
    int64_t rows = 2 * spec->length, width = spec->heads * spec->head_dim;
    struct tensor x, dt, a_log, dt_bias, d, y;

    TRY(ops_random(rig, DTYPE_F32, rows, width + 2 * spec->groups * spec->state, 210, &x));
    TRY(ops_random(rig, DTYPE_F32, rows, spec->heads, 211, &dt));
    TRY(ops_random(rig, DTYPE_F32, 1, spec->heads, 212, &a_log));
    TRY(ops_random(rig, DTYPE_F32, 1, spec->heads, 213, &dt_bias));
    TRY(ops_random(rig, DTYPE_F32, 1, spec->heads, 214, &d));
    TRY(ops_new(rig, DTYPE_F32, rows, width, &y));
    TRY(rig->gpu.ops->state_scan(rig->stream, &y, &x, &dt, &a_log, &dt_bias, &d, spec));
    return ops_put(rig, out, &y);
}

/* variant: 0 the norm, then the gate, a weight for all runs; 1 the gate first, a weight for every column. In place. */
int body_gated_norm(struct ops_rig *rig, int variant, struct ops_output *out)
{
    struct tensor x, gate, weight;

    TRY(ops_random(rig, DTYPE_F32, 21, 192, 215, &x));
    TRY(ops_random(rig, DTYPE_F32, 21, 192, 216, &gate));
    TRY(ops_random(rig, DTYPE_F32, 1, variant == 0 ? 48 : 192, 217, &weight));
    TRY(rig->gpu.ops->gated_norm(rig->stream, &x, &x, &gate, &weight, 48, 1e-5f, variant == 1));
    return ops_put(rig, out, &x);
}
