/* The arguments of grids, solves and quantized inputs. */

#include "gpu/front.h"

#define SWEEP_BLOCK_MAX 1024 /* columns of a sweep's block */

static int check_group(const char *op, const struct gpu_grid *spec, int64_t cols)
{
    if (spec->bits < 2 || spec->bits > 8) {
        return err_raise(ERR_INTERNAL, "%s: %d bits, expected 2 to 8", op, spec->bits);
    }
    if (spec->group_size < 1 || cols % spec->group_size != 0) {
        return err_raise(ERR_INTERNAL, "%s: groups of %lld do not divide %lld inputs", op, (long long)spec->group_size,
                         (long long)cols);
    }
    return 0;
}

int check_points(const char *op, const struct tensor *w, const struct tensor *scale, const struct tensor *zero,
                 const struct gpu_grid *spec)
{
    TRY(check_f32(op, "w", w, -1, -1));
    TRY(check_group(op, spec, matrix_cols(w)));
    TRY(check_f32(op, "scale", scale, matrix_rows(w), matrix_cols(w) / spec->group_size));
    return check_f32(op, "zero", zero, matrix_rows(w), matrix_cols(w) / spec->group_size);
}

int check_codes(const char *op, const struct tensor *codes, const struct tensor *w)
{
    return check_matrix(op, "codes", codes, DTYPE_U8, matrix_rows(w), matrix_cols(w));
}

/* What a search for a grid looks at. */
static int check_search(const char *op, const struct gpu_grid *spec, bool always)
{
    if (!check_is_plain(spec->scale_dtype)) {
        return err_raise(ERR_INTERNAL, "%s: scales as %s", op, dtype_rows[spec->scale_dtype].name);
    }
    if (spec->signs && !spec->sym) {
        return err_raise(ERR_INTERNAL, "%s: scales of either sign with zero points", op);
    }
    if ((spec->mse && !(spec->norm > 0)) ||
        ((spec->mse || always) && !(spec->steps >= 1 && spec->max_shrink >= 0 && spec->max_shrink <= 1))) {
        return err_raise(ERR_INTERNAL, "%s: a search with %d steps, shrink %g and norm %g", op, spec->steps,
                         spec->max_shrink, spec->norm);
    }
    return 0;
}

int check_grid(const char *op, const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
               const struct tensor *importance, const struct gpu_grid *spec)
{
    TRY(check_points(op, w, scale, zero, spec));
    TRY(check_search(op, spec, false));
    return check_optional(op, "importance", importance, matrix_cols(w));
}

int check_round(const char *op, const struct tensor *codes, const struct tensor *w, const struct tensor *scale,
                const struct tensor *zero, const struct gpu_grid *spec)
{
    TRY(check_points(op, w, scale, zero, spec));
    return check_codes(op, codes, w);
}

int check_dequantize(const char *op, const struct tensor *w, const struct tensor *codes, const struct tensor *scale,
                     const struct tensor *zero, const struct gpu_grid *spec)
{
    return check_round(op, codes, w, scale, zero, spec);
}

int check_clip(const char *op, const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
               const struct tensor *h, const struct gpu_grid *spec)
{
    TRY(check_points(op, w, scale, zero, spec));
    TRY(check_search(op, spec, true));
    return check_f32(op, "h", h, matrix_cols(w), matrix_cols(w));
}

int check_hqq(const char *op, const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
              const struct gpu_grid *spec)
{
    TRY(check_points(op, w, scale, zero, spec));
    TRY(check_search(op, spec, false));
    return spec->sym ? err_raise(ERR_INTERNAL, "%s: a symmetric grid has no zero point to move", op) : 0;
}

int check_factor(const char *op, const struct tensor *u, const struct tensor *h, const struct gpu_factor *spec)
{
    int64_t n = matrix_cols(h);

    TRY(check_f32(op, "h", h, n, n));
    TRY(check_f32(op, "u", u, n, n));
    TRY(check_order(op, spec->order, n));
    return check_separate(op, "u", u, "h", h);
}

/* The factor and the columns' order of a sweep. */
static int check_visits(const char *op, const struct tensor *w, const struct tensor *u, const int32_t *order,
                        int64_t block_size)
{
    int64_t k = matrix_cols(w);

    TRY(check_f32(op, "u", u, k, k));
    TRY(check_order(op, order, k));
    if (block_size < 1 || block_size > SWEEP_BLOCK_MAX) {
        return err_raise(ERR_INTERNAL, "%s: blocks of %lld columns, expected 1 to %d", op, (long long)block_size,
                         SWEEP_BLOCK_MAX);
    }
    return check_separate(op, "w", w, "u", u);
}

int check_sweep(const char *op, const struct tensor *codes, const struct tensor *w, const struct tensor *u,
                const struct tensor *scale, const struct tensor *zero, const int32_t *order, int64_t block_size,
                const struct gpu_grid *spec, double *loss)
{
    TRY(check_points(op, w, scale, zero, spec));
    TRY(check_codes(op, codes, w));
    return check_visits(op, w, u, order, block_size);
}

int check_levels(const char *op, const struct tensor *w, const struct tensor *scale, const struct gpu_levels *levels)
{
    int64_t k = matrix_cols(w);

    TRY(check_f32(op, "w", w, -1, -1));
    if (levels->count < 1 || levels->count > 256 || levels->group_size < 1 || k % levels->group_size != 0) {
        return err_raise(ERR_INTERNAL, "%s: %d levels, groups of %lld of %lld inputs", op, levels->count,
                         (long long)levels->group_size, (long long)k);
    }
    return check_f32(op, "scale", scale, matrix_rows(w), k / levels->group_size);
}

int check_sweep_levels(const char *op, const struct tensor *codes, const struct tensor *w, const struct tensor *u,
                       const struct tensor *scale, const int32_t *order, int64_t block_size,
                       const struct gpu_levels *levels, double *loss)
{
    TRY(check_levels(op, w, scale, levels));
    TRY(check_codes(op, codes, w));
    return check_visits(op, w, u, order, block_size);
}

int check_descend(const char *op, const struct tensor *codes, const struct tensor *scale, const struct tensor *zero,
                  const struct tensor *target, const struct tensor *h, const struct gpu_grid *grid,
                  const struct gpu_descend *spec, double *before, double *after)
{
    int64_t k = matrix_cols(target);

    TRY(check_points(op, target, scale, zero, grid));
    TRY(check_codes(op, codes, target));
    TRY(check_search(op, grid, false));
    TRY(check_f32(op, "h", h, k, k));
    return spec->passes >= 1 ? 0 : err_raise(ERR_INTERNAL, "%s: %d passes", op, spec->passes);
}

int check_descend_both(const char *op, const struct tensor *codes, const struct tensor *scale,
                       const struct tensor *zero, const struct tensor *target, const struct tensor *h,
                       const struct tensor *o, const struct gpu_grid *grid, const struct gpu_descend *spec,
                       double *before, double *after)
{
    int64_t n = matrix_rows(target);

    TRY(check_descend(op, codes, scale, zero, target, h, grid, spec, before, after));
    return check_f32(op, "o", o, n, n);
}

int check_solve(const char *op, const struct tensor *y, const struct tensor *g, const struct tensor *u,
                const int32_t *order)
{
    int64_t k = matrix_cols(g);

    TRY(check_f32(op, "g", g, -1, -1));
    TRY(check_f32(op, "y", y, matrix_rows(g), k));
    TRY(check_f32(op, "u", u, k, k));
    TRY(check_order(op, order, k));
    return check_separate(op, "y", y, "u", u);
}

int check_quantize_input(const char *op, const struct tensor *y, const struct tensor *x, const struct tensor *outliers,
                         const struct gpu_input *spec)
{
    int64_t cols = matrix_cols(x), run = spec->dynamic && spec->group_size > 0 ? spec->group_size : cols;

    TRY(check_f32(op, "x", x, -1, -1));
    TRY(check_f32(op, "y", y, matrix_rows(x), cols));
    TRY(check_optional(op, "outliers", outliers, cols));
    if ((spec->element != DTYPE_I8 && spec->element != DTYPE_F8_E4M3) || run < 1 || (spec->half && !spec->dynamic) ||
        (!spec->dynamic && !(spec->scale > 0))) {
        return err_raise(ERR_INTERNAL, "%s: to %s, groups of %lld in rows of %lld, scale %g", op,
                         dtype_rows[spec->element].name, (long long)run, (long long)cols, (double)spec->scale);
    }
    return 0;
}

int check_quantize_cache(const char *op, const struct tensor *y, const struct tensor *x, const struct gpu_cache *spec)
{
    int64_t rows = matrix_rows(x), cols = matrix_cols(x);

    TRY(check_f32(op, "x", x, -1, -1));
    TRY(check_f32(op, "y", y, rows, cols));
    if (spec->group_size < 1 || cols % spec->group_size != 0) {
        return err_raise(ERR_INTERNAL, "%s: groups of %lld in rows of %lld", op, (long long)spec->group_size,
                         (long long)cols);
    }
    if (spec->element != DTYPE_U8) {
        if (spec->scale == NULL || (spec->element != DTYPE_I8 && spec->element != DTYPE_F8_E4M3)) {
            return err_raise(ERR_INTERNAL, "%s: to %s, or without a scale", op, dtype_rows[spec->element].name);
        }
        return check_vector(op, "scale", spec->scale, cols / spec->group_size);
    }
    if (spec->bits < 1 || spec->bits > 8 || spec->tokens < 1 || spec->length < 1 || rows % spec->length != 0) {
        return err_raise(ERR_INTERNAL, "%s: %d bits, groups of %lld in %lld rows of sequences of %lld", op, spec->bits,
                         (long long)spec->tokens, (long long)rows, (long long)spec->length);
    }
    return 0;
}

int check_cluster_rows(const char *op, const struct tensor *table, const struct tensor *codes, const struct tensor *w,
                       const struct tensor *importance, const struct tensor *outliers, int bits, enum dtype stored)
{
    if (bits < 1 || bits > 8 || !check_is_plain(stored)) {
        return err_raise(ERR_INTERNAL, "%s: %d bits of %s", op, bits, dtype_rows[stored].name);
    }
    TRY(check_f32(op, "w", w, -1, -1));
    TRY(check_f32(op, "table", table, matrix_rows(w), (int64_t)1 << bits));
    TRY(check_codes(op, codes, w));
    TRY(check_optional(op, "importance", importance, matrix_cols(w)));
    return outliers == NULL ? 0 : check_matrix(op, "outliers", outliers, DTYPE_U8, matrix_rows(w), matrix_cols(w));
}

int check_residual(const char *op, struct gpu_residual *out, const struct tensor *w, const struct tensor *wq,
                   const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec)
{
    TRY(check_f32(op, "w", w, -1, -1));
    TRY(check_f32(op, "wq", wq, matrix_rows(w), matrix_cols(w)));
    if ((scale == NULL) != (zero == NULL) || (scale != NULL && spec == NULL)) {
        return err_raise(ERR_INTERNAL, "%s: scale, zero and grid come together", op);
    }
    return scale == NULL ? 0 : check_points(op, w, scale, zero, spec);
}
