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
 * order. G is made where it is needed, of a group's columns from the D of that moment, so that a pass takes one product
 * of n k^2 and none comes before the first; inside a group it follows each move, in blocks of columns. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define ROWS 128 /* of a task */
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
    double *before, *after; /* [tasks] */
};

struct descend_tile {
    int64_t first, rows;
    float *d;             /* [rows, K]: target - wq */
    float *g;             /* [rows, group]: D H in the open group */
    float *levels;        /* [rows, group]: codes less the zero point */
    float *curves;        /* [rows, group]: levels H */
    double start, gained; /* the error before the first move, and what moves took from it */
};

static size_t descend_slice(const struct descend *job)
{
    return scratch_size(ROWS * job->k, sizeof(float)) + 3 * scratch_size(ROWS * job->size, sizeof(float));
}

static void descend_layout(const struct descend *job, struct descend_tile *tile)
{
    tile->d = scratch_slice(job->stream);
    tile->g = tile->d + scratch_size(ROWS * job->k, sizeof(float)) / sizeof(float);
    tile->levels = tile->g + scratch_size(ROWS * job->size, sizeof(float)) / sizeof(float);
    tile->curves = tile->levels + scratch_size(ROWS * job->size, sizeof(float)) / sizeof(float);
}

/* D of a group's columns, without what moves lost in rounding. */
static void descend_difference(const struct descend *job, struct descend_tile *tile, int64_t group)
{
    int64_t k = job->k, size = job->size, start = group * size;

    for (int64_t r = 0; r < tile->rows; r++) {
        int64_t row = tile->first + r, point = row * job->groups + group;
        float *d = tile->d + r * k + start;
        job->stream->device->kernels->dequantize(d, job->codes + row * k + start, size, job->scale[point],
                                                 job->zero[point]);
        for (int64_t j = 0; j < size; j++) {
            d[j] = job->target[row * k + start + j] - d[j];
        }
    }
}

/* out [rows, group] = D H of D's columns [first, end) and the group's, plus beta out. */
static void descend_product(const struct descend *job, const struct descend_tile *tile, int64_t first, int64_t end,
                            int64_t group, float beta, float *out)
{
    if (end > first) {
        blas_gemm(0, 0, (int)tile->rows, (int)job->size, (int)(end - first), 1.0f, tile->d + first, (int)job->k,
                  job->h + first * job->k + group * job->size, (int)job->k, beta, out, (int)job->size);
    }
}

/* G of a group that is visited for the first time. Columns after it have their first D still, and those before it had
 * it when it was their turn, so each pair of groups is in the error once. */
static void descend_first(const struct descend *job, struct descend_tile *tile, int64_t group)
{
    const struct kernels *kernels = job->stream->device->kernels;
    int64_t size = job->size, start = group * size, end = start + size;
    float *after = tile->curves; /* [rows, group]: not in use yet */

    descend_product(job, tile, start, end, group, 0.0f, tile->g);
    for (int64_t r = 0; r < tile->rows; r++) {
        tile->start += kernels->dot(tile->d + r * job->k + start, tile->g + r * size, size);
    }
    descend_product(job, tile, 0, start, group, 1.0f, tile->g);
    if (end == job->k) {
        return;
    }
    descend_product(job, tile, end, job->k, group, 0.0f, after);
    for (int64_t r = 0; r < tile->rows; r++) {
        tile->start += 2 * kernels->dot(tile->d + r * job->k + start, after + r * size, size);
        for (int64_t j = 0; j < size; j++) {
            tile->g[r * size + j] += after[r * size + j];
        }
    }
}

/* G of the group's columns. Of a row's only group it is what the pass before left. */
static void descend_open(const struct descend *job, struct descend_tile *tile, int64_t group, int pass)
{
    if (pass == 0) {
        descend_first(job, tile, group);
    } else if (job->groups > 1) {
        descend_product(job, tile, 0, job->k, group, 0.0f, tile->g);
    }
}

/* The scale of one row's group. */
static void descend_scale(const struct descend *job, struct descend_tile *tile, int64_t r, int64_t group)
{
    const struct kernels *kernels = job->stream->device->kernels;
    int64_t size = job->size;
    const float *levels = tile->levels + r * size, *curves = tile->curves + r * size;
    float *d = tile->d + r * job->k + group * size, *g = tile->g + r * size;
    float *scale = &job->scale[(tile->first + r) * job->groups + group];
    double curve = kernels->dot(levels, curves, size), slope = kernels->dot(levels, g, size);

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
    tile->gained += gain;
    for (int64_t j = 0; j < size; j++) {
        d[j] -= (float)t * levels[j];
        g[j] -= (float)t * curves[j];
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
    int64_t size = job->size, point = (tile->first + r) * job->groups + group;
    const float *ones = job->ones + group * size;
    float *d = tile->d + r * job->k + group * size, *g = tile->g + r * size;
    double slope = 0, curve = 0;

    for (int64_t j = 0; j < size; j++) {
        slope += (double)g[j];
        curve += (double)ones[j];
    }
    for (int step = -1; step <= 1; step += 2) {
        float zero = job->zero[point] + (float)step, t = -(float)step * job->scale[point];
        double gain = (double)t * (2 * slope - (double)t * curve);
        if (!(gain > 0) || zero < 0.0f || zero > job->top) {
            continue;
        }
        job->zero[point] = zero;
        tile->gained += gain;
        for (int64_t j = 0; j < size; j++) {
            d[j] -= t;
            g[j] -= t * ones[j];
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

/* The codes of one row in a block of columns [first, first + cols), and D there. */
static void descend_codes(const struct descend *job, struct descend_tile *tile, int64_t r, int64_t first, int64_t cols)
{
    int64_t row = tile->first + r;
    uint8_t *codes = job->codes + row * job->k + first;
    float *g = tile->g + r * job->size + first % job->size, *d = tile->d + r * job->k + first;
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
        d[j] -= t;
        tile->gained += gain;
        for (int64_t i = 0; i < cols; i++) {
            g[i] -= t * h[i];
        }
    }
}

/* G of the group's columns [first, end) after the moves [rows, count] of its columns from `from` on. */
static void descend_follow(const struct descend *job, struct descend_tile *tile, const float *moves, int64_t from,
                           int64_t count, int64_t first, int64_t end)
{
    int64_t start = from / job->size * job->size;

    if (end > first) {
        blas_gemm(0, 0, (int)tile->rows, (int)(end - first), (int)count, -1.0f, moves, (int)count,
                  job->h + from * job->k + first, (int)job->k, 1.0f, tile->g + first - start, (int)job->size);
    }
}

/* All codes of a group. */
static void descend_group(const struct descend *job, struct descend_tile *tile, int64_t group, int pass)
{
    int64_t start = group * job->size, end = start + job->size;
    float *moves = tile->levels; /* [rows, cols] of a block: done with then */

    descend_open(job, tile, group, pass);
    if (job->spec->scales) {
        descend_points(job, tile, group);
    }
    for (int64_t first = start; first < end; first += BLOCK) {
        int64_t cols = end - first < BLOCK ? end - first : BLOCK;
        for (int64_t r = 0; r < tile->rows; r++) {
            const float *d = tile->d + r * job->k + first;
            memcpy(moves + r * cols, d, (size_t)cols * sizeof(float));
            descend_codes(job, tile, r, first, cols);
            for (int64_t j = 0; j < cols; j++) {
                moves[r * cols + j] -= d[j];
            }
        }
        descend_follow(job, tile, moves, first, cols, start, first);
        descend_follow(job, tile, moves, first, cols, first + cols, end);
    }
    descend_difference(job, tile, group);
}

static void descend_rows(void *ctx, int64_t task)
{
    struct descend *job = ctx;
    struct descend_tile tile = {.first = task * ROWS, .rows = tile_size(job->n, ROWS, task)};

    descend_layout(job, &tile);
    for (int64_t group = 0; group < job->groups; group++) {
        descend_difference(job, &tile, group);
    }
    for (int pass = 0; pass < job->spec->passes; pass++) {
        for (int64_t group = 0; group < job->groups; group++) {
            descend_group(job, &tile, group, pass);
        }
    }
    job->before[task] = tile.start;
    job->after[task] = tile.start - tile.gained;
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
    size_t sums = scratch_size(tasks, sizeof(double));
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
    for (int64_t i = 0; i < tasks; i++) {
        from += job.before[i];
        to += job.after[i];
    }
    *before = from;
    *after = to;
    return 0;
}
