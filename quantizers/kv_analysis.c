/* The errors of each way to store keys and values, measured on the calibration inputs of every block:
 *
 *   fp8_e4m3, int8   static scales, per tensor or per head, absmax / 448 or / 127 over all calibration tokens
 *   int4_per_token   each head of each token on its own asymmetric grid
 *   kivi4, kivi2     keys by channel in groups of tokens, values by token in groups of channels, the newest tokens in
 *                    float (Liu et al. 2024, KIVI, arXiv 2402.02750)
 *
 * The errors are ||x - xq||^2 / ||x||^2 of keys, values, scores q k^T, weights softmax(q k^T / sqrt(d)) and attention's
 * output, measured on the job's device, in F32 on each. */

#include "quantizers/common.h"

#include "base/err.h"
#include "models/cache.h"
#include "quantizers/analysis.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct analysis_params {
    struct quant_base base;
    int64_t group_size, residual_length, max_tokens;
};

struct candidate {
    const char *name;
    enum dtype element; /* with static scales; U8: asymmetric */
    bool per_head;
    int bits;  /* asymmetric */
    bool kivi; /* else each head of each token has its own grid */
};

static const struct candidate candidates[] = {
    {"fp8_e4m3_per_tensor", DTYPE_F8_E4M3, false, 8, false},
    {"fp8_e4m3_per_head", DTYPE_F8_E4M3, true, 8, false},
    {"int8_per_tensor", DTYPE_I8, false, 8, false},
    {"int8_per_head", DTYPE_I8, true, 8, false},
    {"int4_per_token", DTYPE_U8, false, 4, false},
    {"kivi4", DTYPE_U8, false, 4, true},
    {"kivi2", DTYPE_U8, false, 2, true},
};
#define CANDIDATES (sizeof(candidates) / sizeof(candidates[0]))

/* One candidate on one block. */
struct trial {
    struct gpu_cache keys, values;
    struct tensor key_scale, value_scale;
    struct cache_scales scales;
    int64_t recent;
    struct gpu_attention_error error;
    struct gpu_residual key, value; /* sums of squares only */
};

struct analysis {
    const struct rewrite_context *context;
    const struct analysis_params *params;
    const struct plan_attention *attention;
    const struct gpu *gpu;
    struct gpu_stream *stream;
    struct tensor kq, vq;
    struct trial trials[CANDIDATES];
    int64_t tokens; /* measured */
};

static void analysis_deinit(struct analysis *a)
{
    for (size_t i = 0; i < CANDIDATES; i++) {
        cache_scales_deinit(&a->trials[i].scales);
        gpu_tensor_free(a->gpu, &a->trials[i].key_scale);
        gpu_tensor_free(a->gpu, &a->trials[i].value_scale);
    }
    gpu_tensor_free(a->gpu, &a->kq);
    gpu_tensor_free(a->gpu, &a->vq);
}
CLEANUP_DEINIT(analysis, struct analysis, analysis_deinit)

/* Queries, keys and values of micro-batch i. */
static int analysis_batch_heads(const struct analysis *a, int64_t i, struct block_heads *heads)
{
    const struct rewrite_context *context = a->context;
    struct block_values values;

    TRY(context->tick != NULL ? context->tick(context->tick_data) : 0);
    TRY(context->input(context->input_data, i, &values));
    return block_attention_heads(context->block, &values, PLAN_BIT(context->group->input), heads);
}

static int analysis_place_scales(struct analysis *a, struct tensor *tensor, struct gpu_cache *cache,
                                 const float *scales, int64_t count, int64_t columns, enum dtype element)
{
    *cache = (struct gpu_cache){.element = element, .scale = tensor, .group_size = columns / count};
    return gpu_tensor_from_host(a->gpu, a->stream, DTYPE_F32, 1, &count, scales, tensor);
}

static int analysis_set_up(struct analysis *a, const struct candidate *c, const struct cache_ranges *ranges,
                           struct trial *t)
{
    const struct rewrite_context *context = a->context;
    const struct cache_scheme scheme = {c->element, c->per_head};
    int64_t dim = a->attention->head_dim, value_dim = a->attention->value_dim, group = a->params->group_size;
    int64_t heads = a->attention->kv_heads, count;

    if (c->element != DTYPE_U8) {
        TRY(cache_scales_make(ranges, a->attention, &scheme, context->weight_dtype, context->gpu, context->stream,
                              &t->scales));
        count = t->scales.count;
        TRY(analysis_place_scales(a, &t->key_scale, &t->keys, t->scales.keys, count, heads * dim, scheme.element));
        return analysis_place_scales(a, &t->value_scale, &t->values, t->scales.values, count, heads * value_dim,
                                     scheme.element);
    }
    t->keys = t->values =
        (struct gpu_cache){.element = DTYPE_U8, .group_size = dim, .bits = c->bits, .tokens = 1, .length = 1};
    t->values.group_size = value_dim;
    if (c->kivi) {
        t->keys.group_size = 1;
        t->keys.tokens = group;
        t->values.group_size = value_dim % group == 0 ? group : value_dim;
        t->recent = a->params->residual_length;
    }
    return 0;
}

/* Ranges over all calibration tokens, then the scales that follow from them. */
static int analysis_set_up_all(struct analysis *a, struct cache_ranges *ranges)
{
    const struct rewrite_context *context = a->context;
    struct block_heads heads;

    TRY(cache_ranges_init(ranges, a->attention, context->gpu));
    for (int64_t i = 0; i < context->batches; i++) {
        TRY(analysis_batch_heads(a, i, &heads));
        TRY(cache_ranges_add(ranges, &heads, context->gpu, context->stream));
    }
    for (size_t c = 0; c < CANDIDATES; c++) {
        TRY(analysis_set_up(a, &candidates[c], ranges, &a->trials[c]));
    }
    return 0;
}

static void analysis_add_squares(struct gpu_residual *sum, const struct gpu_residual *part)
{
    sum->error_sq += part->error_sq;
    sum->weight_sq += part->weight_sq;
    sum->nonfinite += part->nonfinite;
}

static int analysis_measure(struct analysis *a, struct trial *t, const struct block_heads *heads)
{
    const struct gpu_ops *ops = a->gpu->ops;
    struct tensor kq = tensor_2d(a->kq.data, DTYPE_F32, heads->k.shape[0], heads->k.shape[1]);
    struct tensor vq = tensor_2d(a->vq.data, DTYPE_F32, heads->v.shape[0], heads->v.shape[1]);
    struct gpu_residual key, value;

    t->keys.length = t->values.length = heads->spec.length;
    TRY(ops->quantize_cache(a->stream, &kq, &heads->k, &t->keys));
    TRY(ops->quantize_cache(a->stream, &vq, &heads->v, &t->values));
    TRY(ops->residual(a->stream, &key, &heads->k, &kq, NULL, NULL, NULL));
    TRY(ops->residual(a->stream, &value, &heads->v, &vq, NULL, NULL, NULL));
    TRY(ops->attention_error(a->stream, &t->error, &heads->q, &heads->k, &heads->v, &kq, &vq, &heads->spec, t->recent));
    analysis_add_squares(&t->key, &key);
    analysis_add_squares(&t->value, &value);
    return 0;
}

static int analysis_measure_batch(struct analysis *a, int64_t i)
{
    struct block_heads heads;

    TRY(analysis_batch_heads(a, i, &heads));
    if (a->kq.data == NULL) { /* the first micro-batch is the largest */
        TRY(gpu_tensor_new(a->gpu, DTYPE_F32, 2, heads.k.shape, &a->kq));
        TRY(gpu_tensor_new(a->gpu, DTYPE_F32, 2, heads.v.shape, &a->vq));
    }
    for (size_t c = 0; c < CANDIDATES; c++) {
        TRY(analysis_measure(a, &a->trials[c], &heads));
    }
    a->tokens += heads.q.shape[0];
    return 0;
}

static double analysis_ratio(double error, double signal)
{
    double value = signal > 0 ? error / signal : error > 0 ? NAN : 0.0;
    return isfinite(value) ? value : NAN;
}

/* Bits of a key or value with its share of its grid, without the float window. */
static double analysis_stored_bits(const struct trial *t)
{
    const struct gpu_cache *k = &t->keys, *v = &t->values;

    if (k->element != DTYPE_U8) {
        return 8;
    }
    return 0.5 * (k->bits + 32.0 / (double)(k->group_size * k->tokens) + v->bits +
                  32.0 / (double)(v->group_size * v->tokens));
}

static int analysis_add_row(struct analysis *a, size_t c, struct analysis_rows *rows)
{
    struct trial *t = &a->trials[c];
    const struct gpu_attention_error *e = &t->error;
    struct analysis_row *row = analysis_rows_add(rows);

    if (row == NULL) {
        return ERR_HOST_OUT_OF_MEMORY;
    }
    *row = (struct analysis_row){
        .layer = a->context->block->index,
        .bits_per_value = analysis_stored_bits(t),
        .key_relative_mse = analysis_ratio(t->key.error_sq, t->key.weight_sq),
        .value_relative_mse = analysis_ratio(t->value.error_sq, t->value.weight_sq),
        .score_relative_mse = analysis_ratio(e->score_error, e->score_signal),
        .weight_relative_mse = analysis_ratio(e->weight_error, e->weight_signal),
        .output_relative_mse = analysis_ratio(e->output_error, e->output_signal),
        .tokens = a->tokens,
        .scales = t->scales,
    };
    t->scales = (struct cache_scales){0}; /* the row's now */
    snprintf(row->scheme, sizeof(row->scheme), "%s", candidates[c].name);
    return 0;
}

static int analysis_run(const struct rewrite_context *context, struct analysis_rows *rows)
{
    const struct plan *plan = context->block->plan;
    AUTO(analysis)
    struct analysis a = {.context = context,
                         .params = context->params,
                         .attention = &plan->steps[plan_find_step(plan, STEP_ATTENTION)].attention,
                         .gpu = context->gpu,
                         .stream = context->stream};
    struct cache_ranges ranges = {0};

    int rc = analysis_set_up_all(&a, &ranges);
    cache_ranges_deinit(&ranges, context->gpu);
    TRY(rc);
    for (int64_t i = 0; i < context->batches && (i == 0 || a.tokens < a.params->max_tokens); i++) {
        TRY(analysis_measure_batch(&a, i));
    }
    for (size_t c = 0; c < CANDIDATES; c++) {
        TRY(analysis_add_row(&a, c, rows));
    }
    return 0;
}

/* Keys and values of a micro-batch as each candidate has them; attention once for each. */
static void analysis_cost(const void *values, const struct quant_group *group, struct quant_cost *out)
{
    const struct analysis_params *params = values;
    int64_t tokens = group->linear.tokens < params->max_tokens ? group->linear.tokens : params->max_tokens;
    const size_t count = CANDIDATES;

    *out = (struct quant_cost){
        .solving = group->batch_tokens * group->branch * (int64_t)sizeof(float),
        .operations = (double)count * (double)tokens * (3 * group->branch_flops + 20 * (double)group->branch),
    };
}

static void analysis_check(const void *values, const char *pointer, struct validation_errors *errors)
{
    const struct analysis_params *params = values;
    const struct {
        const json_t *value;
        const char *name;
    } idle[] = {{params->base.modules_to_not_convert, "modules_to_not_convert"},
                {params->base.overrides, "overrides"},
                {params->base.kv_cache, "kv_cache"}};
    char at[192];

    for (size_t i = 0; i < sizeof(idle) / sizeof(idle[0]); i++) {
        if (idle[i].value != NULL && !json_is_null(idle[i].value)) {
            snprintf(at, sizeof(at), "%.140s/%s", pointer, idle[i].name);
            validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                           "\"%s\" does nothing here: an analysis looks at every block and changes none", idle[i].name);
            validation_hint(errors, "leave it out");
        }
    }
    if (params->residual_length % params->group_size != 0) {
        snprintf(at, sizeof(at), "%.140s/residual_length", pointer);
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                       "\"residual_length\" is %lld; it must be a multiple of group_size, %lld",
                       (long long)params->residual_length, (long long)params->group_size);
    }
}

static const struct params_row analysis_rows[] = {
    QUANT_ROW(PARAMS_INT, analysis_params, group_size, "32", .min = 1, .max = 4096,
              .help = "KIVI: tokens of a key channel, and channels of a value token, that share a grid."),
    QUANT_ROW(PARAMS_INT, analysis_params, residual_length, "128", .min = 0, .max = 1048576,
              .help = "KIVI: newest tokens that stay in float; sequences that are not longer lose nothing."),
    QUANT_ROW(PARAMS_INT, analysis_params, max_tokens, "32768", .min = 1, .max = 1e9,
              .help = "Calibration tokens to measure errors on; scales come from all of them."),
    {.name = NULL},
};

static const struct params_row *const analysis_params_tables[] = {quant_base_rows, analysis_rows, NULL};

const struct quantizer quantizer_kv_analysis = {
    .name = "kv_analysis",
    .title = "Analysis of the key and value cache",
    .help = "Makes no artifact. For every block the report's \"analysis\" says what keys, values, attention scores, "
            "attention weights and attention's output lose with FP8 and INT8 scales per tensor and per head, with 4 "
            "bits per token, and with KIVI's keys per channel and values per token at 4 and 2 bits, on the calibration "
            "data.",
    .stats = STATS_RANGE,
    .params = analysis_params_tables,
    .params_size = sizeof(struct analysis_params),
    .check = analysis_check,
    .analyse = analysis_run,
    .rewrite_cost = analysis_cost,
};
