/* The order of GPTQ's columns and the factor that it walks along, for all linears of one input.
 *
 * When H cannot be factored the damping climbs, tenfold up to 1, then small diagonal elements are raised to a floor. */

#include "quantizers/gptq_input.h"

#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>

#define FLOOR_FIRST 1e-6 /* of the diagonal's maximum; tenfold at each try */
#define FLOOR_TRIES 6

struct ranked {
    float weight;
    int32_t column;
};

static int falling(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (x->weight != y->weight) {
        return x->weight < y->weight ? 1 : -1;
    }
    return x->column < y->column ? -1 : x->column > y->column;
}

/* Columns by falling diagonal, ties by index. */
static int input_order(struct gptq_input *input)
{
    int64_t n = input->stats->columns;
    struct ranked *ranks = malloc((size_t)n * sizeof(*ranks));

    input->order = malloc((size_t)n * sizeof(*input->order));
    if (ranks == NULL || input->order == NULL) {
        free(ranks);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory to order %lld columns", (long long)n);
    }
    for (int64_t i = 0; i < n; i++) {
        ranks[i] = (struct ranked){input->diagonal[i], (int32_t)i};
    }
    qsort(ranks, (size_t)n, sizeof(*ranks), falling);
    for (int64_t i = 0; i < n; i++) {
        input->order[i] = ranks[i].column;
    }
    free(ranks);
    return 0;
}

/* Factor h with one damping; ERR_NOT_POSITIVE_DEFINITE when it takes more. */
static int input_try(struct gptq_input *input, const struct tensor *h, double damp)
{
    const struct gpu_factor spec = {.damp_percent = damp, .order = input->order};
    int rc = input->context->gpu->ops->factor(input->context->stream, &input->u, h, &spec);

    if (rc == 0) {
        input->damp = damp;
    }
    return rc;
}

/* The last resort: full damping over a floored diagonal of a copy of h; dead columns stay dead. */
static int input_floor(struct gptq_input *input)
{
    const struct solve_context *context = input->context;
    int64_t n = input->stats->columns;
    struct tensor h = {0};
    float top = 0;

    for (int64_t j = 0; j < n; j++) {
        top = input->diagonal[j] > top ? input->diagonal[j] : top;
    }
    int rc = gpu_tensor_new(context->gpu, DTYPE_F32, 2, (const int64_t[]){n, n}, &h);
    rc = rc != 0 ? rc : context->gpu->ops->convert(context->stream, &h, &input->stats->hessian);
    double share = FLOOR_FIRST;
    bool climbing = rc == 0;
    for (int i = 0; climbing && i < FLOOR_TRIES; i++) {
        rc = context->gpu->ops->floor_diagonal(context->stream, &h, (float)(share * (double)top));
        rc = rc != 0 ? rc : input_try(input, &h, 1.0);
        climbing = rc == ERR_NOT_POSITIVE_DEFINITE;
        if (rc == 0) {
            snprintf(input->note, sizeof(input->note), "diagonal of the hessian raised to %.0e of its maximum", share);
        }
        share *= 10;
    }
    gpu_tensor_free(context->gpu, &h);
    return rc;
}

/* Climb the ladder of damping. An input that no step of it can factor is left without u. */
static int input_factor(struct gptq_input *input, double damp_percent)
{
    const struct gpu *gpu = input->context->gpu;
    int64_t n = input->stats->columns;
    double damp = damp_percent;

    int rc = gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, (const int64_t[]){n, n}, &input->u);
    if (rc != 0) {
        return rc;
    }
    rc = input_try(input, &input->stats->hessian, damp);
    while (rc == ERR_NOT_POSITIVE_DEFINITE && damp < 1.0) {
        damp = damp * 10 < 1.0 ? damp * 10 : 1.0;
        rc = quant_tick(input->context);
        rc = rc != 0 ? rc : input_try(input, &input->stats->hessian, damp);
    }
    if (rc == ERR_NOT_POSITIVE_DEFINITE) {
        rc = input_floor(input);
    }
    if (rc == ERR_NOT_POSITIVE_DEFINITE) {
        snprintf(input->note, sizeof(input->note), "rtn: hessian not positive definite");
        gpu_tensor_free(gpu, &input->u);
        return 0;
    }
    return rc;
}

int gptq_input_init(const struct solve_context *context, const struct layer_stats *stats, const char *first,
                    double damp_percent, bool act_order, struct gptq_input *input)
{
    *input = (struct gptq_input){.context = context, .stats = stats};
    int rc = quant_check_hessian(context, stats, "gptq", first);
    if (rc != 0) {
        return rc;
    }
    input->diagonal = malloc((size_t)stats->columns * sizeof(*input->diagonal));
    if (input->diagonal == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a diagonal of %lld", (long long)stats->columns);
    }
    rc = context->gpu->ops->diagonal(context->stream, input->diagonal, &stats->hessian);
    if (rc == 0 && act_order) {
        rc = input_order(input);
    }
    rc = rc != 0 ? rc : search_importance(context, stats, &input->importance);
    return rc != 0 ? rc : input_factor(input, damp_percent);
}

void gptq_input_deinit(struct gptq_input *input)
{
    free(input->diagonal);
    free(input->order);
    gpu_tensor_free(input->context->gpu, &input->importance);
    gpu_tensor_free(input->context->gpu, &input->u);
}
