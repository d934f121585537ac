/* What every backend asks of an operation's tensors before it starts: a wrong shape is a bug in the caller, and is
 * reported with the operation's and the tensor's name rather than met as a crash in a kernel. */

#include "gpu/check.h"

#include "base/err.h"
#include "gpu/ggml_blocks.h"

#include <limits.h>
#include <stdlib.h>

int64_t matrix_cols(const struct tensor *tensor)
{
    return tensor->rank > 0 ? tensor->shape[tensor->rank - 1] : 1;
}

int64_t matrix_rows(const struct tensor *tensor)
{
    int64_t rows = 1;
    for (int i = 0; i + 1 < tensor->rank; i++) {
        rows *= tensor->shape[i];
    }
    return rows;
}

int check_matrix(const char *op, const char *name, const struct tensor *tensor, enum dtype dtype, int64_t rows,
                 int64_t cols)
{
    int64_t has_rows = matrix_rows(tensor), has_cols = matrix_cols(tensor);

    if (tensor->dtype != dtype) {
        return err_raise(ERR_INTERNAL, "%s: %s is %s, not %s", op, name, dtype_rows[tensor->dtype].name,
                         dtype_rows[dtype].name);
    }
    if (has_rows < 0 || has_cols < 0 || has_rows > INT_MAX || has_cols > INT_MAX || (rows >= 0 && rows != has_rows) ||
        (cols >= 0 && cols != has_cols)) {
        return err_raise(ERR_INTERNAL, "%s: %s is [%lld, %lld], wanted [%lld, %lld]", op, name, (long long)has_rows,
                         (long long)has_cols, (long long)rows, (long long)cols);
    }
    if (tensor->data == NULL && has_rows != 0 && has_cols != 0) {
        return err_raise(ERR_INTERNAL, "%s: %s has no data", op, name);
    }
    return 0;
}

int check_vector(const char *op, const char *name, const struct tensor *tensor, int64_t count)
{
    if (tensor->dtype != DTYPE_F32 || tensor_count(tensor) != count || (tensor->data == NULL && count != 0)) {
        return err_raise(ERR_INTERNAL, "%s: %s is %s with %lld elements, wanted F32 with %lld", op, name,
                         dtype_rows[tensor->dtype].name, (long long)tensor_count(tensor), (long long)count);
    }
    return 0;
}

int check_grid(const char *op, const struct gpu_grid *spec, int64_t cols)
{
    if (spec->bits < 2 || spec->bits > 8) {
        return err_raise(ERR_INTERNAL, "%s: %d bits, wanted 2 to 8", op, spec->bits);
    }
    if (spec->group_size < 1 || cols % spec->group_size != 0) {
        return err_raise(ERR_INTERNAL, "%s: groups of %lld do not divide %lld inputs", op, (long long)spec->group_size,
                         (long long)cols);
    }
    return 0;
}

int check_order(const char *op, const int32_t *order, int64_t n)
{
    if (order == NULL) {
        return 0;
    }
    unsigned char *seen = calloc((size_t)(n > 0 ? n : 1), 1);
    if (seen == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot allocate %lld bytes", (long long)n);
    }
    int rc = 0;
    for (int64_t i = 0; i < n && rc == 0; i++) {
        if (order[i] < 0 || order[i] >= n || seen[order[i]]) {
            rc = err_raise(ERR_INTERNAL, "%s: the order is not a permutation: entry %lld is %d", op, (long long)i,
                           (int)order[i]);
        } else {
            seen[order[i]] = 1;
        }
    }
    free(seen);
    return rc;
}

int check_weight(const char *op, const char *name, const struct tensor *w, int64_t rows, int64_t cols)
{
    if (w->dtype != DTYPE_F32 && w->dtype != DTYPE_F16 && w->dtype != DTYPE_BF16) {
        return err_raise(ERR_INTERNAL, "%s: %s is %s, wanted F32, F16 or BF16", op, name, dtype_rows[w->dtype].name);
    }
    return check_matrix(op, name, w, w->dtype, rows, cols);
}

int check_attention(const struct tensor *o, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                    const struct gpu_attention *spec)
{
    if (spec->sequences < 0 || spec->length < 0 || spec->heads < 1 || spec->kv_heads < 1 || spec->head_dim < 1 ||
        spec->heads % spec->kv_heads != 0) {
        return err_raise(ERR_INTERNAL, "attention: %lld heads over %lld key heads of %lld", (long long)spec->heads,
                         (long long)spec->kv_heads, (long long)spec->head_dim);
    }
    int64_t rows = spec->sequences * spec->length;
    int rc = check_matrix("attention", "q", q, DTYPE_F32, rows, spec->heads * spec->head_dim);
    rc = rc != 0 ? rc : check_matrix("attention", "o", o, DTYPE_F32, rows, spec->heads * spec->head_dim);
    rc = rc != 0 ? rc : check_matrix("attention", "k", k, DTYPE_F32, rows, spec->kv_heads * spec->head_dim);
    return rc != 0 ? rc : check_matrix("attention", "v", v, DTYPE_F32, rows, spec->kv_heads * spec->head_dim);
}

int check_search(const struct gpu_grid *spec)
{
    if (spec->scale_dtype != DTYPE_F32 && spec->scale_dtype != DTYPE_F16 && spec->scale_dtype != DTYPE_BF16) {
        return err_raise(ERR_INTERNAL, "grid: scales as %s", dtype_rows[spec->scale_dtype].name);
    }
    if (spec->signs && !spec->sym) {
        return err_raise(ERR_INTERNAL, "grid: scales of either sign with zero points");
    }
    if (spec->mse && !(spec->steps >= 1 && spec->max_shrink >= 0 && spec->max_shrink <= 1 && spec->norm > 0)) {
        return err_raise(ERR_INTERNAL, "grid: a search with %d steps, shrink %g and norm %g", spec->steps,
                         spec->max_shrink, spec->norm);
    }
    return 0;
}

int check_rounding(const char *op, const struct tensor *codes, const struct tensor *w, const struct tensor *scale,
                   const struct tensor *zero, const struct gpu_grid *spec)
{
    int64_t rows = matrix_rows(w), cols = matrix_cols(w);
    int rc = check_matrix(op, "w", w, DTYPE_F32, -1, -1);

    rc = rc != 0 ? rc : check_grid(op, spec, cols);
    rc = rc != 0 || codes == NULL ? rc : check_matrix(op, "codes", codes, DTYPE_U8, rows, cols);
    rc = rc != 0 ? rc : check_matrix(op, "scale", scale, DTYPE_F32, rows, cols / spec->group_size);
    return rc != 0 ? rc : check_matrix(op, "zero", zero, DTYPE_F32, rows, cols / spec->group_size);
}

int check_clip(const struct tensor *scale, const struct tensor *zero, const struct tensor *w, const struct tensor *h,
               const struct gpu_grid *spec)
{
    int rc = check_rounding("clip", NULL, w, scale, zero, spec);

    rc = rc != 0 ? rc : check_search(spec);
    if (rc == 0 && !(spec->steps >= 1 && spec->max_shrink >= 0 && spec->max_shrink <= 1)) {
        rc = err_raise(ERR_INTERNAL, "clip: a search with %d steps and shrink %g", spec->steps, spec->max_shrink);
    }
    return rc != 0 ? rc : check_matrix("clip", "h", h, DTYPE_F32, matrix_cols(w), matrix_cols(w));
}

int check_descend(const struct tensor *codes, const struct tensor *scale, const struct tensor *zero,
                  const struct tensor *target, const struct tensor *h, const struct gpu_grid *grid,
                  const struct gpu_descend *spec)
{
    int64_t k = matrix_cols(target);
    int rc = check_rounding("descend", codes, target, scale, zero, grid);

    rc = rc != 0 ? rc : check_search(grid);
    rc = rc != 0 ? rc : check_matrix("descend", "h", h, DTYPE_F32, k, k);
    return rc != 0 || spec->passes >= 1 ? rc : err_raise(ERR_INTERNAL, "descend: %d passes", spec->passes);
}

int check_combine(const struct tensor *y, const struct tensor *a, const struct tensor *b)
{
    int rc = check_matrix("combine", "y", y, DTYPE_F32, -1, -1);

    rc = rc != 0 ? rc : check_matrix("combine", "a", a, DTYPE_F32, matrix_rows(y), matrix_cols(y));
    return rc != 0 || b == NULL ? rc : check_matrix("combine", "b", b, DTYPE_F32, matrix_rows(y), matrix_cols(y));
}

int check_cross(const struct tensor *c, const struct tensor *a, const struct tensor *b)
{
    int rc = check_matrix("cross", "a", a, DTYPE_F32, -1, -1);

    rc = rc != 0 ? rc : check_matrix("cross", "b", b, DTYPE_F32, matrix_rows(a), -1);
    return rc != 0 ? rc : check_matrix("cross", "c", c, DTYPE_F32, matrix_cols(a), matrix_cols(b));
}

int check_solve(const struct tensor *y, const struct tensor *g, const struct tensor *u, const int32_t *order)
{
    int64_t k = matrix_cols(g);
    int rc = check_matrix("solve", "g", g, DTYPE_F32, -1, -1);

    rc = rc != 0 ? rc : check_matrix("solve", "y", y, DTYPE_F32, matrix_rows(g), k);
    rc = rc != 0 ? rc : check_matrix("solve", "u", u, DTYPE_F32, k, k);
    return rc != 0 ? rc : check_order("solve", order, k);
}

int check_hqq(const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
              const struct gpu_grid *spec)
{
    int rc = check_rounding("hqq", NULL, w, scale, zero, spec);

    rc = rc != 0 ? rc : check_search(spec);
    return rc == 0 && spec->sym ? err_raise(ERR_INTERNAL, "hqq: a symmetric grid has no zero point to move") : rc;
}

int check_sweep(const struct tensor *codes, const struct tensor *w, const struct tensor *u, const struct tensor *scale,
                const struct tensor *zero, const int32_t *order, int64_t block_size, const struct gpu_grid *spec)
{
    int64_t n = matrix_rows(w), k = matrix_cols(w);
    int rc = check_matrix("sweep", "w", w, DTYPE_F32, -1, -1);

    rc = rc != 0 ? rc : check_grid("sweep", spec, k);
    rc = rc != 0 ? rc : check_matrix("sweep", "codes", codes, DTYPE_U8, n, k);
    rc = rc != 0 ? rc : check_matrix("sweep", "u", u, DTYPE_F32, k, k);
    rc = rc != 0 ? rc : check_matrix("sweep", "scale", scale, DTYPE_F32, n, k / spec->group_size);
    rc = rc != 0 ? rc : check_matrix("sweep", "zero", zero, DTYPE_F32, n, k / spec->group_size);
    rc = rc != 0 ? rc : check_order("sweep", order, k);
    if (rc == 0 && (block_size < 1 || block_size > CHECK_SWEEP_BLOCK_MAX)) {
        rc = err_raise(ERR_INTERNAL, "sweep: blocks of %lld columns, wanted 1 to %d", (long long)block_size,
                       CHECK_SWEEP_BLOCK_MAX);
    }
    return rc;
}

int check_input(const struct tensor *y, const struct tensor *x, const struct tensor *keep, const struct gpu_input *spec)
{
    int64_t cols = matrix_cols(x), run = spec->dynamic && spec->run > 0 ? spec->run : cols;
    int rc = check_matrix("quantize_input", "x", x, DTYPE_F32, -1, -1);

    rc = rc != 0 ? rc : check_matrix("quantize_input", "y", y, DTYPE_F32, matrix_rows(x), cols);
    rc = rc != 0 || keep == NULL ? rc : check_vector("quantize_input", "keep", keep, cols);
    if (rc == 0 && ((spec->number != GPU_NUMBER_INT8 && spec->number != GPU_NUMBER_E4M3) || run < 1 ||
                    (spec->half && !spec->dynamic) || (!spec->dynamic && !(spec->scale > 0)))) {
        rc = err_raise(ERR_INTERNAL, "quantize_input: number %d, runs of %lld in rows of %lld, scale %g",
                       (int)spec->number, (long long)run, (long long)cols, (double)spec->scale);
    }
    return rc;
}

int check_blocks(const struct tensor *blocks, const struct tensor *w, const struct tensor *importance,
                 const struct gpu_blocks *spec)
{
    int64_t cols = matrix_cols(w), bytes = ggml_row_bytes(spec->type, cols);
    int rc = check_matrix("encode_blocks", "w", w, DTYPE_F32, -1, -1);

    if (rc == 0 && bytes == 0) {
        rc = err_raise(ERR_INTERNAL, "encode_blocks: no blocks of type %d along %lld inputs", spec->type,
                       (long long)cols);
    }
    rc = rc != 0 ? rc : check_matrix("encode_blocks", "blocks", blocks, DTYPE_U8, matrix_rows(w), bytes);
    return rc != 0 || importance == NULL ? rc : check_vector("encode_blocks", "importance", importance, cols);
}

int check_tiles(const char *op, const struct tensor *codes, const struct tensor *w, const struct tensor *scale,
                const struct gpu_tiles *spec)
{
    int64_t rows = matrix_rows(w), cols = matrix_cols(w);
    int rc = check_matrix(op, "w", w, DTYPE_F32, -1, -1);

    if (rc == 0 && (spec->rows < 1 || spec->cols < 1 || rows < 1 || cols < 1 || spec->element > GPU_ELEMENT_INT8)) {
        rc = err_raise(ERR_INTERNAL, "%s: tiles of [%lld, %lld] in [%lld, %lld], element %d", op, (long long)spec->rows,
                       (long long)spec->cols, (long long)rows, (long long)cols, (int)spec->element);
    }
    rc = rc != 0 ? rc
                 : check_matrix(op, "scale", scale, DTYPE_F32, tiles_of(rows, spec->rows), tiles_of(cols, spec->cols));
    return rc != 0 || codes == NULL ? rc : check_matrix(op, "codes", codes, DTYPE_U8, rows, cols);
}

int check_cluster(const struct tensor *table, const struct tensor *codes, const struct tensor *w,
                  const struct tensor *importance, const struct tensor *apart, int bits, enum dtype stored)
{
    int64_t rows = matrix_rows(w), cols = matrix_cols(w);

    if (bits < 1 || bits > 8 || (stored != DTYPE_F32 && stored != DTYPE_F16 && stored != DTYPE_BF16)) {
        return err_raise(ERR_INTERNAL, "cluster_rows: %d bits of %s", bits, dtype_rows[stored].name);
    }
    int rc = check_matrix("cluster_rows", "w", w, DTYPE_F32, -1, -1);
    rc = rc != 0 ? rc : check_matrix("cluster_rows", "table", table, DTYPE_F32, rows, (int64_t)1 << bits);
    rc = rc != 0 ? rc : check_matrix("cluster_rows", "codes", codes, DTYPE_U8, rows, cols);
    rc = rc != 0 || importance == NULL ? rc : check_vector("cluster_rows", "importance", importance, cols);
    return rc != 0 || apart == NULL ? rc : check_matrix("cluster_rows", "apart", apart, DTYPE_U8, rows, cols);
}

int check_codebook(const char *op, const struct tensor *entries, const struct tensor *w, const struct tensor *scale,
                   const struct tensor *table, const struct gpu_codebook *spec)
{
    int64_t rows = matrix_rows(w), cols = matrix_cols(w);

    if (spec->bits < 1 || spec->bits > 16 || spec->codebooks < 1 || spec->codebooks > GPU_CODE_BOOKS_MAX ||
        spec->group_size < 1 || spec->group_size > GPU_CODE_GROUP_MAX || cols % spec->group_size != 0 ||
        spec->beam < 0 || spec->beam > GPU_CODE_BEAM_MAX) {
        return err_raise(ERR_INTERNAL, "%s: %d codebooks of %d bits for groups of %lld of %lld inputs, beam %d", op,
                         spec->codebooks, spec->bits, (long long)spec->group_size, (long long)cols, spec->beam);
    }
    int rc = check_matrix(op, "w", w, DTYPE_F32, -1, -1);
    rc =
        rc != 0 ? rc : check_matrix(op, "entries", entries, DTYPE_U16, rows, cols / spec->group_size * spec->codebooks);
    rc = rc != 0
             ? rc
             : check_matrix(op, "table", table, DTYPE_F32, (int64_t)spec->codebooks << spec->bits, spec->group_size);
    return rc != 0 || scale == NULL ? rc : check_vector(op, "scale", scale, rows);
}
