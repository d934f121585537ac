/* AQLM as a method, and its steps one by one: each lowers the loss, the loss is the layer's, and what is made of
 * codebooks is found again. */

#include "quantizers/codebooks.h"
#include "tests/unit/quantizers/support.h"

#include <stdio.h>

#define N 64
#define K 128

static const char small[] = "{\"num_codebooks\": 2, \"nbits_per_codebook\": 4, \"in_group_size\": 8}";

START_TEST(each_step_lowers_the_loss)
{
    struct problem p;
    problem_open(&p, N, K);
    const struct gpu_codebook spec = {.codebooks = 2, .bits = 5, .group_size = 8, .beam = 2};
    struct solve_context context = context_of(&p.rig, DTYPE_F16);
    struct linear_job job = job_of(&p.w, NULL);
    struct codebooks c;
    float *diagonal;
    double loss, before, gain;

    ck_assert_rc_ok(codebooks_diagonal(&context, &p.stats, &diagonal));
    ck_assert_rc_ok(codebooks_init(&context, &job, &spec, diagonal, &c));
    ck_assert_rc_ok(codebooks_start(&c, 20));
    ck_assert_rc_ok(codebooks_loss(&c, &p.stats.hessian, &loss));
    for (int epoch = 0; epoch < 5; epoch++) {
        before = loss;
        ck_assert_rc_ok(codebooks_fit_tables(&c, &p.stats.hessian, 10, &loss));
        ck_assert_double_le(loss, before);
        ck_assert(epoch > 0 || loss < 0.98 * before);
        before = loss;
        ck_assert_rc_ok(codebooks_fit_scales(&c, &p.stats.hessian, &loss));
        ck_assert_double_le(loss, before);
        before = loss;
        ck_assert_rc_ok(p.rig.ops->code_search(p.rig.stream, &c.entries, &c.d, &c.scale, &c.table, &p.stats.hessian,
                                               NULL, &spec, &gain));
        ck_assert_rc_ok(codebooks_residual(&c));
        ck_assert_rc_ok(codebooks_loss(&c, &p.stats.hessian, &loss));
        ck_assert_near(before - loss, gain, 1e-3 * before);
        ck_assert_double_le(loss, before * 1.000001);
    }
    free(diagonal);
    codebooks_deinit(&c);
    problem_close(&p);
}
END_TEST

/* o [N,N] of rows whose errors cost something together: the mean of the identity and of a few shared directions. */
static struct tensor coupling(struct rig *rig)
{
    struct tensor o;
    float *values = malloc(sizeof(float[N * N]));
    uint64_t seed = 5;
    float shared[4][N];

    for (int i = 0; i < 4 * N; i++) {
        shared[i / N][i % N] = (float)random_normal(&seed);
    }
    for (int64_t a = 0; a < N; a++) {
        for (int64_t b = 0; b < N; b++) {
            values[a * N + b] = a == b ? 0.15f : 0;
            for (int i = 0; i < 4; i++) {
                values[a * N + b] += 0.21f * shared[i][a] * shared[i][b];
            }
        }
    }
    ck_assert_rc_ok(gpu_tensor_from_host(&rig->gpu, rig->stream, DTYPE_F32, 2, (const int64_t[]){N, N}, values, &o));
    free(values);
    return o;
}

/* tr(O D H D^T) in double, from the host's copies. */
static double coupled_loss(struct rig *rig, const struct tensor *o, const struct tensor *d, const struct tensor *h)
{
    const struct gpu_ops *ops = rig->ops;
    float *all = malloc(sizeof(float[N * N + N * K + K * K])), *ho = all, *hd = all + N * N, *hh = hd + N * K;
    double *dh = calloc(N * K, sizeof(double)), sum = 0;

    ck_assert_rc_ok(ops->download(rig->stream, ho, o->data, tensor_bytes(o)));
    ck_assert_rc_ok(ops->download(rig->stream, hd, d->data, tensor_bytes(d)));
    ck_assert_rc_ok(ops->download(rig->stream, hh, h->data, tensor_bytes(h)));
    for (int n = 0; n < N; n++) {
        for (int i = 0; i < K; i++) {
            for (int j = 0; j < K; j++) {
                dh[n * K + j] += (double)hd[n * K + i] * (double)hh[i * K + j];
            }
        }
    }
    for (int a = 0; a < N; a++) {
        for (int b = 0; b < N; b++) {
            for (int j = 0; j < K; j++) {
                sum += (double)ho[a * N + b] * dh[b * K + j] * (double)hd[a * K + j];
            }
        }
    }
    free(all);
    free(dh);
    return sum;
}

/* Tables and codes under output moments: what is lowered is tr(O D H D^T), and by more than without them. */
START_TEST(each_step_lowers_the_coupled_loss)
{
    struct problem p;
    problem_open(&p, N, K);
    const struct gpu_codebook spec = {.codebooks = 2, .bits = 5, .group_size = 8, .beam = 2};
    struct solve_context context = context_of(&p.rig, DTYPE_F16);
    struct linear_job job = job_of(&p.w, NULL);
    struct tensor o = coupling(&p.rig), kept = coupling(&p.rig);
    struct codebooks c;
    float *diagonal;
    double loss, before, start, gain;

    ck_assert_rc_ok(codebooks_diagonal(&context, &p.stats, &diagonal));
    ck_assert_rc_ok(codebooks_init(&context, &job, &spec, diagonal, &c));
    ck_assert_rc_ok(codebooks_start(&c, 20));
    for (int epoch = 0; epoch < 8; epoch++) { /* without them */
        ck_assert_rc_ok(codebooks_loss(&c, &p.stats.hessian, &loss));
        ck_assert_rc_ok(codebooks_fit_tables(&c, &p.stats.hessian, 10, &loss));
        ck_assert_rc_ok(codebooks_search(&c, &p.stats.hessian, &gain));
        ck_assert_rc_ok(codebooks_residual(&c));
    }
    ck_assert_rc_ok(codebooks_couple(&c, &o));
    ck_assert_rc_ok(codebooks_loss(&c, &p.stats.hessian, &loss));
    ck_assert_near(loss, coupled_loss(&p.rig, &kept, &c.d, &p.stats.hessian), 1e-4 * loss);
    start = loss;
    for (int epoch = 0; epoch < 4; epoch++) {
        before = loss;
        ck_assert_rc_ok(codebooks_fit_tables(&c, &p.stats.hessian, 10, &loss));
        ck_assert_double_le(loss, before);
        before = loss;
        ck_assert_rc_ok(codebooks_search(&c, &p.stats.hessian, &gain));
        ck_assert_rc_ok(codebooks_loss(&c, &p.stats.hessian, &loss));
        ck_assert_double_ge(gain, 0);
        ck_assert_near(before - loss, gain, 1e-3 * before);
        ck_assert_near(loss, coupled_loss(&p.rig, &kept, &c.d, &p.stats.hessian), 1e-3 * loss);
    }
    ck_assert_double_lt(loss, 0.8 * start);
    gpu_tensor_free(&p.rig.gpu, &kept);
    free(diagonal);
    codebooks_deinit(&c);
    problem_close(&p);
}
END_TEST

static int refuse_linear(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                         const struct tensor *w, const struct tensor *bias)
{
    return err_raise(ERR_INTERNAL, "linear may round its operands");
}

/* A Hessian that is rounded to BF16 has negative eigenvalues: no step of a solve takes the product of the model. */
START_TEST(solves_take_the_product_in_f32)
{
    struct problem p;
    problem_open(&p, N, K);
    struct gpu_ops ops = *p.rig.ops;
    ops.linear = refuse_linear;
    p.rig.ops = p.rig.gpu.ops = &ops;
    struct linear_job job = solve_one(&p.rig, "aqlm", small, DTYPE_F16, &p.stats, &p.w);
    qtensor_deinit(&job.result);
    problem_close(&p);
}
END_TEST

/* The gradient vanishes at the tables' optimum: more steps find nothing. */
START_TEST(least_squares_arrives)
{
    struct problem p;
    problem_open(&p, N, K);
    const struct gpu_codebook spec = {.codebooks = 2, .bits = 3, .group_size = 4, .beam = 1};
    struct solve_context context = context_of(&p.rig, DTYPE_F32);
    struct linear_job job = job_of(&p.w, NULL);
    struct codebooks c;
    double loss, arrived;

    ck_assert_rc_ok(codebooks_init(&context, &job, &spec, NULL, &c));
    ck_assert_rc_ok(codebooks_start(&c, 20));
    ck_assert_rc_ok(codebooks_loss(&c, &p.stats.hessian, &loss));
    ck_assert_rc_ok(codebooks_fit_tables(&c, &p.stats.hessian, 200, &loss));
    arrived = loss;
    ck_assert_rc_ok(codebooks_fit_tables(&c, &p.stats.hessian, 200, &loss));
    ck_assert_double_ge(loss, arrived * 0.9999);
    codebooks_deinit(&c);
    problem_close(&p);
}
END_TEST

START_TEST(loss_is_the_layers)
{
    struct problem p;
    problem_open(&p, N, K);
    struct linear_job job = solve_one(&p.rig, "aqlm", small, DTYPE_F16, &p.stats, &p.w);
    double direct = loss_of(&job.result, &p.w, &p.stats.hessian, 0), first, last;
    int epochs;

    ck_assert_near(job.loss, direct, 1e-4 * direct);
    ck_assert_int_eq(sscanf(job.note, "loss %lf -> %lf in %d epochs", &first, &last, &epochs), 3);
    ck_assert(last < 0.8 * first && epochs >= 2);
    for (int64_t i = 0; i < 2 * 16 * 8; i++) {
        ck_assert(job.result.tables[i] == dtype_round(job.result.tables[i], DTYPE_F16));
    }
    for (int64_t n = 0; n < N; n++) {
        ck_assert(job.result.scales[n] == dtype_round(job.result.scales[n], DTYPE_F16));
    }
    qtensor_deinit(&job.result);
    problem_close(&p);
}
END_TEST

/* Through H it loses less of the output than the same codebooks without, and less than rounding at as many bits. */
START_TEST(hessian_pays)
{
    struct problem p;
    problem_open(&p, N, K);
    struct linear_job ours =
        solve_one(&p.rig, "aqlm", "{\"num_codebooks\": 2, \"nbits_per_codebook\": 8, \"in_group_size\": 8}", DTYPE_F16,
                  &p.stats, &p.w);
    struct linear_job blind = solve_one(&p.rig, "kmeans", "{\"bits\": 2, \"num_codebooks\": 2, \"in_group_size\": 8}",
                                        DTYPE_F16, &p.stats, &p.w);
    struct linear_job gptq = solve_one(&p.rig, "gptq", "{\"bits\": 2, \"group_size\": 64}", DTYPE_F16, &p.stats, &p.w);
    double loss = loss_of(&ours.result, &p.w, &p.stats.hessian, 0);
    ck_assert_double_lt(loss, loss_of(&blind.result, &p.w, &p.stats.hessian, 0));
    ck_assert_double_lt(loss, loss_of(&gptq.result, &p.w, &p.stats.hessian, 0));
    qtensor_deinit(&ours.result);
    qtensor_deinit(&blind.result);
    qtensor_deinit(&gptq.result);
    problem_close(&p);
}
END_TEST

/* Rows made of one codebook, scaled: found again to what half precision loses. */
START_TEST(known_codebooks_are_found)
{
    struct problem p;
    problem_open(&p, N, K);
    uint64_t state = 77;
    float vectors[16][8];
    double signal = 0, loss;

    for (int i = 0; i < 16 * 8; i++) {
        vectors[i / 8][i % 8] = random_normal(&state);
    }
    for (int64_t at = 0; at < N * K / 8; at++) {
        memcpy(floats(&p.w) + at * 8, vectors[random_bits(&state) % 16], sizeof(vectors[0]));
    }
    struct linear_job job = solve_one(
        &p.rig, "aqlm",
        "{\"num_codebooks\": 1, \"nbits_per_codebook\": 6, \"in_group_size\": 8, \"relative_mse_tolerance\": 0.0001}",
        DTYPE_F16, &p.stats, &p.w);
    ck_assert_rc_ok(p.rig.ops->output_error(p.rig.stream, &loss, &signal, &p.w, &p.w, &p.stats.hessian));
    ck_assert_double_lt(job.loss, 1e-5 * signal);
    qtensor_deinit(&job.result);
    problem_close(&p);
}
END_TEST

START_TEST(zero_rows_and_dead_columns)
{
    struct problem p;
    problem_open(&p, N, K);
    for (int64_t j = 0; j < K; j++) {
        floats(&p.w)[3 * K + j] = 0;
        for (int64_t i = 0; i < 16; i++) { /* inputs 8..23 never active */
            floats(&p.stats.hessian)[j * K + 8 + i] = floats(&p.stats.hessian)[(8 + i) * K + j] = 0;
        }
    }
    struct linear_job job = solve_one(&p.rig, "aqlm", small, DTYPE_F16, &p.stats, &p.w);
    float *wq = dequantized(&job.result);
    for (int64_t i = 0; i < N * K; i++) {
        ck_assert(isfinite(wq[i]) && (i / K != 3 || wq[i] == 0));
    }
    free(wq);
    qtensor_deinit(&job.result);
    memset(p.stats.hessian.data, 0, tensor_bytes(&p.stats.hessian)); /* nothing is ever active */
    job = solve_one(&p.rig, "aqlm", small, DTYPE_F16, &p.stats, &p.w);
    ck_assert(job.loss == 0);
    qtensor_deinit(&job.result);
    problem_close(&p);
}
END_TEST

START_TEST(what_it_refuses)
{
    struct problem p;
    problem_open(&p, N, K);
    const struct quantizer *aqlm = quantizer_find("aqlm");
    struct solve_context context = context_of(&p.rig, DTYPE_F16);
    void *params = params_new(aqlm, small);
    struct linear_job job = job_of(&p.w, params);
    struct qscheme scheme;

    ck_assert_int_eq(aqlm->solve(&context, NULL, &job, 1), ERR_INSUFFICIENT_CALIBRATION);
    ck_assert_int_eq(aqlm->scheme(params, 4, 20, &scheme), ERR_INCOMPATIBLE_OPTIONS);
    floats(&p.w)[5] = NAN;
    ck_assert_int_eq(aqlm->solve(&context, &p.stats, &job, 1), ERR_NON_FINITE_VALUE);
    floats(&p.w)[5] = 0;
    floats(&p.stats.hessian)[0] = INFINITY;
    ck_assert_int_eq(aqlm->solve(&context, &p.stats, &job, 1), ERR_NON_FINITE_VALUE);
    ck_assert_ptr_null(job.result.entries);
    params_free(aqlm, params);
    problem_close(&p);
}
END_TEST

UNIT_MAIN("quantizers_aqlm", each_step_lowers_the_loss, each_step_lowers_the_coupled_loss,
          solves_take_the_product_in_f32, least_squares_arrives, loss_is_the_layers, hessian_pays,
          known_codebooks_are_found, zero_rows_and_dead_columns, what_it_refuses)
