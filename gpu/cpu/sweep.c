/* The GPTQ sweep (Frantar et al. 2022, Algorithm 1): for each column i in visiting order,
 *   q_i = quant(w_i),  e_i = (w_i - q_i) / u_ii,  w_j -= e_i u_ij for j > i.
 *
 * Rows of W do not see each other, so a task takes a tile of them through all columns alone. It holds them transposed
 * and permuted, t[K, rows]: lanes are rows, and the permutation is paid once. Columns go in blocks of B. Updates are
 * lazy by block, like the paper's, but looking left: before a block is entered, all earlier errors are applied to it in
 * one product, t[b] -= u[0:b, b]^T e[0:b]. That writes each weight once rather than once per earlier block. A column's
 * error takes the place of its weight, so e[0:b] is simply the part of t that is done.
 *
 * With error e and factor u as above, sum e^2 is the layer's loss tr((W-Q) H' (W-Q)^T) for the damped H'. */

#include "gpu/cpu/internal.h"

#include <string.h>

#define ROWS_MAX 256
#define TURN 16

struct sweep {
    struct gpu_stream *stream;
    uint8_t *codes;
    const float *w, *u, *scale, *zero;
    const int32_t *order;
    int64_t n, k, block, groups;
    int64_t rows, stride; /* of a tile */
    float top;
    const struct gpu_levels *levels; /* instead of zeros up to top; or NULL */
    int32_t *group;                  /* [K]: group of the column visited i-th */
    double *losses;                  /* [tasks] */
};

/* Tall tiles share each packed piece of u among more rows; short ones keep more threads busy when rows are few. */
static int64_t tile_rows(int64_t n)
{
    return n >= 4096 ? ROWS_MAX : ROWS_MAX / 2;
}

struct sweep_tile {
    float *t;            /* [K, stride] */
    float *scale, *zero; /* [rows/LANES][groups][LANES] */
    uint8_t *codes;      /* [BLOCK][LANES] */
    int64_t first, rows;
};

static int64_t column_of(const struct sweep *job, int64_t i)
{
    return job->order != NULL ? job->order[i] : i;
}

static size_t sweep_slice_bytes(const struct sweep *job)
{
    return scratch_size(job->k * job->stride, sizeof(float)) +
           2 * scratch_size(job->groups * job->rows, sizeof(float)) + scratch_size(job->block * LANES, 1);
}

static void sweep_slice_layout(const struct sweep *job, struct sweep_tile *tile)
{
    tile->t = scratch_slice(job->stream);
    tile->scale = tile->t + scratch_size(job->k * job->stride, sizeof(float)) / sizeof(float);
    tile->zero = tile->scale + job->groups * job->rows;
    tile->codes = (uint8_t *)(tile->zero + job->groups * job->rows);
}

/* t[i, r] = w[first + r, order[i]], in squares that stay in the nearest cache. Absent rows are zero. */
static void load_weights(const struct sweep *job, const struct sweep_tile *tile)
{
    for (int64_t i0 = 0; i0 < job->k; i0 += TURN) {
        int64_t count = job->k - i0 < TURN ? job->k - i0 : TURN;
        for (int64_t r = 0; r < tile->rows; r++) {
            const float *from = job->w + (tile->first + r) * job->k;
            for (int64_t i = i0; i < i0 + count; i++) {
                tile->t[i * job->stride + r] = from[column_of(job, i)];
            }
        }
        for (int64_t i = i0; i < i0 + count && tile->rows < job->rows; i++) {
            memset(tile->t + i * job->stride + tile->rows, 0, (size_t)(job->rows - tile->rows) * sizeof(float));
        }
    }
}

static void load_grid(const struct sweep *job, const struct sweep_tile *tile)
{
    for (int64_t r = 0; r < job->rows; r++) {
        bool present = r < tile->rows;
        for (int64_t g = 0; g < job->groups; g++) {
            int64_t to = (r / LANES * job->groups + g) * LANES + r % LANES;
            int64_t from = (tile->first + r) * job->groups + g;
            tile->scale[to] = present ? job->scale[from] : 1.0f;
            tile->zero[to] = present && job->zero != NULL ? job->zero[from] : 0.0f;
        }
    }
}

/* codes [cols][LANES] of the block at i0 to [N, K] in the original order. */
static void store_codes(const struct sweep *job, const struct sweep_tile *tile, int64_t i0, int64_t cols, int64_t r0)
{
    int64_t rows = tile->rows - r0 < LANES ? tile->rows - r0 : LANES;

    for (int64_t r = 0; r < rows; r++) {
        uint8_t *to = job->codes + (tile->first + r0 + r) * job->k;
        for (int64_t i = 0; i < cols; i++) {
            to[column_of(job, i0 + i)] = tile->codes[i * LANES + r];
        }
    }
}

/* The kernel's work over a table of levels: LANES rows through the columns of a block. */
static void sweep_block(const struct sweep *job, float *t, int64_t cols, const float *u, const float *scale,
                        const int32_t *group, uint8_t *codes, double *loss)
{
    const float *values = job->levels->values;

    for (int64_t i = 0; i < cols; i++) {
        const float *row = u + i * job->k, *s = scale + (int64_t)group[i] * LANES;
        float error[LANES];
        for (int r = 0; r < LANES; r++) {
            float x = t[i * job->stride + r];
            int code = grid_nearest(x / s[r], values, job->levels->count);
            codes[i * LANES + r] = (uint8_t)code;
            error[r] = (x - s[r] * values[code]) / row[i];
            loss[r] += (double)error[r] * (double)error[r];
        }
        memcpy(t + i * job->stride, error, sizeof(error));
        for (int64_t j = i + 1; j < cols; j++) {
            for (int r = 0; r < LANES; r++) {
                t[j * job->stride + r] -= error[r] * row[j];
            }
        }
    }
}

static void sweep_rows(void *ctx, int64_t task)
{
    struct sweep *job = ctx;
    const struct kernels *kernels = job->stream->device->kernels;
    struct sweep_tile tile = {.first = task * job->rows, .rows = tile_size(job->n, job->rows, task)};
    double loss[ROWS_MAX] = {0};
    int64_t lanes_end = tiles_of(tile.rows, LANES) * LANES;

    sweep_slice_layout(job, &tile);
    load_weights(job, &tile);
    load_grid(job, &tile);
    for (int64_t i0 = 0; i0 < job->k; i0 += job->block) {
        int64_t cols = job->k - i0 < job->block ? job->k - i0 : job->block;
        float *t = tile.t + i0 * job->stride;
        if (i0 > 0) {
            blas_gemm(1, 0, (int)cols, (int)lanes_end, (int)i0, -1.0f, job->u + i0, (int)job->k, tile.t,
                      (int)job->stride, 1.0f, t, (int)job->stride);
        }
        for (int64_t r0 = 0; r0 < lanes_end; r0 += LANES) {
            int64_t grid = r0 * job->groups;
            const float *u = job->u + i0 * job->k + i0;
            if (job->levels != NULL) {
                sweep_block(job, t + r0, cols, u, tile.scale + grid, job->group + i0, tile.codes, loss + r0);
            } else {
                kernels->sweep(t + r0, job->stride, cols, u, job->k, tile.scale + grid, tile.zero + grid,
                               job->group + i0, job->top, tile.codes, loss + r0);
            }
            store_codes(job, &tile, i0, cols, r0);
        }
    }
    job->losses[task] = 0;
    for (int64_t r = 0; r < tile.rows; r++) {
        job->losses[task] += loss[r];
    }
}

static int sweep_run(struct sweep *job, int64_t group_size, double *loss)
{
    int64_t tasks;

    job->rows = tile_rows(job->n);
    job->stride =
        job->rows + LANES; /* not a power of two, so that a column of cache lines spreads over the cache's sets */
    job->groups = job->k / group_size;
    tasks = tiles_of(job->n, job->rows);
    size_t loss_bytes = scratch_size(tasks, sizeof(double));
    TRY(scratch_reserve(job->stream, loss_bytes + scratch_size(job->k, sizeof(int32_t)), sweep_slice_bytes(job)));
    job->losses = scratch_shared(job->stream);
    job->group = (int32_t *)(void *)((char *)scratch_shared(job->stream) + loss_bytes);
    for (int64_t i = 0; i < job->k; i++) {
        job->group[i] = (int32_t)(column_of(job, i) / group_size);
    }
    stream_run(job->stream, tasks, sweep_rows, job);
    *loss = 0;
    for (int64_t i = 0; i < tasks; i++) {
        *loss += job->losses[i];
    }
    return 0;
}

int cpu_sweep(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w, const struct tensor *u,
              const struct tensor *scale, const struct tensor *zero, const int32_t *order, int64_t block_size,
              const struct gpu_grid *spec, double *loss)
{
    struct sweep job = {.stream = stream,
                        .codes = codes->data,
                        .w = w->data,
                        .u = u->data,
                        .scale = scale->data,
                        .zero = zero->data,
                        .order = order,
                        .n = matrix_rows(w),
                        .k = matrix_cols(w),
                        .block = block_size,
                        .top = (float)((1 << spec->bits) - 1)};
    return sweep_run(&job, spec->group_size, loss);
}

int cpu_sweep_levels(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w,
                     const struct tensor *u, const struct tensor *scale, const int32_t *order, int64_t block_size,
                     const struct gpu_levels *levels, double *loss)
{
    struct sweep job = {.stream = stream,
                        .codes = codes->data,
                        .w = w->data,
                        .u = u->data,
                        .scale = scale->data,
                        .order = order,
                        .n = matrix_rows(w),
                        .k = matrix_cols(w),
                        .block = block_size,
                        .levels = levels};
    return sweep_run(&job, levels->group_size, loss);
}
