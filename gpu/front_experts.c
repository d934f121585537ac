/* The arguments of the operations that experts need. */

#include "gpu/front.h"

int check_numbers(const char *op, const char *name, const struct tensor *tensor, int64_t count)
{
    if (tensor->dtype != DTYPE_I32 || tensor_count(tensor) != count) {
        return err_raise(ERR_INTERNAL, "%s: %s is %s with %lld elements, expected I32 with %lld", op, name,
                         dtype_rows[tensor->dtype].name, (long long)tensor_count(tensor), (long long)count);
    }
    return check_data(op, name, tensor);
}

/* Groups divide the experts, and those that are taken have enough of them. */
static int check_route_groups(const char *op, const struct gpu_route *spec, int64_t experts)
{
    int64_t size = spec->groups > 1 ? experts / spec->groups : experts;
    bool fits = spec->groups <= 1 ||
                (experts % spec->groups == 0 && spec->group_top_k >= 1 && spec->group_top_k <= spec->groups &&
                 spec->top_k <= spec->group_top_k * size && (!spec->group_pairs || size >= 2));

    return spec->groups >= 0 && fits
               ? 0
               : err_raise(ERR_INTERNAL, "%s: %lld of %lld groups of %lld experts", op, (long long)spec->group_top_k,
                           (long long)spec->groups, (long long)experts);
}

int check_choices(const char *op, const struct tensor *logits, const struct gpu_route *spec)
{
    int64_t experts = matrix_cols(logits);

    TRY(check_f32(op, "logits", logits, -1, -1));
    if (spec->top_k < 1 || spec->top_k > experts || spec->top_k > GPU_ROUTE_MAX) {
        return err_raise(ERR_INTERNAL, "%s: the first %lld of %lld experts", op, (long long)spec->top_k,
                         (long long)experts);
    }
    return check_route_groups(op, spec, experts);
}

int check_route(const char *op, const struct tensor *ids, const struct tensor *weights, const struct tensor *logits,
                const struct tensor *bias, const struct gpu_route *spec)
{
    int64_t tokens = matrix_rows(logits), experts = matrix_cols(logits);

    TRY(check_choices(op, logits, spec));
    if ((bias != NULL || spec->groups > 1) && experts > GPU_ROUTE_EXPERTS_MAX) {
        return err_raise(ERR_INTERNAL, "%s: a bias or groups of %lld experts", op, (long long)experts);
    }
    TRY(check_matrix(op, "ids", ids, DTYPE_I32, tokens, spec->top_k));
    TRY(check_f32(op, "weights", weights, tokens, spec->top_k));
    TRY(check_optional(op, "bias", bias, experts));
    return check_separate(op, "weights", weights, "logits", logits);
}

int check_group_places(const char *op, const struct tensor *places, int64_t *offsets, const struct tensor *ids,
                       int64_t experts)
{
    (void)offsets;
    if (experts < 1 || experts > INT32_MAX || tensor_count(ids) > INT32_MAX) {
        return err_raise(ERR_INTERNAL, "%s: %lld choices of %lld experts", op, (long long)tensor_count(ids),
                         (long long)experts);
    }
    TRY(check_numbers(op, "ids", ids, tensor_count(ids)));
    TRY(check_numbers(op, "places", places, tensor_count(ids)));
    return check_separate(op, "places", places, "ids", ids);
}

int check_gather_rows(const char *op, const struct tensor *y, const struct tensor *x, const struct tensor *places,
                      const struct tensor *weights, int64_t k)
{
    TRY(check_f32(op, "x", x, -1, -1));
    TRY(check_f32(op, "y", y, -1, matrix_cols(x)));
    TRY(check_numbers(op, "places", places, matrix_rows(y)));
    TRY(check_separate(op, "y", y, "x", x));
    TRY(check_optional(op, "weights", weights, matrix_rows(x) * k));
    return k >= 1 ? 0 : err_raise(ERR_INTERNAL, "%s: %lld choices of a token", op, (long long)k);
}

int check_scatter_rows(const char *op, const struct tensor *y, const struct tensor *x, const struct tensor *places,
                       const struct tensor *weights, int64_t k)
{
    TRY(check_f32(op, "y", y, -1, -1));
    TRY(check_f32(op, "x", x, -1, matrix_cols(y)));
    TRY(check_numbers(op, "places", places, matrix_rows(x)));
    TRY(check_optional(op, "weights", weights, matrix_rows(y) * k));
    if (matrix_rows(x) > matrix_rows(y) || k < 1) {
        return err_raise(ERR_INTERNAL, "%s: %lld rows into %lld, by %lld choices of a token", op,
                         (long long)matrix_rows(x), (long long)matrix_rows(y), (long long)k);
    }
    return check_separate(op, "y", y, "x", x);
}
