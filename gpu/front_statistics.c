/* The arguments of statistics and measurements. */

#include "gpu/front.h"

int check_gram(const char *op, const struct tensor *h, const struct tensor *x)
{
    TRY(check_f32(op, "x", x, -1, -1));
    TRY(check_f32(op, "h", h, matrix_cols(x), matrix_cols(x)));
    return check_separate(op, "h", h, "x", x);
}

int check_symmetrize(const char *op, const struct tensor *h, double scale)
{
    return check_f32(op, "h", h, matrix_cols(h), matrix_cols(h));
}

int check_cross(const char *op, const struct tensor *c, const struct tensor *a, const struct tensor *b)
{
    TRY(check_f32(op, "a", a, -1, -1));
    TRY(check_f32(op, "b", b, matrix_rows(a), -1));
    TRY(check_f32(op, "c", c, matrix_cols(a), matrix_cols(b)));
    TRY(check_separate(op, "c", c, "a", a));
    return check_separate(op, "c", c, "b", b);
}

int check_column_stats(const char *op, const struct tensor *absmax, const struct tensor *abssum, const struct tensor *x)
{
    TRY(check_f32(op, "x", x, -1, -1));
    TRY(check_optional(op, "absmax", absmax, matrix_cols(x)));
    return check_optional(op, "abssum", abssum, matrix_cols(x));
}

int check_distribution(const char *op, struct gpu_distribution *out, const struct tensor *w, int64_t group)
{
    int64_t cols = matrix_cols(w);

    TRY(check_f32(op, "w", w, -1, -1));
    if (group < 1 || cols % group != 0) {
        return err_raise(ERR_INTERNAL, "%s: groups of %lld in rows of %lld", op, (long long)group, (long long)cols);
    }
    return 0;
}

int check_column_energy(const char *op, double *signal, double *error, const struct tensor *w, const struct tensor *wq)
{
    TRY(check_f32(op, "w", w, -1, -1));
    return check_f32(op, "wq", wq, matrix_rows(w), matrix_cols(w));
}

int check_output_error(const char *op, double *error, double *signal, const struct tensor *w, const struct tensor *wq,
                       const struct tensor *h)
{
    TRY(check_f32(op, "w", w, -1, -1));
    TRY(check_f32(op, "wq", wq, matrix_rows(w), matrix_cols(w)));
    return check_f32(op, "h", h, matrix_cols(w), matrix_cols(w));
}

int check_nll(const char *op, struct gpu_nll *out, const struct tensor *logits, const struct tensor *reference,
              const int32_t *targets)
{
    int64_t tokens = matrix_rows(logits), vocabulary = matrix_cols(logits);

    TRY(check_f32(op, "logits", logits, -1, -1));
    if (reference != NULL) {
        TRY(check_f32(op, "reference", reference, tokens, vocabulary));
    }
    for (int64_t t = 0; t < tokens; t++) {
        if (targets[t] < -1 || targets[t] >= vocabulary) {
            return err_raise(ERR_INVALID_MODEL, "target %d at position %lld is outside the vocabulary of %lld",
                             (int)targets[t], (long long)t, (long long)vocabulary);
        }
    }
    return 0;
}

int check_find_nonfinite(const char *op, int64_t *index, const struct tensor *x)
{
    if (!check_is_plain(x->dtype)) {
        return err_raise(ERR_INTERNAL, "%s: x is %s, expected F32, F16 or BF16", op, dtype_rows[x->dtype].name);
    }
    return check_data(op, "x", x);
}

int check_zero_dead(const char *op, const struct tensor *w, const struct tensor *h, int64_t *dead)
{
    TRY(check_f32(op, "w", w, -1, -1));
    return check_f32(op, "h", h, matrix_cols(w), matrix_cols(w));
}

int check_diagonal(const char *op, float *host, const struct tensor *h)
{
    return check_f32(op, "h", h, matrix_cols(h), matrix_cols(h));
}

int check_floor_diagonal(const char *op, const struct tensor *h, float min)
{
    return check_f32(op, "h", h, matrix_cols(h), matrix_cols(h));
}

int check_row_dot(const char *op, const struct tensor *out, const struct tensor *a, const struct tensor *b)
{
    TRY(check_f32(op, "a", a, -1, -1));
    TRY(check_f32(op, "b", b, matrix_rows(a), matrix_cols(a)));
    return check_vector(op, "out", out, matrix_rows(a));
}
