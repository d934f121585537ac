/* GPTQ (Frantar et al. 2022, arXiv 2210.17323): choose codes for W [N, K] that keep W X^T, given H = (2/T) sum x x^T.
 *
 * Columns are rounded one by one; the columns still to come compensate for what a column loses, along the rows of U,
 * where (H + damp mean(diag H) I)^-1 = U^T U. Then W - Wq = E U, and sum E^2 is the loss under the damped H.
 *
 * Scales belong to groups of neighbouring inputs and are chosen from the weights as they came, before the sweep. So the
 * sweep may visit columns in any order and the artifact needs no index of groups: by default in falling order of
 * diag H, ties by index (static activation order), the most important columns first, while the others can still
 * compensate.
 *
 * By default (scale_search imatrix) each group's range is the one that minimises sum H_jj |err_j|^3. The exponent
 * is above the 2 of the loss since the sweep passes on what rounding costs, but errors of clipped weights are large and
 * of one sign. On trained checkpoints of 4 M weights, KL from the float model fell against min-max by a tenth at 4 bits
 * and by a fifth at 3 and 2; exponents of 2 and 2.4 gained less at 2 bits.
 *
 * An input that is never active (H_jj = 0) has its weights zeroed. Linears that read the same input share H, the order
 * and U (gptq_input.c). When H cannot be factored rounding to nearest takes over. It also does where it loses less,
 * which is rare: a greedy sweep promises nothing. Both are named in the report.
 *
 * Beyond the paper, as `quality` has it: what is rounded is not W but the weight that comes nearest to the float
 * model's output (target.c); scales take the sign that suits their group; after the sweep, scales and codes descend on
 * the loss one at a time (search_refine), which never raises it; and the sweep may run again over the scales that this
 * left. With `output_moments` a last descent is on tr(O D H D^T), D being target less weight and O the second moments
 * of the gradients of outputs: the second-order estimate of the model's own loss (Tseng et al. 2025, arXiv 2505.22988;
 * Kim et al. 2025, arXiv 2505.07004), which lets rows compensate for each other. */

#include "quantizers/gptq.h"
#include "quantizers/gptq_input.h"
#include "quantizers/target.h"

#include "base/err.h"
#include "base/ids.h"
#include "gpu/scratch.h"

#include <stdio.h>

#define SEARCH_NORM 3.0  /* of the search for scales */
#define OUTPUT_PASSES 16 /* over the weights under output moments */
/* Rows that the comparison with rounding takes at once, and the tolerance for two equal sums. */
#define GUARD_ROWS 256
#define GUARD_SLICES 8
#define GUARD_TOLERANCE 1e-6

/* The weight's rows from `first` on again in w, with dead columns zeroed. */
static int gptq_load_rows(const struct gptq_input *input, const struct linear_job *job, const struct tensor *w,
                          int64_t first)
{
    const struct solve_context *context = input->context;
    struct tensor weight = tensor_rows(job->weight, first, w->shape[0]);

    TRY(context->gpu->ops->convert(context->stream, w, &weight));
    return input->dead > 0 ? context->gpu->ops->zero_dead(context->stream, w, &input->stats->hessian, NULL) : 0;
}

/* The output error of min-max rounding, or as much of it as reaches `enough`. Uses work->w. */
static int gptq_rounding_error(const struct gptq_input *input, const struct linear_job *job,
                               const struct quant_work *work, double enough, double *error)
{
    const struct solve_context *context = input->context;
    const struct gpu *gpu = context->gpu;
    int64_t rows = job->weight->shape[0], slices = gpu->info.host_memory ? GUARD_SLICES : 1; /* a device: all as soon */
    int64_t slice = rows / slices > GUARD_ROWS ? rows / slices : GUARD_ROWS;
    struct gpu_grid grid = work->grid;
    double sum = 0;
    AUTO_TENSOR(all_codes, gpu);
    AUTO_TENSOR(all_scales, gpu);
    AUTO_TENSOR(all_zeros, gpu);

    slice = slice < rows ? slice : rows;
    grid.mse = false;
    const int64_t shape[2] = {slice, work->w.shape[1]}, groups[2] = {slice, work->scale.shape[1]};
    TRY(gpu_tensor_new(gpu, DTYPE_U8, 2, shape, &all_codes));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, groups, &all_scales));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, groups, &all_zeros));
    for (int64_t first = 0; first < rows && sum < enough; first += slice) {
        int64_t count = rows - first < slice ? rows - first : slice;
        struct tensor weight = tensor_rows(job->weight, first, count), w = tensor_rows(&work->w, first, count);
        struct tensor codes = tensor_rows(&all_codes, 0, count);
        struct tensor scale = tensor_rows(&all_scales, 0, count), zero = tensor_rows(&all_zeros, 0, count);
        double lost = 0;
        TRY(gptq_load_rows(input, job, &w, first));
        TRY(quant_round_nearest(gpu, context->stream, &grid, &w, &codes, &scale, &zero));
        TRY(gpu->ops->output_error(context->stream, &lost, NULL, &weight, &w, &input->stats->hessian));
        sum += lost;
    }
    *error = sum;
    return 0;
}

/* Min-max rounding in place of the sweep. */
static int gptq_take_rounding(const struct gptq_input *input, struct linear_job *job, struct quant_work *work)
{
    const struct solve_context *context = input->context;

    work->grid.mse = false;
    TRY(gptq_load_rows(input, job, &work->w, 0));
    work->rounded = true;
    return quant_round_nearest(context->gpu, context->stream, &work->grid, &work->w, &work->codes, &work->scale,
                               &work->zero);
}

/* The sweep's codes, unless min-max rounding loses less. The sweep's loss counts the damping too, so it is an
 * upper bound of what the sweep lost: rounding is measured slice by slice of rows until it has lost as much, which is
 * usually soon. Only if it never does is the sweep's own error worth computing. */
static int gptq_choose_codes(const struct gptq_input *input, struct linear_job *job, struct quant_work *work)
{
    const struct gptq_params *params = job->params;
    const struct solve_context *context = input->context;
    const struct gpu_ops *ops = context->gpu->ops;
    double rounded = 0, swept = 0;

    TRY(ops->sweep(context->stream, &work->codes, &work->w, &input->u, &work->scale, &work->zero, input->order,
                   params->block_size, &work->grid, &job->loss));
    TRY(gptq_rounding_error(input, job, work, job->loss, &rounded));
    if (job->loss <= rounded) {
        return 0;
    }
    TRY(quant_work_dequantize(context, work));
    TRY(ops->output_error(context->stream, &swept, NULL, job->weight, &work->w, &input->stats->hessian));
    if (swept <= rounded * (1 + GUARD_TOLERANCE)) {
        return 0;
    }
    job->loss = rounded;
    snprintf(job->fallback, sizeof(job->fallback), "rtn: output error %.3g, gptq's %.3g", rounded, swept);
    return gptq_take_rounding(input, job, work);
}

/* Sweep once more over the grid that refinement moved, refine again, and take what loses less. */
static int gptq_sweep_again(const struct gptq_input *input, struct linear_job *job, struct quant_work *best)
{
    const struct gptq_params *params = job->params;
    const struct solve_context *context = input->context;
    const struct gpu_ops *ops = context->gpu->ops;
    AUTO(quant_work) struct quant_work work = {0};
    struct linear_job again = *job;

    TRY(quant_work_init(context, job, &work));
    TRY(gptq_load_rows(input, job, &work.w, 0));
    TRY(ops->convert(context->stream, &work.scale, &best->scale));
    TRY(ops->convert(context->stream, &work.zero, &best->zero));
    TRY(ops->sweep(context->stream, &work.codes, &work.w, &input->u, &work.scale, &work.zero, input->order,
                   params->block_size, &work.grid, &again.loss));
    TRY(search_refine(context, &input->stats->hessian, &again, &work));
    if (again.loss < job->loss) {
        struct quant_work swapped = *best;
        *best = work;
        work = swapped;
        job->loss = again.loss;
        snprintf(job->fallback, sizeof(job->fallback), "%s",
                 input->note); /* rounding's codes, if it took over, are gone */
    }
    return 0;
}

/* Descent on the loss that the gradients of outputs see. */
static int gptq_both_sides(const struct gptq_input *input, struct linear_job *job, struct quant_work *work)
{
    const struct gptq_params *params = job->params;
    const struct solve_context *context = input->context;
    const struct gpu_ops *ops = context->gpu->ops;
    const struct gpu_descend spec = {.passes = OUTPUT_PASSES, .scales = true};
    AUTO_TENSOR(o, context->gpu);

    if (!params->output_moments || context->output_moments == NULL) {
        return 0;
    }
    TRY(quant_tick(context));
    TRY(context->output_moments(context->output_data, job, QUANT_OUTPUT_KEPT, &o));
    TRY(ops->descend_both(context->stream, &work->codes, &work->scale, &work->zero, job->weight, &input->stats->hessian,
                          &o, &work->grid, &spec, &job->two_sided_start, &job->two_sided_loss));
    job->two_sided = true;
    TRY(quant_work_dequantize(context, work));
    return ops->output_error(context->stream, &job->loss, NULL, job->weight, &work->w, &input->stats->hessian);
}

/* job->weight is the target here. */
static int gptq_solve_target(const struct gptq_input *input, struct linear_job *job)
{
    const struct gptq_params *params = job->params;
    const struct solve_context *context = input->context;
    enum quant_search search = search_of(job->params, SEARCH_IMATRIX);
    AUTO(quant_work) struct quant_work work = {0};

    TRY(quant_work_init(context, job, &work));
    TRY(gptq_load_rows(input, job, &work.w, 0));
    job->dead_columns = input->dead;
    TRY(search_grid(context, &work, search, &input->importance, SEARCH_NORM, NULL));
    TRY(gptq_choose_codes(input, job, &work));
    TRY(search_refine(context, &input->stats->hessian, job, &work));
    for (int64_t i = 0; i < params->resweep && params->common.refine_rounds > 0; i++) {
        TRY(quant_tick(context));
        TRY(gptq_sweep_again(input, job, &work));
    }
    TRY(gptq_both_sides(input, job, &work));
    job->aimed_error = job->loss;
    if (job->aimed && !job->refined && !job->two_sided) { /* the sweep's loss counts the damping */
        TRY(quant_work_dequantize(context, &work));
        TRY(context->gpu->ops->output_error(context->stream, &job->aimed_error, NULL, job->weight, &work.w,
                                            &input->stats->hessian));
    }
    return quant_work_take(context, &work, job);
}

static int gptq_solve_linear(const struct gptq_input *input, struct linear_job *job)
{
    const struct solve_context *context = input->context;
    const struct gptq_params *params = job->params;
    const struct tensor *weight = job->weight;
    double start = clock_monotonic_seconds();
    AUTO_TENSOR(target, context->gpu);

    if (weight->shape[1] != input->stats->columns) {
        return err_raise(ERR_INTERNAL, "%s has %lld inputs, its statistics %lld", job->name,
                         (long long)weight->shape[1], (long long)input->stats->columns);
    }
    snprintf(job->fallback, sizeof(job->fallback), "%s", input->note);
    if (input->u.data == NULL) {
        return rtn_solve_linear(context, job);
    }
    job->damp_used = input->damp;
    if (params->float_targets) {
        TRY(target_new(context, input->stats, &input->u, input->order, job, &target));
    }
    job->aimed = target.data != NULL;
    job->weight = job->aimed ? &target : weight;
    int rc = gptq_solve_target(input, job);
    job->weight = weight;
    job->seconds = clock_monotonic_seconds() - start;
    return rc;
}

static int64_t gptq_larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Products over all columns in each pass, and about an eighth of the codes that move, each of which goes to all rows.
 */
static double gptq_both_operations(const struct quant_shape *shape)
{
    double rows = (double)shape->rows, cols = (double)shape->cols;

    return 2 * rows * cols * (rows + cols) + OUTPUT_PASSES * rows * cols * (2 * cols + 3 * rows);
}

/* What that takes for itself of a device with memory of its own (gpu/cuda/descend_both.c); the CPU's is scratch. */
static int64_t gptq_both_bytes(int64_t rows, int64_t cols, int64_t group)
{
    enum { BLOCK = 64 };

    return rows * (2 * cols + 3 * group + BLOCK) * (int64_t)sizeof(float);
}

/* The target, the work on it, and while that is compared with rounding a slice of rows, or another sweep's work. */
void gptq_cost(const void *values, const struct quant_shape *shape, struct quant_cost *out)
{
    const struct gptq_params *params = values;
    int64_t rows = shape->rows, cols = shape->cols, group = quant_group_columns(&params->common, cols);
    int64_t work = quant_work_bytes(shape, group), float_bytes = rows * cols * (int64_t)sizeof(float);
    bool aimed = shape->aimed && shape->tokens > 2 * cols;
    int64_t slice = shape->threads > 0 ? gptq_larger(rows / GUARD_SLICES, GUARD_ROWS) : rows;
    const struct quant_shape guard = {.rows = slice < rows ? slice : rows, .cols = cols};
    int64_t rounding = quant_work_bytes(&guard, group) - guard.rows * cols * (int64_t)sizeof(float);
    int64_t again = params->resweep > 0 && params->common.refine_rounds > 0 ? work : 0;
    int64_t outputs = params->output_moments ? rows * rows * (int64_t)sizeof(float) : 0;
    int64_t both = outputs + (params->output_moments && shape->threads == 0 ? gptq_both_bytes(rows, cols, group) : 0);
    double n = (double)cols, sweep = (double)rows * n * n;

    *out = (struct quant_cost){
        .shared = cols * (cols + 1) * (int64_t)sizeof(float),
        .solving = work + (aimed ? float_bytes : 0) + gptq_larger(gptq_larger(rounding, again), both),
        .host = outputs,
        .solved = work,
        .scratch = gptq_larger(
            gptq_larger(gpu_scratch_factor(shape->threads, cols), gpu_scratch_sweep(shape->threads, rows, cols, group)),
            gptq_larger(
                gptq_larger(gpu_scratch_output_error(shape->threads, rows, cols),
                            aimed ? gpu_scratch_solve(shape->threads, cols) : 0),
                gptq_larger(params->common.refine_rounds > 0 ? gpu_scratch_descend(shape->threads, rows, cols, group)
                                                             : 0,
                            params->output_moments ? gpu_scratch_descend_both(shape->threads, rows, cols, group) : 0))),
        .operations = (params->output_moments ? gptq_both_operations(shape) : 0) + n * n * n / 2 +
                      sweep * (double)(1 + params->resweep) + (aimed ? 3 * sweep : 0) + sweep / 4 +
                      (double)(1 + params->resweep) * search_refine_operations(&params->common, shape) +
                      search_operations(&params->common, shape, search_of(&params->common, SEARCH_IMATRIX)),
    };
}

int64_t gptq_output_tokens(const void *values)
{
    const struct gptq_params *params = values;

    return !params->output_moments ? 0 : params->output_tokens > 0 ? params->output_tokens : -1;
}

bool gptq_targets(const void *values, struct quant_targets *out)
{
    const struct gptq_params *params = values;

    *out =
        (struct quant_targets){.tokens = (double)params->target_tokens, .residual_share = params->residual_correction};
    return params->float_targets;
}

/* Scales of either sign need a search on a symmetric grid. */
const char *gptq_preset(const void *values)
{
    const struct gptq_params *params = values;
    bool signs = params->common.sym && search_of(&params->common, SEARCH_IMATRIX) != SEARCH_MINMAX;

    switch (params->quality) {
    case QUALITY_FAST:
        return "{\"signed_scales\":false,\"refine_rounds\":0,\"float_targets\":false}";
    case QUALITY_BEST:
        if (params->common.refine_rounds == 0) { /* given so: nothing for further sweeps to start from */
            return signs ? NULL : "{\"signed_scales\":false}";
        }
        return signs ? "{\"refine_rounds\":4,\"resweep\":2}"
                     : "{\"refine_rounds\":4,\"resweep\":2,\"signed_scales\":false}";
    default:
        return signs ? NULL : "{\"signed_scales\":false}";
    }
}

/* Whether one order and U are for both. */
static bool gptq_shares(const struct linear_job *a, const struct linear_job *b)
{
    const struct gptq_params *one = a->params, *other = b->params;

    return one->damp_percent == other->damp_percent && one->act_order == other->act_order;
}

/* jobs[0], and those after it that share with it. */
static int gptq_solve_sharing(const struct solve_context *context, const struct layer_stats *stats,
                              struct linear_job *jobs, int count)
{
    const struct gptq_params *params = jobs[0].params;
    double start = clock_monotonic_seconds();
    AUTO(gptq_input) struct gptq_input input = {0};
    int sharing = 0;

    TRY(quant_tick(context));
    TRY(gptq_input_init(context, stats, jobs[0].name, params->damp_percent, params->act_order, &input));
    for (int i = 0; i < count; i++) {
        sharing += gptq_shares(&jobs[0], &jobs[i]);
    }
    double shared = (clock_monotonic_seconds() - start) / sharing;
    for (int i = 0; i < count; i++) {
        if (gptq_shares(&jobs[0], &jobs[i])) {
            TRY(quant_tick(context));
            TRY(quant_fail(&jobs[i], gptq_solve_linear(&input, &jobs[i])));
            jobs[i].seconds += shared;
        }
    }
    return 0;
}

/* Overrides may give linears of one input other damping or another order. */
int gptq_solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs, int count)
{
    for (int i = 0; i < count; i++) {
        bool solved = false;
        for (int k = 0; k < i && !solved; k++) {
            solved = gptq_shares(&jobs[k], &jobs[i]);
        }
        if (!solved) {
            TRY(gptq_solve_sharing(context, stats, jobs + i, count - i));
        }
    }
    return 0;
}

void gptq_check(const void *values, const char *pointer, struct validation_errors *errors)
{
    const struct gptq_params *params = values;

    quant_common_check(values, pointer, errors);
    search_check(&params->common, true, pointer, errors);
    if (params->resweep > 0 && params->common.refine_rounds == 0) {
        quant_refuse(errors, pointer, "resweep",
                     "\"resweep\" sweeps over the grid that refinement left: it needs \"refine_rounds\" of 1 or more");
    }
    quant_output_check(params->output_moments, params->output_tokens, pointer, errors);
    if (params->desc_act) {
        quant_refuse(errors, pointer, "desc_act",
                     "\"desc_act\" is not offered: it regroups columns and needs an index (g_idx) that runtimes drop; "
                     "\"act_order\" visits columns in the same order and leaves groups in place");
    }
    if (!params->static_groups) {
        quant_refuse(errors, pointer, "static_groups",
                     "\"static_groups\" can only be true: scales are always chosen before the sweep");
    }
    if (!params->true_sequential) {
        quant_refuse(
            errors, pointer, "true_sequential",
            "\"true_sequential\" can only be true: each linear always sees what the quantized ones before it make");
    }
}

static const char *const qualities[] = {
    [QUALITY_FAST] = "fast", [QUALITY_DEFAULT] = "default", [QUALITY_BEST] = "best", NULL};
static const char *const damp_names[] = {"percdamp", "dampening_frac", NULL};
static const char *const block_names[] = {"blocksize", NULL};
static const char *const order_names[] = {"actorder", NULL};

static const struct params_row quality_rows[] = {
    QUANT_ROW(PARAMS_ENUM, gptq_params, quality, "\"default\"", .choices = qualities,
              .help = "What the members that are not given are: default carries signed_scales, refine_rounds 2 and "
                      "float_targets; fast has none of these and loses a third to a half more; best sweeps twice more "
                      "and refines for 4 rounds."),
    {.name = NULL},
};

const struct params_row gptq_rows[] = {
    SEARCH_ALIAS_ROW("true"),
    SEARCH_REFINE_ROWS("true", "2"),
    QUANT_ROW(PARAMS_NUMBER, gptq_params, damp_percent, "0.01", .min = 0, .max = 1, .exclusive = true,
              .aliases = damp_names,
              .help = "Share of the Hessian's mean diagonal added to its diagonal; raised tenfold, up to 1, where that "
                      "is not enough."),
    QUANT_ROW(PARAMS_INT, gptq_params, block_size, "128", .min = 1, .max = 1024, .aliases = block_names,
              .help = "Columns whose updates are applied together; hardly changes the result."),
    QUANT_ROW(PARAMS_BOOL, gptq_params, act_order, "true", .aliases = order_names,
              .help = "Visit columns in falling order of their inputs' energy; groups stay in place."),
    QUANT_ROW(PARAMS_BOOL, gptq_params, desc_act, "false",
              .help = "Regroup columns by activation order, with an index: not offered, see act_order."),
    QUANT_ROW(PARAMS_BOOL, gptq_params, static_groups, "true",
              .help = "Choose all scales before the sweep: always so."),
    QUANT_ROW(PARAMS_BOOL, gptq_params, true_sequential, "true",
              .help = "Solve a block's linears in order, each on inputs from the quantized ones before it: always so."),
    QUANT_ROW(PARAMS_BOOL, gptq_params, float_targets, "true",
              .help = "Aim at what the float model gives, from the inputs that the quantized linears before make: the "
                      "float activations of the calibration set are carried along."),
    QUANT_ROW(PARAMS_INT, gptq_params, target_tokens, "16", .min = 0, .max = 4096,
              .help =
                  "With float_targets: calibration tokens for each input column from which on a linear takes such a "
                  "target; fewer say too little to be worth their time."),
    QUANT_ROW(PARAMS_NUMBER, gptq_params, residual_correction, "0.5", .min = 0, .max = 1,
              .help = "With float_targets: the share of what the residual stream lost that linears which add to it "
                      "(o_proj, down_proj) are to make up for."),
    QUANT_ROW(PARAMS_INT, gptq_params, resweep, "0", .min = 0, .max = 4,
              .help = "Further sweeps, each over the grid that refinement left and refined again, kept where they lose "
                      "less (with refine_rounds)."),
    QUANT_OUTPUT_ROWS(gptq_params, "codes and scales"),
    {.name = NULL},
};

static const struct params_row *const gptq_params[] = {quant_base_rows, quant_common_rows, quant_search_rows,
                                                       quality_rows,    gptq_rows,         NULL};

const struct quantizer quantizer_gptq = {
    .name = "gptq",
    .title = "GPTQ",
    .help = "Rounds columns one by one and lets the later ones make up for what the earlier ones lost, weighed by the "
            "second moments of the layer's inputs on the calibration set (Frantar et al. 2022, arXiv 2210.17323). The "
            "usual choice at 4, 3 and 2 bits; needs calibration data.",
    .stats = STATS_HESSIAN,
    .targets = gptq_targets,
    .output_tokens = gptq_output_tokens,
    .preset = gptq_preset,
    .params = gptq_params,
    .params_size = sizeof(struct gptq_params),
    .check = gptq_check,
    .scheme = quant_common_scheme,
    .solve = gptq_solve,
    .cost = gptq_cost,
};
