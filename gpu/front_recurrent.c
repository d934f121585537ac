/* The arguments of the operations that go along a sequence. */

#include "gpu/front.h"

static int check_sequences(const char *op, const struct tensor *x, int64_t length)
{
    if (length < 1 || matrix_rows(x) % length != 0) {
        return err_raise(ERR_INTERNAL, "%s: %lld rows in sequences of %lld", op, (long long)matrix_rows(x),
                         (long long)length);
    }
    return 0;
}

int check_causal_conv(const char *op, const struct tensor *y, const struct tensor *x, const struct tensor *w,
                      const struct tensor *bias, int64_t length, bool silu)
{
    (void)silu;
    TRY(check_f32(op, "x", x, -1, -1));
    TRY(check_sequences(op, x, length));
    TRY(check_f32(op, "w", w, matrix_cols(x), -1));
    if (matrix_cols(w) < 1) {
        return err_raise(ERR_INTERNAL, "%s: a kernel of %lld", op, (long long)matrix_cols(w));
    }
    TRY(check_optional(op, "bias", bias, matrix_cols(x)));
    TRY(check_f32(op, "y", y, matrix_rows(x), matrix_cols(x)));
    return check_separate(op, "y", y, "x", x);
}

/* Heads that share keys, and the size of a state. */
static int check_states(const char *op, int64_t heads, int64_t groups, int64_t keys, int64_t values)
{
    if (heads < 1 || groups < 1 || heads % groups != 0 || keys < 1 || keys > GPU_STATE_MAX || values < 1) {
        return err_raise(ERR_INTERNAL, "%s: %lld heads over %lld, states of %lld by %lld", op, (long long)heads,
                         (long long)groups, (long long)keys, (long long)values);
    }
    return 0;
}

int check_delta_rule(const char *op, const struct tensor *y, const struct tensor *x, const struct tensor *a,
                     const struct tensor *beta, const struct tensor *a_log, const struct tensor *dt_bias,
                     const struct gpu_delta *spec)
{
    int64_t rows = matrix_rows(x), width = spec->value_heads * spec->value_dim;

    TRY(check_states(op, spec->value_heads, spec->key_heads, spec->key_dim, spec->value_dim));
    TRY(check_f32(op, "x", x, -1, 2 * spec->key_heads * spec->key_dim + width));
    TRY(check_sequences(op, x, spec->length));
    TRY(check_f32(op, "a", a, rows, spec->value_heads));
    TRY(check_f32(op, "beta", beta, rows, spec->value_heads));
    TRY(check_vector(op, "a_log", a_log, spec->value_heads));
    TRY(check_vector(op, "dt_bias", dt_bias, spec->value_heads));
    TRY(check_f32(op, "y", y, rows, width));
    return check_separate(op, "y", y, "x", x);
}

int check_state_scan(const char *op, const struct tensor *y, const struct tensor *x, const struct tensor *dt,
                     const struct tensor *a_log, const struct tensor *dt_bias, const struct tensor *d,
                     const struct gpu_scan *spec)
{
    int64_t rows = matrix_rows(x), width = spec->heads * spec->head_dim;

    TRY(check_states(op, spec->heads, spec->groups, spec->state, spec->head_dim));
    TRY(check_f32(op, "x", x, -1, width + 2 * spec->groups * spec->state));
    TRY(check_sequences(op, x, spec->length));
    TRY(check_f32(op, "dt", dt, rows, spec->heads));
    TRY(check_vector(op, "a_log", a_log, spec->heads));
    TRY(check_vector(op, "dt_bias", dt_bias, spec->heads));
    TRY(check_vector(op, "d", d, spec->heads));
    TRY(check_f32(op, "y", y, rows, width));
    return check_separate(op, "y", y, "x", x);
}

int check_gated_norm(const char *op, const struct tensor *y, const struct tensor *x, const struct tensor *gate,
                     const struct tensor *weight, int64_t size, float eps, bool gate_first)
{
    int64_t rows = matrix_rows(x), cols = matrix_cols(x), weights = tensor_count(weight);

    (void)eps;
    (void)gate_first;
    TRY(check_f32(op, "x", x, -1, -1));
    TRY(check_f32(op, "gate", gate, rows, cols));
    TRY(check_f32(op, "y", y, rows, cols));
    TRY(check_vector(op, "weight", weight, weights));
    if (size < 1 || cols % size != 0 || (weights != size && weights != cols)) {
        return err_raise(ERR_INTERNAL, "%s: a weight of %lld over rows of %lld in runs of %lld", op, (long long)weights,
                         (long long)cols, (long long)size);
    }
    return check_separate(op, "y", y, "gate", gate);
}
