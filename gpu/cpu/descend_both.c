/* Coordinate descent on tr(O D H D^T), D = target - wq: what moments of the inputs (H) and of the gradients with
 * respect to the outputs (O) say together about the loss of rounding (Kronecker-factored curvature: Martens and Grosse
 * 2015, arXiv 1503.05671; for rounding Tseng et al. 2025, arXiv 2505.22988).
 *
 * With G = O D H, moving row n of wq by t along v changes the error by -2 t v.G_n + t^2 O_nn v H v^T: the steps of
 * descend.c, now with rows that depend on each other. They are visited in order, one after another:
 *   scale  v = the group's codes less the zero point
 *   code   v = 1 in one column j
 * Zero points stay, and so do columns with H_jj = 0 and rows with O_nn = 0.
 *
 * All is kept transposed, so that what a move changes is contiguous: M = (O D)^T [K, N], of which G^T = H M is computed
 * for a group at a time. Within a block of columns G follows each move; one product then takes them to the group's
 * later columns. Products are split by tiles of rows or columns, moves are one thread's. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define TILE 64  /* rows or columns of a task */
#define BLOCK 64 /* columns whose moves are followed one by one */
#define ROWS 32  /* whose scales move before one product takes them on */

struct descend_both {
    const struct gpu_descend *spec;
    const struct gpu_grid *grid;
    uint8_t *codes;
    float *scale;
    const float *zero, *target, *h, *o;
    int64_t n, k, size, groups;
    float top;
    float *m;       /* [K, N] */
    float *g;       /* [K, N]: D^T at the start, then in its first rows G^T of the open group */
    float *levels;  /* [size, N]: codes less the zero point, then times what scales moved by */
    float *curves;  /* [size, N]: H levels, likewise */
    float *moves;   /* [BLOCK, N]: what M lost in the open block */
    double *errors; /* [tiles of N] */
    int64_t group;
    double error;
};

/* c[m, cols] = alpha a[m, n] b[n, cols] + beta c for the columns of a tile. */
static void both_product(const struct descend_both *job, int64_t tile, int64_t m, int64_t n, float alpha,
                         const float *a, int64_t lda, const float *b, float beta, float *c)
{
    int64_t first = tile * TILE;

    blas_gemm(0, 0, (int)m, (int)tile_size(job->n, TILE, tile), (int)n, alpha, a, (int)lda, b + first, (int)job->n,
              beta, c + first, (int)job->n);
}

/* D^T for a tile of columns of the weight, then M. */
static void both_start(void *ctx, int64_t task)
{
    const struct descend_both *job = ctx;
    int64_t first = task * TILE, cols = tile_size(job->k, TILE, task), n = job->n;

    for (int64_t row = 0; row < n; row++) {
        for (int64_t j = first; j < first + cols; j++) {
            int64_t at = row * job->k + j, point = row * job->groups + j / job->size;
            job->g[j * n + row] = job->target[at] - job->scale[point] * ((float)job->codes[at] - job->zero[point]);
        }
    }
    blas_gemm(0, 0, (int)cols, (int)n, (int)n, 1.0f, job->g + first * n, (int)n, job->o, (int)n, 0.0f,
              job->m + first * n, (int)n);
}

/* The error's part of a tile of rows: over groups of columns, whose G^T goes where levels will be. */
static void both_measure(void *ctx, int64_t tile)
{
    const struct descend_both *job = ctx;
    int64_t first = tile * TILE, rows = tile_size(job->n, TILE, tile);
    double sum = 0;

    for (int64_t group = 0; group < job->groups; group++) {
        int64_t start = group * job->size;
        both_product(job, tile, job->size, job->k, 1.0f, job->h + start * job->k, job->k, job->m, 0.0f, job->levels);
        for (int64_t j = 0; j < job->size; j++) {
            const float *d = job->g + (start + j) * job->n + first, *g = job->levels + j * job->n + first;
            for (int64_t i = 0; i < rows; i++) {
                sum += (double)d[i] * (double)g[i];
            }
        }
    }
    job->errors[tile] = sum;
}

/* G^T of the open group; and, where scales move, levels and curves. */
static void both_open(void *ctx, int64_t tile)
{
    const struct descend_both *job = ctx;
    int64_t first = tile * TILE, rows = tile_size(job->n, TILE, tile), size = job->size, start = job->group * size;

    both_product(job, tile, size, job->k, 1.0f, job->h + start * job->k, job->k, job->m, 0.0f, job->g);
    if (!job->spec->scales) {
        return;
    }
    for (int64_t i = first; i < first + rows; i++) {
        float zero = job->zero[i * job->groups + job->group];
        for (int64_t j = 0; j < size; j++) {
            job->levels[j * job->n + i] = (float)job->codes[i * job->k + start + j] - zero;
        }
    }
    both_product(job, tile, size, size, 1.0f, job->h + start * (job->k + 1), job->k, job->levels, 0.0f, job->curves);
}

/* sum over the group's columns of a[., i] b[., p] */
static double both_dot(const struct descend_both *job, const float *a, int64_t i, const float *b, int64_t p)
{
    double sum = 0;

    for (int64_t j = 0; j < job->size; j++) {
        sum += (double)a[j * job->n + i] * (double)b[j * job->n + p];
    }
    return sum;
}

/* The scale of row i: *by it moved. slope: of the error along the levels, after the moves of earlier rows. */
static void both_scale(struct descend_both *job, int64_t i, double slope, double curve, float *by)
{
    float *scale = &job->scale[i * job->groups + job->group];

    *by = 0.0f;
    if (!(curve > 0)) {
        return;
    }
    float best = dtype_round((float)((double)*scale + slope / curve), job->grid->scale_dtype);
    double t = (double)best - (double)*scale, gain = t * (2 * slope - t * curve);
    bool usable = isfinite(best) && best != 0.0f && (best > 0.0f) == (*scale > 0.0f);
    if (usable && gain > 0) {
        *scale = best;
        *by = (float)t;
        job->error -= gain;
    }
}

struct both_rows {
    struct descend_both *job;
    int64_t first, rows;
};

/* G^T after the scales of some rows moved. */
static void both_follow_rows(void *ctx, int64_t tile)
{
    const struct both_rows *rows = ctx;
    const struct descend_both *job = rows->job;

    blas_gemm(0, 0, (int)job->size, (int)tile_size(job->n, TILE, tile), (int)rows->rows, -1.0f,
              job->curves + rows->first, (int)job->n, job->o + rows->first * job->n + tile * TILE, (int)job->n, 1.0f,
              job->g + tile * TILE, (int)job->n);
}

/* Scales of rows [first, first + count), whose levels and curves become what they moved by. */
static bool both_scales_of(struct descend_both *job, int64_t first, int64_t count)
{
    float by[ROWS];
    bool any = false;

    for (int64_t r = 0; r < count; r++) {
        int64_t i = first + r;
        double own = (double)job->o[i * (job->n + 1)], slope = both_dot(job, job->levels, i, job->g, i);
        for (int64_t p = 0; p < r; p++) {
            slope -= by[p] == 0.0f ? 0
                                   : (double)by[p] * (double)job->o[(first + p) * job->n + i] *
                                         both_dot(job, job->levels, i, job->curves, first + p);
        }
        both_scale(job, i, slope, own * both_dot(job, job->levels, i, job->curves, i), &by[r]);
        any = any || by[r] != 0.0f;
    }
    for (int64_t j = 0; j < job->size; j++) {
        for (int64_t r = 0; r < count; r++) {
            job->levels[j * job->n + first + r] *= by[r];
            job->curves[j * job->n + first + r] *= by[r];
        }
    }
    return any;
}

/* M of the group after all its scales moved. */
static void both_follow_scales(void *ctx, int64_t tile)
{
    const struct descend_both *job = ctx;

    both_product(job, tile, job->size, job->n, -1.0f, job->levels, job->n, job->o, 1.0f,
                 job->m + job->group * job->size * job->n);
}

static void both_scales(struct descend_both *job, struct gpu_stream *stream)
{
    bool any = false;

    for (int64_t first = 0; first < job->n; first += ROWS) {
        struct both_rows rows = {job, first, job->n - first < ROWS ? job->n - first : ROWS};
        if (both_scales_of(job, first, rows.rows)) {
            any = true;
            stream_run(stream, tiles_of(job->n, TILE), both_follow_rows, &rows);
        }
    }
    if (any) {
        stream_run(stream, tiles_of(job->n, TILE), both_follow_scales, job);
    }
}

/* The codes of column j, row by row; g: its G, which follows, and lost [N]: what its M loses. Whether any moved. */
static bool both_column(struct descend_both *job, int64_t j, float *restrict g, float *restrict lost)
{
    float own = job->h[j * (job->k + 1)];
    bool any = false;

    memset(lost, 0, (size_t)job->n * sizeof(float));
    for (int64_t i = 0; own > 0.0f && i < job->n; i++) {
        const float *o = job->o + i * job->n;
        float scale = job->scale[i * job->groups + job->group], curve = o[i] * own;
        uint8_t *code = &job->codes[i * job->k + j];
        float old = (float)*code, slope = g[i] - own * lost[i];
        if (!(curve > 0.0f)) {
            continue;
        }
        float best = rintf(old + slope / (curve * scale));
        best = best > 0.0f ? best : 0.0f; /* of a NaN, too */
        best = best < job->top ? best : job->top;
        float t = scale * (best - old);
        double gain = (double)t * (2 * (double)slope - (double)t * (double)curve);
        if (!(gain > 0)) {
            continue;
        }
        *code = (uint8_t)best;
        job->error -= gain;
        any = true;
        for (int64_t p = 0; p < job->n; p++) {
            lost[p] += t * o[p];
        }
    }
    return any;
}

struct both_block {
    struct descend_both *job;
    int64_t first, cols; /* of the group */
};

/* G^T of the group's columns after the block. */
static void both_follow_block(void *ctx, int64_t tile)
{
    const struct both_block *block = ctx;
    const struct descend_both *job = block->job;
    int64_t next = block->first + block->cols, start = job->group * job->size;

    both_product(job, tile, job->size - next, block->cols, -1.0f,
                 job->h + (start + next) * job->k + start + block->first, job->k, job->moves, 1.0f,
                 job->g + next * job->n);
}

static void both_subtract(float *restrict y, const float *restrict x, int64_t n, float factor)
{
    for (int64_t i = 0; i < n; i++) {
        y[i] -= factor * x[i];
    }
}

static void both_codes(struct descend_both *job, struct gpu_stream *stream)
{
    int64_t n = job->n, start = job->group * job->size;

    for (int64_t first = 0; first < job->size; first += BLOCK) {
        struct both_block block = {job, first, job->size - first < BLOCK ? job->size - first : BLOCK};
        for (int64_t c = 0; c < block.cols; c++) {
            int64_t j = start + first + c;
            float *lost = job->moves + c * n;
            if (!both_column(job, j, job->g + (first + c) * n, lost)) {
                continue;
            }
            both_subtract(job->m + j * n, lost, n, 1.0f);
            for (int64_t later = c + 1; later < block.cols; later++) {
                both_subtract(job->g + (first + later) * n, lost, n, job->h[j * job->k + start + first + later]);
            }
        }
        if (first + block.cols < job->size) {
            stream_run(stream, tiles_of(n, TILE), both_follow_block, &block);
        }
    }
}

int cpu_descend_both(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *scale,
                     const struct tensor *zero, const struct tensor *target, const struct tensor *h,
                     const struct tensor *o, const struct gpu_grid *grid, const struct gpu_descend *spec,
                     double *before, double *after)
{
    struct descend_both job = {.spec = spec,
                               .grid = grid,
                               .codes = codes->data,
                               .scale = scale->data,
                               .zero = zero->data,
                               .target = target->data,
                               .h = h->data,
                               .o = o->data,
                               .n = matrix_rows(target),
                               .k = matrix_cols(target),
                               .size = grid->group_size,
                               .groups = matrix_cols(target) / grid->group_size,
                               .top = (float)((1 << grid->bits) - 1)};
    int64_t tiles = tiles_of(job.n, TILE);
    size_t weights = scratch_size(job.k * job.n, sizeof(float)), group = scratch_size(job.size * job.n, sizeof(float));
    size_t block = scratch_size(BLOCK * job.n, sizeof(float));
    TRY(scratch_reserve(stream, 2 * weights + 2 * group + block + scratch_size(tiles, sizeof(double)), 0));
    char *shared = scratch_shared(stream);
    job.m = (float *)(void *)shared;
    job.g = (float *)(void *)(shared + weights);
    job.levels = (float *)(void *)(shared + 2 * weights);
    job.curves = (float *)(void *)(shared + 2 * weights + group);
    job.moves = (float *)(void *)(shared + 2 * weights + 2 * group);
    job.errors = (double *)(void *)(shared + 2 * weights + 2 * group + block);
    stream_run(stream, tiles_of(job.k, TILE), both_start, &job);
    stream_run(stream, tiles, both_measure, &job);
    for (int64_t i = 0; i < tiles; i++) {
        job.error += job.errors[i];
    }
    *before = job.error;
    for (int64_t step = 0; step < spec->passes * job.groups; step++) {
        job.group = step % job.groups;
        stream_run(stream, tiles, both_open, &job);
        if (spec->scales) {
            both_scales(&job, stream);
        }
        both_codes(&job, stream);
    }
    *after = job.error;
    return 0;
}
