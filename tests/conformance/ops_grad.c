/* Bodies of the backward pass and of the steps of what is trained. Gradients begin with numbers, which stay in them. */

#include "tests/conformance/ops_bodies.h"

#include <math.h>

struct product_grad {
    int64_t tokens, in, out;
    enum dtype weight;
};

/* variant: a row of these. */
int body_linear_grad(struct ops_rig *rig, int variant, struct ops_output *out)
{
    static const struct product_grad rows[] = {{37, 96, 51, DTYPE_F32},  {64, 128, 256, DTYPE_BF16},
                                               {1, 200, 700, DTYPE_F16}, {29, 67, 45, DTYPE_F32},
                                               {0, 64, 32, DTYPE_F32},   {5, 7, 0, DTYPE_F32}};
    const struct product_grad *r = &rows[variant];
    struct tensor dx, dy, w;

    TRY(ops_random(rig, DTYPE_F32, r->tokens, r->in, 201, &dx));
    TRY(ops_random(rig, DTYPE_F32, r->tokens, r->out, 202, &dy));
    TRY(ops_random(rig, r->weight, r->out, r->in, 203, &w));
    TRY(rig->gpu.ops->linear_grad(rig->stream, &dx, &dy, &w));
    return ops_put(rig, out, &dx);
}

/* variant: rows. */
int body_column_sums(struct ops_rig *rig, int variant, struct ops_output *out)
{
    struct tensor d, x;

    TRY(ops_random(rig, DTYPE_F32, 1, 301, 204, &d));
    TRY(ops_random(rig, DTYPE_F32, variant, 301, 205, &x));
    TRY(rig->gpu.ops->column_sums(rig->stream, &d, &x));
    return ops_put(rig, out, &d);
}

struct norm_case {
    struct gpu_norm spec;
    int64_t rows, cols;
    bool weight;
};

/* variant: a row of these. */
int body_norm_grad(struct ops_rig *rig, int variant, struct ops_output *out)
{
    static const struct norm_case rows[] = {
        {{.size = 301, .eps = 1e-3f}, 70, 301, true},
        {{.size = 16, .unit_offset = true, .eps = 1e-3f}, 70, 96, true},
        {{.size = 130, .layer = true, .eps = 1e-3f}, 37, 130, true},
        {{.size = 64, .layer = true, .eps = 1e-3f}, 37, 128, false},
    };
    const struct norm_case *r = &rows[variant];
    struct tensor dx, dweight, dbias, dy, x, weight;

    TRY(ops_random(rig, DTYPE_F32, r->rows, r->cols, 206, &dx));
    TRY(ops_random(rig, DTYPE_F32, 1, r->spec.size, 207, &dweight));
    TRY(ops_random(rig, DTYPE_F32, 1, r->spec.size, 208, &dbias));
    TRY(ops_random(rig, DTYPE_F32, r->rows, r->cols, 209, &dy));
    TRY(ops_random(rig, DTYPE_F32, r->rows, r->cols, 210, &x));
    TRY(ops_random(rig, DTYPE_F32, 1, r->spec.size, 211, &weight));
    TRY(rig->gpu.ops->norm_grad(rig->stream, &dx, r->weight ? &dweight : NULL, &dbias, &dy, &x,
                                r->weight ? &weight : NULL, &r->spec));
    TRY(ops_put(rig, out, &dx));
    TRY(ops_put(rig, out, &dweight));
    return ops_put(rig, out, &dbias);
}

#define HEADS(b, s, h, kv, d, ...)                                                                                   \
    {                                                                                                                \
        .sequences = (b), .length = (s), .heads = (h), .kv_heads = (kv), .head_dim = (d), .scale = 0.3f, __VA_ARGS__ \
    }

/* variant: a row of these, + 16 with sinks. */
int body_attention_grad(struct ops_rig *rig, int variant, struct ops_output *out)
{
    static const struct gpu_attention rows[] = {
        HEADS(2, 70, 4, 4, 16, .window = 0), HEADS(2, 33, 6, 3, 24, .window = 0),
        HEADS(1, 40, 5, 1, 16, .window = 0), HEADS(1, 90, 4, 2, 8, .window = 9),
        HEADS(1, 530, 2, 1, 8, .window = 0), HEADS(1, 40, 2, 2, 24, .value_dim = 16),
        HEADS(1, 90, 2, 2, 8, .chunk = 32),  HEADS(1, 90, 4, 2, 8, .cap = 1.5f),
        HEADS(1, 2100, 1, 1, 4, .window = 0)};
    struct gpu_attention spec = rows[variant % 16];
    int64_t tokens = spec.sequences * spec.length, width = gpu_value_dim(&spec);
    struct tensor d[4], q, k, v, d_out, sinks;
    bool has_sinks = variant >= 16;

    TRY(ops_random(rig, DTYPE_F32, tokens, spec.heads * spec.head_dim, 212, &q));
    TRY(ops_random(rig, DTYPE_F32, tokens, spec.kv_heads * spec.head_dim, 213, &k));
    TRY(ops_random(rig, DTYPE_F32, tokens, spec.kv_heads * width, 214, &v));
    TRY(ops_random(rig, DTYPE_F32, tokens, spec.heads * width, 215, &d_out));
    TRY(ops_random(rig, DTYPE_F32, 1, spec.heads, 216, &sinks));
    TRY(ops_new(rig, DTYPE_F32, tokens, spec.heads * spec.head_dim, &d[0]));
    TRY(ops_random(rig, DTYPE_F32, tokens, spec.kv_heads * spec.head_dim, 217, &d[1]));
    TRY(ops_new(rig, DTYPE_F32, tokens, spec.kv_heads * width, &d[2]));
    TRY(ops_new(rig, DTYPE_F32, 1, spec.heads, &d[3]));
    spec.sinks = has_sinks ? &sinks : NULL;
    TRY(rig->gpu.ops->attention_grad(rig->stream, &d[0], &d[1], &d[2], has_sinks ? &d[3] : NULL, &d_out, &q, &k, &v,
                                     &spec));
    for (int i = 0; i < 4; i++) {
        TRY(ops_put(rig, out, &d[i]));
    }
    return 0;
}

/* variant: the activation, + 16 of a gate of one column, + 32 without up. */
int body_activate_grad(struct ops_rig *rig, int variant, struct ops_output *out)
{
    bool one = (variant & 16) != 0, up = (variant & 32) == 0;
    struct tensor dgate, dup, dy, gate, ups;

    TRY(ops_random(rig, DTYPE_F32, 41, one ? 1 : 67, 218, &dgate));
    TRY(ops_random(rig, DTYPE_F32, 41, 67, 219, &dup));
    TRY(ops_random(rig, DTYPE_F32, 41, 67, 220, &dy));
    TRY(ops_random(rig, DTYPE_F32, 41, one ? 1 : 67, 221, &gate));
    TRY(ops_random(rig, DTYPE_F32, 41, 67, 222, &ups));
    TRY(rig->gpu.ops->activate_grad(rig->stream, &dgate, up ? &dup : NULL, &dy, &gate, up ? &ups : NULL,
                                    (enum gpu_activation)(variant & 15)));
    TRY(ops_put(rig, out, &dgate));
    return ops_put(rig, out, &dup);
}

/* variant: elements. */
int body_soft_cap_grad(struct ops_rig *rig, int variant, struct ops_output *out)
{
    struct tensor dx, dy, x;

    TRY(ops_random(rig, DTYPE_F32, 1, variant, 223, &dx));
    TRY(ops_random(rig, DTYPE_F32, 1, variant, 224, &dy));
    TRY(ops_random(rig, DTYPE_F32, 1, variant, 225, &x));
    TRY(rig->gpu.ops->soft_cap_grad(rig->stream, &dx, &dy, &x, 1.5));
    return ops_put(rig, out, &dx);
}

/* variant: 1 = of all heads into one. */
int body_add_columns(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_columns spec = {
        .heads = 7, .count = 5, .to = 2, .to_stride = variant != 0 ? 0 : 9, .from = 1, .from_stride = 8};
    struct tensor x, y;

    TRY(ops_random(rig, DTYPE_F32, 41, 56, 226, &x));
    TRY(ops_random(rig, DTYPE_F32, 41, 63, 227, &y));
    TRY(rig->gpu.ops->add_columns(rig->stream, &y, &x, &spec));
    return ops_put(rig, out, &y);
}

/* variant: 0 dynamic, 1 static, 2 static with an outlier. */
int body_quantize_input_grad(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_input spec = {.element = DTYPE_I8, .dynamic = variant == 0, .scale = 0.5f / 127};
    float passes[67] = {0};
    struct tensor dx, dy, x, outliers;

    passes[3] = 1;
    TRY(ops_random(rig, DTYPE_F32, 41, 67, 228, &dx));
    TRY(ops_random(rig, DTYPE_F32, 41, 67, 229, &dy));
    TRY(ops_random(rig, DTYPE_F32, 41, 67, 230, &x));
    TRY(ops_upload(rig, passes, 1, 67, &outliers));
    TRY(rig->gpu.ops->quantize_input_grad(rig->stream, &dx, &dy, &x, variant == 2 ? &outliers : NULL, &spec));
    return ops_put(rig, out, &dx);
}

/* The dots of rows of one expert with those of their tokens; variant: columns. */
int body_row_dots(struct ops_rig *rig, int variant, struct ops_output *out)
{
    static const int32_t at[] = {14, 3, 0, 8, 11, 5};
    struct tensor d, a, x, places;

    TRY(ops_random(rig, DTYPE_F32, 5, 3, 231, &d));
    TRY(ops_random(rig, DTYPE_F32, 5, variant, 232, &a));
    TRY(ops_random(rig, DTYPE_F32, 6, variant, 233, &x));
    TRY(ops_new(rig, DTYPE_I32, 1, 6, &places));
    TRY(rig->gpu.ops->upload(rig->stream, places.data, at, sizeof(at)));
    TRY(rig->gpu.ops->row_dots(rig->stream, &d, &a, &x, &places, 3));
    return ops_put(rig, out, &d);
}

/* variant: a row of these. */
int body_route_grad(struct ops_rig *rig, int variant, struct ops_output *out)
{
    static const struct gpu_route rows[] = {
        {.top_k = 2, .scores = GPU_SCORES_ALL, .factor = 1},
        {.top_k = 6, .scores = GPU_SCORES_CHOSEN, .factor = 1.5f},
        {.top_k = 3, .scores = GPU_SCORES_ALL, .normalize = true, .factor = 2.5f},
        {.top_k = 4, .scores = GPU_SCORES_SIGMOID, .factor = 1},
        {.top_k = 4, .scores = GPU_SCORES_SIGMOID, .normalize = true, .factor = 2.5f, .epsilon = 0.1f}};
    const struct gpu_route *spec = &rows[variant];
    struct tensor dlogits, dweights, ids, weights, logits;

    TRY(ops_random(rig, DTYPE_F32, 41, 37, 234, &dlogits));
    TRY(ops_random(rig, DTYPE_F32, 41, spec->top_k, 235, &dweights));
    TRY(ops_random(rig, DTYPE_F32, 41, 37, 236, &logits));
    TRY(ops_new(rig, DTYPE_F32, 41, spec->top_k, &weights));
    TRY(ops_new(rig, DTYPE_I32, 41, spec->top_k, &ids));
    TRY(rig->gpu.ops->route(rig->stream, &ids, &weights, &logits, NULL, spec));
    TRY(rig->gpu.ops->route_grad(rig->stream, &dlogits, &dweights, &ids, &logits, spec));
    return ops_put(rig, out, &dlogits);
}

/* variant: 0 squared errors, 1 KL divergence, 2 log-likelihood of labels, + 4 without a gradient. */
int body_loss_grad(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_ops *ops = rig->gpu.ops;
    struct tensor d, y, target;
    int32_t labels[37];
    double loss = -1;

    TRY(ops_random(rig, DTYPE_F32, 37, 501, 237, &d));
    TRY(ops_random(rig, DTYPE_F32, 37, 501, 238, &y));
    TRY(ops_random(rig, DTYPE_F32, 37, 501, 239, &target));
    for (int t = 0; t < 37; t++) {
        labels[t] = t % 5 == 4 ? -1 : t * 13;
    }
    const struct tensor *to = variant < 4 ? &d : NULL;
    TRY(variant % 4 == 0   ? ops->mse_grad(rig->stream, to, &y, &target, 0.7, &loss)
        : variant % 4 == 1 ? ops->kl_grad(rig->stream, to, &y, &target, 0.7, &loss)
                           : ops->nll_grad(rig->stream, to, &y, labels, 0.7, &loss));
    TRY(ops_put_number(out, loss));
    return ops_put(rig, out, &d);
}

/* Scales of either sign; zeros that are not integers, and one outside the range. */
static int fake_points(struct ops_rig *rig, int64_t groups, struct tensor *scale, struct tensor *zero)
{
    float at[9 * 3];

    for (int i = 0; i < 27; i++) {
        at[i] = (float)(i % 10) * 0.7f - 0.5f;
    }
    TRY(ops_random(rig, DTYPE_F32, 9, groups, 240, scale));
    return ops_upload(rig, at, 9, groups, zero);
}

/* variant: columns of a group, + 1000 for gradients in place of weights and codes. */
int body_fake_round(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_grid grid = {.bits = 2, .group_size = variant % 1000};
    const struct gpu_ops *ops = rig->gpu.ops;
    struct tensor u, scale, zero, wq, codes, dwq, dscale, dzero;

    TRY(ops_random(rig, DTYPE_F32, 9, 3 * grid.group_size, 241, &u));
    TRY(ops_random(rig, DTYPE_F32, 9, 3 * grid.group_size, 242, &wq));
    TRY(fake_points(rig, 3, &scale, &zero));
    if (variant < 1000) {
        TRY(ops_new(rig, DTYPE_U8, 9, 3 * grid.group_size, &codes));
        TRY(ops->fake_round(rig->stream, &wq, &codes, &u, &scale, &zero, &grid));
        TRY(ops_put(rig, out, &codes));
        return ops_put(rig, out, &wq);
    }
    TRY(ops_random(rig, DTYPE_F32, 9, 3 * grid.group_size, 243, &dwq));
    TRY(ops_random(rig, DTYPE_F32, 9, 3, 244, &dscale));
    TRY(ops_random(rig, DTYPE_F32, 9, 3, 245, &dzero));
    TRY(ops->fake_round_grad(rig->stream, &wq, &dscale, &dzero, &dwq, &u, &scale, &zero, &grid));
    TRY(ops_put(rig, out, &wq));
    TRY(ops_put(rig, out, &dscale));
    return ops_put(rig, out, &dzero);
}

/* The same over the levels of E2M1, + 2000 over those of E4M3. */
int body_fake_levels(struct ops_rig *rig, int variant, struct ops_output *out)
{
    enum dtype element = variant >= 2000 ? DTYPE_F8_E4M3 : DTYPE_F4_E2M1;
    float values[256];
    const struct gpu_levels levels = {
        .values = values, .count = element == DTYPE_F8_E4M3 ? 256 : 16, .group_size = variant % 1000};
    const struct gpu_ops *ops = rig->gpu.ops;
    struct tensor u, scale, zero, wq, codes, dwq, dscale;

    for (int i = 0; i < levels.count; i++) {
        values[i] = dtype_decode(element, (uint8_t)i);
    }
    TRY(ops_random(rig, DTYPE_F32, 9, 3 * levels.group_size, 246, &u));
    TRY(ops_random(rig, DTYPE_F32, 9, 3 * levels.group_size, 247, &wq));
    TRY(fake_points(rig, 3, &scale, &zero));
    if (variant % 2000 < 1000) {
        TRY(ops_new(rig, DTYPE_U8, 9, 3 * levels.group_size, &codes));
        TRY(ops->fake_levels(rig->stream, &wq, &codes, &u, &scale, &levels));
        TRY(ops_put(rig, out, &codes));
        return ops_put(rig, out, &wq);
    }
    TRY(ops_random(rig, DTYPE_F32, 9, 3 * levels.group_size, 248, &dwq));
    TRY(ops_random(rig, DTYPE_F32, 9, 3, 249, &dscale));
    TRY(ops->fake_levels_grad(rig->stream, &wq, &dscale, &dwq, &u, &scale, &levels));
    TRY(ops_put(rig, out, &wq));
    return ops_put(rig, out, &dscale);
}

/* variant: 0 sign steps around zero, 1 around a center, 2 three of AdamW. */
int body_optimizers(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_ops *ops = rig->gpu.ops;
    struct tensor p, g, m, v, center;

    TRY(ops_random(rig, DTYPE_F32, 41, 67, 250, &p));
    TRY(ops_random(rig, DTYPE_F32, 41, 67, 251, &g));
    TRY(ops_random(rig, DTYPE_F32, 41, 67, 252, &center));
    TRY(ops_new(rig, DTYPE_F32, 41, 67, &m));
    TRY(ops_new(rig, DTYPE_F32, 41, 67, &v));
    if (variant < 2) {
        TRY(ops->sign_step(rig->stream, &p, &g, variant == 1 ? &center : NULL, 0.01, -0.5, 0.5));
        return ops_put(rig, out, &p);
    }
    for (int step = 1; step <= 3; step++) {
        const struct gpu_adamw spec = {
            .lr = 0.01, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-8, .decay = 0.01, .factor = 0.5, .step = step};
        TRY(ops->adamw(rig->stream, &p, &m, &v, &g, &spec));
    }
    TRY(ops_put(rig, out, &m));
    TRY(ops_put(rig, out, &v));
    return ops_put(rig, out, &p);
}
