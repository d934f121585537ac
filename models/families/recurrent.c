/* Layers that go along a sequence instead of looking back at it, as families share them: Gated DeltaNet (Yang et al.
 * 2024, arXiv 2412.06464) and Mamba 2 (Dao and Gu 2024, arXiv 2405.21060). */

#include "models/families/families.h"

static int vector(struct plan_builder *b, const char *path, int64_t size)
{
    return plan_parameter(b, &(struct plan_parameter){.path = path, .shape = {size}, .rank = 1});
}

/* A convolution over all columns of `in`, through silu. */
static int convolve(struct plan_builder *b, const struct recurrence *r, int in, int64_t columns, const char *weight,
                    const char *bias)
{
    struct plan_conv conv = {.width = r->conv, .silu = true, .biased = bias != NULL};

    conv.weight =
        plan_parameter(b, &(struct plan_parameter){.path = weight, .shape = {columns, 1, r->conv}, .rank = 3});
    if (bias != NULL) {
        conv.bias = vector(b, bias, columns);
    }
    return plan_conv(b, in, &conv);
}

static int recurrent_cut(struct plan_builder *b, int in, int64_t stride, int64_t first, int64_t count)
{
    return plan_select(b, in, &(struct plan_select){.stride = stride, .first = first, .count = count});
}

int families_delta(struct plan_builder *b, const struct model_config *c, const struct family_delta *in)
{
    const struct recurrence *r = &c->recurrence;
    const struct plan_delta delta = {.key_heads = r->groups,
                                     .value_heads = r->heads,
                                     .key_dim = r->state,
                                     .value_dim = r->head_dim,
                                     .a_log = vector(b, "linear_attn.A_log", r->heads),
                                     .dt_bias = vector(b, "linear_attn.dt_bias", r->heads)};
    const struct plan_norm norm = {.path = "linear_attn.norm", .size = r->head_dim};
    int64_t columns = 2 * r->groups * r->state + r->heads * r->head_dim;

    int x = convolve(b, r, in->qkv, columns, "linear_attn.conv1d.weight", NULL);
    int y = plan_delta(b, x, in->a, in->beta, &delta);
    y = plan_gated_norm(b, y, in->gate, &norm, &(struct plan_gated_norm){.size = r->head_dim});
    return plan_linear(b, y, "linear_attn.out_proj", NULL, c->hidden_size, false);
}

int families_mamba(struct plan_builder *b, const struct model_config *c, int in, const struct family_mamba *names)
{
    const struct recurrence *r = &c->recurrence;
    int64_t inner = r->heads * r->head_dim, columns = inner + 2 * r->groups * r->state;
    int64_t all = inner + columns + r->heads;
    const struct plan_scan scan = {.heads = r->heads,
                                   .groups = r->groups,
                                   .head_dim = r->head_dim,
                                   .state = r->state,
                                   .dt_min = r->dt_min,
                                   .dt_max = r->dt_max,
                                   .a_log = vector(b, names->a_log, r->heads),
                                   .dt_bias = vector(b, names->dt_bias, r->heads),
                                   .d = vector(b, names->d, r->heads)};
    const struct plan_norm norm = {.path = names->norm, .size = inner};
    const struct plan_gated_norm gated = {.size = inner / r->groups, .gate_first = true};

    int made = plan_linear(b, in, names->in, NULL, all, r->bias);
    int gate = recurrent_cut(b, made, all, 0, inner), x = recurrent_cut(b, made, all, inner, columns);
    int dt = recurrent_cut(b, made, all, inner + columns, r->heads);
    x = convolve(b, r, x, columns, names->conv_weight, r->conv_bias ? names->conv_bias : NULL);
    int y = plan_gated_norm(b, plan_scan(b, x, dt, &scan), gate, &norm, &gated);
    return plan_linear(b, y, names->out, NULL, c->hidden_size, r->bias);
}
