/* k-means: weights as indices into learned tables.
 *
 * With in_group_size 1 each row has a table of 2^bits values that lose least in sum f_j (w_j - c_a(j))^2 (SqueezeLLM,
 * Kim et al. 2023, arXiv 2306.07629, with the optimum in place of a search from random starts). f_j is diag H, the
 * energy of input j on the calibration set, or 1. Optionally a share of the weights is kept apart in sparse form: a
 * ninth of it those that would cost most, f_j w^2, the rest the largest, which is the paper's .05 % and .40 % of .45 %.
 *
 * With larger groups the tables hold vectors and belong to the whole linear: residual k-means with num_codebooks
 * stages, of bits * in_group_size / num_codebooks bits each, then codes chosen anew, all codebooks of a group together,
 * for the tables as they are stored. */

#include "quantizers/codebooks.h"

#include "base/err.h"
#include "base/ids.h"

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
    struct tensor table, codes, importance, apart; /* the last two without data when not in use */
    float *weight;                                 /* host [N,K] */
    uint8_t *outlier;                              /* host [N,K], or NULL */
    int64_t outliers;
};

static int scheme(const void *values, int64_t rows, int64_t cols, struct qscheme *out)
{
    const struct kmeans_params *params = values;
    int64_t g = params->in_group_size, bits = params->bits * g;

    if (rows < 1 || cols < 1) {
        return err_raise(ERR_INVALID_MODEL, "a weight is [%lld, %lld]", (long long)rows, (long long)cols);
    }
    if (g == 1) {
        *out = (struct qscheme){.kind = QTENSOR_TABLE,
                                .bits = (int)params->bits,
                                .group_size = cols,
                                .per_channel = true,
                                .scale_dtype = DTYPE_F32};
        return 0;
    }
    if (cols % g != 0) {
        int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS, "in_group_size %lld does not divide %lld inputs", (long long)g,
                           (long long)cols);
        (void)err_set_param(rc, "in_group_size");
        return err_set_hint(rc, "a smaller in_group_size");
    }
    *out = (struct qscheme){.kind = QTENSOR_CODEBOOKS,
                            .bits = (int)(bits / params->num_codebooks),
                            .group_size = g,
                            .group_rows = 1,
                            .codebooks = (int)params->num_codebooks,
                            .scale_dtype = DTYPE_F32};
    return 0;
}

static void error(struct validation_errors *errors, const char *pointer, const char *name, const char *why)
{
    char at[192];

    snprintf(at, sizeof(at), "%.150s/%s", pointer, name);
    validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at, "%s", why);
}

static void check(const void *values, const char *pointer, struct validation_errors *errors)
{
    const struct kmeans_params *params = values;
    int64_t bits = params->bits * params->in_group_size;

    quant_base_check(values, pointer, errors);
    if (params->in_group_size == 1) {
        if (params->num_codebooks != 1) {
            error(errors, pointer, "num_codebooks", "\"num_codebooks\" above 1 needs an in_group_size above 1");
        }
        return;
    }
    if (params->outlier_fraction != 0) {
        error(errors, pointer, "outlier_fraction",
              "\"outlier_fraction\" needs in_group_size 1: only tables of values keep weights apart");
    }
    if (bits % params->num_codebooks != 0 || bits / params->num_codebooks > 16) {
        error(errors, pointer, "bits",
              "\"bits\" * in_group_size / num_codebooks are the bits of a code and must be a whole number up to 16");
    }
}

static int64_t element_count(const struct linear_job *job)
{
    return job->weight->shape[0] * job->weight->shape[1];
}

/* The k-th largest of count scores, which are moved about (Hoare 1961, quickselect). */
static float kth_largest(float *scores, int64_t count, int64_t k)
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

static float score_of(float w, const float *diagonal, int64_t column)
{
    return diagonal != NULL ? diagonal[column] * w * w : fabsf(w);
}

/* Mark the `wanted` weights of highest score that are not marked yet, ties by place. scores [N,K] is scratch. */
static void mark(const float *w, int64_t count, int64_t cols, const float *diagonal, int64_t wanted, float *scores,
                 uint8_t *marked)
{
    int64_t left = wanted;

    if (wanted <= 0) {
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        scores[i] = marked[i] != 0 ? -1.0f : score_of(w[i], diagonal, i % cols);
    }
    float least = kth_largest(scores, count, wanted);
    for (int pass = 0; pass < 2; pass++) { /* those above, then those at the limit */
        for (int64_t i = 0; i < count && left > 0; i++) {
            float score = score_of(w[i], diagonal, i % cols);
            if (marked[i] == 0 && (pass == 0 ? score > least : score == least)) {
                marked[i] = 1;
                left--;
            }
        }
    }
}

static int choose_outliers(const struct solve_context *context, const struct linear_job *job, const float *diagonal,
                           struct tables *t)
{
    const struct kmeans_params *params = job->params;
    int64_t count = element_count(job), cols = job->weight->shape[1];

    t->outliers = (int64_t)(params->outlier_fraction * (double)count);
    if (t->outliers == 0) {
        return 0;
    }
    if (count > INT32_MAX) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "%s has too many weights to index some of them", job->name);
    }
    int64_t sensitive = diagonal != NULL ? (int64_t)(SENSITIVE_SHARE * (double)t->outliers) : 0;
    float *scores = malloc((size_t)count * sizeof(*scores));
    t->outlier = calloc((size_t)count, 1);
    if (scores == NULL || t->outlier == NULL) {
        free(scores);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the outliers of %s", job->name);
    }
    mark(t->weight, count, cols, diagonal, sensitive, scores, t->outlier);
    mark(t->weight, count, cols, NULL, t->outliers - sensitive, scores, t->outlier);
    free(scores);
    return gpu_tensor_from_host(context->gpu, context->stream, DTYPE_U8, 2, job->weight->shape, t->outlier, &t->apart);
}

static int tables_init(const struct solve_context *context, const struct linear_job *job, const float *diagonal,
                       struct tables *t)
{
    const struct kmeans_params *params = job->params;
    const struct gpu *gpu = context->gpu;
    int64_t cols = job->weight->shape[1];

    t->weight = malloc(tensor_bytes(job->weight));
    if (t->weight == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the weight of %s", job->name);
    }
    int rc = gpu_tensor_new(gpu, DTYPE_U8, 2, job->weight->shape, &t->codes);
    rc = rc != 0 ? rc
                 : gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){job->weight->shape[0], 1 << params->bits},
                                  &t->table);
    rc = rc != 0 ? rc : gpu->ops->download(context->stream, t->weight, job->weight->data, tensor_bytes(job->weight));
    if (rc == 0 && diagonal != NULL) {
        rc = gpu_tensor_from_host(gpu, context->stream, DTYPE_F32, 1, &cols, diagonal, &t->importance);
    }
    return rc != 0 ? rc : choose_outliers(context, job, diagonal, t);
}

static void tables_deinit(struct tables *t, const struct gpu *gpu)
{
    gpu_tensor_free(gpu, &t->table);
    gpu_tensor_free(gpu, &t->codes);
    gpu_tensor_free(gpu, &t->importance);
    gpu_tensor_free(gpu, &t->apart);
    free(t->weight);
    free(t->outlier);
}

static int take_outliers(const struct solve_context *context, const struct tables *t, struct qtensor *q)
{
    int64_t at = 0;
    int rc = t->outliers > 0 ? qtensor_reserve_index(q, t->outliers) : 0;

    for (int64_t i = 0; rc == 0 && t->outliers > 0 && i < q->rows * q->cols; i++) {
        if (t->outlier[i] != 0) {
            q->index[at] = (int32_t)i;
            q->values[at++] = codebooks_stored(t->weight[i], context->scale_dtype);
        }
    }
    return rc;
}

/* sum f_j (w - what the reader sees)^2, after all rounding. */
static int final_loss(const struct tables *t, const float *diagonal, const struct qtensor *q, double *loss)
{
    float *wq = malloc((size_t)(q->rows * q->cols) * sizeof(*wq));
    double sum = 0;

    if (wq == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the weight of %s", q->name);
    }
    qtensor_dequantize(q, wq);
    for (int64_t i = 0; i < q->rows * q->cols; i++) {
        double error = (double)t->weight[i] - (double)wq[i];
        sum += (diagonal != NULL ? (double)diagonal[i % q->cols] : 1.0) * error * error;
    }
    free(wq);
    *loss = sum;
    return 0;
}

static int tables_take(const struct solve_context *context, const struct tables *t, const float *diagonal,
                       struct linear_job *job)
{
    const struct gpu_ops *ops = context->gpu->ops;
    struct qtensor q = {0};
    struct qscheme s;

    int rc = scheme(job->params, job->weight->shape[0], job->weight->shape[1], &s);
    s.scale_dtype = context->scale_dtype;
    rc = rc != 0 ? rc : qtensor_new(job->name, &s, job->weight->shape[0], job->weight->shape[1], &q);
    rc = rc != 0 ? rc : ops->download(context->stream, q.codes, t->codes.data, tensor_bytes(&t->codes));
    rc = rc != 0 ? rc : ops->download(context->stream, q.tables, t->table.data, tensor_bytes(&t->table));
    rc = rc != 0 ? rc : take_outliers(context, t, &q);
    rc = rc != 0 ? rc : final_loss(t, diagonal, &q, &job->loss);
    if (rc != 0) {
        qtensor_deinit(&q);
        return err_set_module(err_pass(rc, "take %s", job->name), job->name);
    }
    if (t->outliers > 0) {
        snprintf(job->note, sizeof(job->note), "%lld weights apart", (long long)t->outliers);
    }
    job->result = q;
    return 0;
}

static int solve_rows(const struct solve_context *context, const float *diagonal, struct linear_job *job)
{
    const struct kmeans_params *params = job->params;
    struct tables t = {0};

    int rc = quant_check_finite(context, job);
    rc = rc != 0 ? rc : tables_init(context, job, diagonal, &t);
    rc = rc != 0 ? rc
                 : context->gpu->ops->cluster_rows(context->stream, &t.table, &t.codes, job->weight,
                                                   t.importance.data != NULL ? &t.importance : NULL,
                                                   t.apart.data != NULL ? &t.apart : NULL, (int)params->bits,
                                                   context->scale_dtype);
    rc = rc != 0 ? rc : tables_take(context, &t, diagonal, job);
    tables_deinit(&t, context->gpu);
    return rc;
}

static int solve_vectors(const struct solve_context *context, const float *diagonal, struct linear_job *job)
{
    const struct kmeans_params *params = job->params;
    struct codebooks c = {0};
    struct qscheme s;

    int rc = scheme(params, job->weight->shape[0], job->weight->shape[1], &s);
    if (rc != 0) {
        return rc;
    }
    s.scale_dtype = context->scale_dtype;
    const struct gpu_codebook spec = {
        .codebooks = s.codebooks, .bits = s.bits, .group_size = s.group_size, .beam = GPU_CODE_BEAM_MAX};
    rc = codebooks_init(context, job, &spec, diagonal, &c);
    rc = rc != 0 ? rc : codebooks_start(&c, params->max_iterations);
    rc = rc != 0 ? rc : codebooks_store(&c, NULL);
    rc = rc != 0 ? rc : codebooks_loss(&c, NULL, &job->loss);
    rc = rc != 0 ? rc : codebooks_take(&c, &s, job);
    codebooks_deinit(&c);
    return rc;
}

static int solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                 int count)
{
    float *diagonal = NULL;
    int rc = codebooks_diagonal(context, stats, &diagonal);

    for (int i = 0; rc == 0 && i < count; i++) {
        const struct kmeans_params *params = jobs[i].params;
        const float *f = params->sensitivity_weighted ? diagonal : NULL;
        double start = clock_monotonic_seconds();
        rc = quant_tick(context);
        rc = rc != 0                      ? rc
             : params->in_group_size == 1 ? solve_rows(context, f, &jobs[i])
                                          : solve_vectors(context, f, &jobs[i]);
        jobs[i].seconds = clock_monotonic_seconds() - start;
    }
    free(diagonal);
    return rc;
}

static const char *const bits_choices[] = {"2", "3", "4", "5", "6", "7", "8", NULL};
static const char *const group_choices[] = {"1", "2", "4", "8", "16", NULL};
static const struct params_row kmeans_rows[] = {
    QUANT_ROW(PARAMS_INT, kmeans_params, bits, "4", .choices = bits_choices, .aliases = quant_bits_names,
              .help = "Bits of codes for each weight: a row has 2^bits values."),
    QUANT_ROW(PARAMS_INT, kmeans_params, in_group_size, "1", .choices = group_choices,
              .help =
                  "Inputs that share a code. 1: a table of values for each row; else tables of vectors for the whole "
                  "linear."),
    QUANT_ROW(PARAMS_INT, kmeans_params, num_codebooks, "1", .min = 1, .max = GPU_CODE_BOOKS_MAX,
              .help = "Tables whose vectors are added, each with bits * in_group_size / num_codebooks bits a code."),
    QUANT_ROW(PARAMS_BOOL, kmeans_params, sensitivity_weighted, "true",
              .help = "Weigh errors by the energy of their inputs when there is calibration data."),
    QUANT_ROW(PARAMS_INT, kmeans_params, max_iterations, "50", .min = 1, .max = 1000,
              .help = "Rounds of k-means for vectors, at most; tables of values are exact and need none."),
    QUANT_ROW(PARAMS_NUMBER, kmeans_params, outlier_fraction, "0", .min = 0, .max = 0.05,
              .help =
                  "Share of the weights kept apart from the tables: a ninth for being sensitive, the rest for being "
                  "large; 0.0045 is SqueezeLLM's."),
    {.name = NULL},
};

static const struct params_row *const kmeans_tables[] = {quant_base_rows, kmeans_rows, NULL};

const struct quantizer quantizer_kmeans = {
    .name = "kmeans",
    .title = "k-means",
    .help =
        "Gives each row the table of values that loses least, exactly, with errors weighed by the energy of their "
        "inputs (after SqueezeLLM, Kim et al. 2023, arXiv 2306.07629); or the whole linear tables of vectors. Better "
        "than a grid at 2 to 4 bits where a runtime can look values up; works without calibration data, better "
        "with it.",
    .stats = STATS_NONE,
    .params = kmeans_tables,
    .params_size = sizeof(struct kmeans_params),
    .check = check,
    .scheme = scheme,
    .solve = solve,
};
