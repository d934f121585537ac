/* The order of GPTQ's columns and the factor that it uses, for all linears of one input.
 *
 * When H cannot be factored the damping climbs, tenfold up to 1, then small diagonal elements are raised to a minimum.
 */

#include "quantizers/gptq_input.h"

#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FLOOR_FIRST 1e-6 /* of the diagonal's maximum; tenfold at each try */
#define FLOOR_TRIES 6
#define SIGN 0x80000000U
#define DIGIT_BITS 11 /* three of them are a key */
#define DIGITS (1 << DIGIT_BITS)

/* Larger for smaller values; -0 counts as 0. */
static uint32_t gptq_falling_key(float value)
{
    uint32_t bits;

    value += 0.0f;
    memcpy(&bits, &value, sizeof(bits));
    return (bits & SIGN) != 0 ? bits : ~(bits | SIGN);
}

struct ranked {
    uint32_t key;
    int32_t index;
};

/* By one digit of the key, those with equal ones as they were. */
static void gptq_sort_digit(const struct ranked *from, struct ranked *to, int64_t count, int shift)
{
    int64_t begin[DIGITS] = {0};

    for (int64_t i = 0; i < count; i++) {
        begin[from[i].key >> shift & (DIGITS - 1)]++;
    }
    for (int64_t digit = 0, sum = 0; digit < DIGITS; digit++) {
        int64_t next = sum + begin[digit];
        begin[digit] = sum;
        sum = next;
    }
    for (int64_t i = 0; i < count; i++) {
        to[begin[from[i].key >> shift & (DIGITS - 1)]++] = from[i];
    }
}

/* Three passes over digits take a tenth of what comparing takes, and a device waits for it. */
int gptq_falling_order(const float *values, int64_t count, int32_t *order)
{
    AUTO_FREE struct ranked *ranks = NULL;
    AUTO_FREE struct ranked *sorted = NULL;

    TRY(mem_buffer(&ranks, (size_t)count));
    TRY(mem_buffer(&sorted, (size_t)count));
    for (int64_t i = 0; i < count; i++) {
        ranks[i] = (struct ranked){gptq_falling_key(values[i]), (int32_t)i};
    }
    gptq_sort_digit(ranks, sorted, count, 0);
    gptq_sort_digit(sorted, ranks, count, DIGIT_BITS);
    gptq_sort_digit(ranks, sorted, count, 2 * DIGIT_BITS);
    for (int64_t i = 0; i < count; i++) {
        order[i] = sorted[i].index;
    }
    return 0;
}

/* Columns by falling diagonal. */
static int gptq_input_order(struct gptq_input *input)
{
    int64_t n = input->stats->columns;

    TRY(mem_buffer(&input->order, (size_t)n));
    return gptq_falling_order(input->diagonal, n, input->order);
}

/* Factor h with one damping; ERR_NOT_POSITIVE_DEFINITE when it takes more. */
static int gptq_input_try(struct gptq_input *input, const struct tensor *h, double damp)
{
    const struct gpu_factor spec = {.damp_percent = damp, .order = input->order};

    TRY(input->context->gpu->ops->factor(input->context->stream, &input->u, h, &spec));
    input->damp = damp;
    return 0;
}

/* The last resort: full damping over a copy of h whose diagonal has a lower bound; dead columns stay dead. */
static int gptq_input_floor(struct gptq_input *input)
{
    const struct solve_context *context = input->context;
    const struct gpu *gpu = context->gpu;
    int64_t n = input->stats->columns;
    double share = FLOOR_FIRST;
    float top = 0;
    int rc = ERR_NOT_POSITIVE_DEFINITE;
    AUTO_TENSOR(h, gpu);

    for (int64_t j = 0; j < n; j++) {
        top = input->diagonal[j] > top ? input->diagonal[j] : top;
    }
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){n, n}, &h));
    TRY(gpu->ops->convert(context->stream, &h, &input->stats->hessian));
    for (int i = 0; rc == ERR_NOT_POSITIVE_DEFINITE && i < FLOOR_TRIES; i++) {
        TRY(gpu->ops->floor_diagonal(context->stream, &h, (float)(share * (double)top)));
        rc = gptq_input_try(input, &h, 1.0);
        if (rc == 0) {
            snprintf(input->note, sizeof(input->note), "diagonal of the hessian raised to %.0e of its maximum", share);
        }
        share *= 10;
    }
    return rc;
}

/* Raise the damping until H can be factored. An input for which no damping is enough is left without u. */
static int gptq_input_factor(struct gptq_input *input, double damp_percent)
{
    const struct gpu *gpu = input->context->gpu;
    int64_t n = input->stats->columns;
    double damp = damp_percent;

    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, (const int64_t[]){n, n}, &input->u));
    int rc = gptq_input_try(input, &input->stats->hessian, damp);
    if (rc == ERR_NOT_POSITIVE_DEFINITE) {
        TRY(quant_check_hessian(input->context, input->stats, "gptq", input->first));
    }
    while (rc == ERR_NOT_POSITIVE_DEFINITE && damp < 1.0) {
        damp = damp * 10 < 1.0 ? damp * 10 : 1.0;
        TRY(quant_tick(input->context));
        rc = gptq_input_try(input, &input->stats->hessian, damp);
    }
    if (rc == ERR_NOT_POSITIVE_DEFINITE) {
        rc = gptq_input_floor(input);
    }
    if (rc == ERR_NOT_POSITIVE_DEFINITE) {
        snprintf(input->note, sizeof(input->note), "rtn: hessian not positive definite");
        gpu_tensor_free(gpu, &input->u);
        return 0;
    }
    return rc;
}

/* What is decided on the host comes from one trip of the diagonal. No element of a sum of x x^T is larger than the
 * diagonal's, so that one which is finite leaves little to look for in the rest: gptq_input_factor does where a pivot
 * says so. */
static int gptq_input_diagonal(struct gptq_input *input)
{
    const struct layer_stats *stats = input->stats;
    bool finite = true;

    TRY(quant_diagonal(input->context, stats, &input->diagonal));
    for (int64_t j = 0; j < stats->columns; j++) {
        input->dead += input->diagonal[j] == 0.0f;
        finite = finite && isfinite(input->diagonal[j]);
    }
    return finite ? 0 : quant_check_hessian(input->context, stats, "gptq", input->first);
}

int gptq_input_init(const struct solve_context *context, const struct layer_stats *stats, const char *first,
                    double damp_percent, bool act_order, struct gptq_input *input)
{
    *input = (struct gptq_input){.context = context, .stats = stats, .first = first};
    TRY(quant_hessian_given(stats, "gptq", first));
    TRY(gptq_input_diagonal(input));
    if (act_order) {
        TRY(gptq_input_order(input));
    }
    TRY(gpu_tensor_from_host(context->gpu, context->stream, DTYPE_F32, 1, &stats->columns, input->diagonal,
                             &input->importance));
    return gptq_input_factor(input, damp_percent);
}

void gptq_input_deinit(struct gptq_input *input)
{
    free(input->diagonal);
    free(input->order);
    if (input->context != NULL) {
        gpu_tensor_free(input->context->gpu, &input->importance);
        gpu_tensor_free(input->context->gpu, &input->u);
    }
}
