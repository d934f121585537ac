/* The modules of one input group: solved together where one method solves them, measured one by one, and put in place
 * of the float ones with their inputs quantized as the runtime will do it, so that later modules see what the
 * artifact's user will see. */

#include "pipeline/solve.h"

#include "base/arena.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "pipeline/moments_file.h"
#include "pipeline/report.h"
#include "pipeline/static_inputs.h"
#include "pipeline/stored_scales.h"
#include "pipeline/tuned.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* The modules of a group that are to be quantized, in program order; each list has `count`. */
struct group_jobs {
    int count;
    struct linear_job *jobs;
    struct qscheme *schemes;
    const struct recipe_stage **solvers;
    struct report_input *inputs;
    int *modules;
    char (*names)[PLAN_NAME_MAX];
    struct arena arena; /* that they are in */
};

/* What a pass that only measures tries. */
static const struct recipe_stage *trial_solver(struct run *run, const struct plan_module *m, const char *name,
                                               struct qscheme *scheme)
{
    const struct recipe_stage *trial = run->trial;

    bool possible = trial->quantizer != NULL && !recipe_decides(run->p->recipe, m, name) &&
                    trial->quantizer->scheme(trial->params, m->rows, m->cols, scheme) == 0;
    return possible ? trial : NULL;
}

const struct recipe_stage *module_solver(struct run *run, int module, struct qscheme *scheme)
{
    const struct recipe *recipe = run->p->recipe;
    const struct plan_module *m = &plans_layer(model_plans(run->p->model), run->block_index)->modules[module];
    char name[PLAN_NAME_MAX];

    model_module_name(run->p->model, run->block_index, module, name);
    const struct recipe_stage *solver =
        run->trial != NULL ? trial_solver(run, m, name, scheme) : recipe_module_solver(recipe, m, name);
    if (solver == NULL || (run->trial == NULL && recipe_scheme(recipe, solver, name, m->rows, m->cols, scheme) != 0)) {
        return NULL; /* a scheme that cannot be was refused before the job was accepted */
    }
    scheme->scale_dtype = run->p->format->scale_dtype(model_dtype(run->p->model));
    scheme->weight_dtype = model_dtype(run->p->model);
    return solver;
}

/* out->arena is the caller's to release, also after a failure. */
static int list_jobs(struct run *run, struct block *block, const struct plan_group *group, struct group_jobs *out)
{
    size_t count = (size_t)group->count;

    *out = (struct group_jobs){.count = 0};
    arena_init(&out->arena, 0);
    out->jobs = arena_alloc(&out->arena, count * sizeof(*out->jobs));
    out->schemes = arena_alloc(&out->arena, count * sizeof(*out->schemes));
    out->solvers = arena_alloc(&out->arena, count * sizeof(const struct recipe_stage *));
    out->inputs = arena_alloc(&out->arena, count * sizeof(*out->inputs));
    out->modules = arena_alloc(&out->arena, count * sizeof(*out->modules));
    out->names = arena_alloc(&out->arena, count * sizeof(*out->names));
    TRY(arena_check(&out->arena));
    for (int k = 0; k < group->count; k++) {
        int i = out->count, module = group->modules[k];
        out->solvers[i] = module_solver(run, module, &out->schemes[i]);
        if (out->solvers[i] != NULL) {
            model_module_name(run->p->model, run->block_index, module, out->names[i]);
            out->jobs[i] = (struct linear_job){.name = out->names[i],
                                               .weight = &block->modules[module].weight,
                                               .params = out->solvers[i]->params,
                                               .scores = block->plan->modules[module].scores,
                                               .loss = NAN};
            out->modules[i] = module;
            out->count++;
        }
    }
    return 0;
}

static int upload_zeros(struct run *run, const struct qtensor *q, struct tensor *zero)
{
    int64_t count = q->rows * q->groups;
    AUTO_FREE float *zeros = NULL;

    TRY(mem_buffer(&zeros, (size_t)count));
    for (int64_t i = 0; i < count; i++) {
        zeros[i] = q->zeros[i];
    }
    return gpu_tensor_from_host(run->p->gpu, run->stream, DTYPE_F32, 2, (const int64_t[]){q->rows, q->groups}, zeros,
                                zero);
}

/* The codes of a result on the device: those that the method left there, or a copy in `uploaded`. */
static int codes_of(struct run *run, const struct linear_job *job, int64_t rows, int64_t cols, struct tensor *uploaded,
                    struct tensor *codes)
{
    if (job->codes.data != NULL) {
        *codes = tensor_2d(job->codes.data, DTYPE_U8, rows, cols);
        return 0;
    }
    if (run->p->gpu->info.host_memory) {
        *codes = tensor_2d(job->result.codes, DTYPE_U8, rows, cols);
        return 0;
    }
    TRY(gpu_tensor_from_host(run->p->gpu, run->stream, DTYPE_U8, 2, (const int64_t[]){rows, cols}, job->result.codes,
                             uploaded));
    *codes = *uploaded;
    return 0;
}

static int dequantize_grid(struct run *run, const struct gpu_grid *grid, struct linear_job *job)
{
    const struct gpu *gpu = run->p->gpu;
    const struct qtensor *q = &job->result;
    const int64_t groups[2] = {q->rows, q->groups};
    struct tensor codes;
    AUTO_TENSOR(uploaded, gpu);

    TRY(codes_of(run, job, q->rows, q->cols, &uploaded, &codes));
    TRY(gpu_tensor_from_host(gpu, run->stream, DTYPE_F32, 2, groups, q->scales, &job->scale));
    TRY(upload_zeros(run, q, &job->zero));
    return gpu->ops->dequantize(run->stream, &job->dequantized, &codes, &job->scale, &job->zero, grid);
}

/* Elements of a fixed set, with a scale for each tile. NF4's tiles are groups of the flattened weight. */
static int dequantize_tiles(struct run *run, struct linear_job *job)
{
    const struct gpu *gpu = run->p->gpu;
    const struct qtensor *q = &job->result;
    bool flat = q->scheme.kind == QTENSOR_NF4;
    int64_t rows = flat ? 1 : q->rows, cols = flat ? q->rows * q->cols : q->cols;
    const struct gpu_tiles tiles = qtensor_tiles(&q->scheme);
    const struct tensor w = tensor_2d(job->dequantized.data, DTYPE_F32, rows, cols);
    struct tensor codes;
    AUTO_TENSOR(uploaded, gpu);
    AUTO_TENSOR(scale, gpu);

    TRY(codes_of(run, job, rows, cols, &uploaded, &codes));
    TRY(gpu_tensor_from_host(gpu, run->stream, DTYPE_F32, 2, (const int64_t[]){q->row_groups, q->groups}, q->scales,
                             &scale));
    return gpu->ops->tile_decode(run->stream, &w, &codes, &scale, &tiles);
}

static int dequantize_host(struct run *run, struct linear_job *job)
{
    AUTO_FREE float *w = NULL;

    TRY(mem_buffer(&w, (size_t)tensor_count(&job->dequantized)));
    qtensor_dequantize(&job->result, w);
    return gpu_tensor_upload(run->p->gpu, run->stream, &job->dequantized, w);
}

static bool is_grid(const struct qtensor *q)
{
    return q->scheme.kind == QTENSOR_INT && q->row_groups == q->rows;
}

/* What the result stands for, on the device, and an integer grid's scales and zeros, unless the method left them there:
 * the split into rounding and clipping needs them. */
static int dequantize(struct run *run, const struct gpu_grid *grid, struct linear_job *job)
{
    const struct qtensor *q = &job->result;

    if (job->dequantized.data != NULL) {
        return 0;
    }
    TRY(gpu_tensor_uninitialized(run->p->gpu, DTYPE_F32, 2, (const int64_t[]){q->rows, q->cols}, &job->dequantized));
    if (is_grid(q)) {
        return dequantize_grid(run, grid, job);
    }
    bool tiles = qtensor_scaling(q->scheme.kind) != NULL && q->scheme.kind != QTENSOR_INT && q->tensor_scale == 0;
    return tiles ? dequantize_tiles(run, job) : dequantize_host(run, job);
}

static struct gpu_grid grid_of(const struct qtensor *q)
{
    return (struct gpu_grid){.bits = q->scheme.bits,
                             .group_size = q->scheme.group_size,
                             .sym = q->scheme.sym,
                             .scale_dtype = q->scheme.scale_dtype};
}

/* The weight of a result whose arrays are in memory. */
static int dequantized_weight(struct run *run, const struct qtensor *q, struct tensor *weight)
{
    struct linear_job job = {.name = q->name, .result = *q};
    const struct gpu_grid grid = grid_of(q);
    int rc = dequantize(run, &grid, &job);

    gpu_tensor_free(run->p->gpu, &job.scale);
    gpu_tensor_free(run->p->gpu, &job.zero);
    if (rc != 0) {
        gpu_tensor_free(run->p->gpu, &job.dequantized);
        return err_set_module(err_pass(rc, "dequantize %s", q->name), q->name);
    }
    *weight = job.dequantized;
    return 0;
}

int solved_weight(struct run *run, struct block_outputs *outputs, int i, struct tensor *weight)
{
    const struct qtensor *q = &outputs->list[i];
    struct qtensor spilled;

    if (!qtensor_spill_has(outputs->spill, q)) {
        TRY(block_outputs_download(outputs, i, run->p->gpu, run->stream));
        return dequantized_weight(run, q, weight);
    }
    TRY(qtensor_spill_read(outputs->spill, q, &spilled));
    int rc = dequantized_weight(run, &spilled, weight);
    qtensor_deinit(&spilled);
    return rc;
}

int solved_residual(struct run *run, const struct tensor *weight, struct linear_job *job, struct gpu_residual *out)
{
    const struct gpu_grid grid = grid_of(&job->result);
    bool on_grid = is_grid(&job->result);

    TRY(dequantize(run, &grid, job));
    return run->p->gpu->ops->residual(run->stream, out, weight, &job->dequantized, on_grid ? &job->scale : NULL,
                                      on_grid ? &job->zero : NULL, &grid);
}

int solved_measure(struct run *run, const struct tensor *weight, struct linear_job *job,
                   const struct layer_stats *stats, struct report_facts *facts)
{
    const struct gpu *gpu = run->p->gpu;

    TRY(solved_residual(run, weight, job, &facts->residual));
    if (stats != NULL && (stats->flags & STATS_HESSIAN) != 0) {
        facts->has_output = stats->tokens > 0;
        facts->samples = run->calibration.set->sequences;
        facts->tokens = stats->tokens;
    }
    if (facts->has_output) {
        TRY(gpu->ops->output_error(run->stream, &facts->output_error, &facts->output_signal, weight, &job->dequantized,
                                   &stats->hessian));
        facts->output_error = job->aimed ? job->aimed_error : facts->output_error;
    }
    return anatomy_measure(gpu, run->stream, weight, &job->dequantized, facts->has_output ? stats : NULL,
                           anatomy_group(&job->result), &facts->anatomy);
}

int solved_input(struct run *run, struct block_module *module, const struct qtensor *q)
{
    const struct gpu *gpu = run->p->gpu;

    module->input = q->scheme.input;
    module->input.scale = q->input_scale;
    if (q->scheme.kind != QTENSOR_INT || q->index_count == 0) {
        return 0;
    }
    AUTO_FREE float *outliers = NULL;
    TRY(mem_array(&outliers, (size_t)q->cols));
    for (int64_t i = 0; i < q->index_count; i++) {
        outliers[q->index[i]] = 1.0f;
    }
    return gpu_tensor_from_host(gpu, run->stream, DTYPE_F32, 1, &q->cols, outliers, &module->outliers);
}

static int solve_add_row(struct run *run, const struct report_facts *facts, struct report_rows *rows)
{
    if (facts->residual.nonfinite > 0) {
        int rc = err_raise(ERR_NON_FINITE_VALUE, "the quantized %s has %lld values that are not finite",
                           facts->job->name, (long long)facts->residual.nonfinite);
        return err_set_module(rc, facts->job->name);
    }
    struct report_row row;
    report_row_of(facts, &row);
    TRY(report_rows_add(rows, &row));
    run->next_row++;
    return 0;
}

/* The quantized weight in the float one's place, which the reference path and a stage that learns may still need. */
static int take_weight(struct run *run, int module, struct tensor *weight, struct linear_job *job,
                       const struct report_facts *facts)
{
    if (run->reference.stores[0] != NULL) {
        run->reference.float_weights[module] = *weight;
    }
    if (run->tuning != NULL) {
        TRY(tuned_add(run, module, weight, facts));
    } else if (run->reference.stores[0] == NULL) {
        gpu_tensor_free(run->p->gpu, weight);
    }
    *weight = tensor_move(&job->dequantized);
    return 0;
}

/* The note of an expert to which too few tokens were routed. */
static void describe_starved(const struct layer_stats *stats, struct linear_job *job)
{
    size_t used = strlen(job->note);

    if (stats == NULL || stats->min_tokens == 0) {
        return;
    }
    if (stats->tokens == 0) {
        snprintf(job->fallback, sizeof(job->fallback), "rtn: no calibration token was routed to this expert");
        return;
    }
    snprintf(job->note + used, sizeof(job->note) - used, "%sstarved: %lld of %lld tokens, Hessian shrunk",
             used > 0 ? "; " : "", (long long)stats->tokens, (long long)stats->min_tokens);
}

static int check_result(struct run *run, struct block_module *module, struct linear_job *job,
                        const struct layer_stats *stats, struct report_facts *facts)
{
    TRY(check_stored_scales(run, &module->weight, job));
    TRY(solved_measure(run, &module->weight, job, stats, facts));
    return solved_input(run, module, &job->result);
}

/* Measure the linear's loss, add its row, and put the quantized weight in place of the float one. */
static int take_result(struct run *run, struct block *block, struct group_jobs *group, int i,
                       const struct layer_stats *stats, struct report_rows *rows)
{
    struct linear_job *job = &group->jobs[i];
    struct qtensor *q = &job->result;
    int module = group->modules[i];
    struct tensor *weight = &block->modules[module].weight;
    struct report_facts facts = {.index = run->next_row,
                                 .layer = run->block_index,
                                 .method = group->solvers[i]->quantizer->name,
                                 .job = job,
                                 .input = group->inputs[i]};

    describe_starved(stats, job);
    q->scheme.input = group->schemes[i].input;
    q->scheme.input_threshold = group->schemes[i].input_threshold;
    q->scheme.weight_dtype = group->schemes[i].weight_dtype;
    int rc = check_result(run, &block->modules[module], job, stats, &facts);
    if (rc != 0) {
        return err_set_module(err_pass(rc, "measure %s", q->name), q->name);
    }
    TRY(take_weight(run, module, weight, job, &facts));
    return solve_add_row(run, &facts, rows);
}

struct tick_context {
    struct run *run;
    double share;
};

static int solve_tick(void *data)
{
    struct tick_context *context = data;
    return run_tick(context->run, context->share, "quantizing");
}

static double solve_flops(const struct group_jobs *group)
{
    double n = (double)group->jobs[0].weight->shape[1], flops = 0;

    for (int i = 0; i < group->count; i++) {
        if ((group->solvers[i]->quantizer->stats & STATS_HESSIAN) != 0) {
            flops += (flops == 0 ? 2.0 / 3.0 * n * n * n : 0) + (double)group->jobs[i].weight->shape[0] * n * n;
        }
    }
    return flops;
}

/* The jobs from `first` on that its method solves, in one call, so that they share what depends on the input alone. */
static int solve_alike(const struct solve_context *context, const struct layer_stats *stats, struct group_jobs *group,
                       int first, bool *done)
{
    const struct quantizer *quantizer = group->solvers[first]->quantizer;
    struct linear_job *jobs = arena_alloc(&group->arena, (size_t)group->count * sizeof(*jobs));
    int *places = arena_alloc(&group->arena, (size_t)group->count * sizeof(*places)), count = 0;

    if (jobs == NULL || places == NULL) {
        return arena_check(&group->arena);
    }
    for (int i = first; i < group->count; i++) {
        if (!done[i] && group->solvers[i]->quantizer == quantizer) {
            places[count] = i;
            jobs[count++] = group->jobs[i];
            done[i] = true;
        }
    }
    int rc = quantizer->solve(context, stats, jobs, count);
    if (rc != 0 && rc != ERR_CANCELLED && rc != ERR_INTERRUPTED && count == 1) {
        rc = err_set_module(rc, jobs[0].name); /* of several the method names it, where it can tell */
    }
    for (int i = 0; i < count; i++) {
        group->jobs[places[i]] = jobs[i];
    }
    return rc;
}

static int solve_moments(void *data, const struct linear_job *job, double keep, struct tensor *out)
{
    return moments_read(data, job, keep, out);
}

static int solve_all(struct run *run, const struct layer_stats *stats, double share, struct group_jobs *group)
{
    struct tick_context tick = {run, share};
    const struct solve_context context = {
        .gpu = run->p->gpu,
        .stream = run->stream,
        .scale_dtype = run->p->format->scale_dtype(model_dtype(run->p->model)),
        .seed = run->p->seed,
        .on_device = true,
        .tick = solve_tick,
        .tick_data = &tick,
        .output_moments = recipe_output_tokens(run->p->recipe) != 0 && run->trial == NULL ? solve_moments : NULL,
        .output_data = run,
    };
    bool *done = arena_alloc(&group->arena, (size_t)group->count + 1);

    if (done == NULL) {
        return arena_check(&group->arena);
    }
    for (int i = 0; i < group->count; i++) {
        if (!done[i]) {
            TRY(solve_alike(&context, stats, group, i, done));
        }
    }
    return 0;
}

/* Move a job's result to the block's outputs. Codes in a device's own memory stay there until the block is written. */
static int output_result(struct run *run, struct linear_job *job, struct block_outputs *outputs)
{
    const struct gpu *gpu = run->p->gpu;

    gpu_tensor_free(gpu, &job->scale);
    gpu_tensor_free(gpu, &job->zero);
    gpu_tensor_free(gpu, &job->dequantized); /* of one that failed */
    if (job->result.name[0] == '\0') {
        gpu_tensor_free(gpu, &job->codes);
        return 0; /* it was not solved */
    }
    int rc = block_outputs_reserve(outputs);
    if (rc != 0) {
        qtensor_deinit(&job->result);
        gpu_tensor_free(gpu, &job->codes);
        return rc;
    }
    block_outputs_add_take(outputs, &job->result, &job->codes);
    return gpu->info.host_memory ? block_outputs_download(outputs, outputs->count - 1, gpu, run->stream) : 0;
}

static int solve_group(struct run *run, struct block *block, const struct plan_group *group,
                       const struct layer_stats *stats, double share, struct group_jobs *jobs)
{
    TRY(list_jobs(run, block, group, jobs));
    TRY(solve_all(run, stats, share, jobs));
    return group_inputs(run, share, stats, jobs->schemes, jobs->jobs, jobs->count, jobs->inputs);
}

int group_solve(struct run *run, struct block *block, int g, const struct layer_stats *stats,
                struct block_outputs *outputs, struct report_rows *rows)
{
    double share = ((double)g + 0.5) / (double)block->plan->group_count;
    struct group_jobs jobs;

    int rc = solve_group(run, block, &block->plan->groups[g], stats, share, &jobs);
    run_end_phase(run, PHASE_SOLVE, rc == 0 && jobs.count > 0 ? solve_flops(&jobs) : 0);
    for (int i = 0; i < jobs.count; i++) { /* results are moved also after a failure, since outputs release them */
        rc = rc != 0 ? rc : take_result(run, block, &jobs, i, stats, rows);
        int moved = output_result(run, &jobs.jobs[i], outputs);
        rc = rc != 0 ? rc : moved;
    }
    arena_deinit(&jobs.arena);
    run_end_phase(run, PHASE_MEASURE, 0);
    return rc != 0 ? err_pass(rc, "block %lld, input group %d", (long long)run->block_index, g) : 0;
}

static int try_result(struct run *run, struct block *block, struct group_jobs *jobs, int i,
                      const struct layer_stats *stats, solve_receiver receive, void *data)
{
    struct linear_job *job = &jobs->jobs[i];
    int module = jobs->modules[i];
    struct block_module placed = block->modules[module];
    struct report_facts facts = {.layer = run->block_index, .job = job};

    job->result.scheme.input = jobs->schemes[i].input;
    job->result.scheme.weight_dtype = jobs->schemes[i].weight_dtype;
    TRY(solved_measure(run, &block->modules[module].weight, job, stats, &facts));
    if (facts.residual.nonfinite > 0) {
        return err_raise(ERR_NON_FINITE_VALUE, "the quantized %s has %lld values that are not finite", job->name,
                         (long long)facts.residual.nonfinite);
    }
    placed.weight = job->dequantized;
    int rc = solved_input(run, &placed, &job->result);
    rc = rc != 0 ? rc : receive(data, module, &placed, job, &facts);
    gpu_tensor_free(run->p->gpu, &placed.outliers);
    return rc;
}

int group_try(struct run *run, struct block *block, int g, const struct layer_stats *stats, solve_receiver receive,
              void *data)
{
    const struct gpu *gpu = run->p->gpu;
    struct group_jobs jobs;

    int rc = solve_group(run, block, &block->plan->groups[g], stats, 0, &jobs);
    run_end_phase(run, PHASE_SOLVE, rc == 0 && jobs.count > 0 ? solve_flops(&jobs) : 0);
    for (int i = 0; i < jobs.count; i++) {
        struct linear_job *job = &jobs.jobs[i];
        if (rc == 0) {
            rc = try_result(run, block, &jobs, i, stats, receive, data);
            rc = rc != 0 && rc != ERR_CANCELLED && rc != ERR_INTERRUPTED ? err_set_module(rc, job->name) : rc;
        }
        gpu_tensor_free(gpu, &job->scale);
        gpu_tensor_free(gpu, &job->zero);
        gpu_tensor_free(gpu, &job->dequantized);
        gpu_tensor_free(gpu, &job->codes);
        qtensor_deinit(&job->result);
    }
    arena_deinit(&jobs.arena);
    run_end_phase(run, PHASE_MEASURE, 0);
    return rc != 0 ? err_pass(rc, "block %lld, input group %d", (long long)run->block_index, g) : 0;
}
