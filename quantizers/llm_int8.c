/* LLM.int8(): eight-bit products for all but a few input columns (Dettmers et al. 2022, arXiv 2208.07339).
 *
 * Weights: q = rne(127 w / rowmax), one scale a row. Inputs: one scale for each token at run time, from the entries
 * below the threshold; columns that reach it pass in float, against the weights' codes made float again. The runtime
 * finds those columns in each batch; here they are the ones that reached it anywhere in the calibration set, so that
 * what is measured is what a user will see, and the report says how many there are and what they are worth: the error
 * of Q(X) Q(W)^T against X W^T on a sample, with the columns kept apart and without.
 *
 * Threshold 0 keeps nothing apart: plain vector-wise INT8. */

#include "quantizers/common.h"

#include "base/err.h"
#include "base/ids.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define LARGEST 127.0f
#define ZERO 128

struct llm_int8_params {
    struct quant_base base;
    double llm_int8_threshold;
};

static int scheme(const void *params, int64_t rows, int64_t cols, struct qscheme *out)
{
    const struct llm_int8_params *p = params;

    if (rows < 1 || cols < 1) {
        return err_raise(ERR_INVALID_MODEL, "a weight is [%lld, %lld]", (long long)rows, (long long)cols);
    }
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

static int encode(const struct solve_context *context, const struct linear_job *job, struct qtensor *q)
{
    const struct gpu_tiles tiles = {DTYPE_I8, 1, q->cols};
    int rc = quant_tile_range(context, job->weight, &tiles, q);

    for (int64_t n = 0; rc == 0 && n < q->rows; n++) {
        q->scales[n] = q->scales[n] > 0 ? quant_store_scale(q->scales[n] / LARGEST, q->scheme.scale_dtype) : 1.0f;
        q->zeros[n] = ZERO;
    }
    return rc != 0 ? rc : quant_tile_encode(context, job->weight, &tiles, q);
}

/* Columns that reached the threshold into q->index. */
static int keep_columns(const struct solve_context *context, const struct layer_stats *stats, struct qtensor *q)
{
    float threshold = q->scheme.input_threshold, *most = malloc((size_t)q->cols * sizeof(*most));
    int64_t count = 0;

    if (most == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld ranges", (long long)q->cols);
    }
    int rc = context->gpu->ops->download(context->stream, most, stats->absmax.data, (size_t)q->cols * sizeof(*most));
    for (int64_t k = 0; rc == 0 && k < q->cols; k++) {
        count += most[k] >= threshold;
    }
    rc = rc != 0 || count == 0 ? rc : qtensor_reserve_index(q, count);
    for (int64_t k = 0, at = 0; rc == 0 && at < count; k++) {
        if (most[k] >= threshold) {
            q->index[at++] = (int32_t)k;
        }
    }
    free(most);
    return rc;
}

/* The sample's way through the linear, in float and as the runtime goes. */
struct trial {
    struct tensor w;              /* F32 [N,K], what the codes stand for */
    struct tensor keep;           /* F32 [K] */
    struct tensor x;              /* F32 [T,K], rounded */
    struct tensor wanted, gotten; /* F32 [T,N] */
};

static void trial_deinit(struct trial *t, const struct gpu *gpu)
{
    gpu_tensor_free(gpu, &t->w);
    gpu_tensor_free(gpu, &t->keep);
    gpu_tensor_free(gpu, &t->x);
    gpu_tensor_free(gpu, &t->wanted);
    gpu_tensor_free(gpu, &t->gotten);
}

static int upload_weight(const struct solve_context *context, const struct qtensor *q, const struct tensor *to)
{
    float *w = malloc(tensor_bytes(to));

    if (w == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the weight of %s", q->name);
    }
    qtensor_dequantize(q, w);
    int rc = gpu_tensor_upload(context->gpu, context->stream, to, w);
    free(w);
    return rc;
}

static int upload_keep(const struct solve_context *context, const struct qtensor *q, const struct tensor *to)
{
    float *keep = calloc((size_t)q->cols, sizeof(*keep));

    if (keep == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld columns", (long long)q->cols);
    }
    for (int64_t i = 0; i < q->index_count; i++) {
        keep[q->index[i]] = 1.0f;
    }
    int rc = gpu_tensor_upload(context->gpu, context->stream, to, keep);
    free(keep);
    return rc;
}

static int trial_init(const struct solve_context *context, const struct layer_stats *stats,
                      const struct linear_job *job, const struct qtensor *q, struct trial *t)
{
    const struct gpu *gpu = context->gpu;
    const int64_t in[2] = {stats->sample.shape[0], q->cols}, out[2] = {stats->sample.shape[0], q->rows};

    int rc = gpu_tensor_new(gpu, DTYPE_F32, 2, job->weight->shape, &t->w);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 1, &q->cols, &t->keep);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 2, in, &t->x);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 2, out, &t->wanted);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 2, out, &t->gotten);
    rc = rc != 0 ? rc : upload_weight(context, q, &t->w);
    rc = rc != 0 ? rc : upload_keep(context, q, &t->keep);
    return rc != 0 ? rc : gpu->ops->linear(context->stream, &t->wanted, &stats->sample, job->weight, NULL);
}

/* Relative squared error of the output; keep NULL = all columns are quantized. */
static int trial_run(const struct solve_context *context, const struct layer_stats *stats, const struct qtensor *q,
                     const struct trial *t, const struct tensor *keep, double *error)
{
    const struct gpu_ops *ops = context->gpu->ops;
    struct gpu_residual lost;

    int rc = ops->quantize_input(context->stream, &t->x, &stats->sample, keep, &q->scheme.input);
    rc = rc != 0 ? rc : ops->linear(context->stream, &t->gotten, &t->x, &t->w, NULL);
    rc = rc != 0 ? rc : ops->residual(context->stream, &lost, &t->wanted, &t->gotten, NULL, NULL, NULL);
    if (rc == 0) {
        *error = lost.weight_sq > 0 ? lost.error_sq / lost.weight_sq : 0;
    }
    return rc;
}

static int note_gain(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *job,
                     const struct qtensor *q)
{
    struct trial t = {0};
    double apart = 0, together = 0;

    int rc = trial_init(context, stats, job, q, &t);
    rc = rc != 0 ? rc : trial_run(context, stats, q, &t, &t.keep, &apart);
    rc = rc != 0 ? rc : trial_run(context, stats, q, &t, NULL, &together);
    trial_deinit(&t, context->gpu);
    if (rc == 0) {
        snprintf(job->note, sizeof(job->note),
                 "%lld outlier columns of %lld: output error %.3g with them apart, %.3g without",
                 (long long)q->index_count, (long long)q->cols, apart, together);
    }
    return rc;
}

static int solve_linear(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *job)
{
    double start = clock_monotonic_seconds();
    struct qtensor q = {0};
    struct qscheme made;

    int rc = scheme(job->params, job->weight->shape[0], job->weight->shape[1], &made);
    made.scale_dtype = context->scale_dtype;
    rc = rc != 0 ? rc : quant_check_finite(context, job);
    rc = rc != 0 ? rc : qtensor_new(job->name, &made, job->weight->shape[0], job->weight->shape[1], &q);
    rc = rc != 0 ? rc : encode(context, job, &q);
    if (rc == 0 && made.input_threshold > 0) {
        rc = keep_columns(context, stats, &q);
        rc = rc != 0 || (stats->flags & STATS_SAMPLE) == 0 ? rc : note_gain(context, stats, job, &q);
    }
    if (rc != 0) {
        qtensor_deinit(&q);
        return err_set_module(err_pass(rc, "llm_int8 %s", job->name), job->name);
    }
    job->result = q;
    job->loss = NAN;
    job->seconds = clock_monotonic_seconds() - start;
    return 0;
}

static unsigned needs(const void *params)
{
    return ((const struct llm_int8_params *)params)->llm_int8_threshold > 0 ? STATS_RANGE | STATS_SAMPLE : STATS_NONE;
}

static int solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                 int count)
{
    return quant_each(context, stats, jobs, count, solve_linear);
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
    .needs = needs,
    .params = llm_int8_params_tables,
    .params_size = sizeof(struct llm_int8_params),
    .check = quant_base_check,
    .scheme = scheme,
    .solve = solve,
};
