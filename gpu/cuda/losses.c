/* What a change costs. Kernels leave one partial a row; rows are added here, in order, in double. */

#include "gpu/cuda/cuda.h"

#include <string.h>

#define ERROR_STRIP 1024 /* columns of H in one product of the output error */

/* Rows of size `element` from the device. *out is the address of a pointer; the caller frees what it points to. */
static int fetch_rows(struct gpu_stream *stream, const void *from, int64_t rows, size_t element, void *out)
{
    AUTO_FREE void *host = NULL;

    TRY(mem_uninitialized(&host, (size_t)rows, element));
    TRY(memory_download(stream, host, from, (size_t)rows * element));
    memcpy(out, &host, sizeof(host));
    host = NULL;
    return 0;
}

static void add_residual(struct gpu_residual *sum, const struct launch_residual_row *row)
{
    sum->error_sq += row->error_sq;
    sum->weight_sq += row->weight_sq;
    sum->dot += row->dot;
    sum->quant_sq += row->quant_sq;
    sum->clipped_sq += row->clipped_sq;
    sum->max_abs = row->max_abs > sum->max_abs ? row->max_abs : sum->max_abs;
    sum->weight_max = row->weight_max > sum->weight_max ? row->weight_max : sum->weight_max;
    sum->clipped += row->clipped;
    sum->nonfinite += row->nonfinite;
}

int cuda_residual(struct gpu_stream *stream, struct gpu_residual *out, const struct tensor *w, const struct tensor *wq,
                  const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec)
{
    SCRATCH_SCOPE(stream);
    struct launch_grid grid = {.bits = 2, .rows = matrix_rows(w), .cols = matrix_cols(w), .group = matrix_cols(w)};
    AUTO_FREE struct launch_residual_row *host = NULL;

    if (scale != NULL) {
        grid.bits = spec->bits;
        grid.group = spec->group_size;
    }
    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, scratch_size(grid.rows, sizeof(*host))));
    struct launch_residual_row *rows = scratch_take(stream, grid.rows, sizeof(*rows));
    TRY(cuda_ok(stream->device,
                launch_residual(rows, w->data, wq->data, scale != NULL ? scale->data : NULL,
                                zero != NULL ? zero->data : NULL, &grid, stream->stream),
                "residual"));
    TRY(fetch_rows(stream, rows, grid.rows, sizeof(*rows), &host));
    struct gpu_residual sum = {0};
    for (int64_t r = 0; r < grid.rows; r++) {
        add_residual(&sum, &host[r]);
    }
    *out = sum;
    return 0;
}

int cuda_distribution(struct gpu_stream *stream, struct gpu_distribution *out, const struct tensor *w, int64_t group)
{
    SCRATCH_SCOPE(stream);
    int64_t count = matrix_rows(w);
    AUTO_FREE struct launch_distribution_row *host = NULL;
    struct gpu_distribution sum = {0};

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, scratch_size(count, sizeof(*host))));
    struct launch_distribution_row *rows = scratch_take(stream, count, sizeof(*rows));
    TRY(cuda_ok(stream->device, launch_distribution(rows, w->data, count, matrix_cols(w), group, stream->stream),
                "distribution"));
    TRY(fetch_rows(stream, rows, count, sizeof(*rows), &host));
    for (int64_t r = 0; r < count; r++) {
        sum.square += host[r].square;
        sum.fourth += host[r].fourth;
        sum.range_sq += host[r].range_sq;
        sum.part_range_sq += host[r].part_range_sq;
        sum.max_to_median = host[r].max_to_median > sum.max_to_median ? host[r].max_to_median : sum.max_to_median;
        sum.far += host[r].far;
    }
    *out = sum;
    return 0;
}

/* out[c] = sum over strips of parts[strip, c], in order. */
static int fetch_columns(struct gpu_stream *stream, const double *parts, int64_t strips, int64_t cols, double *out)
{
    AUTO_FREE double *host = NULL;

    TRY(fetch_rows(stream, parts, strips, (size_t)cols * sizeof(*host), &host));
    memset(out, 0, (size_t)cols * sizeof(*out));
    for (int64_t i = 0; i < strips * cols; i++) {
        out[i % cols] += host[i];
    }
    return 0;
}

int cuda_column_energy(struct gpu_stream *stream, double *signal, double *error, const struct tensor *w,
                       const struct tensor *wq)
{
    SCRATCH_SCOPE(stream);
    int64_t rows = matrix_rows(w), cols = matrix_cols(w);
    int64_t strips = (rows + LAUNCH_ENERGY_ROWS - 1) / LAUNCH_ENERGY_ROWS;

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, 2 * scratch_size(strips * cols, sizeof(double))));
    double *signals = scratch_take(stream, strips * cols, sizeof(double));
    double *errors = scratch_take(stream, strips * cols, sizeof(double));
    TRY(cuda_ok(stream->device, launch_column_energy(signals, errors, w->data, wq->data, rows, cols, stream->stream),
                "column_energy"));
    TRY(fetch_columns(stream, signals, strips, cols, signal));
    return fetch_columns(stream, errors, strips, cols, error);
}

/* sum over rows of d H d^T, for several d. Operands are F32, or pairs of BF16 whose products with each other stand for
 * theirs but for the smallest: the sum is of rows * n * n terms with errors of either sign. */
struct quadratic {
    struct gpu_stream *stream;
    int64_t rows, n;
    const float *h;
    void *left[2], *right[2]; /* d and H as pairs */
    float *product;           /* [rows, n] */
    double *sums;             /* [rows] */
    bool split;
};

/* c = alpha a H[k.., n..] (+ c), at elements a_at of d and b_at of H. */
static int quadratic_multiply(const struct quadratic *job, const float *d, int64_t a_at, int64_t b_at, struct gemm gemm)
{
    static const int terms[3][2] = {{0, 0}, {0, 1}, {1, 0}};
    size_t element = job->split ? 2 : sizeof(float);

    gemm.m = job->rows;
    gemm.lda = gemm.ldb = gemm.ldc = job->n;
    gemm.bf16 = job->split;
    for (int i = 0; i < (job->split ? 3 : 1); i++) {
        const char *a = job->split ? job->left[terms[i][0]] : (const void *)d;
        const char *b = job->split ? job->right[terms[i][1]] : (const void *)job->h;
        gemm.a = a + (size_t)a_at * element;
        gemm.b = b + (size_t)b_at * element;
        TRY(gemm_run(job->stream, &gemm));
        gemm.beta = 1.0f;
    }
    return 0;
}

/* product = d times the part of H on and above the diagonal strips, with what is above them counted twice: H is
 * symmetric, so the row sums of product * d are those of (d H) * d for half the work. */
static int half_product(const struct quadratic *job, const float *d)
{
    int64_t n = job->n;

    for (int64_t first = 0; first < n; first += ERROR_STRIP) {
        int64_t cols = n - first < ERROR_STRIP ? n - first : ERROR_STRIP;
        float *c = job->product + first;
        TRY(quadratic_multiply(job, d, first, first * n + first,
                               (struct gemm){.n = cols, .k = cols, .alpha = 1.0f, .c = c}));
        if (first > 0) {
            TRY(quadratic_multiply(job, d, 0, first,
                                   (struct gemm){.n = cols, .k = first, .alpha = 2.0f, .beta = 1.0f, .c = c}));
        }
    }
    return 0;
}

static int quadratic_sum(const struct quadratic *job, const float *d, double *out)
{
    struct gpu_stream *stream = job->stream;
    AUTO_FREE double *host = NULL;

    if (job->split) {
        TRY(cuda_ok(stream->device, launch_split(job->left[0], job->left[1], d, job->rows * job->n, stream->stream),
                    "output_error"));
    }
    TRY(half_product(job, d));
    TRY(cuda_ok(stream->device, launch_row_dot(job->sums, job->product, d, job->rows, job->n, stream->stream),
                "row sums"));
    TRY(fetch_rows(stream, job->sums, job->rows, sizeof(double), &host));
    *out = 0;
    for (int64_t r = 0; r < job->rows; r++) {
        *out += host[r];
    }
    return 0;
}

/* Scratch for all of it, and H as a pair. *d: [rows, n] for the difference. */
static int quadratic_init(struct quadratic *job, float **d)
{
    int64_t weights = job->rows * job->n, square = job->n * job->n;
    size_t pairs = job->split ? 2 * (scratch_size(weights, 2) + scratch_size(square, 2)) : 0;

    TRY(scratch_reserve(job->stream,
                        2 * scratch_size(weights, sizeof(float)) + scratch_size(job->rows, sizeof(double)) + pairs));
    *d = scratch_take(job->stream, weights, sizeof(float));
    job->product = scratch_take(job->stream, weights, sizeof(float));
    job->sums = scratch_take(job->stream, job->rows, sizeof(double));
    for (int i = 0; job->split && i < 2; i++) {
        job->left[i] = scratch_take(job->stream, weights, 2);
        job->right[i] = scratch_take(job->stream, square, 2);
    }
    if (!job->split) {
        return 0;
    }
    return cuda_ok(job->stream->device, launch_split(job->right[0], job->right[1], job->h, square, job->stream->stream),
                   "output_error");
}

int cuda_output_error(struct gpu_stream *stream, double *error, double *signal, const struct tensor *w,
                      const struct tensor *wq, const struct tensor *h)
{
    SCRATCH_SCOPE(stream);
    struct quadratic job = {
        .stream = stream, .rows = matrix_rows(w), .n = matrix_cols(w), .h = h->data, .split = operand_bf16(stream)};
    double error_sum = 0, signal_sum = 0;
    float *d = NULL;

    TRY(cuda_begin(stream->device));
    TRY(quadratic_init(&job, &d));
    TRY(cuda_ok(stream->device, launch_subtract(d, w->data, wq->data, job.rows * job.n, stream->stream),
                "output_error"));
    TRY(quadratic_sum(&job, d, &error_sum));
    if (signal != NULL) {
        TRY(quadratic_sum(&job, w->data, &signal_sum));
    }
    *error = error_sum;
    if (signal != NULL) {
        *signal = signal_sum;
    }
    return 0;
}

int cuda_row_dot(struct gpu_stream *stream, const struct tensor *out, const struct tensor *a, const struct tensor *b)
{
    int64_t rows = matrix_rows(a), cols = matrix_cols(a);

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device, launch_row_dot_narrow(out->data, a->data, b->data, rows, cols, stream->stream),
                   "row_dot");
}

int cuda_nll(struct gpu_stream *stream, struct gpu_nll *out, const struct tensor *logits,
             const struct tensor *reference, const int32_t *targets)
{
    SCRATCH_SCOPE(stream);
    int64_t tokens = matrix_rows(logits), vocabulary = matrix_cols(logits);
    AUTO_FREE struct launch_nll_row *host = NULL;

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, scratch_size(tokens, sizeof(int32_t)) + scratch_size(tokens, sizeof(*host))));
    int32_t *on_device = scratch_take(stream, tokens, sizeof(int32_t));
    struct launch_nll_row *rows = scratch_take(stream, tokens, sizeof(*rows));
    TRY(memory_upload(stream, on_device, targets, (size_t)tokens * sizeof(int32_t)));
    TRY(cuda_ok(stream->device,
                launch_nll(rows, logits->data, reference != NULL ? reference->data : NULL, on_device, tokens,
                           vocabulary, stream->stream),
                "nll"));
    TRY(fetch_rows(stream, rows, tokens, sizeof(*rows), &host));
    for (int64_t t = 0; t < tokens; t++) {
        out->nll_sum += host[t].nll;
        out->kl_sum += host[t].kl;
        out->agree += host[t].agree;
        out->count += targets[t] >= 0;
    }
    return 0;
}

int cuda_zero_dead(struct gpu_stream *stream, const struct tensor *w, const struct tensor *h, int64_t *dead)
{
    int64_t n = matrix_cols(w);
    AUTO_FREE float *diagonal = NULL;

    TRY(cuda_begin(stream->device));
    TRY(cuda_ok(stream->device, launch_zero_dead(w->data, h->data, matrix_rows(w), n, stream->stream), "zero_dead"));
    if (dead == NULL) {
        return 0;
    }
    TRY(mem_buffer(&diagonal, (size_t)n));
    TRY(cuda_diagonal(stream, diagonal, h));
    *dead = 0;
    for (int64_t j = 0; j < n; j++) {
        *dead += diagonal[j] == 0.0f;
    }
    return 0;
}
