/* What every method on an integer grid takes, and the device memory of one linear.
 *
 * The grid is w = scale * (code - zero), one scale and zero for each group of inputs of a row. Symmetric: the range is
 * 2 absmax / (2^b - 1) wide and zero is 2^(b-1). Scales are rounded to the type in which the artifact stores them
 * before any code is computed, so the codes answer the scales that a loader will see. */

#include "quantizers/common.h"

#include "base/err.h"
#include "base/mem.h"

#include <math.h>

const char *const quant_bits_choices[] = {"2", "3", "4", "5", "6", "8", NULL};
const char *const quant_group_choices[] = {"-1", "32", "64", "128", NULL};

const char *const quant_bits_names[] = {"num_bits", "w_bit", "wbits", "nbits", NULL};
const char *const quant_group_names[] = {"q_group_size", NULL};
const char *const quant_sym_names[] = {"symmetric", "!zero_point", NULL};
static const char *const skip_names[] = {"ignore", "ignored_layers", "llm_int8_skip_modules", NULL};

const struct params_row quant_base_rows[] = {
    QUANT_ROW(PARAMS_STRINGS, quant_base, modules_to_not_convert, "null", .aliases = skip_names,
              .help = "Modules left in float: paths, path endings, globs, or regular expressions after \"re:\"."),
    QUANT_ROW(PARAMS_JSON, quant_base, overrides, "null",
              .help =
                  "Other parameters for some modules: a list of {\"match\", \"skip\" or parameters}, where the last "
                  "match wins and match is written as in modules_to_not_convert."),
    QUANT_ROW(PARAMS_JSON, quant_base, kv_cache, "null",
              .help = "Calibrated scales for a quantized key and value cache: {\"dtype\": \"fp8_e4m3\" or \"int8\", "
                      "\"granularity\": \"per_tensor\" or \"per_head\"}."),
    QUANT_ROW(PARAMS_JSON, quant_base, mixed_precision, "null", .quiet = true,
              .help = "Choose among several widths for each linear, such that the loss is the smallest under a budget: "
                      "{\"bits_per_weight\": 3.5}, {\"max_bytes\": ...} or {\"decode_milliseconds\", "
                      "\"memory_bandwidth\"}, with \"candidates\" where they are not all widths of the method."),
    QUANT_ROW(PARAMS_BOOL, quant_base, calibrate_all_experts, "false", .quiet = true,
              .help = "In models with experts, calibrate each expert with every token rather than with those that are "
                      "routed to it."),
    QUANT_ROW(PARAMS_INT, quant_base, expert_min_tokens, "256", .quiet = true, .min = 0, .max = 1e9,
              .help = "An expert that fewer calibration tokens are routed to gets statistics shrunk to those of all "
                      "tokens; its row of the report says so."),
    {.name = NULL},
};

const struct params_row quant_input_rows[] = {
    QUANT_ROW(PARAMS_STRINGS, quant_base, float_inputs, "null",
              .help = "Modules whose inputs stay as they are while their weights are quantized: patterns as in "
                      "modules_to_not_convert."),
    {.name = NULL},
};

const char *const quant_input_range_names[] = {"output_error", "absmax", NULL};

const struct params_row quant_common_rows[] = {
    QUANT_GRID_ROWS("true"),
    {.name = NULL},
};

struct expert_calibration quant_experts(const void *params)
{
    const struct quant_base *base = params;

    return (struct expert_calibration){.all = base->calibrate_all_experts,
                                       .min_tokens = base->expert_min_tokens > 1 ? base->expert_min_tokens : 1};
}

int quant_check_shape(int64_t rows, int64_t cols)
{
    if (rows < 1 || cols < 1) {
        return err_raise(ERR_INVALID_MODEL, "a weight is [%lld, %lld]", (long long)rows, (long long)cols);
    }
    return 0;
}

int quant_common_scheme(const void *params, int64_t rows, int64_t cols, struct qscheme *out)
{
    const struct quant_common *common = params;
    bool per_channel = common->group_size == -1;
    int64_t group_size = per_channel ? cols : common->group_size;

    TRY(quant_check_shape(rows, cols));
    if (cols % group_size != 0) {
        int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS, "group_size %lld does not divide %lld inputs",
                           (long long)group_size, (long long)cols);
        (void)err_set_param(rc, "group_size");
        return err_set_hint(rc, "a smaller group_size, or -1");
    }
    *out = (struct qscheme){.kind = QTENSOR_INT,
                            .bits = (int)common->bits,
                            .group_size = group_size,
                            .per_channel = per_channel,
                            .sym = common->sym,
                            .scale_dtype = DTYPE_F32};
    return 0;
}

void quant_base_check(const void *params, const char *pointer, struct validation_errors *errors)
{
    const struct quant_base *common = params;
    size_t i;
    json_t *pattern;

    json_array_foreach(common->modules_to_not_convert, i, pattern)
    {
        if (json_string_length(pattern) == 0) {
            char at[192];
            snprintf(at, sizeof(at), "%.140s/modules_to_not_convert/%zu", pointer, i);
            validation_add(errors, ERR_INVALID_PARAMETER, at, "an empty pattern names no module");
        }
    }
}

void quant_refuse(struct validation_errors *errors, const char *pointer, const char *name, const char *why)
{
    char at[192];

    snprintf(at, sizeof(at), "%.150s/%s", pointer, name);
    validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at, "%s", why);
}

void quant_output_check(bool output_moments, int64_t output_tokens, const char *pointer,
                        struct validation_errors *errors)
{
    if (!output_moments && output_tokens > 0) {
        quant_refuse(errors, pointer, "output_tokens",
                     "\"output_tokens\" are those of \"output_moments\", which is false");
        validation_hint(errors, "output_moments true, or leave it out");
    }
}

void quant_common_check(const void *params, const char *pointer, struct validation_errors *errors)
{
    quant_base_check(params, pointer, errors);
}

struct gpu_grid quant_common_grid(const struct quant_common *params, int64_t cols, enum dtype scale_dtype)
{
    return (struct gpu_grid){
        .bits = (int)params->bits,
        .group_size = params->group_size == -1 ? cols : params->group_size,
        .sym = params->sym,
        .signs = params->signed_scales && params->sym,
        .mse = params->mse_search,
        .norm = 2.4,
        .max_shrink = 0.8,
        .steps = 100,
        .scale_dtype = scale_dtype,
    };
}

const struct tensor *rewrite_weight(const struct rewrite_context *context, int i)
{
    return &context->block->modules[context->group->modules[i]].weight;
}

const struct qscheme *rewrite_scheme(const struct rewrite_context *context, int i)
{
    return context->scheme(context->scheme_data, context->group->modules[i]);
}

struct gpu_grid quant_scheme_grid(const struct qscheme *scheme)
{
    return (struct gpu_grid){
        .bits = scheme->bits, .group_size = scheme->group_size, .sym = scheme->sym, .scale_dtype = scheme->scale_dtype};
}

int quant_round_nearest(const struct gpu *gpu, struct gpu_stream *stream, const struct gpu_grid *grid,
                        const struct tensor *w, const struct tensor *codes, const struct tensor *scale,
                        const struct tensor *zero)
{
    TRY(gpu->ops->grid(stream, scale, zero, w, NULL, grid));
    TRY(gpu->ops->round(stream, codes, w, scale, zero, grid));
    return gpu->ops->dequantize(stream, w, codes, scale, zero, grid);
}

float quant_store_scale(float scale, enum dtype dtype)
{
    float stored = dtype_round(scale, dtype);

    return !isfinite(stored) ? (float)dtype_rows[dtype].max : stored > 0 ? stored : (float)dtype_rows[dtype].min;
}

int quant_tick(const struct solve_context *context)
{
    return context->tick != NULL ? context->tick(context->tick_data) : 0;
}

int quant_fail(const struct linear_job *job, int rc)
{
    bool failed = rc != 0 && rc != ERR_CANCELLED && rc != ERR_INTERRUPTED;

    return failed ? err_set_module(err_pass(rc, "solve %s", job->name), job->name) : rc;
}

int quant_check_finite(const struct solve_context *context, const struct linear_job *job)
{
    int64_t index = -1;

    if (job->finite) {
        return 0;
    }
    TRY(context->gpu->ops->find_nonfinite(context->stream, &index, job->weight));
    if (index >= 0) {
        int64_t cols = job->weight->shape[1];
        return err_raise(ERR_NON_FINITE_VALUE, "weight [%lld, %lld] of %s is not finite", (long long)(index / cols),
                         (long long)(index % cols), job->name);
    }
    return 0;
}

int quant_hessian_given(const struct layer_stats *stats, const char *method, const char *name)
{
    if (stats == NULL || (stats->flags & STATS_HESSIAN) == 0) {
        return err_set_module(
            err_raise(ERR_INSUFFICIENT_CALIBRATION, "%s needs calibration inputs for %s", method, name), name);
    }
    return 0;
}

int quant_check_hessian(const struct solve_context *context, const struct layer_stats *stats, const char *method,
                        const char *name)
{
    int64_t index = -1;

    TRY(quant_hessian_given(stats, method, name));
    TRY(context->gpu->ops->find_nonfinite(context->stream, &index, &stats->hessian));
    if (index >= 0) {
        int rc = err_set_module(err_raise(ERR_NON_FINITE_VALUE, "the Hessian of %s is not finite at [%lld, %lld]", name,
                                          (long long)(index / stats->columns), (long long)(index % stats->columns)),
                                name);
        return err_set_hint(rc, "the model's activations overflow on the calibration set; check both");
    }
    return 0;
}

int quant_diagonal(const struct solve_context *context, const struct layer_stats *stats, float **out)
{
    AUTO_FREE float *diagonal = NULL;

    TRY(mem_buffer(&diagonal, (size_t)stats->columns));
    TRY(context->gpu->ops->diagonal(context->stream, diagonal, &stats->hessian));
    *out = MOVE(diagonal);
    return 0;
}

int quant_importance(const struct solve_context *context, const struct layer_stats *stats, struct tensor *out)
{
    AUTO_FREE float *diagonal = NULL;

    TRY(quant_diagonal(context, stats, &diagonal));
    return gpu_tensor_from_host(context->gpu, context->stream, DTYPE_F32, 1, &stats->columns, diagonal, out);
}

/* In host memory they are the result's at once. */
static bool quant_tiles_stay(const struct solve_context *context)
{
    return context->on_device && !context->gpu->info.host_memory;
}

int quant_tile_range(const struct solve_context *context, const struct tensor *w, const struct gpu_tiles *spec,
                     struct qtensor *q)
{
    const struct gpu *gpu = context->gpu;
    AUTO_TENSOR(absmax, gpu);

    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){q->row_groups, q->groups}, &absmax));
    TRY(gpu->ops->tile_range(context->stream, &absmax, w, spec));
    return gpu->ops->download(context->stream, q->scales, absmax.data, tensor_bytes(&absmax));
}

int quant_tile_new(const struct solve_context *context, const char *name, const struct qscheme *scheme, int64_t rows,
                   int64_t cols, struct qtensor *out)
{
    return quant_tiles_stay(context) ? qtensor_new_without_codes(name, scheme, rows, cols, out)
                                     : qtensor_new(name, scheme, rows, cols, out);
}

int quant_tile_encode(const struct solve_context *context, const struct tensor *w, const struct gpu_tiles *spec,
                      struct linear_job *job, struct qtensor *q)
{
    const struct gpu *gpu = context->gpu;
    AUTO_TENSOR(scale, gpu);
    AUTO_TENSOR(codes, gpu);

    TRY(gpu_tensor_from_host(gpu, context->stream, DTYPE_F32, 2, (const int64_t[]){q->row_groups, q->groups}, q->scales,
                             &scale));
    if (gpu->info.host_memory) {
        const struct tensor made = tensor_2d(q->codes, DTYPE_U8, w->shape[0], w->shape[1]);
        return gpu->ops->tile_encode(context->stream, &made, w, &scale, spec);
    }
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_U8, 2, w->shape, &codes));
    TRY(gpu->ops->tile_encode(context->stream, &codes, w, &scale, spec));
    if (quant_tiles_stay(context)) {
        job->codes = tensor_move(&codes);
        return 0;
    }
    return gpu->ops->download(context->stream, q->codes, codes.data, tensor_bytes(&codes));
}

int quant_work_init(const struct solve_context *context, const struct linear_job *job, struct quant_work *work)
{
    const struct gpu *gpu = context->gpu;
    int64_t rows = job->weight->shape[0], cols = job->weight->shape[1];

    *work = (struct quant_work){.gpu = gpu, .grid = quant_common_grid(job->params, cols, context->scale_dtype)};
    TRY(quant_common_scheme(job->params, rows, cols, &work->scheme));
    work->scheme.scale_dtype = context->scale_dtype;
    const int64_t shape[2] = {rows, cols}, groups[2] = {rows, cols / work->scheme.group_size};
    TRY(quant_check_finite(context, job));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, shape, &work->w));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_U8, 2, shape, &work->codes));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, groups, &work->scale));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, groups, &work->zero));
    return gpu->ops->convert(context->stream, &work->w, job->weight);
}

void quant_work_deinit(struct quant_work *work)
{
    if (work->gpu != NULL) {
        gpu_tensor_free(work->gpu, &work->w);
        gpu_tensor_free(work->gpu, &work->codes);
        gpu_tensor_free(work->gpu, &work->scale);
        gpu_tensor_free(work->gpu, &work->zero);
    }
}

int quant_work_dequantize(const struct solve_context *context, struct quant_work *work)
{
    work->rounded = true;
    return context->gpu->ops->dequantize(context->stream, &work->w, &work->codes, &work->scale, &work->zero,
                                         &work->grid);
}

int quant_work_round(const struct solve_context *context, struct quant_work *work)
{
    TRY(context->gpu->ops->round(context->stream, &work->codes, &work->w, &work->scale, &work->zero, &work->grid));
    return quant_work_dequantize(context, work);
}

/* Those of a symmetric grid are all in its middle and need not be fetched. */
static int quant_take_zeros(const struct solve_context *context, const struct quant_work *work, struct qtensor *q)
{
    size_t count = (size_t)q->rows * (size_t)q->groups;
    AUTO_FREE float *zeros = NULL;

    if (work->grid.sym) {
        memset(q->zeros, 1 << (work->grid.bits - 1), count);
        return 0;
    }
    TRY(mem_buffer(&zeros, count));
    TRY(context->gpu->ops->download(context->stream, zeros, work->zero.data, count * sizeof(*zeros)));
    for (size_t i = 0; i < count; i++) {
        q->zeros[i] = (uint8_t)zeros[i];
    }
    return 0;
}

int quant_work_take(const struct solve_context *context, struct quant_work *work, struct linear_job *job)
{
    const struct gpu_ops *ops = context->gpu->ops;
    AUTO(qtensor) struct qtensor q = {0};

    int64_t rows = work->w.shape[0], cols = work->w.shape[1];
    TRY(context->on_device ? qtensor_new_without_codes(job->name, &work->scheme, rows, cols, &q)
                           : qtensor_new(job->name, &work->scheme, rows, cols, &q));
    if (!context->on_device) {
        TRY(ops->download(context->stream, q.codes, work->codes.data, tensor_bytes(&work->codes)));
    } else if (!work->rounded) {
        TRY(quant_work_dequantize(context, work));
    }
    TRY(ops->download(context->stream, q.scales, work->scale.data, tensor_bytes(&work->scale)));
    TRY(quant_take_zeros(context, work, &q));
    if (context->on_device) {
        job->codes = tensor_move(&work->codes);
        job->scale = tensor_move(&work->scale);
        job->zero = tensor_move(&work->zero);
        job->dequantized = tensor_move(&work->w);
    }
    job->result = qtensor_move(&q);
    return 0;
}

int quant_each(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs, int count,
               int (*one)(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *job))
{
    for (int i = 0; i < count; i++) {
        TRY(quant_tick(context));
        TRY(quant_fail(&jobs[i], one(context, stats, &jobs[i])));
    }
    return 0;
}

int64_t quant_group_columns(const struct quant_common *common, int64_t cols)
{
    return common->group_size == -1 ? cols : common->group_size;
}

int64_t quant_work_bytes(const struct quant_shape *shape, int64_t group_size)
{
    int64_t elements = shape->rows * shape->cols;

    return elements * (int64_t)(sizeof(float) + 1) + 2 * (elements / group_size) * (int64_t)sizeof(float);
}

/* Codes of elements, made on the device and brought to the host (quant_tile_encode). */
static void quant_tile_cost(const struct quant_shape *shape, struct quant_cost *out)
{
    int64_t elements = shape->rows * shape->cols;

    *out = (struct quant_cost){.solving = elements, .operations = 10 * (double)elements};
}

struct quant_cost quantizer_cost(const struct quantizer *quantizer, const void *params, const struct quant_shape *shape)
{
    struct quant_cost cost = {0};

    if (quantizer->cost != NULL) {
        quantizer->cost(params, shape, &cost);
    } else {
        quant_tile_cost(shape, &cost);
    }
    return cost;
}
