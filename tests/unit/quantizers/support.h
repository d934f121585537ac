#pragma once
/* What the tests of methods share: parameters from JSON text, one linear solved, its losses in double. */

#include "quantizers/quantizer.h"
#include "tests/unit/gpu/support.h"

/* Members of text, and those that a preset sets and text does not. New reference. */
static inline json_t *params_members(const struct quantizer *quantizer, const char *text, const void *params)
{
    json_t *object = json_loads(text, 0, NULL), *preset = NULL;
    ck_assert_ptr_nonnull(object);
    if (params_find(quantizer->params, "quality") != NULL && json_object_get(object, "quality") == NULL) {
        json_object_set_new(object, "quality", json_string("fast"));
    }
    if (params != NULL && quantizer->preset != NULL && quantizer->preset(params) != NULL) {
        preset = json_loads(quantizer->preset(params), 0, NULL);
        json_object_update_missing(object, preset);
        json_decref(preset);
    }
    return object;
}

/* Parameters of a method, read like a request's. Without a quality it is "fast": what tests hold to references is the
 * method by itself. Free with params_free. */
static inline void *params_new(const struct quantizer *quantizer, const char *text)
{
    void *params = calloc(1, quantizer->params_size);
    ck_assert_ptr_nonnull(params);
    for (int pass = 0; pass < 2; pass++) { /* a preset depends on the parameters without it */
        struct validation_errors errors = {0};
        json_t *object = params_members(quantizer, text, pass > 0 ? params : NULL);
        params_release(quantizer->params, params);
        memset(params, 0, quantizer->params_size);
        int rc = params_parse(quantizer->params, object, "", params, &errors);
        ck_assert_msg(rc == 0, "%s: %s %s", text, errors.items[0].param, errors.items[0].detail);
        json_decref(object);
    }
    return params;
}

static inline void params_free(const struct quantizer *quantizer, void *params)
{
    params_release(quantizer->params, params);
    free(params);
}

static inline struct solve_context context_of(struct rig *rig, enum dtype scale_dtype)
{
    return (struct solve_context){.gpu = &rig->gpu, .stream = rig->stream, .scale_dtype = scale_dtype};
}

static inline struct linear_job job_of(const struct tensor *weight, const void *params)
{
    return (struct linear_job){.name = "model.layers.0.mlp.up_proj", .weight = weight, .params = params, .loss = NAN};
}

/* Statistics with the Hessian of x. */
static inline struct layer_stats stats_of(struct rig *rig, const struct tensor *x)
{
    struct layer_stats stats;
    ck_assert_rc_ok(stats_init(&stats, STATS_HESSIAN | STATS_RANGE | STATS_SAMPLE, x->shape[1], &rig->gpu));
    ck_assert_rc_ok(stats_add(&stats, &rig->gpu, rig->stream, x));
    ck_assert_rc_ok(stats_finish(&stats, &rig->gpu, rig->stream));
    return stats;
}

/* Statistics with a Hessian given by hand, or zero. */
static inline struct layer_stats stats_by_hand(struct rig *rig, int64_t n, const float *h)
{
    struct layer_stats stats;
    ck_assert_rc_ok(stats_init(&stats, STATS_HESSIAN, n, &rig->gpu));
    stats.tokens = 1;
    if (h != NULL) {
        memcpy(stats.hessian.data, h, tensor_bytes(&stats.hessian));
    }
    return stats;
}

static inline void stats_free(struct rig *rig, struct layer_stats *stats)
{
    stats_deinit(stats, &rig->gpu);
}

/* Weights [N, K] and correlated inputs of one linear. */
struct problem {
    struct rig rig;
    struct tensor w, x;
    struct layer_stats stats;
};

static inline void problem_open(struct problem *p, int64_t rows, int64_t cols)
{
    memset(p, 0, sizeof(*p));
    rig_open(&p->rig, 2);
    p->w = rig_random(&p->rig, rows, cols, 31);
    p->x = rig_correlated(&p->rig, 4 * cols, cols, 32);
    p->stats = stats_of(&p->rig, &p->x);
}

static inline void problem_close(struct problem *p)
{
    stats_free(&p->rig, &p->stats);
    gpu_tensor_free(&p->rig.gpu, &p->w);
    gpu_tensor_free(&p->rig.gpu, &p->x);
    rig_close(&p->rig);
}

static inline struct linear_job solve_one(struct rig *rig, const char *method, const char *text, enum dtype scale_dtype,
                                          const struct layer_stats *stats, const struct tensor *weight)
{
    const struct quantizer *quantizer = quantizer_find(method);
    struct solve_context context = context_of(rig, scale_dtype);
    void *params = params_new(quantizer, text);
    struct linear_job job = job_of(weight, params);
    ck_assert_rc_ok(quantizer->solve(&context, stats, &job, 1));
    params_free(quantizer, params);
    job.params = NULL;
    return job;
}

static inline float *dequantized(const struct qtensor *q)
{
    float *out = calloc((size_t)(q->rows * q->cols), sizeof(float));
    ck_assert_ptr_nonnull(out);
    qtensor_dequantize(q, out);
    return out;
}

/* tr((W-Q) (H + damp mean(diag H) I) (W-Q)^T) in double. */
static inline double loss_of(const struct qtensor *q, const struct tensor *weight, const struct tensor *h, double damp)
{
    int64_t n = q->cols;
    float *wq = dequantized(q);
    double *d = calloc((size_t)n, sizeof(double)), sum = 0, mean = 0;

    ck_assert_ptr_nonnull(d);
    for (int64_t j = 0; j < n; j++) {
        mean += (double)floats(h)[j * (n + 1)] / (double)n;
    }
    for (int64_t i = 0; i < q->rows; i++) {
        for (int64_t j = 0; j < n; j++) {
            d[j] = (double)floats(weight)[i * n + j] - (double)wq[i * n + j];
        }
        for (int64_t j = 0; j < n; j++) {
            double dot = damp * mean * d[j];
            for (int64_t k = 0; k < n; k++) {
                dot += (double)floats(h)[j * n + k] * d[k];
            }
            sum += dot * d[j];
        }
    }
    free(d);
    free(wq);
    return sum;
}

static inline void ck_assert_same_codes(const struct qtensor *a, const struct qtensor *b)
{
    ck_assert_int_eq(a->rows * a->cols, b->rows * b->cols);
    ck_assert_int_eq(memcmp(a->codes, b->codes, (size_t)(a->rows * a->cols)), 0);
    ck_assert_int_eq(memcmp(a->scales, b->scales, (size_t)(a->rows * a->groups) * sizeof(float)), 0);
    ck_assert_int_eq(memcmp(a->zeros, b->zeros, (size_t)(a->rows * a->groups)), 0);
}

static inline int64_t codes_differing(const struct qtensor *a, const struct qtensor *b)
{
    int64_t differ = 0;
    for (int64_t i = 0; i < a->rows * a->cols; i++) {
        differ += a->codes[i] != b->codes[i];
    }
    return differ;
}
