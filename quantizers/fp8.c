/* FP8: eight-bit floating point weights, for runtimes that multiply in it (Micikevicius et al. 2022, arXiv 2209.05433).
 *
 * E4M3 has 448 as its largest value and keeps a relative error of at most 2^-4 over four decades, so a plain scale
 * absmax / 448 is all that is chosen: one for the whole weight, one for each output channel, or one for each square
 * block; blocks at the right and lower edge are what is left of the weight. E5M2 (57344, three significant bits) is for
 * storage: no runtime here multiplies weights in it.
 *
 * Linears that a runtime loads as one (q, k and v; gate and up) share the scale of a whole weight, since the runtime
 * would otherwise bring them to the largest of theirs and round all codes a second time. They are the ones that read
 * the same input, hence the jobs of one call. */

#include "quantizers/common.h"

#include "base/err.h"
#include "base/ids.h"

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

static void check(const void *params, const char *pointer, struct validation_errors *errors)
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
                       "weights in blocks go with inputs in runs of the same width, which have no static scale");
        validation_hint(errors, "activation_scheme dynamic or none, or another granularity");
    }
}

static int scheme(const void *params, int64_t rows, int64_t cols, struct qscheme *out)
{
    const struct fp8_params *p = params;
    bool block = p->granularity == FP8_BLOCK;
    int64_t size = p->weight_block_size;

    if (rows < 1 || cols < 1) {
        return err_raise(ERR_INVALID_MODEL, "a weight is [%lld, %lld]", (long long)rows, (long long)cols);
    }
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

/* Shape and ranges of one linear: the largest magnitude of each scale's weights into q->scales. */
static int range_linear(const struct solve_context *context, const struct linear_job *job, struct qtensor *q)
{
    struct qscheme made = {0};

    int rc = scheme(job->params, job->weight->shape[0], job->weight->shape[1], &made);
    made.scale_dtype = context->scale_dtype;
    const struct gpu_tiles tiles = qtensor_tiles(&made);
    rc = rc != 0 ? rc : quant_check_finite(context, job);
    rc = rc != 0 ? rc : qtensor_new(job->name, &made, job->weight->shape[0], job->weight->shape[1], q);
    return rc != 0 ? rc : quant_tile_range(context, job->weight, &tiles, q);
}

static int encode_linear(const struct solve_context *context, const struct linear_job *job, struct qtensor *q)
{
    const struct gpu_tiles tiles = qtensor_tiles(&q->scheme);
    float largest = (float)dtype_rows[q->scheme.element].max;

    for (int64_t i = 0; i < q->row_groups * q->groups; i++) {
        q->scales[i] = q->scales[i] == 0 ? 1.0f : quant_store_scale(q->scales[i] / largest, q->scheme.scale_dtype);
    }
    return quant_tile_encode(context, job->weight, &tiles, q);
}

static bool is_whole(const struct linear_job *job)
{
    return ((const struct fp8_params *)job->params)->granularity == FP8_TENSOR;
}

static void share_ranges(const struct linear_job *jobs, struct qtensor *made, int count)
{
    float most = 0;

    for (int i = 0; i < count; i++) {
        most = is_whole(&jobs[i]) && made[i].scales[0] > most ? made[i].scales[0] : most;
    }
    for (int i = 0; i < count; i++) {
        if (is_whole(&jobs[i])) {
            made[i].scales[0] = most;
        }
    }
}

static int solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                 int count)
{
    struct qtensor *made = calloc((size_t)count, sizeof(*made));
    int rc = made == NULL ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %d linears", count) : 0;
    double start = clock_monotonic_seconds();

    (void)stats;
    for (int i = 0; rc == 0 && i < count; i++) {
        rc = quant_tick(context);
        rc = rc != 0 ? rc : range_linear(context, &jobs[i], &made[i]);
    }
    if (rc == 0) {
        share_ranges(jobs, made, count);
    }
    for (int i = 0; rc == 0 && i < count; i++) {
        rc = encode_linear(context, &jobs[i], &made[i]);
    }
    for (int i = 0; made != NULL && i < count; i++) {
        if (rc == 0) {
            jobs[i].result = made[i];
            jobs[i].loss = NAN;
            jobs[i].seconds = (clock_monotonic_seconds() - start) / count;
        } else {
            qtensor_deinit(&made[i]);
        }
    }
    free(made);
    return rc;
}

static const struct params_row fp8_rows[] = {
    QUANT_ROW(PARAMS_ENUM, fp8_params, fmt, "\"e4m3\"", .choices = fmt_names,
              .help = "Number format of the weights; e5m2 is for storage alone."),
    QUANT_ROW(PARAMS_ENUM, fp8_params, granularity, "\"per_channel\"", .choices = granularity_names,
              .help = "What shares a scale: a whole weight, an output channel, or a square block."),
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
    .params = fp8_params_tables,
    .params_size = sizeof(struct fp8_params),
    .check = check,
    .scheme = scheme,
    .solve = solve,
};
