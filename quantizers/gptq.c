/* GPTQ (Frantar et al. 2022, arXiv 2210.17323): choose codes for W [N, K] that keep W X^T, given H = (2/T) sum x x^T.
 *
 * Columns are rounded one by one; what a column loses is made up for by the columns still to come, along the rows of U,
 * where (H + damp mean(diag H) I)^-1 = U^T U. Then W - Wq = E U, and sum E^2 is the loss under the damped H.
 *
 * Scales belong to groups of neighbouring inputs and are chosen from the weights as they came, before the sweep. So the
 * sweep may visit columns in any order and the artifact needs no index of groups: by default in falling order of
 * diag H, ties by index (static activation order), the columns that matter most while most others can still give way.
 *
 * An input that is never active (H_jj = 0) has its weights zeroed. Linears that read the same input share H, the order
 * and U. When H cannot be factored the damping climbs, tenfold up to 1, then small diagonal elements are raised to a
 * floor, then rounding to nearest takes over. It also does where it loses less, which is rare: a greedy sweep promises
 * nothing. Both are named in the report. */

#include "quantizers/common.h"

#include "base/err.h"
#include "base/ids.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define FLOOR_FIRST 1e-6 /* of the diagonal's maximum; tenfold at each try */
#define FLOOR_TRIES 6

struct gptq_params {
    struct quant_common common;
    double damp_percent;
    int64_t block_size;
    bool act_order, desc_act, static_groups, true_sequential;
};

/* What the linears of one input share. */
struct input {
    const struct solve_context *context;
    const struct layer_stats *stats;
    float *diagonal; /* host [K] */
    int32_t *order;  /* host [K]; NULL = columns as they lie */
    struct tensor u; /* F32 [K,K]; no data: not factored */
    double damp;     /* that made it work */
    char note[96];   /* "", or what had to be done beyond damping */
};

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
static int input_order(struct input *input)
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
static int input_try(struct input *input, const struct tensor *h, double damp)
{
    const struct gpu_factor spec = {.damp_percent = damp, .order = input->order};
    int rc = input->context->gpu->ops->factor(input->context->stream, &input->u, h, &spec);

    if (rc == 0) {
        input->damp = damp;
    }
    return rc;
}

/* Raise the diagonal elements of h below least; dead columns stay dead. */
static int raise_diagonal(const struct input *input, const struct tensor *h, float least)
{
    const struct solve_context *context = input->context;
    int64_t n = input->stats->columns;
    int rc = 0;

    for (int64_t j = 0; rc == 0 && j < n; j++) {
        if (input->diagonal[j] != 0 && input->diagonal[j] < least) {
            float *at = (float *)h->data + j * (n + 1);
            rc = context->gpu->ops->upload(context->stream, at, &least, sizeof(least));
        }
    }
    return rc != 0 ? rc : context->gpu->ops->stream_sync(context->stream);
}

/* The last resort: full damping over a floored diagonal of a copy of h. */
static int input_floor(struct input *input)
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
        rc = raise_diagonal(input, &h, (float)(share * (double)top));
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
static int input_factor(struct input *input, double damp_percent)
{
    const struct gpu *gpu = input->context->gpu;
    int64_t n = input->stats->columns;
    double damp = damp_percent;

    int rc = gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){n, n}, &input->u);
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

static int input_check(const struct input *input, const char *name)
{
    const struct layer_stats *stats = input->stats;
    int64_t index;

    if (stats == NULL || (stats->flags & STATS_HESSIAN) == 0) {
        return err_raise(ERR_INSUFFICIENT_CALIBRATION, "gptq needs calibration inputs for %s", name);
    }
    int rc = input->context->gpu->ops->find_nonfinite(input->context->stream, &index, &stats->hessian);
    if (rc == 0 && index >= 0) {
        rc = err_raise(ERR_NON_FINITE_VALUE, "the Hessian of %s is not finite at [%lld, %lld]", name,
                       (long long)(index / stats->columns), (long long)(index % stats->columns));
        (void)err_set_hint(rc, "the model's activations overflow on the calibration set; check both");
    }
    return rc;
}

static int input_init(struct input *input, const struct linear_job *first)
{
    const struct gptq_params *params = first->params;

    int rc = input_check(input, first->name);
    if (rc != 0) {
        return rc;
    }
    input->diagonal = malloc((size_t)input->stats->columns * sizeof(*input->diagonal));
    if (input->diagonal == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a diagonal of %lld", (long long)input->stats->columns);
    }
    rc = input->context->gpu->ops->diagonal(input->context->stream, input->diagonal, &input->stats->hessian);
    if (rc == 0 && params->act_order) {
        rc = input_order(input);
    }
    return rc != 0 ? rc : input_factor(input, params->damp_percent);
}

static void input_deinit(struct input *input)
{
    free(input->diagonal);
    free(input->order);
    gpu_tensor_free(input->context->gpu, &input->u);
}

/* What work->w, the dequantized codes, loses on the inputs. */
static int output_error(const struct input *input, const struct linear_job *job, const struct quant_work *work,
                        double *error)
{
    double signal;

    return input->context->gpu->ops->output_error(input->context->stream, error, &signal, job->weight, &work->w,
                                                  &input->stats->hessian);
}

/* The weight again, dead columns zeroed. */
static int load_weight(const struct input *input, struct linear_job *job, struct quant_work *work)
{
    const struct solve_context *context = input->context;
    int rc = context->gpu->ops->convert(context->stream, &work->w, job->weight);

    return rc != 0
               ? rc
               : context->gpu->ops->zero_dead(context->stream, &work->w, &input->stats->hessian, &job->dead_columns);
}

/* The sweep's codes, unless rounding to the same grid loses less. The sweep's loss counts the damping too, so it is an
 * upper bound: only when that exceeds rounding's error is its own error worth computing. */
static int choose_codes(const struct input *input, struct linear_job *job, struct quant_work *work)
{
    const struct gptq_params *params = job->params;
    const struct solve_context *context = input->context;
    const struct gpu_ops *ops = context->gpu->ops;
    double rounded = 0, loss = 0, swept = 0;

    int rc = quant_work_round(context, work);
    rc = rc != 0 ? rc : output_error(input, job, work, &rounded);
    rc = rc != 0 ? rc : load_weight(input, job, work);
    rc = rc != 0 ? rc
                 : ops->sweep(context->stream, &work->codes, &work->w, &input->u, &work->scale, &work->zero,
                              input->order, params->block_size, &work->grid, &loss);
    if (rc != 0) {
        return rc;
    }
    job->loss = loss;
    if (loss <= rounded) {
        return 0;
    }
    rc = ops->dequantize(context->stream, &work->w, &work->codes, &work->scale, &work->zero, &work->grid);
    rc = rc != 0 ? rc : output_error(input, job, work, &swept);
    if (rc != 0 || swept <= rounded) {
        return rc;
    }
    job->loss = rounded;
    snprintf(job->fallback, sizeof(job->fallback), "rtn: output error %.3g, gptq's %.3g", rounded, swept);
    rc = load_weight(input, job, work);
    return rc != 0 ? rc : quant_work_round(context, work);
}

static int solve_linear(const struct input *input, struct linear_job *job)
{
    const struct solve_context *context = input->context;
    struct quant_work work = {0};
    double start = clock_monotonic_seconds();

    if (job->weight->shape[1] != input->stats->columns) {
        return err_raise(ERR_INTERNAL, "%s has %lld inputs, its statistics %lld", job->name,
                         (long long)job->weight->shape[1], (long long)input->stats->columns);
    }
    snprintf(job->fallback, sizeof(job->fallback), "%s", input->note);
    if (input->u.data == NULL) {
        return rtn_solve_linear(context, job);
    }
    job->damp_used = input->damp;
    int rc = quant_work_init(context, job, &work);
    rc = rc != 0 ? rc : load_weight(input, job, &work);
    rc = rc != 0 ? rc : context->gpu->ops->grid(context->stream, &work.scale, &work.zero, &work.w, NULL, &work.grid);
    rc = rc != 0 ? rc : choose_codes(input, job, &work);
    rc = rc != 0 ? rc : quant_work_take(context, &work, job);
    quant_work_deinit(&work, context->gpu);
    job->seconds = clock_monotonic_seconds() - start;
    return rc;
}

static int solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                 int count)
{
    struct input input = {.context = context, .stats = stats};
    double start = clock_monotonic_seconds();

    if (count == 0) {
        return 0;
    }
    int rc = quant_tick(context);
    rc = rc != 0 ? rc : input_init(&input, &jobs[0]);
    double shared = (clock_monotonic_seconds() - start) / count;
    for (int i = 0; rc == 0 && i < count; i++) {
        rc = quant_tick(context);
        rc = rc != 0 ? rc : solve_linear(&input, &jobs[i]);
        jobs[i].seconds += shared;
    }
    input_deinit(&input);
    return rc;
}

static void refuse(struct faults *faults, const char *pointer, const char *name, const char *why)
{
    char at[192];
    snprintf(at, sizeof(at), "%.150s/%s", pointer, name);
    faults_add(faults, ERR_INCOMPATIBLE_OPTIONS, at, "%s", why);
}

static void check(const void *values, const char *pointer, struct faults *faults)
{
    const struct gptq_params *params = values;

    quant_common_check(values, pointer, faults);
    if (params->desc_act) {
        refuse(faults, pointer, "desc_act",
               "would regroup columns behind an index (g_idx) that runtimes drop; act_order visits columns in the same "
               "order and leaves groups in place");
    }
    if (!params->static_groups) {
        refuse(faults, pointer, "static_groups", "scales are always chosen before the sweep; only true is offered");
    }
    if (!params->true_sequential) {
        refuse(faults, pointer, "true_sequential",
               "each linear always sees what the quantized ones before it make; only true is offered");
    }
}

static const struct params_row gptq_rows[] = {
    QUANT_ROW(PARAMS_NUMBER, gptq_params, damp_percent, "0.01", .min = 0, .max = 1, .exclusive = true,
              .help = "Share of the Hessian's mean diagonal added to its diagonal; raised tenfold, up to 1, where that "
                      "is not enough."),
    QUANT_ROW(PARAMS_INT, gptq_params, block_size, "128", .min = 1, .max = 1024,
              .help = "Columns whose updates are applied together; hardly changes the result."),
    QUANT_ROW(PARAMS_BOOL, gptq_params, act_order, "true",
              .help = "Visit columns in falling order of their inputs' energy; groups stay in place."),
    QUANT_ROW(PARAMS_BOOL, gptq_params, desc_act, "false",
              .help = "Regroup columns by activation order behind an index: not offered, see act_order."),
    QUANT_ROW(PARAMS_BOOL, gptq_params, static_groups, "true",
              .help = "Choose all scales before the sweep: always so."),
    QUANT_ROW(PARAMS_BOOL, gptq_params, true_sequential, "true",
              .help = "Solve a block's linears in order, each on inputs from the quantized ones before it: always so."),
    {.name = NULL},
};

static const struct params_row *const gptq_params[] = {quant_common_rows, gptq_rows, NULL};

const struct quantizer quantizer_gptq = {
    .name = "gptq",
    .title = "GPTQ",
    .help = "Rounds columns one by one and lets the later ones make up for what the earlier ones lost, weighed by the "
            "second moments of the layer's inputs on the calibration set (Frantar et al. 2022, arXiv 2210.17323). The "
            "usual choice at 4, 3 and 2 bits; needs calibration data.",
    .stats = STATS_HESSIAN,
    .params = gptq_params,
    .params_size = sizeof(struct gptq_params),
    .check = check,
    .scheme = quant_common_scheme,
    .solve = solve,
};
