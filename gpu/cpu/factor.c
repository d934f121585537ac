/* The factor that GPTQ walks along: u upper with (P (H + damp I) P^T)^-1 = u^T u.
 *
 * The usual way is Cholesky, full inverse, Cholesky again: 4/3 n^3. Here, with J the reversal of indices and
 * G = J H' J = L L^T:  H'^-1 = J L^-T L^-1 J = (J L^-1 J)^T (J L^-1 J), and J L^-1 J is upper. So one Cholesky and one
 * triangular inverse, 2/3 n^3, of the reversed matrix; and J A J of a dense matrix is its elements in reverse order.
 *
 * Both steps are blocked and work in place in u. Cholesky is right-looking: factor the diagonal block, solve the panel
 * below it, update the rest in tiles. The inverse goes down by block rows, X_k = -X_kk (L_k X). A diagonal block is
 * small enough for one thread. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define BLOCK 256
#define PANEL_ROWS 128
#define INVERSE_COLS 128
#define GATHER_ROWS 16
#define REVERSE_TILE 32768

struct factor {
    struct gpu_stream *stream;
    float *a; /* [n, n], the work is done here; = u */
    const float *h;
    const int32_t *order;
    int64_t n, blocks;
    float damp;
    int64_t k;    /* block step of the phase that runs */
    float *panel; /* [BLOCK, n]: block row k of L, kept while it is overwritten */
};

static float *at(const struct factor *job, int64_t row, int64_t col)
{
    return job->a + row * job->n + col;
}

static int64_t visited(const struct factor *job, int64_t i)
{
    int64_t place = job->n - 1 - i;
    return job->order != NULL ? job->order[place] : place;
}

/* Rows of the reversed, permuted, damped matrix: the lower triangle, zeros above. */
static void gather_rows(void *ctx, int64_t task)
{
    const struct factor *job = ctx;
    int64_t first = task * GATHER_ROWS;

    for (int64_t i = first; i < first + tile_size(job->n, GATHER_ROWS, task); i++) {
        const float *from = job->h + visited(job, i) * job->n;
        float *to = at(job, i, 0);
        for (int64_t j = 0; j < i; j++) {
            to[j] = from[visited(job, j)];
        }
        float diagonal = from[visited(job, i)];
        to[i] = (diagonal == 0.0f ? 1.0f : diagonal) + job->damp;
        memset(to + i + 1, 0, (size_t)(job->n - i - 1) * sizeof(float));
    }
}

static void solve_panel(void *ctx, int64_t task)
{
    const struct factor *job = ctx;
    int64_t from = job->k * BLOCK, below = from + BLOCK;
    int64_t row = below + task * PANEL_ROWS;

    blas_solve_right((int)tile_size(job->n - below, PANEL_ROWS, task), BLOCK, at(job, from, from), (int)job->n,
                     at(job, row, from), (int)job->n);
}

/* The task-th tile of the lower triangle after step k. */
static void update_tile(void *ctx, int64_t task)
{
    const struct factor *job = ctx;
    int64_t i = 0, from = job->k * BLOCK;

    while (task > i) {
        task -= ++i;
    }
    int64_t row = (job->k + 1 + i) * BLOCK, col = (job->k + 1 + task) * BLOCK;
    int64_t rows = tile_size(job->n, BLOCK, job->k + 1 + i);
    if (row == col) {
        blas_downdate_lower((int)rows, BLOCK, at(job, row, from), (int)job->n, at(job, row, row), (int)job->n);
        return;
    }
    blas_gemm(0, 1, (int)rows, BLOCK, BLOCK, -1.0f, at(job, row, from), (int)job->n, at(job, col, from), (int)job->n,
              1.0f, at(job, row, col), (int)job->n);
}

static int factor_diagonal(struct factor *job)
{
    int64_t from = job->k * BLOCK, size = tile_size(job->n, BLOCK, job->k);
    int info = blas_cholesky_lower((int)size, at(job, from, from), (int)job->n);

    for (int64_t i = 0; i < size && info == 0; i++) {
        float pivot = *at(job, from + i, from + i);
        info = isfinite(pivot) && pivot > 0.0f ? 0 : (int)i + 1;
    }
    if (info != 0) {
        return err_raise(ERR_NOT_POSITIVE_DEFINITE, "the Hessian [%lld, %lld] is not positive definite at column %lld",
                         (long long)job->n, (long long)job->n, (long long)visited(job, from + info - 1));
    }
    return 0;
}

static int factor_cholesky(struct factor *job)
{
    for (job->k = 0; job->k < job->blocks; job->k++) {
        int64_t after = job->blocks - job->k - 1;
        TRY(factor_diagonal(job));
        if (after > 0) {
            stream_run(job->stream, tiles_of(job->n - (job->k + 1) * BLOCK, PANEL_ROWS), solve_panel, job);
            stream_run(job->stream, after * (after + 1) / 2, update_tile, job);
        }
    }
    return 0;
}

static void invert_diagonal(void *ctx, int64_t task)
{
    const struct factor *job = ctx;
    /* pivots are known to be positive, so this cannot fail */
    blas_invert_lower((int)tile_size(job->n, BLOCK, task), at(job, task * BLOCK, task * BLOCK), (int)job->n);
}

static void factor_keep_row(void *ctx, int64_t task)
{
    const struct factor *job = ctx;
    memcpy(job->panel + task * job->n, at(job, job->k * BLOCK + task, 0), (size_t)(job->k * BLOCK) * sizeof(float));
}

/* Columns [col, col + INVERSE_COLS) of block row k: X_k = -X_kk (L_k X), with X zero above row `col`. */
static void invert_tile(void *ctx, int64_t task)
{
    const struct factor *job = ctx;
    float *product = scratch_slice(job->stream);
    int64_t row = job->k * BLOCK, rows = tile_size(job->n, BLOCK, job->k), col = task * INVERSE_COLS;

    blas_gemm(0, 0, (int)rows, INVERSE_COLS, (int)(row - col), 1.0f, job->panel + col, (int)job->n, at(job, col, col),
              (int)job->n, 0.0f, product, INVERSE_COLS);
    blas_gemm(0, 0, (int)rows, INVERSE_COLS, (int)rows, -1.0f, at(job, row, row), (int)job->n, product, INVERSE_COLS,
              0.0f, at(job, row, col), (int)job->n);
}

static void factor_invert(struct factor *job)
{
    stream_run(job->stream, job->blocks, invert_diagonal, job);
    for (job->k = 1; job->k < job->blocks; job->k++) {
        stream_run(job->stream, tile_size(job->n, BLOCK, job->k), factor_keep_row, job);
        stream_run(job->stream, job->k * (BLOCK / INVERSE_COLS), invert_tile, job);
    }
}

static void reverse_tile(void *ctx, int64_t task)
{
    const struct factor *job = ctx;
    int64_t count = job->n * job->n, begin = task * REVERSE_TILE;
    int64_t end = begin + tile_size(count / 2, REVERSE_TILE, task);

    for (int64_t i = begin; i < end; i++) {
        float saved = job->a[i];
        job->a[i] = job->a[count - 1 - i];
        job->a[count - 1 - i] = saved;
    }
}

/* damp_percent of the mean of the diagonal in which dead columns count as 1. */
static double factor_damping(const struct factor *job, double percent)
{
    double sum = 0;
    for (int64_t j = 0; j < job->n; j++) {
        float diagonal = job->h[j * job->n + j];
        sum += diagonal == 0.0f ? 1.0 : (double)diagonal;
    }
    return percent * sum / (double)job->n;
}

int cpu_factor(struct gpu_stream *stream, const struct tensor *u, const struct tensor *h, const struct gpu_factor *spec)
{
    struct factor job = {.stream = stream, .a = u->data, .h = h->data, .order = spec->order, .n = matrix_cols(h)};

    if (job.n == 0) {
        return 0;
    }
    TRY(scratch_reserve(stream, scratch_size(BLOCK * job.n, sizeof(float)),
                        scratch_size(BLOCK * INVERSE_COLS, sizeof(float))));
    job.panel = scratch_shared(stream);
    job.blocks = tiles_of(job.n, BLOCK);
    job.damp = (float)factor_damping(&job, spec->damp_percent);
    stream_run(stream, tiles_of(job.n, GATHER_ROWS), gather_rows, &job);
    TRY(factor_cholesky(&job));
    factor_invert(&job);
    stream_run(stream, tiles_of(job.n * job.n / 2, REVERSE_TILE), reverse_tile, &job);
    return 0;
}
