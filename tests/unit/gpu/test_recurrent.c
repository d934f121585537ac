/* What goes along a sequence against the definitions in double, token by token. */

#include "tests/unit/gpu/support.h"

#include <stdlib.h>

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static double softplus(double x)
{
    return log1p(exp(x));
}

static double at(const struct tensor *tensor, int64_t i)
{
    return (double)floats(tensor)[i];
}

static void check_conv(int64_t sequences, int64_t length, int64_t cols, int64_t width, bool bias, bool act)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_random(&rig, sequences * length, cols, 1), w = rig_random(&rig, cols, width, 2);
    struct tensor b = rig_random(&rig, 1, cols, 3), y = rig_tensor(&rig, DTYPE_F32, sequences * length, cols);

    ck_assert_rc_ok(rig.ops->causal_conv(rig.stream, &y, &x, &w, bias ? &b : NULL, length, act));
    for (int64_t r = 0; r < sequences * length; r++) {
        for (int64_t c = 0; c < cols; c++) {
            double want = bias ? at(&b, c) : 0;
            for (int64_t j = 0; j < width; j++) {
                int64_t from = r % length - width + 1 + j;
                want += from >= 0 ? at(&w, c * width + j) * at(&x, (r - width + 1 + j) * cols + c) : 0;
            }
            want = act ? silu(want) : want;
            ck_assert_near(at(&y, r * cols + c), want, 1e-6 * (1 + fabs(want)));
        }
    }
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &b);
    gpu_tensor_free(&rig.gpu, &y);
    rig_close(&rig);
}

START_TEST(convolution_is_causal_and_stays_in_its_sequence)
{
    check_conv(3, 20, 37, 4, true, true);
    check_conv(2, 3, 64, 5, false, false);
    check_conv(1, 1, 5, 4, false, true);
}
END_TEST

/* How far y is from `want` beside it, as a whole. */
static double relative(const struct tensor *y, const double *want)
{
    double error = 0, all = 0;

    for (int64_t i = 0; i < tensor_count(y); i++) {
        error += (at(y, i) - want[i]) * (at(y, i) - want[i]);
        all += want[i] * want[i];
    }
    return sqrt(error / all);
}

/* One head of one sequence: rows [keys] of q and k, [values] of v, at their strides. */
static void delta_head(const struct tensor *x, const double *decay, const double *beta, const struct gpu_delta *spec,
                       int64_t first, int64_t head, double *want)
{
    int64_t keys = spec->key_heads * spec->key_dim, width = spec->value_heads * spec->value_dim, row = 2 * keys + width;
    int64_t key = head / (spec->value_heads / spec->key_heads) * spec->key_dim;
    double *state = calloc((size_t)(spec->key_dim * spec->value_dim), sizeof(*state));

    for (int64_t t = first; t < first + spec->length; t++) {
        double qq = 1e-6, kk = 1e-6;
        for (int64_t i = 0; i < spec->key_dim; i++) {
            qq += at(x, t * row + key + i) * at(x, t * row + key + i);
            kk += at(x, t * row + keys + key + i) * at(x, t * row + keys + key + i);
        }
        for (int64_t c = 0; c < spec->value_dim; c++) {
            double held = 0, out = 0, *s = state + c * spec->key_dim;
            for (int64_t i = 0; i < spec->key_dim; i++) {
                s[i] *= decay[t * spec->value_heads + head];
                held += s[i] * at(x, t * row + keys + key + i) / sqrt(kk);
            }
            double d =
                beta[t * spec->value_heads + head] * (at(x, t * row + 2 * keys + head * spec->value_dim + c) - held);
            for (int64_t i = 0; i < spec->key_dim; i++) {
                s[i] += d * at(x, t * row + keys + key + i) / sqrt(kk);
                out += s[i] * at(x, t * row + key + i) / sqrt(qq * (double)spec->key_dim);
            }
            want[t * width + head * spec->value_dim + c] = out;
        }
    }
    free(state);
}

static void check_delta(int64_t sequences, const struct gpu_delta *spec)
{
    struct rig rig;
    rig_open(&rig, 3);
    int64_t rows = sequences * spec->length, heads = spec->value_heads, width = heads * spec->value_dim;
    struct tensor x = rig_random(&rig, rows, 2 * spec->key_heads * spec->key_dim + width, 4);
    struct tensor a = rig_random(&rig, rows, heads, 5), beta = rig_random(&rig, rows, heads, 6);
    struct tensor a_log = rig_random(&rig, 1, heads, 7), dt_bias = rig_random(&rig, 1, heads, 8);
    struct tensor y = rig_tensor(&rig, DTYPE_F32, rows, width);
    double *decay = calloc((size_t)(rows * heads), sizeof(*decay)), *b = calloc((size_t)(rows * heads), sizeof(*b));
    double *want = calloc((size_t)(rows * width), sizeof(*want));

    ck_assert_rc_ok(rig.ops->delta_rule(rig.stream, &y, &x, &a, &beta, &a_log, &dt_bias, spec));
    for (int64_t i = 0; i < rows * heads; i++) {
        decay[i] = exp(-exp(at(&a_log, i % heads)) * softplus(at(&a, i) + at(&dt_bias, i % heads)));
        b[i] = 1 / (1 + exp(-at(&beta, i)));
    }
    for (int64_t s = 0; s < sequences; s++) {
        for (int64_t h = 0; h < heads; h++) {
            delta_head(&x, decay, b, spec, s * spec->length, h, want);
        }
    }
    ck_assert_double_le(relative(&y, want), 1e-6);
    free(decay);
    free(b);
    free(want);
    struct tensor *all[] = {&x, &a, &beta, &a_log, &dt_bias, &y};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&rig.gpu, all[i]);
    }
    rig_close(&rig);
}

START_TEST(delta_rule_is_right)
{
    check_delta(2,
                &(struct gpu_delta){.length = 130, .key_heads = 2, .value_heads = 6, .key_dim = 24, .value_dim = 20});
    check_delta(1, &(struct gpu_delta){.length = 3, .key_heads = 1, .value_heads = 1, .key_dim = 1, .value_dim = 1});
    check_delta(1,
                &(struct gpu_delta){.length = 300, .key_heads = 1, .value_heads = 1, .key_dim = 128, .value_dim = 33});
}
END_TEST

static void check_scan(int64_t sequences, const struct gpu_scan *spec)
{
    struct rig rig;
    rig_open(&rig, 3);
    int64_t rows = sequences * spec->length, heads = spec->heads, width = heads * spec->head_dim, n = spec->state;
    int64_t row = width + 2 * spec->groups * n;
    struct tensor x = rig_random(&rig, rows, row, 9), dt = rig_random(&rig, rows, heads, 10);
    struct tensor a_log = rig_random(&rig, 1, heads, 11), dt_bias = rig_random(&rig, 1, heads, 12);
    struct tensor d = rig_random(&rig, 1, heads, 13), y = rig_tensor(&rig, DTYPE_F32, rows, width);
    double *want = calloc((size_t)(rows * width), sizeof(*want)), *state = NULL;

    ck_assert_rc_ok(rig.ops->state_scan(rig.stream, &y, &x, &dt, &a_log, &dt_bias, &d, spec));
    for (int64_t i = 0; i < sequences * width; i++) { /* a column of a sequence */
        int64_t col = i % width, head = col / spec->head_dim, group = head / (heads / spec->groups);
        state = calloc((size_t)n, sizeof(*state));
        for (int64_t t = i / width * spec->length; t < (i / width + 1) * spec->length; t++) {
            double step = softplus(at(&dt, t * heads + head) + at(&dt_bias, head));
            step = fmin(fmax(step, (double)spec->dt_min), (double)spec->dt_max);
            want[t * width + col] = at(&d, head) * at(&x, t * row + col);
            for (int64_t s = 0; s < n; s++) {
                state[s] = exp(-exp(at(&a_log, head)) * step) * state[s] +
                           step * at(&x, t * row + width + group * n + s) * at(&x, t * row + col);
                want[t * width + col] += state[s] * at(&x, t * row + width + (spec->groups + group) * n + s);
            }
        }
        free(state);
    }
    ck_assert_double_le(relative(&y, want), 1e-6);
    free(want);
    struct tensor *all[] = {&x, &dt, &a_log, &dt_bias, &d, &y};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&rig.gpu, all[i]);
    }
    rig_close(&rig);
}

START_TEST(state_scan_is_right)
{
    check_scan(
        2, &(struct gpu_scan){.length = 130, .heads = 6, .groups = 3, .head_dim = 20, .state = 16, .dt_max = INFINITY});
    check_scan(1,
               &(struct gpu_scan){
                   .length = 70, .heads = 2, .groups = 1, .head_dim = 7, .state = 33, .dt_min = 0.5f, .dt_max = 0.9f});
}
END_TEST

static void check_gated_norm(int64_t size, int64_t weights, bool gate_first)
{
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor x = rig_random(&rig, 33, 96, 14), gate = rig_random(&rig, 33, 96, 15);
    struct tensor w = rig_random(&rig, 1, weights, 16), y = rig_tensor(&rig, DTYPE_F32, 33, 96);

    ck_assert_rc_ok(rig.ops->gated_norm(rig.stream, &y, &x, &gate, &w, size, 1e-5f, gate_first));
    for (int64_t r = 0; r < 33 * 96 / size; r++) {
        double mean = 0;
        for (int64_t i = r * size; i < (r + 1) * size; i++) {
            double value = at(&x, i) * (gate_first ? silu(at(&gate, i)) : 1);
            mean += value * value / (double)size;
        }
        for (int64_t i = r * size; i < (r + 1) * size; i++) {
            double want = at(&x, i) * silu(at(&gate, i)) / sqrt(mean + 1e-5) * at(&w, i % weights);
            ck_assert_near(at(&y, i), want, 1e-6 * (1 + fabs(want)));
        }
    }
    ck_assert_rc_ok(rig.ops->gated_norm(rig.stream, &x, &x, &gate, &w, size, 1e-5f, gate_first)); /* in place */
    ck_assert_int_eq(memcmp(x.data, y.data, tensor_bytes(&x)), 0);
    struct tensor *all[] = {&x, &gate, &w, &y};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&rig.gpu, all[i]);
    }
    rig_close(&rig);
}

START_TEST(gated_norm_is_right)
{
    check_gated_norm(16, 16, false);
    check_gated_norm(96, 96, false);
    check_gated_norm(32, 96, true);
    check_gated_norm(32, 96, false);
}
END_TEST

START_TEST(shapes_are_checked)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor x = rig_random(&rig, 6, 8, 1), y = rig_tensor(&rig, DTYPE_F32, 6, 8);
    struct tensor w = rig_random(&rig, 8, 4, 2), vector = rig_random(&rig, 1, 2, 3), step = rig_random(&rig, 6, 2, 4);
    struct gpu_delta delta = {.length = 3, .key_heads = 1, .value_heads = 2, .key_dim = 2, .value_dim = 2};
    struct gpu_scan scan = {.length = 3, .heads = 2, .groups = 1, .head_dim = 2, .state = 2, .dt_max = 1};
    struct tensor out = rig_tensor(&rig, DTYPE_F32, 6, 4);

    ck_assert_int_eq(rig.ops->causal_conv(rig.stream, &y, &x, &w, NULL, 4, false), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->causal_conv(rig.stream, &x, &x, &w, NULL, 3, false), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->causal_conv(rig.stream, &y, &x, &x, NULL, 3, false), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->gated_norm(rig.stream, &y, &x, &x, &w, 4, 1e-5f, false), ERR_INTERNAL);
    ck_assert_rc_ok(rig.ops->delta_rule(rig.stream, &out, &x, &step, &step, &vector, &vector, &delta));
    ck_assert_rc_ok(rig.ops->state_scan(rig.stream, &out, &x, &step, &vector, &vector, &vector, &scan));
    delta.key_dim = scan.state = GPU_STATE_MAX + 1;
    ck_assert_int_eq(rig.ops->delta_rule(rig.stream, &out, &x, &step, &step, &vector, &vector, &delta), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->state_scan(rig.stream, &out, &x, &step, &vector, &vector, &vector, &scan), ERR_INTERNAL);
    delta.key_dim = scan.state = 2;
    delta.length = scan.length = 4;
    ck_assert_int_eq(rig.ops->delta_rule(rig.stream, &out, &x, &step, &step, &vector, &vector, &delta), ERR_INTERNAL);
    ck_assert_int_eq(rig.ops->state_scan(rig.stream, &out, &x, &step, &vector, &vector, &vector, &scan), ERR_INTERNAL);
    struct tensor *all[] = {&x, &y, &w, &vector, &step, &out};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&rig.gpu, all[i]);
    }
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/recurrent", convolution_is_causal_and_stays_in_its_sequence, delta_rule_is_right, state_scan_is_right,
          gated_norm_is_right, shapes_are_checked)
