/* Coordinate descent on the output error of rounded weights: the scales, zero points and codes of one linear move in
 * turn, each to where tr(D H D^T), D = target - wq, is smallest while the others stay. Nothing moves unless that falls.
 *
 * With G = D H, moving a row of wq by t along v changes the row's error by -2 t v.G + t^2 v H v^T:
 *   scale  v = the group's codes less its zero point, t = v.G / v H v^T rounded so that the scale is one that can be
 *          stored: least squares in one unknown
 *   zero   v = 1 on the group, t = +-scale (asymmetric grids)
 *   code   v = 1 in one column j, t = scale * rne(G_j / (H_jj scale)), cut at the ends of the grid
 * Columns with H_jj = 0 stay as they are.
 *
 * Rows do not depend on each other: a task takes a tile of rows through all passes. Groups of columns are visited in
 * order. Inside a group G follows each move, in blocks of columns; one product then takes the group's moves to the
 * columns outside of it. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define ROWS 128    /* of a task: H is packed once for all of them in each product */
#define SUM_ROWS 64 /* rows whose errors are one sum */
#define SUMS (ROWS / SUM_ROWS)
#define BLOCK 128

struct descend {
    struct gpu_stream *stream;
    const struct gpu_descend *spec;
    const struct gpu_grid *grid;
    uint8_t *codes;
    float *scale, *zero;
    const float *target, *h;
    float *ones; /* [K]: sum of H_ij over the columns i of j's group */
    int64_t n, k, size, groups;
    float top;
    double *before, *after; /* [tasks, SUMS] */
};

struct descend_tile {
    int64_t first, rows;
    float *g;      /* [rows, K]: D H */
    float *moves;  /* [rows, K]: D at the start, then how far wq moves in the open group */
    float *levels; /* [rows, group]: codes less the zero point */
    float *curves; /* [rows, group]: levels H */
    double error[SUMS];
};

static size_t descend_slice(const struct descend *job)
{
    return 2 * scratch_size(ROWS * job->k, sizeof(float)) + 2 * scratch_size(ROWS * job->size, sizeof(float));
}

static void descend_layout(const struct descend *job, struct descend_tile *tile)
{
    tile->g = scratch_slice(job->stream);
    tile->moves = tile->g + scratch_size(ROWS * job->k, sizeof(float)) / sizeof(float);
    tile->levels = tile->moves + scratch_size(ROWS * job->k, sizeof(float)) / sizeof(float);
    tile->curves = tile->levels + scratch_size(ROWS * job->size, sizeof(float)) / sizeof(float);
}

static void descend_start(const struct descend *job, struct descend_tile *tile)
{
    const struct kernels *kernels = job->stream->device->kernels;
    int64_t k = job->k, size = job->size;

    for (int64_t r = 0; r < tile->rows; r++) {
        int64_t row = tile->first + r;
        float *d = tile->moves + r * k;
        for (int64_t group = 0; group < job->groups; group++) {
            int64_t point = row * job->groups + group;
            kernels->dequantize(d + group * size, job->codes + row * k + group * size, size, job->scale[point],
                                job->zero[point]);
        }
        for (int64_t j = 0; j < k; j++) {
            d[j] = job->target[row * k + j] - d[j];
        }
    }
    blas_gemm(0, 0, (int)tile->rows, (int)k, (int)k, 1.0f, tile->moves, (int)k, job->h, (int)k, 0.0f, tile->g, (int)k);
    for (int64_t r = 0; r < tile->rows; r++) {
        tile->error[r / SUM_ROWS] += kernels->dot(tile->moves + r * k, tile->g + r * k, k);
    }
}

/* The scale of one row's group. */
static void descend_scale(const struct descend *job, struct descend_tile *tile, int64_t r, int64_t group)
{
    const struct kernels *kernels = job->stream->device->kernels;
    int64_t size = job->size, at = r * job->k + group * size;
    const float *levels = tile->levels + r * size, *curves = tile->curves + r * size;
    float *scale = &job->scale[(tile->first + r) * job->groups + group];
    double curve = kernels->dot(levels, curves, size), slope = kernels->dot(levels, tile->g + at, size);

    if (!(curve > 0)) {
        return;
    }
    float best = dtype_round((float)((double)*scale + slope / curve), job->grid->scale_dtype);
    double t = (double)best - (double)*scale, gain = t * (2 * slope - t * curve);
    bool usable = isfinite(best) && best != 0.0f && (best > 0.0f) == (*scale > 0.0f);
    if (!usable || !(gain > 0)) {
        return;
    }
    *scale = best;
    tile->error[r / SUM_ROWS] -= gain;
    for (int64_t j = 0; j < size; j++) {
        tile->moves[at + j] += (float)t * levels[j];
        tile->g[at + j] -= (float)t * curves[j];
    }
}

/* Codes of columns that are never active follow the zero point, so that their weights stay. */
static void descend_keep(const struct descend *job, uint8_t *codes, int64_t group, int step)
{
    for (int64_t j = 0; j < job->size; j++) {
        int code = codes[j] + step;
        if (job->h[(group * job->size + j) * (job->k + 1)] == 0.0f && code >= 0 && code <= (int)job->top) {
            codes[j] = (uint8_t)code;
        }
    }
}

/* The zero point of one row's group, by one step. */
static void descend_zero(const struct descend *job, struct descend_tile *tile, int64_t r, int64_t group)
{
    int64_t size = job->size, at = r * job->k + group * size, point = (tile->first + r) * job->groups + group;
    const float *ones = job->ones + group * size;
    double slope = 0, curve = 0;

    for (int64_t j = 0; j < size; j++) {
        slope += (double)tile->g[at + j];
        curve += (double)ones[j];
    }
    for (int step = -1; step <= 1; step += 2) {
        float zero = job->zero[point] + (float)step, t = -(float)step * job->scale[point];
        double gain = (double)t * (2 * slope - (double)t * curve);
        if (!(gain > 0) || zero < 0.0f || zero > job->top) {
            continue;
        }
        job->zero[point] = zero;
        tile->error[r / SUM_ROWS] -= gain;
        for (int64_t j = 0; j < size; j++) {
            tile->moves[at + j] += t;
            tile->g[at + j] -= t * ones[j];
        }
        descend_keep(job, job->codes + (tile->first + r) * job->k + group * size, group, step);
        return;
    }
}

static void descend_points(const struct descend *job, struct descend_tile *tile, int64_t group)
{
    int64_t size = job->size;
    const float *h = job->h + group * size * (job->k + 1);

    for (int64_t r = 0; r < tile->rows; r++) {
        const uint8_t *codes = job->codes + (tile->first + r) * job->k + group * size;
        float zero = job->zero[(tile->first + r) * job->groups + group];
        for (int64_t j = 0; j < size; j++) {
            tile->levels[r * size + j] = (float)codes[j] - zero;
        }
    }
    blas_gemm(0, 0, (int)tile->rows, (int)size, (int)size, 1.0f, tile->levels, (int)size, h, (int)job->k, 0.0f,
              tile->curves, (int)size);
    for (int64_t r = 0; r < tile->rows; r++) {
        descend_scale(job, tile, r, group);
        if (!job->grid->sym) {
            descend_zero(job, tile, r, group);
        }
    }
}

/* The codes of one row in a block of columns [first, first + cols). */
static void descend_codes(const struct descend *job, struct descend_tile *tile, int64_t r, int64_t first, int64_t cols)
{
    int64_t row = tile->first + r, at = r * job->k + first;
    uint8_t *codes = job->codes + row * job->k + first;
    float *g = tile->g + at, *moves = tile->moves + at;
    float scale = job->scale[row * job->groups + first / job->size];

    for (int64_t j = 0; j < cols; j++) {
        const float *h = job->h + (first + j) * job->k + first;
        float old = (float)codes[j];
        if (!(h[j] > 0.0f)) {
            continue;
        }
        float code = rintf(old + g[j] / (h[j] * scale));
        code = code > 0.0f ? code : 0.0f; /* of a NaN, too */
        code = code < job->top ? code : job->top;
        float t = scale * (code - old);
        double gain = (double)t * (2 * (double)g[j] - (double)t * (double)h[j]);
        if (!(gain > 0)) {
            continue;
        }
        codes[j] = (uint8_t)code;
        moves[j] += t;
        tile->error[r / SUM_ROWS] -= gain;
        for (int64_t i = 0; i < cols; i++) {
            g[i] -= t * h[i];
        }
    }
}

/* G of columns [first, first + cols) after the moves of columns [from, from + count). */
static void descend_follow(const struct descend *job, struct descend_tile *tile, const float *moves, int64_t ld,
                           int64_t from, int64_t count, int64_t first, int64_t cols)
{
    if (cols > 0) {
        blas_gemm(0, 0, (int)tile->rows, (int)cols, (int)count, -1.0f, moves, (int)ld, job->h + from * job->k + first,
                  (int)job->k, 1.0f, tile->g + first, (int)job->k);
    }
}

/* All codes of a group. Where it has several blocks, moves so far are set aside, so that a block's own are known. */
static void descend_group(const struct descend *job, struct descend_tile *tile, int64_t group)
{
    int64_t start = group * job->size, end = start + job->size;

    for (int64_t r = 0; r < tile->rows; r++) {
        memset(tile->moves + r * job->k + start, 0, (size_t)job->size * sizeof(float));
    }
    if (job->spec->scales) {
        descend_points(job, tile, group);
    }
    for (int64_t first = start; first < end; first += BLOCK) {
        int64_t cols = end - first < BLOCK ? end - first : BLOCK;
        float *before = tile->levels; /* [rows, cols]: done with */
        for (int64_t r = 0; r < tile->rows; r++) {
            float *moves = tile->moves + r * job->k + first;
            memcpy(before + r * cols, moves, (size_t)cols * sizeof(float));
            descend_codes(job, tile, r, first, cols);
            for (int64_t j = 0; j < cols; j++) {
                before[r * cols + j] = moves[j] - before[r * cols + j];
            }
        }
        descend_follow(job, tile, before, cols, first, cols, start, first - start);
        descend_follow(job, tile, before, cols, first, cols, first + cols, end - first - cols);
    }
    descend_follow(job, tile, tile->moves + start, job->k, start, job->size, 0, start);
    descend_follow(job, tile, tile->moves + start, job->k, start, job->size, end, job->k - end);
}

static void descend_rows(void *ctx, int64_t task)
{
    struct descend *job = ctx;
    struct descend_tile tile = {.first = task * ROWS, .rows = tile_size(job->n, ROWS, task)};

    descend_layout(job, &tile);
    descend_start(job, &tile);
    memcpy(job->before + task * SUMS, tile.error, sizeof(tile.error));
    for (int pass = 0; pass < job->spec->passes; pass++) {
        for (int64_t group = 0; group < job->groups; group++) {
            descend_group(job, &tile, group);
        }
    }
    memcpy(job->after + task * SUMS, tile.error, sizeof(tile.error));
}

static void descend_ones(const struct descend *job)
{
    for (int64_t j = 0; j < job->k; j++) {
        int64_t start = j / job->size * job->size;
        double sum = 0;
        for (int64_t i = start; i < start + job->size; i++) {
            sum += (double)job->h[j * job->k + i];
        }
        job->ones[j] = (float)sum;
    }
}

int cpu_descend(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *scale,
                const struct tensor *zero, const struct tensor *target, const struct tensor *h,
                const struct gpu_grid *grid, const struct gpu_descend *spec, double *before, double *after)
{
    struct descend job = {.stream = stream,
                          .spec = spec,
                          .grid = grid,
                          .codes = codes->data,
                          .scale = scale->data,
                          .zero = zero->data,
                          .target = target->data,
                          .h = h->data,
                          .n = matrix_rows(target),
                          .k = matrix_cols(target),
                          .size = grid->group_size,
                          .groups = matrix_cols(target) / grid->group_size,
                          .top = (float)((1 << grid->bits) - 1)};
    int64_t tasks = tiles_of(job.n, ROWS);
    size_t sums = scratch_size(tasks * SUMS, sizeof(double));
    TRY(scratch_reserve(stream, 2 * sums + scratch_size(job.k, sizeof(float)), descend_slice(&job)));
    char *shared = scratch_shared(stream);
    job.before = (double *)(void *)shared;
    job.after = (double *)(void *)(shared + sums);
    job.ones = (float *)(void *)(shared + 2 * sums);
    if (!grid->sym && spec->scales) {
        descend_ones(&job);
    }
    stream_run(stream, tasks, descend_rows, &job);
    double from = 0, to = 0;
    for (int64_t i = 0; i < tasks * SUMS; i++) {
        from += job.before[i];
        to += job.after[i];
    }
    *before = from;
    *after = to;
    return 0;
}
