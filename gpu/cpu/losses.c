/* What a change costs: the layer's output error tr(D H D^T) and the model's log-softmax loss.
 *
 * Each task's part is summed in double in a fixed order, and the parts are added in the order of their numbers. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define ROW_TILE 128
#define COLUMN_TILE 256
#define TOKEN_TILE 4

struct output_error {
    struct gpu_stream *stream;
    const float *w, *wq, *h;
    int64_t rows, n;
    double *error, *signal; /* [tasks]; signal may be NULL */
};

/* sums[i] += d H d^T over the rows of the i-th of `count` matrices [rows, n], which lie one after the other in d, so
 * that H is packed once for all; product is [count rows, COLUMN_TILE]. H is symmetric: what is above the tiles of the
 * diagonal counts twice, what is below is not read. */
static void quadratic_forms(const struct output_error *job, const float *d, int64_t rows, int count, float *product,
                            double *const sums[])
{
    int all = (int)rows * count, n = (int)job->n;

    for (int64_t tile = 0; tile < tiles_of(job->n, COLUMN_TILE); tile++) {
        int64_t col = tile * COLUMN_TILE, cols = tile_size(job->n, COLUMN_TILE, tile);
        blas_gemm(0, 0, all, (int)cols, (int)cols, 1.0f, d + col, n, job->h + col * job->n + col, n, 0.0f, product,
                  COLUMN_TILE);
        if (col > 0) {
            blas_gemm(0, 0, all, (int)cols, (int)col, 2.0f, d, n, job->h + col, n, 1.0f, product, COLUMN_TILE);
        }
        for (int64_t r = 0; r < all; r++) {
            *sums[r / rows] += job->stream->device->kernels->dot(product + r * COLUMN_TILE, d + r * job->n + col, cols);
        }
    }
}

static void output_error_tile(void *ctx, int64_t task)
{
    const struct output_error *job = ctx;
    int64_t rows = tile_size(job->rows, ROW_TILE, task), first = task * ROW_TILE * job->n, count = rows * job->n;
    int forms = job->signal != NULL ? 2 : 1;
    float *product = scratch_slice(job->stream), *d = product + forms * ROW_TILE * COLUMN_TILE;
    double error = 0, signal = 0, *const sums[] = {&error, &signal};

    for (int64_t i = 0; i < count; i++) {
        d[i] = job->w[first + i] - job->wq[first + i];
    }
    if (forms == 2) {
        memcpy(d + count, job->w + first, (size_t)count * sizeof(float));
    }
    quadratic_forms(job, d, rows, forms, product, sums);
    job->error[task] = error;
    if (forms == 2) {
        job->signal[task] = signal;
    }
}

int cpu_output_error(struct gpu_stream *stream, double *error, double *signal, const struct tensor *w,
                     const struct tensor *wq, const struct tensor *h)
{
    struct output_error job = {
        .stream = stream, .w = w->data, .wq = wq->data, .h = h->data, .rows = matrix_rows(w), .n = matrix_cols(w)};
    int64_t tasks = tiles_of(job.rows, ROW_TILE);

    TRY(scratch_reserve(stream, scratch_size(2 * tasks, sizeof(double)),
                        scratch_size(2 * ROW_TILE * (COLUMN_TILE + job.n), sizeof(float))));
    job.error = scratch_shared(stream);
    job.signal = signal != NULL ? job.error + tasks : NULL;
    stream_run(stream, tasks, output_error_tile, &job);
    double error_sum = 0, signal_sum = 0;
    for (int64_t i = 0; i < tasks; i++) {
        error_sum += job.error[i];
        signal_sum += signal != NULL ? job.signal[i] : 0;
    }
    *error = error_sum;
    if (signal != NULL) {
        *signal = signal_sum;
    }
    return 0;
}

struct nll {
    const struct kernels *kernels;
    const float *logits, *reference;
    const int32_t *targets;
    int64_t tokens, vocabulary;
    struct gpu_nll *parts; /* [tokens] */
};

/* The first of the row's largest values; n where it has none that can be compared. */
static int64_t nll_first_at(const float *x, int64_t n, float value)
{
    int64_t i = 0;

    while (i < n && !(x[i] == value)) {
        i++;
    }
    return i;
}

/* log p(i) = (x_i - max) - log sum exp(x - max);
 * KL(r || x) = sum p_r ((r - max_r) - (x - max_x)) - log sum_r + log sum_x. */
static void nll_token(const struct nll *job, int64_t t, struct gpu_nll *out)
{
    int64_t n = job->vocabulary;
    const float *x = job->logits + t * n;
    float max = job->kernels->maximum(x, n);
    double log_sum = log(job->kernels->exp_sum(x, n, max));

    out->nll_sum = log_sum - ((double)x[job->targets[t]] - (double)max);
    out->count = 1;
    if (job->reference != NULL) {
        const float *r = job->reference + t * n;
        float r_most = job->kernels->maximum(r, n);
        double r_sum = job->kernels->exp_sum(r, n, r_most);
        out->kl_sum = job->kernels->exp_dot(r, x, n, r_most, max) / r_sum - log(r_sum) + log_sum;
        int64_t first = nll_first_at(x, n, max);
        out->agree = first < n && first == nll_first_at(r, n, r_most);
    }
}

static void nll_tile(void *ctx, int64_t task)
{
    const struct nll *job = ctx;

    for (int64_t t = task * TOKEN_TILE; t < task * TOKEN_TILE + tile_size(job->tokens, TOKEN_TILE, task); t++) {
        job->parts[t] = (struct gpu_nll){0};
        if (job->targets[t] >= 0) {
            nll_token(job, t, &job->parts[t]);
        }
    }
}

int cpu_nll(struct gpu_stream *stream, struct gpu_nll *out, const struct tensor *logits, const struct tensor *reference,
            const int32_t *targets)
{
    struct nll job = {.kernels = stream->device->kernels,
                      .logits = logits->data,
                      .reference = reference != NULL ? reference->data : NULL,
                      .targets = targets,
                      .tokens = matrix_rows(logits),
                      .vocabulary = matrix_cols(logits)};
    TRY(scratch_reserve(stream, scratch_size(job.tokens, sizeof(struct gpu_nll)), 0));
    job.parts = scratch_shared(stream);
    stream_run(stream, tiles_of(job.tokens, TOKEN_TILE), nll_tile, &job);
    for (int64_t t = 0; t < job.tokens; t++) {
        out->nll_sum += job.parts[t].nll_sum;
        out->kl_sum += job.parts[t].kl_sum;
        out->count += job.parts[t].count;
        out->agree += job.parts[t].agree;
    }
    return 0;
}
