/* Products with weights: y[T, N] = x[T, K] w[N, K]^T + bias[N], and the embedding look-up.
 *
 * Cut into tiles of rows of y by rows of w; a tile of a 16-bit w is converted to F32 in the worker's scratch and meets
 * up to T_TILE tokens there, so that the conversion is paid once for many products. Each element of y is one sgemm sum
 * over K. Where the device multiplies in BF16, `linear` does (gpu/cpu/bf16.c), and `multiply` stays in F32. */

#include "gpu/cpu/internal.h"

#include <string.h>

#define T_TILE 1024
#define N_TILE 256
#define EMBED_TILE 64

struct linear {
    struct gpu_stream *stream;
    float *y;
    const float *x;
    const struct tensor *w;
    const float *bias;
    int64_t rows, in, out, out_tiles;
};

static void linear_tile(void *ctx, int64_t task)
{
    const struct linear *job = ctx;
    int64_t t = task / job->out_tiles, n = task % job->out_tiles;
    int64_t rows = tile_size(job->rows, T_TILE, t), cols = tile_size(job->out, N_TILE, n);
    int64_t first = n * N_TILE;
    float *y = job->y + t * T_TILE * job->out + first;
    const float *weights = (const float *)job->w->data + first * job->in;

    if (job->w->dtype != DTYPE_F32) {
        float *wide = scratch_slice(job->stream);
        convert_widen(job->stream->device->kernels, wide, job->w, first * job->in, cols * job->in);
        weights = wide;
    }
    if (job->bias != NULL) {
        for (int64_t i = 0; i < rows; i++) {
            memcpy(y + i * job->out, job->bias + first, (size_t)cols * sizeof(float));
        }
    }
    blas_gemm(0, 1, (int)rows, (int)cols, (int)job->in, 1.0f, job->x + t * T_TILE * job->in, (int)job->in, weights,
              (int)job->in, job->bias != NULL ? 1.0f : 0.0f, y, (int)job->out);
}

static int linear_f32(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *w,
                      const struct tensor *bias)
{
    struct linear job = {.stream = stream,
                         .y = y->data,
                         .x = x->data,
                         .w = w,
                         .bias = bias != NULL ? bias->data : NULL,
                         .rows = matrix_rows(x),
                         .in = matrix_cols(x),
                         .out = matrix_rows(w)};
    TRY(scratch_reserve(stream, 0, w->dtype == DTYPE_F32 ? 0 : scratch_size(N_TILE * job.in, sizeof(float))));
    job.out_tiles = tiles_of(job.out, N_TILE);
    stream_run(stream, tiles_of(job.rows, T_TILE) * job.out_tiles, linear_tile, &job);
    return 0;
}

int cpu_linear(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *w,
               const struct tensor *bias)
{
    return stream->device->products != NULL ? products_linear(stream, y, x, w, bias)
                                            : linear_f32(stream, y, x, w, bias);
}

int cpu_multiply(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *w)
{
    return linear_f32(stream, y, x, w, NULL);
}

struct embed {
    struct gpu_stream *stream;
    const struct tensor *y, *table;
    const int32_t *ids;
};

static void embed_tile(void *ctx, int64_t task)
{
    const struct embed *job = ctx;
    int64_t cols = matrix_cols(job->table), first = task * EMBED_TILE;

    for (int64_t t = first; t < first + tile_size(matrix_rows(job->y), EMBED_TILE, task); t++) {
        convert_widen(job->stream->device->kernels, (float *)job->y->data + t * cols, job->table, job->ids[t] * cols,
                      cols);
    }
}

int cpu_embed(struct gpu_stream *stream, const struct tensor *y, const struct tensor *table, const int32_t *ids)
{
    struct embed job = {stream, y, table, ids};

    stream_run(stream, tiles_of(matrix_rows(y), EMBED_TILE), embed_tile, &job);
    return 0;
}
