/* Bodies of the operations that gather statistics, choose grids, solve, and measure what was lost. */

#include "tests/conformance/ops_bodies.h"

#include "base/cleanup.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Only the upper triangle is promised. */
static int put_upper(struct ops_rig *rig, struct ops_output *out, const struct tensor *h)
{
    int64_t n = h->shape[1];
    struct ops_output all = {0};
    int rc = ops_put(rig, &all, h);

    for (int64_t i = 0; rc == 0 && i < n; i++) {
        for (int64_t j = i; rc == 0 && j < n; j++) {
            rc = ops_put_number(out, all.values[i * n + j]);
        }
    }
    ops_output_deinit(&all);
    return rc;
}

/* Twice into one h. variant: n. */
int body_gram(struct ops_rig *rig, int variant, struct ops_output *out)
{
    struct tensor h, x, more;

    TRY(ops_new(rig, DTYPE_F32, variant, variant, &h));
    TRY(ops_random(rig, DTYPE_F32, 40, variant, 31, &x));
    TRY(ops_random(rig, DTYPE_F32, 7, variant, 32, &more));
    TRY(rig->gpu.ops->gram(rig->stream, &h, &x));
    TRY(rig->gpu.ops->gram(rig->stream, &h, &more));
    return put_upper(rig, out, &h);
}

/* variant: n. The diagonal comes along, before and after it was raised to what about half of it reaches. */
int body_symmetrize(struct ops_rig *rig, int variant, struct ops_output *out)
{
    AUTO_FREE float *diagonal = NULL;
    struct tensor h;

    TRY(mem_buffer(&diagonal, (size_t)variant));
    TRY(ops_random(rig, DTYPE_F32, variant, variant, 33, &h));
    TRY(rig->gpu.ops->symmetrize(rig->stream, &h, 0.37));
    TRY(rig->gpu.ops->diagonal(rig->stream, diagonal, &h));
    for (int i = 0; i < variant; i++) {
        TRY(ops_put_number(out, (double)diagonal[i]));
    }
    TRY(ops_put(rig, out, &h));
    TRY(rig->gpu.ops->floor_diagonal(rig->stream, &h, 0.01f));
    return ops_put(rig, out, &h);
}

/* variant: rows; two calls add up, then each statistic alone. */
int body_column_stats(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_ops *ops = rig->gpu.ops;
    struct tensor x, absmax, sum;

    TRY(ops_random(rig, DTYPE_F32, variant, 133, 34, &x));
    TRY(ops_new(rig, DTYPE_F32, 1, 133, &absmax));
    TRY(ops_new(rig, DTYPE_F32, 1, 133, &sum));
    TRY(ops->column_stats(rig->stream, &absmax, &sum, &x));
    TRY(ops->column_stats(rig->stream, &absmax, NULL, &x));
    TRY(ops->column_stats(rig->stream, NULL, &sum, &x));
    TRY(ops_put(rig, out, &absmax));
    return ops_put(rig, out, &sum);
}

#define GRID_ROWS 9
#define GRID_COLS 384

static const struct grid_row {
    struct gpu_grid grid;
    bool importance;
} grids[] = {
    {{.bits = 4, .group_size = 384, .sym = true, .scale_dtype = DTYPE_F16}, false},
    {{.bits = 3, .group_size = 48, .scale_dtype = DTYPE_BF16}, false},
    {{.bits = 4, .group_size = 48, .mse = true, .norm = 2.4, .max_shrink = 0.8, .steps = 100, .scale_dtype = DTYPE_F16},
     true},
    {{.bits = 2,
      .group_size = 24,
      .sym = true,
      .mse = true,
      .norm = 2.0,
      .max_shrink = 0.5,
      .steps = 40,
      .scale_dtype = DTYPE_F32},
     false},
    {{.bits = 8,
      .group_size = 12,
      .mse = true,
      .norm = 2.4,
      .max_shrink = 0.8,
      .steps = 100,
      .scale_dtype = DTYPE_BF16},
     true},
};

/* Weights [GRID_ROWS, GRID_COLS] with groups of zeros, of one sign and of tiny numbers among them. */
static int grid_weights(struct ops_rig *rig, struct tensor *w)
{
    float host[GRID_ROWS * GRID_COLS];
    uint64_t seed = 35;

    for (int i = 0; i < GRID_ROWS * GRID_COLS; i++) {
        int row = i / GRID_COLS, col = i % GRID_COLS;
        host[i] = 0.1f * ops_normal(&seed);
        host[i] = row == 2 && col < 120 ? 0.0f : row == 3 ? fabsf(host[i]) : row == 4 ? -fabsf(host[i]) : host[i];
        host[i] *= row == 5 ? 1e-30f : row == 6 && col % 31 == 0 ? 40.0f : 1.0f;
    }
    return ops_upload(rig, host, GRID_ROWS, GRID_COLS, w);
}

static int chosen_grid(struct ops_rig *rig, const struct grid_row *row, const struct tensor *w, struct tensor *scale,
                       struct tensor *zero)
{
    struct tensor importance;
    float host[GRID_COLS];
    uint64_t seed = 36;

    for (int i = 0; i < GRID_COLS; i++) {
        host[i] = fabsf(ops_normal(&seed));
    }
    TRY(ops_upload(rig, host, 1, GRID_COLS, &importance));
    TRY(ops_new(rig, DTYPE_F32, w->shape[0], GRID_COLS / row->grid.group_size, scale));
    TRY(ops_new(rig, DTYPE_F32, w->shape[0], GRID_COLS / row->grid.group_size, zero));
    return rig->gpu.ops->grid(rig->stream, scale, zero, w, row->importance ? &importance : NULL, &row->grid);
}

/* variant: a row of grids. A search is made by cubes and in groups of usual sizes too, which a device may do in ways of
 * their own. */
int body_grid(struct ops_rig *rig, int variant, struct ops_output *out)
{
    static const struct {
        int64_t group_size; /* 0: the row's, as is a norm of 0 */
        double norm;
    } searches[] = {{0, 0}, {0, 3}, {32, 3}, {64, 3}, {128, 3}, {128, 0}};
    int count = grids[variant].grid.mse ? (int)(sizeof(searches) / sizeof(searches[0])) : 1;
    struct tensor w, scale, zero;

    TRY(grid_weights(rig, &w));
    for (int i = 0; i < count; i++) {
        struct grid_row row = grids[variant];
        row.grid.group_size = searches[i].group_size > 0 ? searches[i].group_size : row.grid.group_size;
        row.grid.norm = searches[i].norm > 0 ? searches[i].norm : row.grid.norm;
        TRY(chosen_grid(rig, &row, &w, &scale, &zero));
        TRY(ops_put(rig, out, &scale));
        TRY(ops_put(rig, out, &zero));
    }
    return 0;
}

/* Codes and back, on the grid of body_grid. */
int body_round(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_grid *grid = &grids[variant].grid;
    struct tensor w, scale, zero, codes;

    TRY(grid_weights(rig, &w));
    TRY(chosen_grid(rig, &grids[variant], &w, &scale, &zero));
    TRY(ops_new(rig, DTYPE_U8, GRID_ROWS, GRID_COLS, &codes));
    TRY(rig->gpu.ops->round(rig->stream, &codes, &w, &scale, &zero, grid));
    TRY(rig->gpu.ops->dequantize(rig->stream, &w, &codes, &scale, &zero, grid));
    TRY(ops_put(rig, out, &codes));
    return ops_put(rig, out, &w);
}

void ops_shuffle(int32_t *order, int n)
{
    for (int i = 0; i < n; i++) {
        order[i] = (int32_t)((int64_t)i * 7 % n);
    }
}

static int hessian_sums(int n, float *sums)
{
    int tokens = 2 * n;
    uint64_t seed = 37;
    float *x = malloc((size_t)tokens * (size_t)n * sizeof(float));

    if (x == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a Hessian");
    }
    for (int t = 0; t < tokens; t++) {
        float drift = 0;
        for (int j = 0; j < n; j++) {
            drift = 0.8f * drift + 0.5f * ops_normal(&seed);
            x[t * n + j] = j == 3 ? 0.0f : drift;
        }
    }
    memset(sums, 0, (size_t)n * (size_t)n * sizeof(float));
    for (int t = 0; t < tokens; t++) {
        for (int i = 0; i < n; i++) {
            for (int j = 0; j <= i; j++) {
                sums[i * n + j] += x[t * n + i] * x[t * n + j] / (float)tokens;
            }
        }
    }
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < i; j++) {
            sums[j * n + i] = sums[i * n + j];
        }
    }
    free(x);
    return 0;
}

/* The last one is kept: tests of errors run one row hundreds of times. */
int ops_hessian(struct ops_rig *rig, int n, struct tensor *h)
{
    static float kept[OPS_FACTOR_MAX * OPS_FACTOR_MAX];
    static int kept_n;

    if (kept_n != n) {
        kept_n = 0;
        TRY(hessian_sums(n, kept));
        kept_n = n;
    }
    return ops_upload(rig, kept, n, n, h);
}

/* variant: n, negative for an order. */
int body_factor(struct ops_rig *rig, int variant, struct ops_output *out)
{
    int32_t order[OPS_FACTOR_MAX];
    int n = abs(variant);
    const struct gpu_factor spec = {.damp_percent = 0.01, .order = variant < 0 ? order : NULL};
    struct tensor h, u;

    ops_shuffle(order, n);
    TRY(ops_hessian(rig, n, &h));
    TRY(ops_random(rig, DTYPE_F32, n, n, 38, &u));
    TRY(rig->gpu.ops->factor(rig->stream, &u, &h, &spec));
    TRY(ops_put(rig, out, &u));
    return ops_put(rig, out, &h); /* unchanged */
}

/* A matrix that has no factor is said to have none, and the stream goes on. */
int body_factor_refuses(struct ops_rig *rig, int variant, struct ops_output *out)
{
    struct tensor h, u;
    float host[16] = {1, 0, 0, 0, 0, -4, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};

    TRY(ops_upload(rig, host, 4, 4, &h));
    TRY(ops_new(rig, DTYPE_F32, 4, 4, &u));
    int rc = rig->gpu.ops->factor(rig->stream, &u, &h, &(struct gpu_factor){.damp_percent = 0.01});
    if (rc == ERR_GPU_OUT_OF_MEMORY || rc == ERR_DEVICE_LOST || rc == ERR_HOST_OUT_OF_MEMORY) {
        return rc;
    }
    TRY(ops_put_number(out, rc == ERR_NOT_POSITIVE_DEFINITE ? 1 : 0));
    return body_factor(rig, variant, out);
}

#define SWEEP_COLS_MAX 650

struct sweep_row {
    int64_t rows, cols;
    struct gpu_grid grid;
    bool order;
};

static const struct sweep_row sweeps[] = {
    {70, 384, {.bits = 4, .group_size = 128, .sym = true, .scale_dtype = DTYPE_F32}, false},
    {33, 300, {.bits = 3, .group_size = 300, .scale_dtype = DTYPE_F32}, false},
    {130, 272, {.bits = 4, .group_size = 16, .scale_dtype = DTYPE_F32}, true},
    {5, 24, {.bits = 2, .group_size = 8, .scale_dtype = DTYPE_F32}, true},
    {64, 256, {.bits = 8, .group_size = 64, .sym = true, .scale_dtype = DTYPE_F32}, true},
    {37, 650, {.bits = 8, .group_size = 130, .scale_dtype = DTYPE_F32}, false},
    {20, 640, {.bits = 8, .group_size = 640, .scale_dtype = DTYPE_F32}, false},
};

int ops_upper(struct ops_rig *rig, int64_t n, struct tensor *u)
{
    float *host = calloc((size_t)(n * n), sizeof(float));
    uint64_t seed = 39;

    if (host == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a factor");
    }
    for (int64_t i = 0; i < n; i++) {
        host[i * n + i] = 0.6f + fabsf(ops_normal(&seed));
        for (int64_t j = i + 1; j < n; j++) {
            host[i * n + j] = 0.1f * ops_normal(&seed);
        }
    }
    int rc = ops_upload(rig, host, n, n, u);
    free(host);
    return rc;
}

/* variant: 0 NF4 in order of the columns, 1 E2M1 in another. The scale of a group is its range. */
int body_sweep_levels(struct ops_rig *rig, int variant, struct ops_output *out)
{
    enum { ROWS = 13, COLS = 320, GROUP = 32 };
    const struct gpu_tiles tiles = {variant == 0 ? DTYPE_NF4 : DTYPE_F4_E2M1, 1, GROUP};
    float values[16];
    const struct gpu_levels levels = {values, 16, GROUP};
    int32_t order[COLS];
    struct tensor w, u, scale, codes;
    double loss = -1;

    for (int i = 0; i < 16; i++) {
        values[i] = variant == 0 ? dtype_nf4_levels[i] : dtype_e2m1_to_f32((uint8_t)i) / 6.0f;
    }
    ops_shuffle(order, COLS);
    TRY(ops_random(rig, DTYPE_F32, ROWS, COLS, 41, &w));
    TRY(ops_upper(rig, COLS, &u));
    TRY(ops_new(rig, DTYPE_F32, ROWS, COLS / GROUP, &scale));
    TRY(ops_new(rig, DTYPE_U8, ROWS, COLS, &codes));
    TRY(rig->gpu.ops->tile_range(rig->stream, &scale, &w, &tiles));
    TRY(rig->gpu.ops->sweep_levels(rig->stream, &codes, &w, &u, &scale, variant == 0 ? NULL : order, 128, &levels,
                                   &loss));
    if (!(loss > 0)) {
        return err_raise(ERR_INTERNAL, "a sweep that lost %g", loss);
    }
    return ops_put(rig, out, &codes);
}

/* variant: a row of sweeps: one group a block, one a row, many with an order, less than a block, all together; more
 * columns than a panel of CUDA, in rows that are multiples of four and not. Codes only: the loss is measured by
 * body_residual and the like. */
int body_sweep(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct sweep_row *s = &sweeps[variant];
    int32_t order[SWEEP_COLS_MAX];
    struct tensor w, u, scale, zero, codes;
    double loss = -1;

    ops_shuffle(order, (int)s->cols);
    TRY(ops_random(rig, DTYPE_F32, s->rows, s->cols, 40, &w));
    TRY(ops_upper(rig, s->cols, &u));
    TRY(ops_new(rig, DTYPE_F32, s->rows, s->cols / s->grid.group_size, &scale));
    TRY(ops_new(rig, DTYPE_F32, s->rows, s->cols / s->grid.group_size, &zero));
    TRY(ops_new(rig, DTYPE_U8, s->rows, s->cols, &codes));
    TRY(rig->gpu.ops->grid(rig->stream, &scale, &zero, &w, NULL, &s->grid));
    TRY(rig->gpu.ops->sweep(rig->stream, &codes, &w, &u, &scale, &zero, s->order ? order : NULL, 128, &s->grid, &loss));
    if (!(loss > 0)) {
        return err_raise(ERR_INTERNAL, "a sweep that lost %g", loss);
    }
    return ops_put(rig, out, &codes);
}

/* Neighbouring columns go together, and the last is never active. */
static int mix_columns(struct ops_rig *rig, const struct tensor *x)
{
    int64_t rows = x->shape[0], cols = x->shape[1];
    AUTO_FREE float *host = NULL;

    TRY(mem_buffer(&host, (size_t)(rows * cols)));
    TRY(rig->gpu.ops->download(rig->stream, host, x->data, tensor_bytes(x)));
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t j = 1; j < cols; j++) {
            host[r * cols + j] += 0.7f * host[r * cols + j - 1];
        }
        host[r * cols + cols - 1] = 0.0f;
    }
    return rig->gpu.ops->upload(rig->stream, x->data, host, tensor_bytes(x));
}

static const struct descend_row {
    int64_t rows, cols;
    struct gpu_grid grid;
    struct gpu_descend spec;
} descends[] = {
    {37, 384, {.bits = 2, .group_size = 64, .sym = true, .scale_dtype = DTYPE_BF16}, {.passes = 2, .scales = true}},
    {70, 128, {.bits = 3, .group_size = 32, .scale_dtype = DTYPE_F16}, {.passes = 1, .scales = true}},
    {9, 300, {.bits = 4, .group_size = 300, .scale_dtype = DTYPE_F32}, {.passes = 2, .scales = true}},
    {33,
     192,
     {.bits = 3,
      .group_size = 96,
      .sym = true,
      .signs = true,
      .mse = true,
      .norm = 3,
      .max_shrink = 0.8,
      .steps = 50,
      .scale_dtype = DTYPE_F32},
     {.passes = 3}},
};

/* A row of descends: rounded weights refined, one column without inputs; with `both` by moments of outputs, too. The
 * result is measured again, without these. */
static int refine_codes(struct ops_rig *rig, int variant, bool both, struct ops_output *out)
{
    const struct descend_row *row = &descends[variant];
    int64_t groups = row->cols / row->grid.group_size;
    struct tensor w, wq, x, y, h, o, scale, zero, codes;
    double before = 0, after = 0, error = 0;

    TRY(ops_random(rig, DTYPE_F32, row->rows, row->cols, 46, &w));
    TRY(ops_random(rig, DTYPE_F32, 500, row->cols, 47, &x));
    TRY(ops_new(rig, DTYPE_F32, row->cols, row->cols, &h));
    TRY(ops_new(rig, DTYPE_F32, row->rows, row->cols, &wq));
    TRY(ops_new(rig, DTYPE_F32, row->rows, groups, &scale));
    TRY(ops_new(rig, DTYPE_F32, row->rows, groups, &zero));
    TRY(ops_new(rig, DTYPE_U8, row->rows, row->cols, &codes));
    TRY(mix_columns(rig, &x));
    TRY(rig->gpu.ops->gram(rig->stream, &h, &x));
    TRY(rig->gpu.ops->symmetrize(rig->stream, &h, 0.004));
    TRY(rig->gpu.ops->grid(rig->stream, &scale, &zero, &w, NULL, &row->grid));
    TRY(rig->gpu.ops->round(rig->stream, &codes, &w, &scale, &zero, &row->grid));
    if (both) {
        TRY(ops_random(rig, DTYPE_F32, 500, row->rows, 48, &y));
        TRY(ops_new(rig, DTYPE_F32, row->rows, row->rows, &o));
        TRY(rig->gpu.ops->gram(rig->stream, &o, &y));
        TRY(rig->gpu.ops->symmetrize(rig->stream, &o, 0.01));
        TRY(rig->gpu.ops->descend_both(rig->stream, &codes, &scale, &zero, &w, &h, &o, &row->grid, &row->spec, &before,
                                       &after));
    } else {
        TRY(rig->gpu.ops->descend(rig->stream, &codes, &scale, &zero, &w, &h, &row->grid, &row->spec, &before, &after));
    }
    TRY(rig->gpu.ops->dequantize(rig->stream, &wq, &codes, &scale, &zero, &row->grid));
    TRY(rig->gpu.ops->output_error(rig->stream, &error, NULL, &w, &wq, &h));
    TRY(ops_put_number(out, before));
    TRY(ops_put_number(out, after));
    return ops_put_number(out, error);
}

/* variant: a row of descends. */
int body_descend(struct ops_rig *rig, int variant, struct ops_output *out)
{
    return refine_codes(rig, variant, false, out);
}

int body_descend_both(struct ops_rig *rig, int variant, struct ops_output *out)
{
    return refine_codes(rig, variant, true, out);
}

/* variant: a row of grids, or -1 for no grid. */
int body_residual(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct grid_row *row = &grids[variant < 0 ? 0 : variant];
    struct gpu_residual residual;
    struct tensor w, wq, scale, zero;

    TRY(grid_weights(rig, &w));
    TRY(ops_random(rig, DTYPE_F32, GRID_ROWS, GRID_COLS, 41, &wq));
    TRY(chosen_grid(rig, row, &w, &scale, &zero));
    TRY(rig->gpu.ops->residual(rig->stream, &residual, &w, &wq, variant < 0 ? NULL : &scale, variant < 0 ? NULL : &zero,
                               variant < 0 ? NULL : &row->grid));
    const double all[] = {residual.error_sq,   residual.weight_sq,       residual.dot,
                          residual.quant_sq,   residual.clipped_sq,      residual.max_abs,
                          residual.weight_max, (double)residual.clipped, (double)residual.nonfinite};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        TRY(ops_put_number(out, all[i]));
    }
    return 0;
}

/* variant: the group, which divides 768; one row of zeros. */
int body_distribution(struct ops_rig *rig, int variant, struct ops_output *out)
{
    struct gpu_distribution got;
    struct tensor w, zeros;

    TRY(ops_random(rig, DTYPE_F32, 9, 768, 48, &w));
    zeros = tensor_rows(&w, 4, 1);
    TRY(rig->gpu.ops->combine(rig->stream, &zeros, 0, &zeros, 0, NULL));
    TRY(rig->gpu.ops->distribution(rig->stream, &got, &w, variant));
    const double all[] = {got.square, got.fourth, got.range_sq, got.part_range_sq, got.max_to_median, (double)got.far};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        TRY(ops_put_number(out, all[i]));
    }
    return 0;
}

/* variant: columns. */
int body_column_energy(struct ops_rig *rig, int variant, struct ops_output *out)
{
    double signal[512], error[512];
    struct tensor w, wq;

    TRY(ops_random(rig, DTYPE_F32, 600, variant, 49, &w));
    TRY(ops_random(rig, DTYPE_F32, 600, variant, 50, &wq));
    TRY(rig->gpu.ops->column_energy(rig->stream, signal, error, &w, &wq));
    for (int i = 0; i < variant; i++) {
        TRY(ops_put_number(out, signal[i]));
        TRY(ops_put_number(out, error[i]));
    }
    return 0;
}

/* variant: n; rows 6. */
int body_output_error(struct ops_rig *rig, int variant, struct ops_output *out)
{
    double error = 0, signal = 0, alone = 0;
    struct tensor w, wq, h, x;

    TRY(ops_random(rig, DTYPE_F32, 6, variant, 42, &w));
    TRY(ops_random(rig, DTYPE_F32, 6, variant, 43, &wq));
    TRY(ops_random(rig, DTYPE_F32, variant, variant, 44, &h)); /* symmetric, not definite: the sums still agree */
    TRY(ops_random(rig, DTYPE_F32, 1, 1, 45, &x));
    TRY(rig->gpu.ops->symmetrize(rig->stream, &h, 1.0));
    TRY(rig->gpu.ops->output_error(rig->stream, &error, &signal, &w, &wq, &h));
    TRY(rig->gpu.ops->output_error(rig->stream, &alone, NULL, &w, &wq, &h));
    TRY(ops_put_number(out, error));
    TRY(ops_put_number(out, signal));
    return ops_put_number(out, alone);
}

int body_zero_dead(struct ops_rig *rig, int variant, struct ops_output *out)
{
    int64_t dead = -1;
    struct tensor w, other, h;

    TRY(ops_hessian(rig, variant, &h)); /* column 3 is dead */
    TRY(ops_random(rig, DTYPE_F32, 11, variant, 46, &w));
    TRY(ops_random(rig, DTYPE_F32, 5, variant, 47, &other));
    TRY(rig->gpu.ops->zero_dead(rig->stream, &w, &h, &dead));
    TRY(rig->gpu.ops->zero_dead(rig->stream, &other, &h, NULL));
    TRY(ops_put_number(out, (double)dead));
    TRY(ops_put(rig, out, &w));
    return ops_put(rig, out, &other);
}
