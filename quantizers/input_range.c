/* A static scale must suit every input there will be. The largest one decides the rounding of all the others where the
 * range is theirs alone: with a column that reaches a hundred times farther than the rest, INT8 leaves the rest one
 * code or two. What is cut off does harm, too, and how much is a question of the weights that meet it. So ranges are
 * compared by what the linears' outputs lose, tr((Q(X) - X) W^T W (Q(X) - X)^T), over a sample of X that stands for
 * the calibration set. */

#include "quantizers/input_range.h"

#include "base/err.h"
#include "base/mem.h"
#include "quantizers/common.h"

#include <math.h>
#include <stdlib.h>

#define OCTAVE_HALVES 20 /* the narrowest range is 2^-10 of absmax */
#define OCTAVE_EIGHTHS 3 /* to each side of the best */
#define CANDIDATES (1 + OCTAVE_HALVES + 2 * OCTAVE_EIGHTHS)
#define AS_GOOD 1.02 /* times the smallest error */

struct trial {
    const struct solve_context *context;
    const struct input_sample *sample;
    const struct tensor *const *weights;
    int count;
    struct gpu_input input;
    struct tensor share;   /* F32 [T]: root of what each row stands for */
    struct tensor lost;    /* F32 [T,K]: Q(x) - x */
    struct tensor product; /* F32 [T * max N] */
    double *signals;       /* host [count]: sum |x W^T|^2 */
};

static void input_range_trial_deinit(struct trial *t)
{
    gpu_tensor_free(t->context->gpu, &t->share);
    gpu_tensor_free(t->context->gpu, &t->lost);
    gpu_tensor_free(t->context->gpu, &t->product);
    free(t->signals);
}
CLEANUP_DEINIT(trial, struct trial, input_range_trial_deinit)

/* The root of what each row stands for. */
static int input_range_fill_share(struct trial *t)
{
    int64_t rows = t->sample->rows.shape[0];
    AUTO_FREE float *values = NULL;

    TRY(mem_buffer(&values, (size_t)rows));
    input_sample_weights(t->sample, values);
    for (int64_t i = 0; i < rows; i++) {
        values[i] = sqrtf(values[i]);
    }
    return gpu_tensor_upload(t->context->gpu, t->context->stream, &t->share, values);
}

/* sum |x W^T|^2 over the rows of x, which have been weighed. */
static int input_range_square(struct trial *t, const struct tensor *x, int i, double *out)
{
    const struct gpu_ops *ops = t->context->gpu->ops;
    const struct tensor *w = t->weights[i];
    const struct tensor y = tensor_2d(t->product.data, DTYPE_F32, x->shape[0], w->shape[0]);
    struct gpu_residual sums;

    TRY(ops->multiply(t->context->stream, &y, x, w));
    TRY(ops->residual(t->context->stream, &sums, &y, &y, NULL, NULL, NULL));
    *out = sums.weight_sq;
    return 0;
}

static int input_range_measure_signals(struct trial *t)
{
    const struct gpu_ops *ops = t->context->gpu->ops;

    TRY(ops->convert(t->context->stream, &t->lost, &t->sample->rows));
    TRY(ops->scale(t->context->stream, &t->lost, &t->share, NULL));
    for (int i = 0; i < t->count; i++) {
        TRY(input_range_square(t, &t->lost, i, &t->signals[i]));
    }
    return 0;
}

static int input_range_trial_init(struct trial *t)
{
    const struct gpu *gpu = t->context->gpu;
    int64_t rows = t->sample->rows.shape[0], outputs = 1;

    for (int i = 0; i < t->count; i++) {
        outputs = t->weights[i]->shape[0] > outputs ? t->weights[i]->shape[0] : outputs;
    }
    TRY(mem_array(&t->signals, (size_t)t->count));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 1, &rows, &t->share));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, t->sample->rows.shape, &t->lost));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, (const int64_t[]){rows, outputs}, &t->product));
    TRY(input_range_fill_share(t));
    return input_range_measure_signals(t);
}

/* Relative error of the outputs with t->input. */
static int input_range_try_scale(struct trial *t, double *error)
{
    const struct gpu_ops *ops = t->context->gpu->ops;
    double sum = 0, lost = 0;

    TRY(quant_tick(t->context));
    TRY(ops->quantize_input(t->context->stream, &t->lost, &t->sample->rows, NULL, &t->input));
    TRY(ops->combine(t->context->stream, &t->lost, 1, &t->lost, -1, &t->sample->rows));
    TRY(ops->scale(t->context->stream, &t->lost, &t->share, NULL));
    for (int i = 0; i < t->count; i++) {
        if (t->signals[i] > 0) { /* weights of zeros lose nothing */
            TRY(input_range_square(t, &t->lost, i, &lost));
            sum += lost / t->signals[i];
        }
    }
    *error = sum / t->count;
    return 0;
}

struct candidate {
    float scale;
    double share, error;
};

static int input_range_try_share(struct trial *t, float absmax, double share, struct candidate *out)
{
    double error;

    t->input.scale = input_range_scale((float)((double)absmax * share), t->input.element, t->context->scale_dtype);
    TRY(input_range_try_scale(t, &error));
    *out = (struct candidate){t->input.scale, share, error};
    return 0;
}

/* The widest range that is as good as the best, for inputs that are to come; the first where no error is a number. */
static const struct candidate *input_range_choose(const struct candidate *candidates, int count, double as_good)
{
    double min_error = INFINITY;
    const struct candidate *widest = NULL;

    for (int i = 0; i < count; i++) {
        min_error = candidates[i].error < min_error ? candidates[i].error : min_error; /* never true of NaN */
    }
    for (int i = 0; i < count; i++) {
        bool good = candidates[i].error <= min_error * as_good;
        widest = good && (widest == NULL || candidates[i].share > widest->share) ? &candidates[i] : widest;
    }
    return widest != NULL ? widest : candidates;
}

float input_range_scale(float absmax, enum dtype element, enum dtype dtype)
{
    float element_max = (float)dtype_rows[element].max;

    return absmax > 0 ? quant_store_scale(absmax / element_max, dtype) : 1.0f; /* all inputs were 0 */
}

int input_range_search(const struct solve_context *context, const struct input_sample *sample,
                       const struct tensor *const *weights, int count, const struct gpu_input *input, float absmax,
                       struct input_range *out)
{
    AUTO(trial)
    struct trial t = {.context = context, .sample = sample, .weights = weights, .count = count, .input = *input};
    struct candidate tried[CANDIDATES];
    int tries = 0;

    TRY(input_range_trial_init(&t));
    for (int i = 0; i <= OCTAVE_HALVES; i++) {
        TRY(input_range_try_share(&t, absmax, exp2(-0.5 * i), &tried[tries++]));
    }
    double middle = input_range_choose(tried, tries, 1)->share;
    for (int i = -OCTAVE_EIGHTHS; i <= OCTAVE_EIGHTHS; i++) {
        double share = middle * exp2(0.125 * i);
        if (i != 0 && share < 1) {
            TRY(input_range_try_share(&t, absmax, share, &tried[tries++]));
        }
    }
    const struct candidate *chosen = input_range_choose(tried, tries, AS_GOOD);
    *out = (struct input_range){chosen->scale, chosen->share, chosen->error, tried[0].error};
    return 0;
}
