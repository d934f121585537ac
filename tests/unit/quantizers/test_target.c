/* Targets from the float model: against normal equations in double, and what solving for them is worth. */

#include "quantizers/target.h"
#include "tests/unit/quantizers/reference.h"

#include <stdio.h>

#define N 24
#define K 96
#define TOKENS (16 * K)

/* Inputs x of quantized linears, and x_f of the float model's: x and a share of its neighbours plus noise. */
struct paths {
    struct rig rig;
    struct tensor w, x, x_f, lacks, missing; /* lacks: x_f - x; missing: lacks w^T */
};

/* dead: column 5 of x is zero, though not of x_f. */
static void paths_open(struct paths *p, int threads, int64_t n, int64_t k, bool dead)
{
    uint64_t seed = 77;
    int64_t tokens = 16 * k;

    memset(p, 0, sizeof(*p));
    rig_open(&p->rig, threads);
    p->w = rig_random(&p->rig, n, k, 71);
    p->x = rig_correlated(&p->rig, tokens, k, 72);
    p->x_f = rig_tensor(&p->rig, DTYPE_F32, tokens, k);
    p->lacks = rig_tensor(&p->rig, DTYPE_F32, tokens, k);
    p->missing = rig_tensor(&p->rig, DTYPE_F32, tokens, n);
    for (int64_t t = 0; t < tokens; t++) {
        float *x = floats(&p->x) + t * k, *x_f = floats(&p->x_f) + t * k, *lacks = floats(&p->lacks) + t * k;
        for (int64_t j = 0; j < k; j++) {
            x[j] = dead && j == 5 ? 0.0f : x[j];
        }
        for (int64_t j = 0; j < k; j++) {
            x_f[j] = x[j] + 0.2f * x[(j + 1) % k] - 0.1f * x[(j + k / 2) % k] + 0.05f * random_normal(&seed);
            lacks[j] = x_f[j] - x[j];
        }
    }
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t i = 0; i < n; i++) {
            double sum = 0;
            for (int64_t j = 0; j < k; j++) {
                sum += (double)floats(&p->lacks)[t * k + j] * (double)floats(&p->w)[i * k + j];
            }
            floats(&p->missing)[t * n + i] = (float)sum;
        }
    }
}

static void paths_close(struct paths *p)
{
    struct tensor *all[] = {&p->w, &p->x, &p->x_f, &p->lacks, &p->missing};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&p->rig.gpu, all[i]);
    }
    rig_close(&p->rig);
}

enum form { PLAIN, INPUTS, OUTPUTS }; /* no targets; of what inputs lack; of what outputs lack */

static struct layer_stats stats_in(struct paths *p, enum form form)
{
    struct layer_stats stats;

    ck_assert_rc_ok(stats_init(&stats, STATS_HESSIAN, p->x.shape[1], &p->rig.gpu));
    if (form != PLAIN) {
        ck_assert_rc_ok(stats_init_target(&stats, form == OUTPUTS ? p->w.shape[0] : 0, &p->rig.gpu));
    }
    ck_assert_rc_ok(stats_add(&stats, &p->rig.gpu, p->rig.stream, &p->x));
    if (form != PLAIN) {
        ck_assert_rc_ok(
            stats_add_target(&stats, &p->rig.gpu, p->rig.stream, &p->x, form == OUTPUTS ? &p->missing : &p->lacks));
    }
    ck_assert_rc_ok(stats_finish(&stats, &p->rig.gpu, p->rig.stream));
    return stats;
}

/* The target that gptq would aim at, on the host; NULL: none. */
static float *target_of(struct paths *p, const struct layer_stats *stats, double damp, const int32_t *order,
                        struct linear_job *job)
{
    const struct gpu_factor spec = {.damp_percent = damp, .order = order};
    struct solve_context context = context_of(&p->rig, DTYPE_F16);
    int64_t k = p->x.shape[1];
    struct tensor u = rig_tensor(&p->rig, DTYPE_F32, k, k), target = {0};
    float *out = NULL;

    *job = job_of(&p->w, NULL);
    ck_assert_rc_ok(p->rig.ops->factor(p->rig.stream, &u, &stats->hessian, &spec));
    ck_assert_rc_ok(target_new(&context, stats, &u, order, job, &target));
    if (target.data != NULL) {
        out = malloc(tensor_bytes(&target));
        ck_assert_ptr_nonnull(out);
        memcpy(out, target.data, tensor_bytes(&target));
    }
    gpu_tensor_free(&p->rig.gpu, &target);
    gpu_tensor_free(&p->rig.gpu, &u);
    return out;
}

/* How much of a correction is taken. */
static double share_of(const struct paths *p)
{
    return 1 - 2 * (double)p->w.shape[1] / (double)p->x.shape[0];
}

/* T = W + share W (X_f - X)^T X (X^T X + damp)^-1 by normal equations in double. */
static double *reference_target(const struct paths *p, const struct layer_stats *stats, double damp)
{
    struct reference r;
    int64_t n = p->w.shape[0], k = p->w.shape[1], tokens = p->x.shape[0];
    int32_t *order = calloc((size_t)k, sizeof(*order));
    double *sums = calloc((size_t)k, sizeof(double)), *target = calloc((size_t)(n * k), sizeof(double));

    ck_assert(order != NULL && sums != NULL && target != NULL);
    for (int32_t i = 0; i < k; i++) {
        order[i] = i;
    }
    reference_factor(&r, &stats->hessian, order, damp); /* r.inverse is a factor of the inverse: L L^T */
    for (int64_t i = 0; i < n; i++) {
        memset(sums, 0, (size_t)k * sizeof(double));
        for (int64_t t = 0; t < tokens; t++) {
            double lack = 0;
            for (int64_t j = 0; j < k; j++) {
                lack += (double)floats(&p->lacks)[t * k + j] * (double)floats(&p->w)[i * k + j];
            }
            for (int64_t j = 0; j < k; j++) {
                sums[j] += 2.0 / (double)tokens * lack * (double)floats(&p->x)[t * k + j];
            }
        }
        for (int64_t j = 0; j < k; j++) {
            double sum = (double)floats(&p->w)[i * k + j];
            for (int64_t l = 0; l < k; l++) {
                double inverse = 0;
                for (int64_t m = 0; m < k; m++) {
                    inverse += r.u[m * k + l] * r.u[m * k + j];
                }
                sum += share_of(p) * sums[l] * inverse;
            }
            target[i * k + j] = sum;
        }
    }
    reference_free(&r);
    free(order);
    free(sums);
    return target;
}

/* sum (x_f w^T - x v^T)^2 in double. */
static double missed(const struct paths *p, const float *v)
{
    int64_t n = p->w.shape[0], k = p->w.shape[1];
    double sum = 0;

    for (int64_t t = 0; t < p->x.shape[0]; t++) {
        for (int64_t i = 0; i < n; i++) {
            double off = 0;
            for (int64_t j = 0; j < k; j++) {
                off += (double)floats(&p->x_f)[t * k + j] * (double)floats(&p->w)[i * k + j] -
                       (double)floats(&p->x)[t * k + j] * (double)v[i * k + j];
            }
            sum += off * off;
        }
    }
    return sum;
}

/* Both forms of the moments, with an order and without, come to the same weight; inputs that never come have none to
 * make up for. */
START_TEST(target_is_the_nearest_weight)
{
    static const double damp = 0.01;
    struct paths p;
    struct linear_job job;
    int32_t order[K];
    paths_open(&p, 2, N, K, true);
    for (int i = 0; i < K; i++) {
        order[i] = (int32_t)(i * 7 % K);
    }
    struct layer_stats inputs = stats_in(&p, INPUTS), outputs = stats_in(&p, OUTPUTS), plain = stats_in(&p, PLAIN);
    double *want = reference_target(&p, &inputs, damp), size = 0;
    for (int64_t i = 0; i < N * K; i++) {
        size = fmax(size, fabs(want[i]));
    }
    for (int pass = 0; pass < 2; pass++) {
        const int32_t *by = pass == 0 ? NULL : order;
        float *a = target_of(&p, &inputs, damp, by, &job), *b = target_of(&p, &outputs, damp, by, &job);
        ck_assert(a != NULL && b != NULL);
        ck_assert_str_eq(job.note, "");
        for (int64_t i = 0; i < N * K; i++) {
            ck_assert_near(a[i], want[i], 1e-4 * size);
            ck_assert_near(b[i], want[i], 1e-4 * size);
            if (i % K == 5) {
                ck_assert_float_eq(a[i], floats(&p.w)[i]);
                ck_assert_float_eq(b[i], floats(&p.w)[i]);
            }
        }
        double rest = 1 - share_of(&p);
        ck_assert_double_lt(missed(&p, a), (0.05 + rest * rest) * missed(&p, floats(&p.w)));
        free(a);
        free(b);
    }
    ck_assert_ptr_null(target_of(&p, &plain, damp, NULL, &job));
    ck_assert_str_eq(job.note, "");
    free(want);
    stats_free(&p.rig, &inputs);
    stats_free(&p.rig, &outputs);
    stats_free(&p.rig, &plain);
    paths_close(&p);
}
END_TEST

static struct linear_job solved(struct paths *p, const char *text, enum form form)
{
    struct layer_stats stats = stats_in(p, form);
    struct linear_job job = solve_one(&p->rig, "gptq", text, DTYPE_F16, &stats, &p->w);
    stats_free(&p->rig, &stats);
    return job;
}

static double missed_by(const struct paths *p, const struct linear_job *job)
{
    float *wq = dequantized(&job->result);
    double sum = missed(p, wq);
    free(wq);
    return sum;
}

/* With targets, codes come far nearer to what the float model gives; and the job's own loss is that from the target. */
START_TEST(targets_pay)
{
    static const char *const texts[] = {
        "{\"bits\":4,\"group_size\":32,\"float_targets\":true}",
        "{\"bits\":4,\"group_size\":-1,\"sym\":false,\"act_order\":false,\"float_targets\":true}",
        "{\"bits\":3,\"group_size\":32,\"refine_rounds\":2,\"float_targets\":true}",
    };
    struct paths p;
    paths_open(&p, 2, N, K, false);

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct linear_job plain = solved(&p, texts[i], PLAIN), job;
        double before = missed_by(&p, &plain);
        for (int form = INPUTS; form <= OUTPUTS; form++) {
            struct linear_job aimed = solved(&p, texts[i], (enum form)form);
            double after = missed_by(&p, &aimed);
            ck_assert_str_eq(aimed.fallback, "");
            ck_assert_str_eq(aimed.note, "");
            ck_assert_ptr_eq(aimed.weight, &p.w); /* the caller's again */
            ck_assert_msg(after < 0.3 * before, "%s: %g, and %g without targets", texts[i], after, before);
            struct layer_stats stats = stats_in(&p, (enum form)form);
            float *target = target_of(&p, &stats, 0.01, NULL, &job);
            struct tensor at = tensor_2d(target, DTYPE_F32, N, K);
            double lost = loss_of(&aimed.result, &at, &stats.hessian, i == 2 ? 0 : 0.01);
            ck_assert_near(aimed.loss, lost, 0.01 * lost);
            lost = loss_of(&aimed.result, &at, &stats.hessian, 0);
            ck_assert(aimed.aimed && !plain.aimed);
            ck_assert_near(aimed.aimed_error, lost, 1e-3 * lost);
            free(target);
            stats_free(&p.rig, &stats);
            qtensor_deinit(&aimed.result);
        }
        qtensor_deinit(&plain.result);
    }
    paths_close(&p);
}
END_TEST

/* Moments that overflowed: the linear is solved for its own weight, and its row says so. */
START_TEST(moments_that_are_not_finite)
{
    static const float bad[] = {NAN, INFINITY, 3e38f}; /* the last one overflows on its way */
    struct paths p;
    paths_open(&p, 2, N, K, false);
    struct linear_job plain = solved(&p, "{\"bits\":3,\"group_size\":32,\"float_targets\":true}", PLAIN);

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        for (int form = INPUTS; form <= OUTPUTS; form++) {
            struct layer_stats stats = stats_in(&p, (enum form)form);
            for (int64_t j = 0; j < K; j++) {
                floats(&stats.target)[3 * K + j] = bad[i];
            }
            struct linear_job job = solve_one(&p.rig, "gptq", "{\"bits\":3,\"group_size\":32,\"float_targets\":true}",
                                              DTYPE_F16, &stats, &p.w);
            ck_assert_same_codes(&job.result, &plain.result);
            ck_assert_str_eq(job.note, "target of the float model is not finite");
            ck_assert_str_eq(job.fallback, "");
            qtensor_deinit(&job.result);
            stats_free(&p.rig, &stats);
        }
    }
    qtensor_deinit(&plain.result);
    paths_close(&p);
}
END_TEST

/* (target - wq) H (target - wq)^T of one row with the grid of q and some codes. */
static double lost_with(const struct qtensor *q, const uint8_t *codes, const float *target, const struct tensor *h)
{
    int64_t k = q->cols;
    double d[3], sum = 0;

    for (int64_t j = 0; j < k; j++) {
        d[j] = (double)target[j] - (double)q->scales[0] * ((double)codes[j] - (double)q->zeros[0]);
    }
    for (int64_t i = 0; i < k; i++) {
        for (int64_t j = 0; j < k; j++) {
            sum += d[i] * d[j] * (double)floats(h)[i * k + j];
        }
    }
    return sum;
}

/* All codes of a row: nearly always none lose less on the same scale, and seldom much less (without refinement, 1.7
 * times the minimum is lost). */
START_TEST(tiny_rows_by_brute_force)
{
    enum { ROWS = 60 };
    int64_t nearest = 0;
    double sum = 0, min_sum = 0;

    for (int64_t k = 2; k <= 3; k++) {
        struct paths p;
        struct linear_job ignored;
        paths_open(&p, 1, ROWS, k, false);
        struct layer_stats stats = stats_in(&p, INPUTS);
        float *target = target_of(&p, &stats, 0.01, NULL, &ignored);
        struct linear_job job =
            solve_one(&p.rig, "gptq", "{\"bits\":2,\"group_size\":-1,\"refine_rounds\":4,\"float_targets\":true}",
                      DTYPE_F32, &stats, &p.w);
        ck_assert_ptr_nonnull(target);
        for (int64_t row = 0; row < ROWS; row++) {
            struct qtensor q = job.result;
            q.scales += row;
            q.zeros += row;
            double min_loss = INFINITY, lost = lost_with(&q, q.codes + row * k, target + row * k, &stats.hessian);
            for (int all = 0; all < 1 << (2 * k); all++) {
                const uint8_t codes[3] = {(uint8_t)(all & 3), (uint8_t)(all >> 2 & 3), (uint8_t)(all >> 4 & 3)};
                min_loss = fmin(min_loss, lost_with(&q, codes, target + row * k, &stats.hessian));
            }
            ck_assert_double_ge(lost, min_loss * (1 - 1e-9));
            nearest += lost <= min_loss * (1 + 1e-6) + 1e-12;
            sum += lost;
            min_sum += min_loss;
        }
        free(target);
        stats_free(&p.rig, &stats);
        qtensor_deinit(&job.result);
        paths_close(&p);
    }
    ck_assert_msg(nearest >= 2 * ROWS * 19 / 20, "%d of %d rows have the best codes", (int)nearest, 2 * ROWS);
    ck_assert_msg(sum <= 1.1 * min_sum, "%g is lost, and %g could be", sum, min_sum);
}
END_TEST

START_TEST(threads_give_the_same_bits)
{
    for (int form = INPUTS; form <= OUTPUTS; form++) {
        struct linear_job jobs[2];
        for (int i = 0; i < 2; i++) {
            struct paths p;
            paths_open(&p, 1 + i, 70, 2 * K, false);
            jobs[i] = solved(&p, "{\"bits\":3,\"group_size\":64,\"refine_rounds\":2}", (enum form)form);
            paths_close(&p);
        }
        ck_assert_same_codes(&jobs[0].result, &jobs[1].result);
        ck_assert_double_eq(jobs[0].loss, jobs[1].loss);
        qtensor_deinit(&jobs[0].result);
        qtensor_deinit(&jobs[1].result);
    }
}
END_TEST

UNIT_MAIN("quantizers/target", target_is_the_nearest_weight, targets_pay, moments_that_are_not_finite,
          tiny_rows_by_brute_force, threads_give_the_same_bits)
