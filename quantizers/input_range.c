/* A static scale must suit every input there will be. The largest one decides the rounding of all the others where the
 * range is theirs alone: with a column that reaches a hundred times farther than the rest, INT8 leaves the rest one
 * code or two. What is cut off does harm, too, and how much is a question of the weights that meet it. So ranges are
 * compared by what the linears' outputs lose, tr((Q(X) - X) W^T W (Q(X) - X)^T), over a sample of X that stands for
 * the calibration set. */

#include "quantizers/input_range.h"

#include "base/err.h"
#include "quantizers/common.h"

#include <math.h>
#include <stdlib.h>

#define OCTAVE_HALVES 20 /* the narrowest range is 2^-10 of the whole */
#define OCTAVE_EIGHTHS 3 /* to each side of the best */
#define CANDIDATES (1 + OCTAVE_HALVES + 2 * OCTAVE_EIGHTHS)
#define AS_GOOD 1.02 /* times the least error */

struct trial {
    const struct solve_context *context;
    const struct input_sample *sample;
    const struct tensor *const *weights;
    int count;
    struct gpu_input input;
    struct tensor share;   /* F32 [T]: root of what each row stands for */
    struct tensor lost;    /* F32 [T,K]: Q(x) - x */
    struct tensor product; /* F32 [T * widest N] */
    double *signals;       /* host [count]: sum |x W^T|^2 */
};

static void trial_deinit(struct trial *t)
{
    gpu_tensor_free(t->context->gpu, &t->share);
    gpu_tensor_free(t->context->gpu, &t->lost);
    gpu_tensor_free(t->context->gpu, &t->product);
    free(t->signals);
}

/* The root of what each row stands for. */
static int fill_share(struct trial *t)
{
    int64_t rows = t->sample->rows.shape[0];
    float *values = malloc((size_t)rows * sizeof(*values));

    if (values == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld shares", (long long)rows);
    }
    input_sample_weights(t->sample, values);
    for (int64_t i = 0; i < rows; i++) {
        values[i] = sqrtf(values[i]);
    }
    int rc = gpu_tensor_upload(t->context->gpu, t->context->stream, &t->share, values);
    free(values);
    return rc;
}

/* sum |x W^T|^2 over the rows of x, which are weighed first. */
static int square(struct trial *t, const struct tensor *x, int i, double *out)
{
    const struct gpu_ops *ops = t->context->gpu->ops;
    const struct tensor *w = t->weights[i];
    const struct tensor y = tensor_2d(t->product.data, DTYPE_F32, x->shape[0], w->shape[0]);
    struct gpu_residual sums;

    int rc = ops->multiply(t->context->stream, &y, x, w);
    rc = rc != 0 ? rc : ops->residual(t->context->stream, &sums, &y, &y, NULL, NULL, NULL);
    if (rc == 0) {
        *out = sums.weight_sq;
    }
    return rc;
}

static int measure_signals(struct trial *t)
{
    const struct gpu_ops *ops = t->context->gpu->ops;
    int rc = ops->convert(t->context->stream, &t->lost, &t->sample->rows);

    rc = rc != 0 ? rc : ops->scale(t->context->stream, &t->lost, &t->share, NULL);
    for (int i = 0; rc == 0 && i < t->count; i++) {
        rc = square(t, &t->lost, i, &t->signals[i]);
    }
    return rc;
}

static int trial_init(struct trial *t)
{
    const struct gpu *gpu = t->context->gpu;
    int64_t rows = t->sample->rows.shape[0], widest = 1;

    for (int i = 0; i < t->count; i++) {
        widest = t->weights[i]->shape[0] > widest ? t->weights[i]->shape[0] : widest;
    }
    t->signals = calloc((size_t)t->count, sizeof(*t->signals));
    int rc = t->signals == NULL ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %d sums", t->count)
                                : gpu_tensor_uninitialized(gpu, DTYPE_F32, 1, &rows, &t->share);
    rc = rc != 0 ? rc : gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, t->sample->rows.shape, &t->lost);
    rc = rc != 0 ? rc : gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, (const int64_t[]){rows, widest}, &t->product);
    rc = rc != 0 ? rc : fill_share(t);
    return rc != 0 ? rc : measure_signals(t);
}

/* Relative error of the outputs with t->input. */
static int try_scale(struct trial *t, double *error)
{
    const struct gpu_ops *ops = t->context->gpu->ops;
    double sum = 0, lost = 0;

    int rc = quant_tick(t->context);
    rc = rc != 0 ? rc : ops->quantize_input(t->context->stream, &t->lost, &t->sample->rows, NULL, &t->input);
    rc = rc != 0 ? rc : ops->combine(t->context->stream, &t->lost, 1, &t->lost, -1, &t->sample->rows);
    rc = rc != 0 ? rc : ops->scale(t->context->stream, &t->lost, &t->share, NULL);
    for (int i = 0; rc == 0 && i < t->count; i++) {
        if (t->signals[i] > 0) { /* weights of zeros lose nothing */
            rc = square(t, &t->lost, i, &lost);
            sum += lost / t->signals[i];
        }
    }
    if (rc == 0) {
        *error = sum / t->count;
    }
    return rc;
}

struct candidate {
    float scale;
    double share, error;
};

static int try_share(struct trial *t, float absmax, double share, struct candidate *out)
{
    double error;

    t->input.scale = input_range_scale((float)((double)absmax * share), t->input.element, t->context->scale_dtype);
    int rc = try_scale(t, &error);
    if (rc == 0) {
        *out = (struct candidate){t->input.scale, share, error};
    }
    return rc;
}

/* The widest range that is as good as the best, for inputs that are to come; the first where nothing compares. */
static const struct candidate *choose(const struct candidate *candidates, int count, double as_good)
{
    double least = INFINITY;
    const struct candidate *widest = NULL;

    for (int i = 0; i < count; i++) {
        least = candidates[i].error < least ? candidates[i].error : least; /* never true of NaN */
    }
    for (int i = 0; i < count; i++) {
        bool good = candidates[i].error <= least * as_good;
        widest = good && (widest == NULL || candidates[i].share > widest->share) ? &candidates[i] : widest;
    }
    return widest != NULL ? widest : candidates;
}

float input_range_scale(float most, enum dtype element, enum dtype dtype)
{
    float largest = (float)dtype_rows[element].max;

    return most > 0 ? quant_store_scale(most / largest, dtype) : 1.0f; /* no input there was */
}

int input_range_search(const struct solve_context *context, const struct input_sample *sample,
                       const struct tensor *const *weights, int count, const struct gpu_input *input, float absmax,
                       struct input_range *out)
{
    struct trial t = {.context = context, .sample = sample, .weights = weights, .count = count, .input = *input};
    struct candidate tried[CANDIDATES];
    int tries = 0;

    int rc = trial_init(&t);
    for (int i = 0; rc == 0 && i <= OCTAVE_HALVES; i++) {
        rc = try_share(&t, absmax, exp2(-0.5 * i), &tried[tries++]);
    }
    double middle = rc == 0 ? choose(tried, tries, 1)->share : 1;
    for (int i = -OCTAVE_EIGHTHS; rc == 0 && i <= OCTAVE_EIGHTHS; i++) {
        double share = middle * exp2(0.125 * i);
        if (i != 0 && share < 1) {
            rc = try_share(&t, absmax, share, &tried[tries++]);
        }
    }
    trial_deinit(&t);
    if (rc != 0) {
        return err_pass(rc, "range of %lld inputs", (long long)sample->tokens);
    }
    const struct candidate *chosen = choose(tried, tries, AS_GOOD);
    *out = (struct input_range){chosen->scale, chosen->share, chosen->error, tried[0].error};
    return 0;
}
