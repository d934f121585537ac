/* LLM.int8(): eight-bit products for all but a few input columns (Dettmers et al. 2022, arXiv 2208.07339).
 *
 * Weights: q = rne(127 w / rowmax), one scale a row. Inputs: one scale for each token at run time, from the entries
 * below the threshold; columns that reach it pass in float, against the weights' codes made float again. The runtime
 * finds those columns in each batch; here they are the ones that reached it anywhere in the calibration set, so that
 * what is measured is what a user will see, and the report says how many there are and what they are worth: the error
 * of Q(X) Q(W)^T against X W^T on a sample, with the columns in float and without.
 *
 * Threshold 0 has no outlier columns: plain vector-wise INT8. */

#include "quantizers/common.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define LARGEST 127.0f
#define ZERO 128

struct llm_int8_params {
    struct quant_base base;
    double llm_int8_threshold;
};

static int llm_int8_scheme(const void *params, int64_t rows, int64_t cols, struct qscheme *out)
{
    const struct llm_int8_params *p = params;

    TRY(quant_check_shape(rows, cols));
    *out = (struct qscheme){.kind = QTENSOR_INT,
                            .bits = 8,
                            .group_size = cols,
                            .per_channel = true,
                            .sym = true,
                            .scale_dtype = DTYPE_F32,
                            .input = {.element = DTYPE_I8, .dynamic = true},
                            .input_threshold = (float)p->llm_int8_threshold};
    return 0;
}

static int llm_int8_encode(const struct solve_context *context, struct linear_job *job, struct qtensor *q)
{
    const struct gpu_tiles tiles = {DTYPE_I8, 1, q->cols};

    TRY(quant_tile_range(context, job->weight, &tiles, q));
    for (int64_t n = 0; n < q->rows; n++) {
        q->scales[n] = q->scales[n] > 0 ? quant_store_scale(q->scales[n] / LARGEST, q->scheme.scale_dtype) : 1.0f;
        q->zeros[n] = ZERO;
    }
    return quant_tile_encode(context, job->weight, &tiles, job, q);
}

/* Columns that reached the threshold into q->index. */
static int llm_int8_find_outliers(const struct solve_context *context, const struct layer_stats *stats,
                                  struct qtensor *q)
{
    float threshold = q->scheme.input_threshold;
    AUTO_FREE float *absmax = NULL;
    int64_t count = 0;

    TRY(mem_buffer(&absmax, (size_t)q->cols));
    TRY(context->gpu->ops->download(context->stream, absmax, stats->absmax.data, (size_t)q->cols * sizeof(*absmax)));
    for (int64_t k = 0; k < q->cols; k++) {
        count += absmax[k] >= threshold;
    }
    if (count == 0) {
        return 0;
    }
    TRY(qtensor_reserve_index(q, count));
    for (int64_t k = 0, at = 0; at < count; k++) {
        if (absmax[k] >= threshold) {
            q->index[at++] = (int32_t)k;
        }
    }
    return 0;
}

/* The linear on the sample, in float and as the runtime computes it. Device memory. */
struct sample {
    const struct tensor *w;        /* F32 [N,K], what the codes stand for */
    const struct tensor *x;        /* F32 [T,K], rounded */
    const struct tensor *expected; /* F32 [T,N] */
    const struct tensor *actual;   /* F32 [T,N] */
};

/* Relative squared error of the output on the sample, x and actual being scratch; outliers NULL: all columns are
 * quantized. */
static int llm_int8_error(const struct solve_context *context, const struct layer_stats *stats, const struct qtensor *q,
                          const struct sample *s, const struct tensor *outliers, double *error)
{
    const struct gpu_ops *ops = context->gpu->ops;
    struct gpu_residual lost;

    TRY(ops->quantize_input(context->stream, s->x, &stats->sample, outliers, &q->scheme.input));
    TRY(ops->linear(context->stream, s->actual, s->x, s->w, NULL));
    TRY(ops->residual(context->stream, &lost, s->expected, s->actual, NULL, NULL, NULL));
    *error = lost.weight_sq > 0 ? lost.error_sq / lost.weight_sq : 0;
    return 0;
}

/* What the codes stand for, F32 [N,K] on the device, from codes that may not have left it. */
static int llm_int8_decode(const struct solve_context *context, const struct linear_job *job, const struct qtensor *q,
                           struct tensor *w)
{
    const struct gpu *gpu = context->gpu;
    const struct gpu_tiles tiles = {DTYPE_I8, 1, q->cols};
    AUTO_TENSOR(uploaded, gpu);
    AUTO_TENSOR(scale, gpu);

    if (job->codes.data == NULL) {
        TRY(gpu_tensor_from_host(gpu, context->stream, DTYPE_U8, 2, job->weight->shape, q->codes, &uploaded));
    }
    TRY(gpu_tensor_from_host(gpu, context->stream, DTYPE_F32, 2, (const int64_t[]){q->rows, 1}, q->scales, &scale));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, job->weight->shape, w));
    return gpu->ops->tile_decode(context->stream, w, job->codes.data != NULL ? &job->codes : &uploaded, &scale, &tiles);
}

/* What the outlier columns are worth, into job->note. */
static int llm_int8_note_gain(const struct solve_context *context, const struct layer_stats *stats,
                              struct linear_job *job, const struct qtensor *q)
{
    const struct gpu *gpu = context->gpu;
    const int64_t in[2] = {stats->sample.shape[0], q->cols}, out[2] = {stats->sample.shape[0], q->rows};
    double with = 0, without = 0;
    AUTO_FREE float *host_outliers = NULL;
    AUTO_TENSOR(w, gpu);
    AUTO_TENSOR(outliers, gpu);
    AUTO_TENSOR(x, gpu);
    AUTO_TENSOR(expected, gpu);
    AUTO_TENSOR(actual, gpu);

    TRY(mem_array(&host_outliers, (size_t)q->cols));
    for (int64_t i = 0; i < q->index_count; i++) {
        host_outliers[q->index[i]] = 1.0f;
    }
    TRY(llm_int8_decode(context, job, q, &w));
    TRY(gpu_tensor_from_host(gpu, context->stream, DTYPE_F32, 1, &q->cols, host_outliers, &outliers));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, in, &x));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, out, &expected));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, out, &actual));
    TRY(gpu->ops->linear(context->stream, &expected, &stats->sample, job->weight, NULL));
    const struct sample sample = {&w, &x, &expected, &actual};
    TRY(llm_int8_error(context, stats, q, &sample, &outliers, &with));
    TRY(llm_int8_error(context, stats, q, &sample, NULL, &without));
    snprintf(job->note, sizeof(job->note),
             "%lld outlier columns of %lld: output error %.3g with them apart, %.3g without", (long long)q->index_count,
             (long long)q->cols, with, without);
    return 0;
}

static int llm_int8_solve_linear(const struct solve_context *context, const struct layer_stats *stats,
                                 struct linear_job *job)
{
    double start = clock_monotonic_seconds();
    int64_t rows = job->weight->shape[0], cols = job->weight->shape[1];
    AUTO(qtensor) struct qtensor q = {0};
    struct qscheme made;

    TRY(llm_int8_scheme(job->params, rows, cols, &made));
    made.scale_dtype = context->scale_dtype;
    TRY(quant_check_finite(context, job));
    TRY(quant_tile_new(context, job->name, &made, rows, cols, &q));
    TRY(llm_int8_encode(context, job, &q));
    if (made.input_threshold > 0) {
        TRY(llm_int8_find_outliers(context, stats, &q));
        TRY((stats->flags & STATS_SAMPLE) != 0 ? llm_int8_note_gain(context, stats, job, &q) : 0);
    }
    job->result = qtensor_move(&q);
    job->loss = NAN;
    job->seconds = clock_monotonic_seconds() - start;
    return 0;
}

/* With outlier columns, whose worth is measured on the sample; whether there are any, only the inputs say. */
static void llm_int8_cost(const void *values, const struct quant_shape *shape, struct quant_cost *out)
{
    const struct llm_int8_params *p = values;
    int64_t elements = shape->rows * shape->cols, sample = STATS_SAMPLE_TOKENS;

    sample = shape->tokens < sample ? shape->tokens : sample;
    *out = (struct quant_cost){.solving = elements, .operations = 10 * (double)elements};
    if (p->llm_int8_threshold > 0 && sample > 0) {
        out->solving += (elements + sample * (shape->cols + 2 * shape->rows)) * (int64_t)sizeof(float);
        out->operations += 6 * (double)sample * (double)elements;
    }
}

static unsigned llm_int8_needs(const void *params)
{
    return ((const struct llm_int8_params *)params)->llm_int8_threshold > 0 ? STATS_RANGE | STATS_SAMPLE : STATS_NONE;
}

static bool llm_int8_data_free(const void *params)
{
    return llm_int8_needs(params) == STATS_NONE;
}

static int llm_int8_solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                          int count)
{
    return quant_each(context, stats, jobs, count, llm_int8_solve_linear);
}

static const struct params_row llm_int8_rows[] = {
    QUANT_ROW(PARAMS_NUMBER, llm_int8_params, llm_int8_threshold, "6.0", .min = 0, .max = 1e6,
              .help = "Magnitude from which an input column passes in float; 0 = none ever does."),
    {.name = NULL},
};

static const struct params_row *const llm_int8_params_tables[] = {quant_base_rows, quant_input_rows, llm_int8_rows,
                                                                  NULL};

const struct quantizer quantizer_llm_int8 = {
    .name = "llm_int8",
    .title = "LLM.int8()",
    .help = "Eight-bit weights and inputs, except the few input columns with very large values, which stay in float. "
            "Robust where plain INT8 inputs fail (Dettmers et al. 2022, arXiv 2208.07339).",
    .stats = STATS_NONE,
    .needs = llm_int8_needs,
    .data_free = llm_int8_data_free,
    .params = llm_int8_params_tables,
    .params_size = sizeof(struct llm_int8_params),
    .check = quant_base_check,
    .scheme = llm_int8_scheme,
    .solve = llm_int8_solve,
    .cost = llm_int8_cost,
};
