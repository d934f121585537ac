/* What the target of a solve is made of: sums of two tensors, moments of two sets of inputs, and products with the
 * inverse of a damped Hessian.
 *
 * The inverse is never formed. With the factor of gpu/cpu/factor.c, (H + damp)^-1 = P^T U^T U P, so a row of g is put
 * in the order of the sweep, multiplied by two triangles, and put back. Rows are independent: a task takes a tile. */

#include "gpu/cpu/internal.h"

#define FLAT_TILE 16384
#define CROSS_TILE 256
#define SOLVE_ROWS 64

struct combine {
    float *y;
    const float *a, *b;
    float alpha, beta;
    int64_t count;
};

static void combine_tile(void *ctx, int64_t task)
{
    const struct combine *job = ctx;
    int64_t first = task * FLAT_TILE, end = first + tile_size(job->count, FLAT_TILE, task);

    for (int64_t i = first; i < end; i++) {
        job->y[i] = job->alpha * job->a[i] + (job->b != NULL ? job->beta * job->b[i] : 0.0f);
    }
}

int cpu_combine(struct gpu_stream *stream, const struct tensor *y, double alpha, const struct tensor *a, double beta,
                const struct tensor *b)
{
    struct combine job = {y->data, a->data, b != NULL ? b->data : NULL, (float)alpha, (float)beta, tensor_count(y)};

    stream_run(stream, tiles_of(job.count, FLAT_TILE), combine_tile, &job);
    return 0;
}

struct cross {
    float *c;
    const float *a, *b;
    int64_t rows, m, k, tiles; /* tiles: along k */
};

static void cross_tile(void *ctx, int64_t task)
{
    const struct cross *job = ctx;
    int64_t i = task / job->tiles, j = task % job->tiles;
    int64_t height = tile_size(job->m, CROSS_TILE, i), width = tile_size(job->k, CROSS_TILE, j);

    i *= CROSS_TILE;
    j *= CROSS_TILE;
    blas_gemm(1, 0, (int)height, (int)width, (int)job->rows, 1.0f, job->a + i, (int)job->m, job->b + j, (int)job->k,
              1.0f, job->c + i * job->k + j, (int)job->k);
}

int cpu_cross(struct gpu_stream *stream, const struct tensor *c, const struct tensor *a, const struct tensor *b)
{
    if (stream->device->products != NULL) {
        return products_cross(stream, c, a, b, false);
    }
    struct cross job = {c->data, a->data, b->data, matrix_rows(a), matrix_cols(a), matrix_cols(b), 0};

    job.tiles = tiles_of(job.k, CROSS_TILE);
    stream_run(stream, tiles_of(job.m, CROSS_TILE) * job.tiles, cross_tile, &job);
    return 0;
}

struct solve {
    struct gpu_stream *stream;
    float *y;
    const float *g, *u;
    const int32_t *order;
    int64_t n, k;
};

static void solve_tile(void *ctx, int64_t task)
{
    const struct solve *job = ctx;
    float *rows = scratch_slice(job->stream);
    int64_t first = task * SOLVE_ROWS, count = tile_size(job->n, SOLVE_ROWS, task), k = job->k;

    for (int64_t r = 0; r < count; r++) {
        const float *from = job->g + (first + r) * k;
        for (int64_t i = 0; i < k; i++) {
            rows[r * k + i] = from[job->order != NULL ? job->order[i] : i];
        }
    }
    blas_multiply_upper(1, (int)count, (int)k, job->u, (int)k, rows, (int)k);
    blas_multiply_upper(0, (int)count, (int)k, job->u, (int)k, rows, (int)k);
    for (int64_t r = 0; r < count; r++) {
        float *to = job->y + (first + r) * k;
        for (int64_t i = 0; i < k; i++) {
            to[job->order != NULL ? job->order[i] : i] = rows[r * k + i];
        }
    }
}

int cpu_solve(struct gpu_stream *stream, const struct tensor *y, const struct tensor *g, const struct tensor *u,
              const int32_t *order)
{
    struct solve job = {stream, y->data, g->data, u->data, order, matrix_rows(g), matrix_cols(g)};

    TRY(scratch_reserve(stream, 0, scratch_size(SOLVE_ROWS * job.k, sizeof(float))));
    stream_run(stream, tiles_of(job.n, SOLVE_ROWS), solve_tile, &job);
    return 0;
}
