/* SmoothQuant's search for alpha at one input group: of 0.30, 0.35 .. 0.90 and no smoothing at all, the one whose
 * relative output errors, with weights and inputs quantized as they will be, have the smallest sum over the group's
 * modules and about SEARCH_TOKENS tokens spread over the calibration set. */

#include "quantizers/smoothquant_search.h"

#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>

#define SEARCH_TOKENS 4096
#define SEARCH_FIRST 0.30
#define SEARCH_STEP 0.05
#define SEARCH_STEPS 13
#define SEARCH_CANDIDATES (SEARCH_STEPS + 1)
#define FACTOR_MIN 1e-5f

void smoothing_set_factors(struct smoothing *s, double alpha)
{
    for (int64_t j = 0; j < s->columns; j++) {
        double x = (double)s->inputs[j], w = (double)s->weights[j];
        float factor = x > 0 && w > 0 ? (float)(pow(x, alpha) / pow(w, 1 - alpha)) : 1.0f;
        s->factors[j] = !isfinite(factor) ? 1.0f : factor < FACTOR_MIN ? FACTOR_MIN : factor;
    }
}

/* Device memory of a search over one group. */
struct smoothing_trial {
    struct smoothing *s;
    struct tensor inverse, factor;  /* F32 [K] */
    struct tensor x;                /* F32 [T,K], smoothed and rounded */
    struct tensor *weights;         /* F32 [N,K] of each module, smoothed and rounded */
    struct tensor expected, actual; /* F32 [T * max N] */
    int64_t tokens;                 /* capacity of x */
    double errors[SEARCH_CANDIDATES];
};

static void smoothing_trial_deinit(struct smoothing_trial *t)
{
    const struct rewrite_context *c = t->s->context;
    struct tensor *const all[] = {&t->inverse, &t->factor, &t->x, &t->expected, &t->actual};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(c->gpu, all[i]);
    }
    for (int i = 0; t->weights != NULL && i < c->group->count; i++) {
        gpu_tensor_free(c->gpu, &t->weights[i]);
    }
    free(t->weights);
}
CLEANUP_DEINIT(smoothing_trial, struct smoothing_trial, smoothing_trial_deinit)

static int smoothing_trial_init(struct smoothing_trial *t, int64_t tokens)
{
    const struct smoothing *s = t->s;
    const struct rewrite_context *c = s->context;
    int64_t max_rows = 1;

    t->tokens = tokens;
    TRY(mem_array(&t->weights, (size_t)c->group->count));
    for (int i = 0; i < c->group->count; i++) {
        const struct tensor *w = rewrite_weight(c, i);
        max_rows = w->shape[0] > max_rows ? w->shape[0] : max_rows;
        TRY(gpu_tensor_new(c->gpu, DTYPE_F32, 2, w->shape, &t->weights[i]));
    }
    TRY(gpu_tensor_new(c->gpu, DTYPE_F32, 1, &s->columns, &t->inverse));
    TRY(gpu_tensor_new(c->gpu, DTYPE_F32, 1, &s->columns, &t->factor));
    TRY(gpu_tensor_new(c->gpu, DTYPE_F32, 2, (const int64_t[]){tokens, s->columns}, &t->x));
    TRY(gpu_tensor_new(c->gpu, DTYPE_F32, 2, (const int64_t[]){tokens, max_rows}, &t->expected));
    return gpu_tensor_new(c->gpu, DTYPE_F32, 2, (const int64_t[]){tokens, max_rows}, &t->actual);
}

/* Wq = Q(W s) for one reader, as its scheme says, to nearest. */
static int smoothing_round_weight(struct smoothing_trial *t, int i)
{
    const struct rewrite_context *c = t->s->context;
    const struct gpu_ops *ops = c->gpu->ops;
    const struct qscheme *scheme = rewrite_scheme(c, i);
    const struct tensor *w = &t->weights[i];
    AUTO_TENSOR(codes, c->gpu);
    AUTO_TENSOR(scale, c->gpu);
    AUTO_TENSOR(zero, c->gpu);

    TRY(ops->convert(c->stream, w, rewrite_weight(c, i)));
    TRY(ops->scale(c->stream, w, NULL, &t->factor));
    if (scheme == NULL || scheme->kind != QTENSOR_INT) {
        return 0;
    }
    const struct gpu_grid grid = quant_scheme_grid(scheme);
    const int64_t groups[2] = {w->shape[0], w->shape[1] / scheme->group_size};
    TRY(gpu_tensor_new(c->gpu, DTYPE_U8, 2, w->shape, &codes));
    TRY(gpu_tensor_new(c->gpu, DTYPE_F32, 2, groups, &scale));
    TRY(gpu_tensor_new(c->gpu, DTYPE_F32, 2, groups, &zero));
    return quant_round_nearest(c->gpu, c->stream, &grid, w, &codes, &scale, &zero);
}

/* How this linear's input will be quantized; a static scale is the maximum over the calibration set, divided by s. */
static struct gpu_input smoothing_input(const struct smoothing *s, const struct qscheme *scheme)
{
    struct gpu_input input = scheme != NULL ? scheme->input : (struct gpu_input){.element = DTYPE_F32};
    float max = 0;

    for (int64_t j = 0; j < s->columns; j++) {
        float reached = s->inputs[j] / s->factors[j];
        max = reached > max ? reached : max;
    }
    input.scale = max > 0 ? max / 127.0f : 1.0f;
    return input;
}

/* Factors of a candidate; 0: all are 1. */
static void smoothing_set_candidate(struct smoothing *s, int candidate)
{
    for (int64_t j = 0; candidate == 0 && j < s->columns; j++) {
        s->factors[j] = 1.0f;
    }
    if (candidate > 0) {
        smoothing_set_factors(s, SEARCH_FIRST + SEARCH_STEP * (candidate - 1));
    }
}

/* Add to a candidate's error the relative one of a module's output on some inputs; t->expected is its output in float.
 */
static int smoothing_try_candidate(struct smoothing_trial *t, int i, int candidate, const struct tensor *from)
{
    struct smoothing *s = t->s;
    const struct rewrite_context *c = s->context;
    const struct gpu_ops *ops = c->gpu->ops;
    int64_t tokens = from->shape[0], rows = t->weights[i].shape[0];
    struct tensor x = tensor_rows(&t->x, 0, tokens);
    struct tensor expected = tensor_2d(t->expected.data, DTYPE_F32, tokens, rows);
    struct tensor actual = tensor_2d(t->actual.data, DTYPE_F32, tokens, rows);
    struct gpu_residual lost;
    AUTO_FREE float *inverse = NULL;

    TRY(mem_buffer(&inverse, (size_t)s->columns));
    TRY(c->tick(c->tick_data));
    smoothing_set_candidate(s, candidate);
    for (int64_t j = 0; j < s->columns; j++) {
        inverse[j] = 1.0f / s->factors[j];
    }
    TRY(gpu_tensor_upload(c->gpu, c->stream, &t->inverse, inverse));
    TRY(gpu_tensor_upload(c->gpu, c->stream, &t->factor, s->factors));
    TRY(smoothing_round_weight(t, i));
    struct gpu_input input = smoothing_input(s, rewrite_scheme(c, i));
    TRY(ops->convert(c->stream, &x, from));
    TRY(ops->scale(c->stream, &x, NULL, &t->inverse));
    if (input.element != DTYPE_F32) {
        TRY(ops->quantize_input(c->stream, &x, &x, NULL, &input));
    }
    TRY(ops->linear(c->stream, &actual, &x, &t->weights[i], NULL));
    TRY(ops->residual(c->stream, &lost, &expected, &actual, NULL, NULL, NULL));
    t->errors[candidate] += lost.weight_sq > 0 ? lost.error_sq / lost.weight_sq : 0;
    return 0;
}

/* All candidates at the group's modules on one micro-batch: what is expected of a module is made once for them. */
static int smoothing_try_batch(struct smoothing_trial *t, const struct tensor *in)
{
    const struct rewrite_context *c = t->s->context;
    const struct tensor from = tensor_rows(in, 0, in->shape[0] < t->tokens ? in->shape[0] : t->tokens);

    for (int i = 0; from.shape[0] > 0 && i < c->group->count; i++) {
        if (rewrite_scheme(c, i) == NULL) {
            continue;
        }
        struct tensor expected = tensor_2d(t->expected.data, DTYPE_F32, from.shape[0], t->weights[i].shape[0]);
        TRY(c->gpu->ops->linear(c->stream, &expected, &from, rewrite_weight(c, i), NULL));
        for (int candidate = 0; candidate < SEARCH_CANDIDATES; candidate++) {
            TRY(smoothing_try_candidate(t, i, candidate, &from));
        }
    }
    return 0;
}

/* Micro-batches of a search whose trials take so many tokens of one. */
static int64_t smoothing_batches(int64_t batches, int64_t tokens)
{
    int64_t count = (SEARCH_TOKENS + tokens - 1) / tokens;

    return batches < count ? batches : count;
}

/* The input of a micro-batch is made once for all candidates: an expert's takes all that comes before it. */
static int smoothing_try_all(struct smoothing_trial *t)
{
    const struct rewrite_context *c = t->s->context;
    int64_t count = smoothing_batches(c->batches, t->tokens), stride = c->batches / count;

    for (int64_t i = 0; i < count; i++) {
        struct block_values values;
        TRY(c->input(c->input_data, i * stride, &values));
        const struct tensor in = block_value(&values, c->group->input);
        TRY(smoothing_try_batch(t, &in));
    }
    return 0;
}

int smoothing_search(struct smoothing *s, bool *gain)
{
    const struct rewrite_context *c = s->context;
    AUTO(smoothing_trial) struct smoothing_trial t = {.s = s};
    struct block_values values;
    double min_error = INFINITY;

    *gain = false;
    TRY(c->input(c->input_data, 0, &values));
    /* An expert's batches differ, and some have no tokens. */
    int64_t tokens = c->group->expert < 0 ? block_value(&values, c->group->input).shape[0] : c->stats->tokens;
    TRY(smoothing_trial_init(&t, tokens < SEARCH_TOKENS ? tokens : SEARCH_TOKENS));
    TRY(smoothing_try_all(&t));
    for (int i = 0; i < SEARCH_CANDIDATES; i++) {
        if (t.errors[i] < min_error) { /* never true of NaN */
            min_error = t.errors[i];
            *gain = i > 0;
            smoothing_set_candidate(s, i);
            memcpy(s->best, s->factors, (size_t)s->columns * sizeof(float));
        }
    }
    return 0;
}

void smoothing_search_cost(const struct quant_group *group, struct quant_cost *out)
{
    const struct quant_shape *largest = &group->linear;
    int64_t tokens = group->batch_tokens < SEARCH_TOKENS ? group->batch_tokens : SEARCH_TOKENS;
    int64_t codes = largest->rows * largest->cols;
    double tried = (double)(largest->tokens < SEARCH_TOKENS ? largest->tokens : SEARCH_TOKENS);
    int64_t capacity = group->expert ? (int64_t)tried : tokens;
    double batches = (double)smoothing_batches(group->batches, capacity > 1 ? capacity : 1);

    *out = (struct quant_cost){
        .solving = (group->elements + tokens * (largest->cols + 2 * group->tallest) + 2 * largest->cols) *
                       (int64_t)sizeof(float) +
                   codes + 2 * (codes / group->group_size) * (int64_t)sizeof(float),
        .operations =
            (2 * (SEARCH_CANDIDATES + 1) * tried + SEARCH_CANDIDATES * 40 * batches) * (double)group->elements +
            (1 + batches) * group->input_flops,
    };
}
