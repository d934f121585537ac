/* k-means: weights as indices into learned tables.
 *
 * With in_group_size 1 each row has a table of 2^bits values that minimise sum f_j (w_j - c_a(j))^2 (SqueezeLLM, Kim
 * et al. 2023, arXiv 2306.07629, eq. 3, with the optimum in place of a search from random starts). f_j is diag H, the
 * energy of input j on the calibration set, or 1. Optionally a share of the weights is stored in sparse form, in float:
 * a ninth of it those with the largest f_j w^2, the rest the largest, which is the paper's .05 % and .40 % of .45 %.
 *
 * With larger groups the tables hold vectors and are shared by the complete linear: residual k-means with num_codebooks
 * stages, of bits * in_group_size / num_codebooks bits each, then codes chosen again, all codebooks of a group
 * together, for the tables as they are stored. */

#include "quantizers/codebooks.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/mem.h"
#include "gpu/scratch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SENSITIVE_SHARE (0.05 / 0.45) /* of the outliers */

struct kmeans_params {
    struct quant_base base;
    int64_t bits;
    int64_t in_group_size;
    int64_t num_codebooks;
    bool sensitivity_weighted;
    int64_t max_iterations;
    double outlier_fraction;
};

/* A linear with a table for each row. */
struct tables {
    const struct gpu *gpu;
    struct tensor table, codes, importance, mask; /* the last two without data when not in use; mask: U8 [N,K] */
    float *weight;                                /* host [N,K] */
    uint8_t *outlier;                             /* host [N,K], or NULL */
    int64_t outliers;
};

static int kmeans_scheme(const void *values, int64_t rows, int64_t cols, struct qscheme *out)
{
    const struct kmeans_params *params = values;
    int64_t g = params->in_group_size, bits = params->bits * g;

    TRY(quant_check_shape(rows, cols));
    if (g == 1) {
        *out = (struct qscheme){.kind = QTENSOR_TABLE,
                                .bits = (int)params->bits,
                                .group_size = cols,
                                .per_channel = true,
                                .scale_dtype = DTYPE_F32};
        return 0;
    }
    TRY(codebooks_check_group(g, cols));
    *out = (struct qscheme){.kind = QTENSOR_CODEBOOKS,
                            .bits = (int)(bits / params->num_codebooks),
                            .group_size = g,
                            .group_rows = 1,
                            .codebooks = (int)params->num_codebooks,
                            .scale_dtype = DTYPE_F32};
    return 0;
}

static void kmeans_check(const void *values, const char *pointer, struct validation_errors *errors)
{
    const struct kmeans_params *params = values;
    int64_t bits = params->bits * params->in_group_size;

    quant_base_check(values, pointer, errors);
    if (params->in_group_size == 1) {
        if (params->num_codebooks != 1) {
            quant_refuse(errors, pointer, "num_codebooks", "\"num_codebooks\" above 1 needs an in_group_size above 1");
        }
        return;
    }
    if (params->outlier_fraction != 0) {
        quant_refuse(errors, pointer, "outlier_fraction",
                     "\"outlier_fraction\" needs in_group_size 1: outliers can be stored only with tables of values");
    }
    if (bits % params->num_codebooks != 0 || bits / params->num_codebooks > 16) {
        quant_refuse(errors, pointer, "bits",
                     "\"bits\" * in_group_size / num_codebooks are the bits of a code and must be an integer up to 16");
    }
}

static int64_t kmeans_count(const struct linear_job *job)
{
    return job->weight->shape[0] * job->weight->shape[1];
}

/* The k-th largest of count scores, which are moved about (Hoare 1961, quickselect). */
static float kmeans_kth_largest(float *scores, int64_t count, int64_t k)
{
    int64_t low = 0, high = count - 1;

    while (low < high) {
        float pivot = scores[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (scores[i] > pivot) {
                i++;
            }
            while (scores[j] < pivot) {
                j--;
            }
            if (i <= j) {
                float swap = scores[i];
                scores[i++] = scores[j];
                scores[j--] = swap;
            }
        }
        if (k - 1 <= j) {
            high = j;
        } else if (k - 1 >= i) {
            low = i;
        } else {
            break;
        }
    }
    return scores[k - 1];
}

static float kmeans_score(float w, const float *diagonal, int64_t column)
{
    return diagonal != NULL ? diagonal[column] * w * w : fabsf(w);
}

/* Mark the `number` weights of highest score that are not marked yet, ties by position. scores [N,K] is scratch. */
static void kmeans_mark(const float *w, int64_t count, int64_t cols, const float *diagonal, int64_t number,
                        float *scores, uint8_t *marked)
{
    int64_t left = number;

    if (number <= 0) {
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        scores[i] = marked[i] != 0 ? -1.0f : kmeans_score(w[i], diagonal, i % cols);
    }
    float limit = kmeans_kth_largest(scores, count, number);
    for (int pass = 0; pass < 2; pass++) { /* those above, then those at the limit */
        for (int64_t i = 0; i < count && left > 0; i++) {
            float score = kmeans_score(w[i], diagonal, i % cols);
            if (marked[i] == 0 && (pass == 0 ? score > limit : score == limit)) {
                marked[i] = 1;
                left--;
            }
        }
    }
}

static int64_t kmeans_outliers(const void *values, int64_t rows, int64_t cols)
{
    const struct kmeans_params *params = values;

    return (int64_t)(params->outlier_fraction * (double)(rows * cols));
}

static int kmeans_choose_outliers(const struct solve_context *context, const struct linear_job *job,
                                  const float *diagonal, struct tables *t)
{
    const struct kmeans_params *params = job->params;
    int64_t count = kmeans_count(job), cols = job->weight->shape[1];
    AUTO_FREE float *scores = NULL;

    t->outliers = kmeans_outliers(params, job->weight->shape[0], cols);
    if (t->outliers == 0) {
        return 0;
    }
    if (count > INT32_MAX) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "%s has too many weights to index some of them", job->name);
    }
    int64_t sensitive = diagonal != NULL ? (int64_t)(SENSITIVE_SHARE * (double)t->outliers) : 0;
    TRY(mem_buffer(&scores, (size_t)count));
    TRY(mem_array(&t->outlier, (size_t)count));
    kmeans_mark(t->weight, count, cols, diagonal, sensitive, scores, t->outlier);
    kmeans_mark(t->weight, count, cols, NULL, t->outliers - sensitive, scores, t->outlier);
    return gpu_tensor_from_host(context->gpu, context->stream, DTYPE_U8, 2, job->weight->shape, t->outlier, &t->mask);
}

static int kmeans_tables_init(const struct solve_context *context, const struct linear_job *job, const float *diagonal,
                              struct tables *t)
{
    const struct kmeans_params *params = job->params;
    const struct gpu *gpu = context->gpu;
    int64_t rows = job->weight->shape[0], cols = job->weight->shape[1];

    TRY(mem_buffer(&t->weight, (size_t)kmeans_count(job)));
    TRY(gpu_tensor_new(gpu, DTYPE_U8, 2, job->weight->shape, &t->codes));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){rows, 1 << params->bits}, &t->table));
    TRY(gpu->ops->download(context->stream, t->weight, job->weight->data, tensor_bytes(job->weight)));
    if (diagonal != NULL) {
        TRY(gpu_tensor_from_host(gpu, context->stream, DTYPE_F32, 1, &cols, diagonal, &t->importance));
    }
    return kmeans_choose_outliers(context, job, diagonal, t);
}

static void kmeans_tables_deinit(struct tables *t)
{
    gpu_tensor_free(t->gpu, &t->table);
    gpu_tensor_free(t->gpu, &t->codes);
    gpu_tensor_free(t->gpu, &t->importance);
    gpu_tensor_free(t->gpu, &t->mask);
    free(t->weight);
    free(t->outlier);
}
CLEANUP_DEINIT(tables, struct tables, kmeans_tables_deinit)

static int kmeans_take_outliers(const struct solve_context *context, const struct tables *t, struct qtensor *q)
{
    int64_t at = 0;

    if (t->outliers == 0) {
        return 0;
    }
    TRY(qtensor_reserve_index(q, t->outliers));
    for (int64_t i = 0; i < q->rows * q->cols; i++) {
        if (t->outlier[i] != 0) {
            q->index[at] = (int32_t)i;
            q->values[at++] = dtype_round_finite(t->weight[i], context->scale_dtype);
        }
    }
    return 0;
}

/* sum f_j (w - what the reader sees)^2, after all rounding. */
static int kmeans_final_loss(const struct tables *t, const float *diagonal, const struct qtensor *q, double *loss)
{
    AUTO_FREE float *wq = NULL;
    double sum = 0;

    TRY(mem_buffer(&wq, (size_t)(q->rows * q->cols)));
    qtensor_dequantize(q, wq);
    for (int64_t i = 0; i < q->rows * q->cols; i++) {
        double error = (double)t->weight[i] - (double)wq[i];
        sum += (diagonal != NULL ? (double)diagonal[i % q->cols] : 1.0) * error * error;
    }
    *loss = sum;
    return 0;
}

static int kmeans_tables_take(const struct solve_context *context, const struct tables *t, const float *diagonal,
                              struct linear_job *job)
{
    const struct gpu_ops *ops = context->gpu->ops;
    int64_t rows = job->weight->shape[0], cols = job->weight->shape[1];
    AUTO(qtensor) struct qtensor q = {0};
    struct qscheme scheme;

    TRY(kmeans_scheme(job->params, rows, cols, &scheme));
    scheme.scale_dtype = context->scale_dtype;
    TRY(qtensor_new(job->name, &scheme, rows, cols, &q));
    TRY(ops->download(context->stream, q.codes, t->codes.data, tensor_bytes(&t->codes)));
    TRY(ops->download(context->stream, q.tables, t->table.data, tensor_bytes(&t->table)));
    TRY(kmeans_take_outliers(context, t, &q));
    TRY(kmeans_final_loss(t, diagonal, &q, &job->loss));
    if (t->outliers > 0) {
        snprintf(job->note, sizeof(job->note), "%lld weights apart", (long long)t->outliers);
    }
    job->result = qtensor_move(&q);
    return 0;
}

static int kmeans_solve_rows(const struct solve_context *context, const float *diagonal, struct linear_job *job)
{
    const struct kmeans_params *params = job->params;
    AUTO(tables) struct tables t = {.gpu = context->gpu};

    TRY(quant_check_finite(context, job));
    TRY(kmeans_tables_init(context, job, diagonal, &t));
    TRY(context->gpu->ops->cluster_rows(context->stream, &t.table, &t.codes, job->weight,
                                        t.importance.data != NULL ? &t.importance : NULL,
                                        t.mask.data != NULL ? &t.mask : NULL, (int)params->bits, context->scale_dtype));
    return kmeans_tables_take(context, &t, diagonal, job);
}

static int kmeans_solve_vectors(const struct solve_context *context, const float *diagonal, struct linear_job *job)
{
    const struct kmeans_params *params = job->params;
    AUTO(codebooks) struct codebooks c = {0};
    struct qscheme scheme;

    TRY(kmeans_scheme(params, job->weight->shape[0], job->weight->shape[1], &scheme));
    scheme.scale_dtype = context->scale_dtype;
    const struct gpu_codebook spec = {
        .codebooks = scheme.codebooks, .bits = scheme.bits, .group_size = scheme.group_size, .beam = GPU_CODE_BEAM_MAX};
    TRY(codebooks_init(context, job, &spec, diagonal, &c));
    TRY(codebooks_start(&c, params->max_iterations));
    TRY(codebooks_store(&c, NULL));
    TRY(codebooks_loss(&c, NULL, &job->loss));
    return codebooks_take(&c, &scheme, job);
}

static void kmeans_cost(const void *values, const struct quant_shape *shape, struct quant_cost *out)
{
    const struct kmeans_params *params = values;
    int64_t rows = shape->rows, cols = shape->cols, elements = rows * cols, table = (int64_t)1 << params->bits;
    bool apart = params->outlier_fraction > 0;

    if (params->in_group_size > 1) {
        const struct gpu_codebook spec = {.codebooks = (int)params->num_codebooks,
                                          .bits = (int)(params->bits * params->in_group_size / params->num_codebooks),
                                          .group_size = params->in_group_size};
        codebooks_cost(&spec, shape, params->max_iterations, out);
        return;
    }
    *out = (struct quant_cost){
        .solving = elements * (apart ? 2 : 1) + (rows * table + cols) * (int64_t)sizeof(float),
        .scratch = gpu_scratch_cluster(shape->threads, cols, (int)params->bits),
        .host = elements * (int64_t)(2 * sizeof(float) + (apart ? sizeof(float) + 1 : 0)),
        .operations = 8 * (double)elements * (double)table * log2((double)cols + 1),
    };
}

static int kmeans_solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                        int count)
{
    AUTO_FREE float *diagonal = NULL;

    TRY(codebooks_diagonal(context, stats, &diagonal));
    for (int i = 0; i < count; i++) {
        const struct kmeans_params *params = jobs[i].params;
        const float *f = params->sensitivity_weighted ? diagonal : NULL;
        double start = clock_monotonic_seconds();
        TRY(quant_tick(context));
        TRY(quant_fail(&jobs[i], params->in_group_size == 1 ? kmeans_solve_rows(context, f, &jobs[i])
                                                            : kmeans_solve_vectors(context, f, &jobs[i])));
        jobs[i].seconds = clock_monotonic_seconds() - start;
    }
    return 0;
}

static const char *const bits_choices[] = {"2", "3", "4", "5", "6", "7", "8", NULL};
static const char *const group_choices[] = {"1", "2", "4", "8", "16", NULL};
static const struct params_row kmeans_rows[] = {
    QUANT_ROW(PARAMS_INT, kmeans_params, bits, "4", .choices = bits_choices, .aliases = quant_bits_names,
              .help = "Bits of codes for each weight: a row has 2^bits values."),
    QUANT_ROW(
        PARAMS_INT, kmeans_params, in_group_size, "1", .choices = group_choices,
        .help = "Inputs that share a code. 1: a table of values for each row; else tables of vectors for the complete "
                "linear."),
    QUANT_ROW(PARAMS_INT, kmeans_params, num_codebooks, "1", .min = 1, .max = GPU_CODE_BOOKS_MAX,
              .help = "Tables whose vectors are added, each with bits * in_group_size / num_codebooks bits a code."),
    QUANT_ROW(PARAMS_BOOL, kmeans_params, sensitivity_weighted, "true",
              .help = "Weigh errors by the energy of their inputs when there is calibration data."),
    QUANT_ROW(PARAMS_INT, kmeans_params, max_iterations, "50", .min = 1, .max = 1000,
              .help = "Maximum number of k-means iterations for vectors; tables of values are exact and need none."),
    QUANT_ROW(PARAMS_NUMBER, kmeans_params, outlier_fraction, "0", .min = 0, .max = 0.05,
              .help =
                  "Share of the weights stored in float as outliers: a ninth are the most sensitive ones, the rest the "
                  "largest; 0.0045 is SqueezeLLM's."),
    {.name = NULL},
};

static const struct params_row *const kmeans_tables[] = {quant_base_rows, kmeans_rows, NULL};

const struct quantizer quantizer_kmeans = {
    .name = "kmeans",
    .title = "k-means",
    .help =
        "Gives each row the table of values with the smallest error, found exactly, with errors weighed by the energy "
        "of "
        "their inputs (after SqueezeLLM, Kim et al. 2023, arXiv 2306.07629); or each linear tables of vectors. Better "
        "than a grid at 2 to 4 bits where a runtime can look values up; works without calibration data, better "
        "with it.",
    .stats = STATS_NONE,
    .params = kmeans_tables,
    .params_size = sizeof(struct kmeans_params),
    .check = kmeans_check,
    .scheme = kmeans_scheme,
    .solve = kmeans_solve,
    .outliers = kmeans_outliers,
    .cost = kmeans_cost,
};
