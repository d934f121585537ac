/* FP8: eight-bit floating point weights, for runtimes that multiply in it (Micikevicius et al. 2022, arXiv 2209.05433).
 *
 * E4M3 has 448 as its largest value and keeps a relative error of at most 2^-4 over four decades, so a plain scale
 * absmax / 448 is all that is chosen: per tensor, per output channel, or per square block; blocks at the right and
 * lower edge are what is left of the weight. E5M2 (57344, three significant bits) is for storage: no runtime here
 * multiplies weights in it.
 *
 * Linears that a runtime loads as one (q, k and v; gate and up) share a per-tensor scale, since the runtime would
 * otherwise convert them to the largest of theirs and round all codes a second time. They are the ones that read
 * the same input, hence the jobs of one call. */

#include "quantizers/common.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>

enum fp8_format { FP8_E4M3, FP8_E5M2 };
enum fp8_granularity { FP8_TENSOR, FP8_CHANNEL, FP8_BLOCK };
enum fp8_activation { FP8_NONE, FP8_DYNAMIC, FP8_STATIC };

struct fp8_params {
    struct quant_base base;
    int fmt, granularity, activation_scheme, input_range;
    int64_t weight_block_size;
};

static const char *const fmt_names[] = {"e4m3", "e5m2", NULL};
static const char *const granularity_names[] = {"per_tensor", "per_channel", "block", NULL};
static const char *const activation_names[] = {"none", "dynamic", "static", NULL};
static const char *const block_choices[] = {"64", "128", NULL};

static void fp8_check(const void *params, const char *pointer, struct validation_errors *errors)
{
    const struct fp8_params *p = params;
    char at[192];

    quant_base_check(params, pointer, errors);
    snprintf(at, sizeof(at), "%.140s/activation_scheme", pointer);
    if (p->fmt == FP8_E5M2 && p->activation_scheme != FP8_NONE) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at, "no runtime multiplies E5M2 weights by quantized inputs");
        validation_hint(errors, "activation_scheme none, or fmt e4m3");
    }
    if (p->granularity == FP8_BLOCK && p->activation_scheme == FP8_STATIC) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                       "weights in blocks go with inputs in groups of the same width, which have no static scale");
        validation_hint(errors, "activation_scheme dynamic or none, or another granularity");
    }
}

static int fp8_scheme(const void *params, int64_t rows, int64_t cols, struct qscheme *out)
{
    const struct fp8_params *p = params;
    bool block = p->granularity == FP8_BLOCK;
    int64_t size = p->weight_block_size;

    TRY(quant_check_shape(rows, cols));
    *out = (struct qscheme){
        .kind = QTENSOR_FLOAT8,
        .bits = 8,
        .group_size = block ? size : cols,
        .group_rows = block                          ? size
                      : p->granularity == FP8_TENSOR ? rows
                                                     : 1,
        .per_channel = !block,
        .sym = true,
        .element = p->fmt == FP8_E5M2 ? DTYPE_F8_E5M2 : DTYPE_F8_E4M3,
        .scale_dtype = DTYPE_F32,
        .input = {.element = p->activation_scheme == FP8_NONE ? DTYPE_F32 : DTYPE_F8_E4M3,
                  .dynamic = p->activation_scheme == FP8_DYNAMIC,
                  .group_size = block && p->activation_scheme == FP8_DYNAMIC ? size : 0},
        .input_search = p->activation_scheme == FP8_STATIC && p->input_range == INPUT_RANGE_OUTPUT_ERROR,
    };
    return 0;
}

/* Shape and ranges of one linear: the maximum magnitude of each scale's weights into q->scales. */
static int fp8_range_linear(const struct solve_context *context, const struct linear_job *job, struct qtensor *q)
{
    int64_t rows = job->weight->shape[0], cols = job->weight->shape[1];
    struct qscheme made;

    TRY(fp8_scheme(job->params, rows, cols, &made));
    made.scale_dtype = context->scale_dtype;
    const struct gpu_tiles tiles = qtensor_tiles(&made);
    TRY(quant_check_finite(context, job));
    TRY(quant_tile_new(context, job->name, &made, rows, cols, q));
    return quant_tile_range(context, job->weight, &tiles, q);
}

static int fp8_encode_linear(const struct solve_context *context, struct linear_job *job, struct qtensor *q)
{
    const struct gpu_tiles tiles = qtensor_tiles(&q->scheme);
    float element_max = (float)dtype_rows[q->scheme.element].max;

    for (int64_t i = 0; i < q->row_groups * q->groups; i++) {
        q->scales[i] = q->scales[i] == 0 ? 1.0f : quant_store_scale(q->scales[i] / element_max, q->scheme.scale_dtype);
    }
    return quant_tile_encode(context, job->weight, &tiles, job, q);
}

static bool fp8_is_per_tensor(const struct linear_job *job)
{
    return ((const struct fp8_params *)job->params)->granularity == FP8_TENSOR;
}

static void fp8_share_ranges(const struct linear_job *jobs, struct qtensor *made, int count)
{
    float max = 0;

    for (int i = 0; i < count; i++) {
        max = fp8_is_per_tensor(&jobs[i]) && made[i].scales[0] > max ? made[i].scales[0] : max;
    }
    for (int i = 0; i < count; i++) {
        if (fp8_is_per_tensor(&jobs[i])) {
            made[i].scales[0] = max;
        }
    }
}

static int fp8_solve_all(const struct solve_context *context, struct linear_job *jobs, struct qtensor *made, int count)
{
    double start = clock_monotonic_seconds();

    for (int i = 0; i < count; i++) {
        TRY(quant_tick(context));
        TRY(quant_fail(&jobs[i], fp8_range_linear(context, &jobs[i], &made[i])));
    }
    fp8_share_ranges(jobs, made, count);
    for (int i = 0; i < count; i++) {
        TRY(quant_fail(&jobs[i], fp8_encode_linear(context, &jobs[i], &made[i])));
    }
    for (int i = 0; i < count; i++) {
        jobs[i].result = qtensor_move(&made[i]);
        jobs[i].loss = NAN;
        jobs[i].seconds = (clock_monotonic_seconds() - start) / count;
    }
    return 0;
}

static bool fp8_data_free(const void *params)
{
    return ((const struct fp8_params *)params)->activation_scheme != FP8_STATIC;
}

static bool fp8_rows_alone(const void *params, int64_t cols)
{
    (void)cols;
    return ((const struct fp8_params *)params)->granularity == FP8_CHANNEL && fp8_data_free(params);
}

static int fp8_solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                     int count)
{
    AUTO_FREE struct qtensor *made = NULL;

    (void)stats;
    TRY(mem_array(&made, (size_t)count));
    int rc = fp8_solve_all(context, jobs, made, count);
    for (int i = 0; i < count; i++) {
        qtensor_deinit(&made[i]);
    }
    return rc;
}

static const struct params_row fp8_rows[] = {
    QUANT_ROW(PARAMS_ENUM, fp8_params, fmt, "\"e4m3\"", .choices = fmt_names,
              .help = "Number format of the weights; e5m2 is for storage alone."),
    QUANT_ROW(PARAMS_ENUM, fp8_params, granularity, "\"per_channel\"", .choices = granularity_names,
              .help = "What shares a scale: the complete weight, an output channel, or a square block."),
    QUANT_ROW(PARAMS_ENUM, fp8_params, activation_scheme, "\"dynamic\"", .choices = activation_names,
              .help = "Inputs: left alone, one scale for each token at run time, or one calibrated scale."),
    QUANT_INPUT_RANGE_ROW(fp8_params),
    QUANT_ROW(PARAMS_INT, fp8_params, weight_block_size, "128", .choices = block_choices,
              .help = "Side of a block when granularity is block."),
    {.name = NULL},
};

static const struct params_row *const fp8_params_tables[] = {quant_base_rows, quant_input_rows, fp8_rows, NULL};

const struct quantizer quantizer_fp8 = {
    .name = "fp8",
    .title = "FP8",
    .help = "Eight-bit floating point weights, E4M3, and inputs to go with them: almost no loss, half the bytes, and "
            "products in eight bits on recent hardware. Calibration is needed for static input scales alone "
            "(Micikevicius et al. 2022, arXiv 2209.05433).",
    .stats = STATS_NONE,
    .data_free = fp8_data_free,
    .rows_alone = fp8_rows_alone,
    .params = fp8_params_tables,
    .params_size = sizeof(struct fp8_params),
    .check = fp8_check,
    .scheme = fp8_scheme,
    .solve = fp8_solve,
};
