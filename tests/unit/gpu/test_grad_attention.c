/* The gradient of attention against central differences: groups, windows, chunks, caps, sinks, widths of values. */

#include "tests/unit/gpu/grad.h"

/* Inputs q, k, v, dy, and sinks where there are. */
static int run_attention(struct rig *rig, const struct grad_job *job)
{
    struct gpu_attention spec = *(const struct gpu_attention *)job->spec;
    bool sinks = job->inputs[4].rows > 0;

    spec.sinks = sinks ? &job->in[4] : NULL;
    return rig->ops->attention_grad(rig->stream, grad_out(job, 0), grad_out(job, 1), grad_out(job, 2),
                                    sinks ? grad_out(job, 3) : NULL, &job->in[3], &job->in[0], &job->in[1], &job->in[2],
                                    &spec);
}

static bool grad_sees(const struct gpu_attention *s, int64_t position, int64_t key)
{
    return key <= position && (s->window == 0 || key > position - s->window) &&
           (s->chunk == 0 || key / s->chunk == position / s->chunk);
}

/* dy o of one query of one head. */
static double query_loss(const struct gpu_attention *s, double *const *x, int64_t row, int64_t head)
{
    int64_t position = row % s->length, kv = head / (s->heads / s->kv_heads), width = gpu_value_dim(s);
    double total = x[4] != NULL ? exp(x[4][head]) : 0, loss = 0;

    for (int64_t t = 0; t <= position; t++) {
        int64_t at = (row - position + t) * s->kv_heads + kv;
        double score = 0, value = 0;
        if (!grad_sees(s, position, t)) {
            continue;
        }
        for (int64_t d = 0; d < s->head_dim; d++) {
            score += x[0][(row * s->heads + head) * s->head_dim + d] * x[1][at * s->head_dim + d] * (double)s->scale;
        }
        for (int64_t d = 0; d < width; d++) {
            value += x[3][(row * s->heads + head) * width + d] * x[2][at * width + d];
        }
        score = exp(s->cap > 0 ? (double)s->cap * tanh(score / (double)s->cap) : score);
        total += score;
        loss += score * value;
    }
    return loss / total;
}

static double loss_attention(const struct grad_job *job, double *const *x)
{
    const struct gpu_attention *spec = job->spec;
    double loss = 0;

    for (int64_t i = 0; i < spec->sequences * spec->length * spec->heads; i++) {
        loss += query_loss(spec, x, i / spec->heads, i % spec->heads);
    }
    return loss;
}

#define ATTENTION(b, s, h, kv, d, w, c, ...)  \
    ((struct gpu_attention){.sequences = (b), \
                            .length = (s),    \
                            .heads = (h),     \
                            .kv_heads = (kv), \
                            .head_dim = (d),  \
                            .window = (w),    \
                            .scale = (c),     \
                            __VA_ARGS__})

static void check_attention_grad(struct gpu_attention spec, bool sinks)
{
    int64_t rows = spec.sequences * spec.length, width = gpu_value_dim(&spec);

    grad_verify((struct grad_job){.inputs = {{rows, spec.heads * spec.head_dim, 1},
                                             {rows, spec.kv_heads * spec.head_dim, 1},
                                             {rows, spec.kv_heads * width, 1},
                                             {rows, spec.heads * width, 1},
                                             {sinks ? 1 : 0, spec.heads, 1}},
                                  .of = {0, 1, 2, 4},
                                  .outputs = sinks ? 4 : 3,
                                  .run = run_attention,
                                  .loss = loss_attention,
                                  .spec = &spec});
}

START_TEST(of_attention)
{
    check_attention_grad(ATTENTION(2, 7, 2, 2, 8, 0, 0.35f), false);
    check_attention_grad(ATTENTION(3, 70, 4, 2, 6, 0, 0.4f), false);
    check_attention_grad(ATTENTION(1, 130, 6, 1, 5, 0, 0.4f), false);
    check_attention_grad(ATTENTION(2, 130, 2, 1, 4, 33, 0.5f), false);
    check_attention_grad(ATTENTION(1, 65, 1, 1, 8, 1000, 0.35f), false);
}
END_TEST

START_TEST(of_attention_of_other_families)
{
    check_attention_grad(ATTENTION(2, 70, 4, 2, 6, 0, 0.4f, .value_dim = 4), false);
    check_attention_grad(ATTENTION(1, 70, 2, 2, 4, 0, 0.5f, .value_dim = 7), true);
    check_attention_grad(ATTENTION(2, 100, 2, 1, 4, 0, 0.5f, .chunk = 32), false);
    check_attention_grad(ATTENTION(1, 140, 2, 1, 4, 20, 0.5f, .chunk = 50), false);
    check_attention_grad(ATTENTION(1, 90, 2, 1, 4, 0, 0.9f, .cap = 1.5f), false);
    check_attention_grad(ATTENTION(1, 90, 2, 1, 4, 7, 0.9f, .cap = 0.3f), true);
    check_attention_grad(ATTENTION(2, 90, 4, 2, 4, 0, 0.5f), true);
}
END_TEST

/* A query that sees itself alone has weights that cannot move: only dv is not zero. */
START_TEST(of_one_token)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor q = rig_random(&rig, 3, 8, 1), d_out = rig_random(&rig, 3, 8, 2),
                  dq = rig_tensor(&rig, DTYPE_F32, 3, 8);
    struct tensor dk = rig_tensor(&rig, DTYPE_F32, 3, 8), dv = rig_tensor(&rig, DTYPE_F32, 3, 8);
    const struct gpu_attention spec = ATTENTION(3, 1, 1, 1, 8, 0, 1.0f);

    ck_assert_rc_ok(rig.ops->attention_grad(rig.stream, &dq, &dk, &dv, NULL, &d_out, &q, &q, &q, &spec));
    for (int i = 0; i < 24; i++) {
        ck_assert_near(floats(&dq)[i], 0, 1e-6);
        ck_assert_near(floats(&dk)[i], 0, 1e-6);
        ck_assert_float_eq(floats(&dv)[i], floats(&d_out)[i]);
    }
    gpu_tensor_free(&rig.gpu, &q);
    gpu_tensor_free(&rig.gpu, &d_out);
    gpu_tensor_free(&rig.gpu, &dq);
    gpu_tensor_free(&rig.gpu, &dk);
    gpu_tensor_free(&rig.gpu, &dv);
    rig_close(&rig);
}
END_TEST

/* No sequences, or empty ones: nothing happens. Scores far apart: nothing overflows. */
START_TEST(of_extreme_inputs)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor q = rig_random(&rig, 64, 8, 1), k = rig_random(&rig, 64, 8, 2),
                  d = rig_tensor(&rig, DTYPE_F32, 64, 8);
    struct tensor none = rig_tensor(&rig, DTYPE_F32, 0, 8), sinks = rig_tensor(&rig, DTYPE_F32, 1, 1);
    struct tensor dsinks = rig_tensor(&rig, DTYPE_F32, 1, 1);
    struct gpu_attention spec = ATTENTION(0, 8, 1, 1, 8, 0, 1.0f);
    int64_t index;

    ck_assert_rc_ok(rig.ops->attention_grad(rig.stream, &none, NULL, NULL, NULL, &none, &none, &none, &none, &spec));
    spec = ATTENTION(1, 0, 1, 1, 8, 0, 1.0f);
    ck_assert_rc_ok(rig.ops->attention_grad(rig.stream, &none, NULL, NULL, NULL, &none, &none, &none, &none, &spec));
    spec = ATTENTION(1, 64, 1, 1, 8, 0, 100.0f, .sinks = &sinks);
    for (int i = 0; i < 2; i++) {
        floats(&sinks)[0] = i == 0 ? -1e4f : 1e4f;
        ck_assert_rc_ok(rig.ops->attention_grad(rig.stream, &d, NULL, NULL, &dsinks, &k, &q, &k, &k, &spec));
        ck_assert_rc_ok(rig.ops->find_nonfinite(rig.stream, &index, &d));
        ck_assert_int_eq(index, -1);
        ck_assert_near(floats(&dsinks)[0], 0, 1e-6);
    }
    gpu_tensor_free(&rig.gpu, &q);
    gpu_tensor_free(&rig.gpu, &k);
    gpu_tensor_free(&rig.gpu, &d);
    gpu_tensor_free(&rig.gpu, &none);
    gpu_tensor_free(&rig.gpu, &sinks);
    gpu_tensor_free(&rig.gpu, &dsinks);
    rig_close(&rig);
}
END_TEST

START_TEST(attention_arguments_are_checked)
{
    struct rig rig;
    rig_open(&rig, 1);
    struct tensor q = rig_random(&rig, 8, 16, 1), d_out = rig_random(&rig, 8, 16, 2),
                  d = rig_tensor(&rig, DTYPE_F32, 8, 16);
    struct tensor d4 = rig_tensor(&rig, DTYPE_F32, 1, 4);
    const struct gpu_attention spec = ATTENTION(1, 8, 4, 4, 4, 0, 1.0f), odd = ATTENTION(1, 8, 4, 3, 4, 0, 1.0f);

    ck_assert_refused(rig.ops->attention_grad(rig.stream, &d, NULL, NULL, NULL, &d_out, &q, &q, &q, &odd),
                      "attention_grad");
    ck_assert_refused(rig.ops->attention_grad(rig.stream, &d, NULL, NULL, &d4, &d_out, &q, &q, &q, &spec),
                      "dsinks without sinks");
    ck_assert_refused(rig.ops->attention_grad(rig.stream, &d4, NULL, NULL, NULL, &d_out, &q, &q, &q, &spec), "dq");
    ck_assert_refused(rig.ops->attention_grad(rig.stream, &d, &d, NULL, NULL, &d_out, &q, &q, &q, &spec),
                      "dq and dk share memory");
    gpu_tensor_free(&rig.gpu, &q);
    gpu_tensor_free(&rig.gpu, &d_out);
    gpu_tensor_free(&rig.gpu, &d);
    gpu_tensor_free(&rig.gpu, &d4);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/grad_attention", of_attention, of_attention_of_other_families, of_one_token, of_extreme_inputs,
          attention_arguments_are_checked)
