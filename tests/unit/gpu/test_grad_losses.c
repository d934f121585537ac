/* Losses and what experts need, against central differences; steps of optimizers against their formulas in double. */

#include "tests/unit/gpu/grad.h"

/* --- losses: inputs y, target; the loss that is returned must be the formula's, and the same without a gradient */

#define FACTOR 0.37

static int loss_agrees(const struct grad_job *job, double got, double alone)
{
    double *x[2], want;

    for (int i = 0; i < 2; i++) {
        int64_t n = tensor_count(&job->in[i]);
        x[i] = malloc((size_t)(n + 1) * sizeof(double));
        for (int64_t j = 0; j < n; j++) {
            x[i][j] = (double)floats(&job->in[i])[j];
        }
    }
    want = job->loss(job, x) / FACTOR;
    ck_assert_near(got, want, 2e-7 * fabs(want) + 1e-6);
    ck_assert(got == alone);
    free(x[0]);
    free(x[1]);
    return 0;
}

static int run_mse(struct rig *rig, const struct grad_job *job)
{
    double loss = -1, alone = -1;

    TRY(rig->ops->mse_grad(rig->stream, &job->out[0], &job->in[0], &job->in[1], FACTOR, &loss));
    TRY(rig->ops->mse_grad(rig->stream, NULL, &job->in[0], &job->in[1], FACTOR, &alone));
    return loss_agrees(job, loss, alone);
}

static double loss_mse(const struct grad_job *job, double *const *x)
{
    double loss = 0;

    for (int64_t i = 0; i < job->inputs[0].rows * job->inputs[0].cols; i++) {
        loss += FACTOR * (x[0][i] - x[1][i]) * (x[0][i] - x[1][i]);
    }
    return loss;
}

START_TEST(of_squared_errors)
{
    static const int64_t shapes[][2] = {{1, 1}, {7, 33}, {300, 130}};

    for (int i = 0; i < 3; i++) {
        grad_verify((struct grad_job){.inputs = {{shapes[i][0], shapes[i][1], 2}, {shapes[i][0], shapes[i][1], 1}},
                                      .of = {0},
                                      .outputs = 1,
                                      .run = run_mse,
                                      .loss = loss_mse});
    }
}
END_TEST

static double log_sum(const double *x, int64_t n)
{
    double max = x[0], sum = 0;

    for (int64_t i = 0; i < n; i++) {
        max = fmax(max, x[i]);
    }
    for (int64_t i = 0; i < n; i++) {
        sum += exp(x[i] - max);
    }
    return max + log(sum);
}

static int run_kl(struct rig *rig, const struct grad_job *job)
{
    double loss = -1, alone = -1;

    TRY(rig->ops->kl_grad(rig->stream, &job->out[0], &job->in[0], &job->in[1], FACTOR, &loss));
    TRY(rig->ops->kl_grad(rig->stream, NULL, &job->in[0], &job->in[1], FACTOR, &alone));
    return loss_agrees(job, loss, alone);
}

static double loss_kl(const struct grad_job *job, double *const *x)
{
    int64_t n = job->inputs[0].cols;
    double loss = 0;

    for (int64_t t = 0; t < job->inputs[0].rows; t++) {
        double student = log_sum(x[0] + t * n, n), teacher = log_sum(x[1] + t * n, n);
        for (int64_t i = t * n; i < (t + 1) * n; i++) {
            double log_p = x[1][i] - teacher;
            loss += FACTOR * exp(log_p) * (log_p - (x[0][i] - student));
        }
    }
    return loss;
}

START_TEST(of_divergence)
{
    static const int64_t shapes[][2] = {{1, 2}, {9, 33}, {3, 1003}};

    for (int i = 0; i < 3; i++) {
        grad_verify((struct grad_job){.inputs = {{shapes[i][0], shapes[i][1], 4}, {shapes[i][0], shapes[i][1], 4}},
                                      .of = {0},
                                      .outputs = 1,
                                      .run = run_kl,
                                      .loss = loss_kl});
    }
}
END_TEST

/* Labels are a function of the row; every fourth row has none. */
static int32_t label_of(int64_t t, int64_t n)
{
    return t % 4 == 3 ? -1 : (int32_t)(t * 7 % n);
}

static int run_nll(struct rig *rig, const struct grad_job *job)
{
    double loss = -1, alone = -1;
    int32_t labels[64];

    for (int64_t t = 0; t < job->inputs[0].rows; t++) {
        labels[t] = label_of(t, job->inputs[0].cols);
    }
    TRY(rig->ops->nll_grad(rig->stream, &job->out[0], &job->in[0], labels, FACTOR, &loss));
    TRY(rig->ops->nll_grad(rig->stream, NULL, &job->in[0], labels, FACTOR, &alone));
    return loss_agrees(job, loss, alone);
}

static double loss_nll(const struct grad_job *job, double *const *x)
{
    int64_t n = job->inputs[0].cols;
    double loss = 0;

    for (int64_t t = 0; t < job->inputs[0].rows; t++) {
        int32_t label = label_of(t, n);
        loss += label >= 0 ? FACTOR * (log_sum(x[0] + t * n, n) - x[0][t * n + label]) : 0;
    }
    return loss;
}

START_TEST(of_log_likelihood)
{
    static const int64_t shapes[][2] = {{1, 2}, {30, 33}, {6, 1003}};

    for (int i = 0; i < 3; i++) { /* the second input is not used */
        grad_verify((struct grad_job){.inputs = {{shapes[i][0], shapes[i][1], 4}, {1, 1, 0}},
                                      .of = {0},
                                      .outputs = 1,
                                      .run = run_nll,
                                      .loss = loss_nll});
    }
}
END_TEST

/* --- experts: inputs weights or logits, and what else the formula has */

static const int32_t dot_places[] = {14, 3, 0, 8, 11, 5};
#define DOT_ROWS 6
#define DOT_CHOICES 3

/* inputs weights [T,k], x [n,c], dy [T,c]: y[place / k] += weights[place] x[i]. */
static int run_row_dots(struct rig *rig, const struct grad_job *job)
{
    struct tensor places = rig_tensor(rig, DTYPE_I32, 1, DOT_ROWS);
    struct tensor moved = rig_tensor(rig, DTYPE_F32, job->inputs[1].rows, job->inputs[1].cols);

    memcpy(places.data, dot_places, sizeof(dot_places));
    int rc = grad_out(job, 0) != NULL
                 ? rig->ops->row_dots(rig->stream, &job->out[0], &job->in[2], &job->in[1], &places, DOT_CHOICES)
                 : 0;
    if (rc == 0 && grad_out(job, 1) != NULL) { /* the rows' own gradient */
        rc = rig->ops->gather_rows(rig->stream, &moved, &job->in[2], &places, &job->in[0], DOT_CHOICES);
        rc = rc != 0 ? rc : rig->ops->add(rig->stream, &job->out[1], &moved);
    }
    gpu_tensor_free(&rig->gpu, &places);
    gpu_tensor_free(&rig->gpu, &moved);
    return rc;
}

static double loss_row_dots(const struct grad_job *job, double *const *x)
{
    int64_t cols = job->inputs[1].cols;
    double loss = 0;

    for (int64_t i = 0; i < DOT_ROWS * cols; i++) {
        int32_t place = dot_places[i / cols];
        loss += x[0][place] * x[1][i] * x[2][place / DOT_CHOICES * cols + i % cols];
    }
    return loss;
}

START_TEST(of_rows_of_experts)
{
    grad_verify((struct grad_job){.inputs = {{5, DOT_CHOICES, 1}, {DOT_ROWS, 37, 1}, {5, 37, 1}},
                                  .of = {0, 1},
                                  .outputs = 2,
                                  .run = run_row_dots,
                                  .loss = loss_row_dots});
}
END_TEST

#define ROUTED 11

/* inputs logits, dweights; ids of `route` go into the spec's tensor. */
struct routed {
    struct gpu_route spec;
    int32_t ids[ROUTED * 8];
};

static int run_route(struct rig *rig, const struct grad_job *job)
{
    struct routed *routed = (struct routed *)(uintptr_t)job->spec;
    int64_t k = routed->spec.top_k;
    struct tensor ids = rig_tensor(rig, DTYPE_I32, ROUTED, k), weights = rig_tensor(rig, DTYPE_F32, ROUTED, k);

    int rc = rig->ops->route(rig->stream, &ids, &weights, &job->in[0], NULL, &routed->spec);
    rc = rc != 0 ? rc : rig->ops->route_grad(rig->stream, &job->out[0], &job->in[1], &ids, &job->in[0], &routed->spec);
    memcpy(routed->ids, ids.data, (size_t)(ROUTED * k) * sizeof(int32_t));
    gpu_tensor_free(&rig->gpu, &ids);
    gpu_tensor_free(&rig->gpu, &weights);
    return rc;
}

static double loss_route(const struct grad_job *job, double *const *x)
{
    const struct routed *routed = job->spec;
    const struct gpu_route *spec = &routed->spec;
    int64_t experts = job->inputs[0].cols, k = spec->top_k;
    double loss = 0;

    for (int64_t t = 0; t < ROUTED; t++) {
        const double *logits = x[0] + t * experts;
        const int32_t *ids = routed->ids + t * k;
        double chosen = 0, all = 0;
        bool sigmoid = spec->scores == GPU_SCORES_SIGMOID;
        for (int64_t i = 0; i < k; i++) {
            chosen += sigmoid ? 1 / (1 + exp(-logits[ids[i]])) : exp(logits[ids[i]]);
        }
        for (int64_t e = 0; e < experts; e++) {
            all += exp(logits[e]);
        }
        for (int64_t i = 0; i < k; i++) {
            double score = sigmoid ? 1 / (1 + exp(-logits[ids[i]])) : exp(logits[ids[i]]);
            double sum = sigmoid ? (spec->normalize ? chosen + (double)spec->epsilon : 1)
                         : spec->scores == GPU_SCORES_ALL && !spec->normalize ? all
                                                                              : chosen;
            loss += x[1][t * k + i] * (double)spec->factor * score / sum;
        }
    }
    return loss;
}

START_TEST(of_routes)
{
    static const struct gpu_route specs[] = {
        {.top_k = 2, .scores = GPU_SCORES_ALL, .factor = 1},
        {.top_k = 3, .scores = GPU_SCORES_ALL, .normalize = true, .factor = 1},
        {.top_k = 4, .scores = GPU_SCORES_CHOSEN, .factor = 1.5f},
        {.top_k = 1, .scores = GPU_SCORES_SIGMOID, .factor = 1},
        {.top_k = 4, .scores = GPU_SCORES_SIGMOID, .normalize = true, .factor = 2.5f, .epsilon = 0.1f},
        {.top_k = 4, .scores = GPU_SCORES_ALL, .groups = 2, .group_top_k = 1, .factor = 1},
    };

    for (size_t i = 0; i < sizeof(specs) / sizeof(specs[0]); i++) {
        struct routed routed = {.spec = specs[i]};
        grad_verify((struct grad_job){.inputs = {{ROUTED, 8, 2}, {ROUTED, specs[i].top_k, 1}},
                                      .of = {0},
                                      .outputs = 1,
                                      .run = run_route,
                                      .loss = loss_route,
                                      .spec = &routed});
    }
}
END_TEST

START_TEST(loss_arguments_are_checked)
{
    struct rig rig;
    rig_open(&rig, 1);
    const struct gpu_ops *ops = rig.ops;
    struct tensor x = rig_random(&rig, 4, 6, 1), d = rig_tensor(&rig, DTYPE_F32, 4, 6),
                  d2 = rig_tensor(&rig, DTYPE_F32, 4, 2);
    struct tensor ids = rig_tensor(&rig, DTYPE_I32, 4, 2), places = rig_tensor(&rig, DTYPE_I32, 1, 4);
    const struct gpu_route spec = {.top_k = 2, .factor = 1}, wide = {.top_k = 7, .factor = 1};
    static const int32_t labels[] = {0, 6, 1, 1};
    double loss = 0;

    ck_assert_refused(ops->mse_grad(rig.stream, NULL, &x, &d2, 1, &loss), "mse_grad: target");
    ck_assert_refused(ops->mse_grad(rig.stream, &x, &x, &d, 1, &loss), "dy and y share memory");
    ck_assert_refused(ops->mse_grad(rig.stream, &d, &x, &x, NAN, &loss), "a factor of nan");
    ck_assert_refused(ops->kl_grad(rig.stream, &d, &x, &d2, 1, &loss), "kl_grad: teacher");
    ck_assert_refused(ops->nll_grad(rig.stream, &d, &x, labels, 1, &loss), "label 6 of 6 logits");
    ck_assert_refused(ops->route_grad(rig.stream, &d, &d2, &ids, &x, &wide), "the first 7 of 6 experts");
    ck_assert_refused(ops->route_grad(rig.stream, &x, &d2, &ids, &x, &spec), "share memory");
    ck_assert_refused(ops->row_dots(rig.stream, &d2, &x, &x, &places, 1), "row_dots: d");
    ck_assert_refused(ops->row_dots(rig.stream, &d2, &x, &x, &places, 0), "0 choices");
    gpu_tensor_free(&rig.gpu, &x);
    gpu_tensor_free(&rig.gpu, &d);
    gpu_tensor_free(&rig.gpu, &d2);
    gpu_tensor_free(&rig.gpu, &ids);
    gpu_tensor_free(&rig.gpu, &places);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("gpu/grad_losses", of_squared_errors, of_divergence, of_log_likelihood, of_rows_of_experts, of_routes,
          loss_arguments_are_checked)
