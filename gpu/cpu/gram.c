/* The Hessian's accumulation, h[n, n] += x[T, n]^T x, and what is read off it.
 *
 * Only the upper triangle is computed, in square tiles: sgemm off the diagonal, ssyrk on it. Tiles off the diagonal
 * cost twice as much and come first, which keeps the threads' ends together. Symmetrize mirrors once at the end. In
 * BF16: gpu/cpu/bf16.c. */

#include "gpu/cpu/internal.h"

#define MIRROR_TILE 64

struct gram {
    float *h;
    const float *x;
    int64_t n, rows, tile, tiles;
};

/* Large tiles read x less often; small ones keep more threads busy. */
int64_t gram_tile_size(int64_t n)
{
    return n >= 4096 ? 512 : n >= 1024 ? 256 : 128;
}

void gram_pair(int64_t task, int64_t tiles, int64_t *i, int64_t *j)
{
    int64_t row = 0;
    while (task >= tiles - 1 - row) {
        task -= tiles - 1 - row;
        row++;
    }
    *i = row;
    *j = row + 1 + task;
}

static void gram_tile(void *ctx, int64_t task)
{
    const struct gram *job = ctx;
    int64_t pairs = job->tiles * (job->tiles - 1) / 2, i, j;

    if (task >= pairs) {
        i = (task - pairs) * job->tile;
        blas_gram_upper((int)tile_size(job->n, job->tile, task - pairs), (int)job->rows, job->x + i, (int)job->n,
                        job->h + i * job->n + i, (int)job->n);
        return;
    }
    gram_pair(task, job->tiles, &i, &j);
    int64_t height = tile_size(job->n, job->tile, i), width = tile_size(job->n, job->tile, j);
    i *= job->tile;
    j *= job->tile;
    blas_gemm(1, 0, (int)height, (int)width, (int)job->rows, 1.0f, job->x + i, (int)job->n, job->x + j, (int)job->n,
              1.0f, job->h + i * job->n + j, (int)job->n);
}

int cpu_gram(struct gpu_stream *stream, const struct tensor *h, const struct tensor *x)
{
    if (stream->device->products != NULL) {
        return products_cross(stream, h, x, x, true);
    }
    struct gram job = {h->data, x->data, matrix_cols(x), matrix_rows(x), 0, 0};
    job.tile = gram_tile_size(job.n);
    job.tiles = tiles_of(job.n, job.tile);
    stream_run(stream, job.tiles * (job.tiles + 1) / 2, gram_tile, &job);
    return 0;
}

struct mirror {
    float *h;
    int64_t n, tiles;
    float scale;
};

/* One square tile on or above the diagonal, scaled, and its mirror image. */
static void mirror_tile(void *ctx, int64_t task)
{
    const struct mirror *job = ctx;
    int64_t rows = tile_size(job->n, MIRROR_TILE, task / job->tiles);
    int64_t cols = tile_size(job->n, MIRROR_TILE, task % job->tiles);
    int64_t i0 = task / job->tiles * MIRROR_TILE, j0 = task % job->tiles * MIRROR_TILE;

    if (j0 < i0) {
        return;
    }
    for (int64_t i = i0; i < i0 + rows; i++) {
        for (int64_t j = j0 > i ? j0 : i; j < j0 + cols; j++) {
            float value = job->h[i * job->n + j] * job->scale;
            job->h[i * job->n + j] = value;
            job->h[j * job->n + i] = value;
        }
    }
}

int cpu_symmetrize(struct gpu_stream *stream, const struct tensor *h, double scale)
{
    struct mirror job = {h->data, matrix_cols(h), tiles_of(matrix_cols(h), MIRROR_TILE), (float)scale};

    stream_run(stream, job.tiles * job.tiles, mirror_tile, &job);
    return 0;
}

int cpu_diagonal(struct gpu_stream *stream, float *host, const struct tensor *h)
{
    int64_t n = matrix_cols(h);

    for (int64_t i = 0; i < n; i++) {
        host[i] = ((const float *)h->data)[i * n + i];
    }
    return 0;
}

int cpu_floor_diagonal(struct gpu_stream *stream, const struct tensor *h, float min)
{
    int64_t n = matrix_cols(h);

    for (int64_t i = 0; i < n; i++) {
        float *at = (float *)h->data + i * (n + 1);
        *at = *at != 0.0f && *at < min ? min : *at;
    }
    return 0;
}

struct dead {
    float *w;
    const float *h;
    int64_t n;
};

static void zero_row(void *ctx, int64_t task)
{
    const struct dead *job = ctx;

    for (int64_t j = 0; j < job->n; j++) {
        if (job->h[j * job->n + j] == 0.0f) {
            job->w[task * job->n + j] = 0.0f;
        }
    }
}

int cpu_zero_dead(struct gpu_stream *stream, const struct tensor *w, const struct tensor *h, int64_t *dead)
{
    struct dead job = {w->data, h->data, matrix_cols(w)};
    int64_t count = 0;
    for (int64_t j = 0; j < job.n; j++) {
        count += job.h[j * job.n + j] == 0.0f;
    }
    if (count > 0) {
        stream_run(stream, matrix_rows(w), zero_row, &job);
    }
    if (dead != NULL) {
        *dead = count;
    }
    return 0;
}
