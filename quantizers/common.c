/* What every method on an integer grid takes, and the way of one linear through the device.
 *
 * The grid is w = scale * (code - zero), one scale and zero for each group of inputs of a row. Symmetric: the range is
 * 2 absmax / (2^b - 1) wide and zero is 2^(b-1). Scales are rounded to the type in which the artifact stores them
 * before any code is computed, so the codes answer the scales that a loader will see. */

#include "quantizers/common.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>

static const char *const bits_choices[] = {"2", "3", "4", "8", NULL};
static const char *const group_choices[] = {"-1", "32", "64", "128", NULL};

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
    QUANT_ROW(PARAMS_INT, quant_common, bits, "4", .choices = bits_choices, .aliases = quant_bits_names,
              .help = "Bits of a weight's code."),
    QUANT_ROW(PARAMS_INT, quant_common, group_size, "128", .choices = group_choices, .aliases = quant_group_names,
              .help = "Inputs that share a scale; -1 = one scale for each output channel."),
    QUANT_ROW(PARAMS_BOOL, quant_common, sym, "true", .aliases = quant_sym_names,
              .help = "Symmetric grid, zero in its middle; else each group has its own zero point."),
    {.name = NULL},
};

struct expert_calibration quant_experts(const void *params)
{
    const struct quant_base *base = params;

    return (struct expert_calibration){.all = base->calibrate_all_experts,
                                       .min_tokens = base->expert_min_tokens > 1 ? base->expert_min_tokens : 1};
}

int quant_common_scheme(const void *params, int64_t rows, int64_t cols, struct qscheme *out)
{
    const struct quant_common *common = params;
    bool per_channel = common->group_size == -1;
    int64_t group_size = per_channel ? cols : common->group_size;

    if (rows < 1 || cols < 1) {
        return err_raise(ERR_INVALID_MODEL, "a weight is [%lld, %lld]", (long long)rows, (long long)cols);
    }
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

float quant_store_scale(float scale, enum dtype dtype)
{
    float stored = dtype_round(scale, dtype);

    return !isfinite(stored) ? (float)dtype_rows[dtype].max : stored > 0 ? stored : (float)dtype_rows[dtype].min;
}

int quant_tick(const struct solve_context *context)
{
    return context->tick != NULL ? context->tick(context->tick_data) : 0;
}

int quant_check_finite(const struct solve_context *context, const struct linear_job *job)
{
    int64_t index;
    int rc = context->gpu->ops->find_nonfinite(context->stream, &index, job->weight);

    if (rc == 0 && index >= 0) {
        int64_t cols = job->weight->shape[1];
        rc = err_raise(ERR_NON_FINITE_VALUE, "weight [%lld, %lld] of %s is not finite", (long long)(index / cols),
                       (long long)(index % cols), job->name);
    }
    return rc;
}

int quant_check_hessian(const struct solve_context *context, const struct layer_stats *stats, const char *method,
                        const char *name)
{
    int64_t index = -1;

    if (stats == NULL || (stats->flags & STATS_HESSIAN) == 0) {
        return err_set_module(
            err_raise(ERR_INSUFFICIENT_CALIBRATION, "%s needs calibration inputs for %s", method, name), name);
    }
    int rc = context->gpu->ops->find_nonfinite(context->stream, &index, &stats->hessian);
    if (rc == 0 && index >= 0) {
        rc = err_set_module(err_raise(ERR_NON_FINITE_VALUE, "the Hessian of %s is not finite at [%lld, %lld]", name,
                                      (long long)(index / stats->columns), (long long)(index % stats->columns)),
                            name);
        (void)err_set_hint(rc, "the model's activations overflow on the calibration set; check both");
    }
    return rc;
}

int quant_tile_range(const struct solve_context *context, const struct tensor *w, const struct gpu_tiles *spec,
                     struct qtensor *q)
{
    const struct gpu *gpu = context->gpu;
    struct tensor most = {0};

    int rc = gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){q->row_groups, q->groups}, &most);
    rc = rc != 0 ? rc : gpu->ops->tile_range(context->stream, &most, w, spec);
    rc = rc != 0 ? rc : gpu->ops->download(context->stream, q->scales, most.data, tensor_bytes(&most));
    gpu_tensor_free(gpu, &most);
    return rc;
}

int quant_tile_encode(const struct solve_context *context, const struct tensor *w, const struct gpu_tiles *spec,
                      struct qtensor *q)
{
    const struct gpu *gpu = context->gpu;
    struct tensor scale = {0}, codes = {0};

    int rc = gpu_tensor_from_host(gpu, context->stream, DTYPE_F32, 2, (const int64_t[]){q->row_groups, q->groups},
                                  q->scales, &scale);
    rc = rc != 0 ? rc : gpu_tensor_uninitialized(gpu, DTYPE_U8, 2, w->shape, &codes);
    rc = rc != 0 ? rc : gpu->ops->tile_encode(context->stream, &codes, w, &scale, spec);
    rc = rc != 0 ? rc : gpu->ops->download(context->stream, q->codes, codes.data, tensor_bytes(&codes));
    gpu_tensor_free(gpu, &scale);
    gpu_tensor_free(gpu, &codes);
    return rc;
}

int quant_work_init(const struct solve_context *context, const struct linear_job *job, struct quant_work *work)
{
    const struct gpu *gpu = context->gpu;
    int64_t rows = job->weight->shape[0], cols = job->weight->shape[1];
    struct quant_work made = {.grid = quant_common_grid(job->params, cols, context->scale_dtype)};

    *work = made;
    int rc = quant_common_scheme(job->params, rows, cols, &made.scheme);
    if (rc != 0) {
        return rc;
    }
    made.scheme.scale_dtype = context->scale_dtype;
    const int64_t shape[2] = {rows, cols}, groups[2] = {rows, cols / made.scheme.group_size};
    rc = quant_check_finite(context, job);
    rc = rc != 0 ? rc : gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, shape, &made.w);
    rc = rc != 0 ? rc : gpu_tensor_uninitialized(gpu, DTYPE_U8, 2, shape, &made.codes);
    rc = rc != 0 ? rc : gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, groups, &made.scale);
    rc = rc != 0 ? rc : gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, groups, &made.zero);
    rc = rc != 0 ? rc : gpu->ops->convert(context->stream, &made.w, job->weight);
    *work = made;
    return rc;
}

void quant_work_deinit(struct quant_work *work, const struct gpu *gpu)
{
    gpu_tensor_free(gpu, &work->w);
    gpu_tensor_free(gpu, &work->codes);
    gpu_tensor_free(gpu, &work->scale);
    gpu_tensor_free(gpu, &work->zero);
}

int quant_work_dequantize(const struct solve_context *context, struct quant_work *work)
{
    work->rounded = true;
    return context->gpu->ops->dequantize(context->stream, &work->w, &work->codes, &work->scale, &work->zero,
                                         &work->grid);
}

int quant_work_round(const struct solve_context *context, struct quant_work *work)
{
    int rc = context->gpu->ops->round(context->stream, &work->codes, &work->w, &work->scale, &work->zero, &work->grid);

    return rc != 0 ? rc : quant_work_dequantize(context, work);
}

static int take_zeros(const struct solve_context *context, const struct quant_work *work, struct qtensor *q)
{
    size_t count = (size_t)q->rows * (size_t)q->groups;
    float *zeros = malloc(count * sizeof(*zeros));

    if (zeros == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %zu zero points", count);
    }
    int rc = context->gpu->ops->download(context->stream, zeros, work->zero.data, count * sizeof(*zeros));
    for (size_t i = 0; rc == 0 && i < count; i++) {
        q->zeros[i] = (uint8_t)zeros[i];
    }
    free(zeros);
    return rc;
}

static struct tensor move(struct tensor *from)
{
    struct tensor moved = *from;
    *from = (struct tensor){0};
    return moved;
}

static int leave(const struct solve_context *context, struct quant_work *work, struct linear_job *job)
{
    int rc = work->rounded ? 0 : quant_work_dequantize(context, work);

    if (rc == 0) {
        job->codes = move(&work->codes);
        job->scale = move(&work->scale);
        job->zero = move(&work->zero);
        job->dequantized = move(&work->w);
    }
    return rc;
}

int quant_work_take(const struct solve_context *context, struct quant_work *work, struct linear_job *job)
{
    const struct gpu_ops *ops = context->gpu->ops;
    struct qtensor q = {0};

    int rc = qtensor_new(job->name, &work->scheme, work->w.shape[0], work->w.shape[1], &q);
    if (rc == 0 && !context->on_device) {
        rc = ops->download(context->stream, q.codes, work->codes.data, tensor_bytes(&work->codes));
    }
    rc = rc != 0 ? rc : ops->download(context->stream, q.scales, work->scale.data, tensor_bytes(&work->scale));
    rc = rc != 0 ? rc : take_zeros(context, work, &q);
    rc = rc != 0 || !context->on_device ? rc : leave(context, work, job);
    if (rc != 0) {
        qtensor_deinit(&q);
        return err_set_module(err_pass(rc, "take %s", job->name), job->name);
    }
    job->result = q;
    return 0;
}

int quant_each(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs, int count,
               int (*one)(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *job))
{
    int rc = 0;

    for (int i = 0; rc == 0 && i < count; i++) {
        rc = quant_tick(context);
        rc = rc != 0 ? rc : one(context, stats, &jobs[i]);
    }
    return rc;
}
