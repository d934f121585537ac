/* The arguments of elements, blocks and codebooks. */

#include "gpu/front.h"
#include "gpu/ggml_blocks.h"
#include "gpu/shared/tiles.h"

static bool is_element(enum dtype dtype)
{
    return dtype == DTYPE_F8_E4M3 || dtype == DTYPE_F8_E5M2 || dtype == DTYPE_NF4 || dtype == DTYPE_F4_E2M1 ||
           dtype == DTYPE_I8;
}

static int check_tiles(const char *op, const struct tensor *w, const struct tensor *scale, const struct gpu_tiles *spec)
{
    int64_t rows = matrix_rows(w), cols = matrix_cols(w);

    TRY(check_f32(op, "w", w, -1, -1));
    if (spec->rows < 1 || spec->cols < 1 || rows < 1 || cols < 1 || !is_element(spec->element)) {
        return err_raise(ERR_INTERNAL, "%s: tiles of [%lld, %lld] in [%lld, %lld], element %s", op,
                         (long long)spec->rows, (long long)spec->cols, (long long)rows, (long long)cols,
                         dtype_rows[spec->element].name);
    }
    return check_f32(op, "scale", scale, tiles_of(rows, spec->rows), tiles_of(cols, spec->cols));
}

int check_tile_range(const char *op, const struct tensor *max, const struct tensor *w, const struct gpu_tiles *spec)
{
    return check_tiles(op, w, max, spec);
}

int check_tile_encode(const char *op, const struct tensor *codes, const struct tensor *w, const struct tensor *scale,
                      const struct gpu_tiles *spec)
{
    TRY(check_tiles(op, w, scale, spec));
    return check_matrix(op, "codes", codes, DTYPE_U8, matrix_rows(w), matrix_cols(w));
}

int check_tile_decode(const char *op, const struct tensor *w, const struct tensor *codes, const struct tensor *scale,
                      const struct gpu_tiles *spec)
{
    return check_tile_encode(op, codes, w, scale, spec);
}

int check_encode_blocks(const char *op, const struct tensor *blocks, const struct tensor *w,
                        const struct tensor *importance, const struct gpu_blocks *spec)
{
    int64_t cols = matrix_cols(w), bytes = ggml_row_bytes(spec->type, cols);

    TRY(check_f32(op, "w", w, -1, -1));
    if (bytes == 0) {
        return err_raise(ERR_INTERNAL, "%s: no blocks of type %d along %lld inputs", op, spec->type, (long long)cols);
    }
    TRY(check_matrix(op, "blocks", blocks, DTYPE_U8, matrix_rows(w), bytes));
    return check_optional(op, "importance", importance, cols);
}

/* Entries, a matrix [N,K] that they stand for, scales (or NULL) and tables of one codebook scheme. */
static int check_codebook(const char *op, const struct tensor *entries, const struct tensor *w,
                          const struct tensor *scale, const struct tensor *table, const struct gpu_codebook *spec)
{
    int64_t rows = matrix_rows(w), cols = matrix_cols(w);

    if (spec->bits < 1 || spec->bits > 16 || spec->codebooks < 1 || spec->codebooks > GPU_CODE_BOOKS_MAX ||
        spec->group_size < 1 || spec->group_size > GPU_CODE_GROUP_MAX || cols % spec->group_size != 0 ||
        spec->beam < 0 || spec->beam > GPU_CODE_BEAM_MAX) {
        return err_raise(ERR_INTERNAL, "%s: %d codebooks of %d bits for groups of %lld of %lld inputs, beam %d", op,
                         spec->codebooks, spec->bits, (long long)spec->group_size, (long long)cols, spec->beam);
    }
    TRY(check_f32(op, "w", w, -1, -1));
    TRY(check_matrix(op, "entries", entries, DTYPE_U16, rows, cols / spec->group_size * spec->codebooks));
    TRY(check_f32(op, "table", table, (int64_t)spec->codebooks << spec->bits, spec->group_size));
    return check_optional(op, "scale", scale, rows);
}

int check_code_search(const char *op, const struct tensor *entries, const struct tensor *d, const struct tensor *scale,
                      const struct tensor *table, const struct tensor *h, const struct tensor *importance,
                      const struct gpu_codebook *spec, double *gain)
{
    TRY(check_codebook(op, entries, d, scale, table, spec));
    if (h != NULL) {
        TRY(check_f32(op, "h", h, matrix_cols(d), matrix_cols(d)));
    }
    return check_optional(op, "importance", importance, matrix_cols(d));
}

int check_code_expand(const char *op, const struct tensor *y, const struct tensor *entries, const struct tensor *scale,
                      const struct tensor *table, const struct gpu_codebook *spec, float alpha, bool add)
{
    return check_codebook(op, entries, y, scale, table, spec);
}

int check_code_reduce(const char *op, const struct tensor *out, const struct tensor *p, const struct tensor *entries,
                      const struct tensor *scale, const struct gpu_codebook *spec)
{
    TRY(check_codebook(op, entries, p, scale, out, spec));
    return check_separate(op, "out", out, "p", p);
}
