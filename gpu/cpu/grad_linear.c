/* Gradients of products with weights: dx[T,K] += dy[T,N] w[N,K], and sums down the rows for a bias. (That of the weight
 * is `cross`, gpu/cpu/target.c.)
 *
 * Cut into tiles of rows by columns of dx; a 16-bit w is converted to F32 in the worker's scratch, N_TILE rows of the
 * tile's columns at a time, so that the sum over N has the same parts whatever the number of threads. */

#include "gpu/cpu/internal.h"

#define T_TILE 1024
#define K_TILE 256
#define N_TILE 512
#define SUM_TILE 128

struct linear_grad {
    struct gpu_stream *stream;
    float *dx;
    const float *dy;
    const struct tensor *w;
    int64_t rows, in, out, in_tiles;
};

/* Rows [first, first + count) of the columns from `col` on, as F32 side by side. */
static void linear_grad_widen(const struct linear_grad *job, float *wide, int64_t first, int64_t count, int64_t col,
                              int64_t cols)
{
    for (int64_t n = 0; n < count; n++) {
        convert_widen(job->stream->device->kernels, wide + n * cols, job->w, (first + n) * job->in + col, cols);
    }
}

static void linear_grad_tile(void *ctx, int64_t task)
{
    const struct linear_grad *job = ctx;
    int64_t t = task / job->in_tiles, k = task % job->in_tiles;
    int64_t rows = tile_size(job->rows, T_TILE, t), cols = tile_size(job->in, K_TILE, k), col = k * K_TILE;
    const float *dy = job->dy + t * T_TILE * job->out;
    float *dx = job->dx + t * T_TILE * job->in + col;

    if (job->w->dtype == DTYPE_F32) {
        blas_gemm(0, 0, (int)rows, (int)cols, (int)job->out, 1.0f, dy, (int)job->out, (const float *)job->w->data + col,
                  (int)job->in, 1.0f, dx, (int)job->in);
        return;
    }
    float *wide = scratch_slice(job->stream);
    for (int64_t tile = 0; tile < tiles_of(job->out, N_TILE); tile++) {
        int64_t count = tile_size(job->out, N_TILE, tile);
        linear_grad_widen(job, wide, tile * N_TILE, count, col, cols);
        blas_gemm(0, 0, (int)rows, (int)cols, (int)count, 1.0f, dy + tile * N_TILE, (int)job->out, wide, (int)cols,
                  1.0f, dx, (int)job->in);
    }
}

int cpu_linear_grad(struct gpu_stream *stream, const struct tensor *dx, const struct tensor *dy, const struct tensor *w)
{
    struct linear_grad job = {.stream = stream,
                              .dx = dx->data,
                              .dy = dy->data,
                              .w = w,
                              .rows = matrix_rows(dx),
                              .in = matrix_cols(dx),
                              .out = matrix_cols(dy)};

    TRY(scratch_reserve(stream, 0, w->dtype == DTYPE_F32 ? 0 : scratch_size(N_TILE * K_TILE, sizeof(float))));
    job.in_tiles = tiles_of(job.in, K_TILE);
    stream_run(stream, tiles_of(job.rows, T_TILE) * job.in_tiles, linear_grad_tile, &job);
    return 0;
}

struct column_sums {
    const struct kernels *kernels;
    float *d;
    const float *x;
    int64_t rows, cols;
};

static void column_sums_tile(void *ctx, int64_t task)
{
    const struct column_sums *job = ctx;
    int64_t first = task * SUM_TILE, count = tile_size(job->cols, SUM_TILE, task);
    double sums[SUM_TILE] = {0};

    for (int64_t t = 0; t < job->rows; t++) {
        job->kernels->add_products(sums, job->x + t * job->cols + first, NULL, count);
    }
    for (int64_t i = 0; i < count; i++) {
        job->d[first + i] = (float)((double)job->d[first + i] + sums[i]);
    }
}

int cpu_column_sums(struct gpu_stream *stream, const struct tensor *d, const struct tensor *x)
{
    struct column_sums job = {stream->device->kernels, d->data, x->data, matrix_rows(x), matrix_cols(x)};

    stream_run(stream, tiles_of(job.cols, SUM_TILE), column_sums_tile, &job);
    return 0;
}
