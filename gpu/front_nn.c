/* The arguments of the forward pass. */

#include "gpu/front.h"

int check_convert(const char *op, const struct tensor *y, const struct tensor *x)
{
    int64_t count = tensor_count(x);

    if (!check_is_plain(y->dtype) || !check_is_plain(x->dtype)) {
        return err_raise(ERR_INTERNAL, "%s: from %s to %s", op, dtype_rows[x->dtype].name, dtype_rows[y->dtype].name);
    }
    if (tensor_count(y) != count) {
        return err_raise(ERR_INTERNAL, "%s: %lld elements into %lld", op, (long long)count, (long long)tensor_count(y));
    }
    TRY(check_data(op, "x", x));
    return check_data(op, "y", y);
}

int check_linear(const char *op, const struct tensor *y, const struct tensor *x, const struct tensor *w,
                 const struct tensor *bias)
{
    TRY(check_f32(op, "x", x, -1, -1));
    TRY(check_weight(op, "w", w, -1, matrix_cols(x)));
    TRY(check_f32(op, "y", y, matrix_rows(x), matrix_rows(w)));
    TRY(check_optional(op, "bias", bias, matrix_rows(w)));
    TRY(check_separate(op, "y", y, "w", w));
    return check_separate(op, "y", y, "x", x);
}

int check_multiply(const char *op, const struct tensor *y, const struct tensor *x, const struct tensor *w)
{
    TRY(check_f32(op, "w", w, -1, -1));
    return check_linear(op, y, x, w, NULL);
}

int check_embed(const char *op, const struct tensor *y, const struct tensor *table, const int32_t *ids)
{
    int64_t entries = matrix_rows(table);

    TRY(check_weight(op, "table", table, -1, -1));
    TRY(check_f32(op, "y", y, -1, matrix_cols(table)));
    TRY(check_separate(op, "y", y, "table", table));
    for (int64_t t = 0; t < matrix_rows(y); t++) {
        if (ids[t] < 0 || ids[t] >= entries) {
            return err_raise(ERR_INVALID_MODEL, "token %lld has id %d, but the embedding has %lld rows", (long long)t,
                             (int)ids[t], (long long)entries);
        }
    }
    return 0;
}

int check_norm(const char *op, const struct tensor *y, const struct tensor *x, const struct tensor *weight,
               const struct tensor *bias, const struct gpu_norm *spec)
{
    int64_t cols = matrix_cols(x);

    TRY(check_f32(op, "x", x, -1, -1));
    TRY(check_f32(op, "y", y, matrix_rows(x), cols));
    if (spec->size < 1 || cols % spec->size != 0) {
        return err_raise(ERR_INTERNAL, "%s: over each %lld columns of %lld", op, (long long)spec->size,
                         (long long)cols);
    }
    TRY(check_optional(op, "weight", weight, spec->size));
    return check_optional(op, "bias", bias, spec->size);
}

int check_rope(const char *op, const struct tensor *x, const struct tensor *cosine, const struct tensor *sine,
               const struct gpu_rope *spec)
{
    int64_t dim = spec->head_dim, rotated = spec->rotated;

    TRY(check_f32(op, "x", x, -1, -1));
    if (spec->length < 1 || dim < 2 || matrix_cols(x) % dim != 0 || rotated < 2 || rotated > dim || rotated % 2 != 0) {
        return err_raise(ERR_INTERNAL, "%s: %lld columns of heads of %lld, rows of %lld, length %lld", op,
                         (long long)rotated, (long long)dim, (long long)matrix_cols(x), (long long)spec->length);
    }
    TRY(check_f32(op, "cosine", cosine, -1, rotated / 2));
    TRY(check_f32(op, "sine", sine, matrix_rows(cosine), rotated / 2));
    if (matrix_rows(cosine) < spec->length) {
        return err_raise(ERR_INTERNAL, "%s: a table of %lld positions for %lld", op, (long long)matrix_rows(cosine),
                         (long long)spec->length);
    }
    return 0;
}

/* Whether `count` columns from `first` on of each head are in rows of `cols`, apart from each other; stride 0: of one
 * head. */
static bool check_columns(int64_t heads, int64_t count, int64_t first, int64_t stride, int64_t cols)
{
    return first >= 0 && first <= cols - count && (heads == 1 || stride >= count) &&
           (heads == 1 || stride <= (cols - first - count) / (heads - 1));
}

int check_placement(const char *op, const struct tensor *y, const struct tensor *x, const struct gpu_columns *spec,
                    bool sums)
{
    int64_t heads = spec->heads, from_heads = spec->from_stride == 0 ? 1 : heads;
    int64_t to_heads = sums && spec->to_stride == 0 ? 1 : heads;

    TRY(check_f32(op, "x", x, -1, -1));
    TRY(check_f32(op, "y", y, matrix_rows(x), -1));
    if (heads < 1 || spec->count < 1 ||
        !check_columns(to_heads, spec->count, spec->to, spec->to_stride, matrix_cols(y)) ||
        !check_columns(from_heads, spec->count, spec->from, spec->from_stride, matrix_cols(x))) {
        return err_raise(ERR_INTERNAL, "%s: %lld columns of %lld heads from rows of %lld to rows of %lld", op,
                         (long long)spec->count, (long long)heads, (long long)matrix_cols(x),
                         (long long)matrix_cols(y));
    }
    return check_separate(op, "y", y, "x", x);
}

int check_copy_columns(const char *op, const struct tensor *y, const struct tensor *x, const struct gpu_columns *spec)
{
    return check_placement(op, y, x, spec, false);
}

int check_heads(const char *op, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                const struct gpu_attention *spec)
{
    if (spec->sequences < 0 || spec->length < 0 || spec->heads < 1 || spec->kv_heads < 1 || spec->head_dim < 1 ||
        spec->heads % spec->kv_heads != 0 || spec->value_dim < 0 || spec->chunk < 0 || !(spec->cap >= 0)) {
        return err_raise(ERR_INTERNAL, "%s: %lld heads over %lld key heads of %lld and %lld, chunk %lld, cap %g", op,
                         (long long)spec->heads, (long long)spec->kv_heads, (long long)spec->head_dim,
                         (long long)spec->value_dim, (long long)spec->chunk, (double)spec->cap);
    }
    int64_t rows = spec->sequences * spec->length;
    TRY(check_f32(op, "q", q, rows, spec->heads * spec->head_dim));
    TRY(check_f32(op, "k", k, rows, spec->kv_heads * spec->head_dim));
    TRY(check_f32(op, "v", v, rows, spec->kv_heads * gpu_value_dim(spec)));
    return check_optional(op, "sinks", spec->sinks, spec->heads);
}

int check_attention(const char *op, const struct tensor *o, const struct tensor *q, const struct tensor *k,
                    const struct tensor *v, const struct gpu_attention *spec)
{
    TRY(check_heads(op, q, k, v, spec));
    TRY(check_f32(op, "o", o, matrix_rows(q), spec->heads * gpu_value_dim(spec)));
    TRY(check_separate(op, "o", o, "q", q));
    TRY(check_separate(op, "o", o, "k", k));
    return check_separate(op, "o", o, "v", v);
}

int check_attention_error(const char *op, struct gpu_attention_error *out, const struct tensor *q,
                          const struct tensor *k, const struct tensor *v, const struct tensor *kq,
                          const struct tensor *vq, const struct gpu_attention *spec, int64_t recent)
{
    TRY(check_heads(op, q, k, v, spec));
    TRY(check_f32(op, "kq", kq, matrix_rows(k), matrix_cols(k)));
    TRY(check_f32(op, "vq", vq, matrix_rows(v), matrix_cols(v)));
    return recent >= 0 ? 0 : err_raise(ERR_INTERNAL, "%s: a recent window of %lld", op, (long long)recent);
}

int check_activate(const char *op, const struct tensor *y, const struct tensor *gate, const struct tensor *up,
                   enum gpu_activation activation)
{
    int64_t rows = matrix_rows(gate), cols = matrix_cols(up != NULL ? up : gate);

    if ((unsigned)activation >= GPU_ACTIVATIONS || (activation == GPU_SWIGLU_CLAMPED && up == NULL)) {
        return err_raise(ERR_INTERNAL, "%s: activation %d of %s", op, (int)activation,
                         up != NULL ? "gate and up" : "gate alone");
    }
    TRY(check_f32(op, "gate", gate, -1, matrix_cols(gate) == 1 ? 1 : cols));
    if (up != NULL) {
        TRY(check_f32(op, "up", up, rows, cols));
    }
    TRY(check_f32(op, "y", y, rows, cols));
    return matrix_cols(gate) == cols ? 0 : check_separate(op, "y", y, "gate", gate);
}

int check_soft_cap(const char *op, const struct tensor *y, const struct tensor *x, double cap)
{
    TRY(check_f32(op, "y", y, -1, -1));
    TRY(check_f32(op, "x", x, matrix_rows(y), matrix_cols(y)));
    return cap > 0 ? 0 : err_raise(ERR_INTERNAL, "%s: a cap of %g", op, cap);
}

int check_add(const char *op, const struct tensor *y, const struct tensor *x)
{
    TRY(check_vector(op, "x", x, tensor_count(x)));
    return check_vector(op, "y", y, tensor_count(x));
}

int check_combine(const char *op, const struct tensor *y, double alpha, const struct tensor *a, double beta,
                  const struct tensor *b)
{
    TRY(check_f32(op, "y", y, -1, -1));
    TRY(check_f32(op, "a", a, matrix_rows(y), matrix_cols(y)));
    return b == NULL ? 0 : check_f32(op, "b", b, matrix_rows(y), matrix_cols(y));
}

int check_scale(const char *op, const struct tensor *w, const struct tensor *rows, const struct tensor *cols)
{
    TRY(check_f32(op, "w", w, -1, -1));
    TRY(check_optional(op, "rows", rows, matrix_rows(w)));
    return check_optional(op, "cols", cols, matrix_cols(w));
}
