/* The linears of one site on their way to codes: solved together where one method solves them, measured one by one, and
 * put in the float ones' place with their inputs quantized as the runtime will do it, so that whatever comes behind
 * sees what the artifact's user will see. */

#include "pipeline/solve.h"

#include "base/err.h"
#include "base/ids.h"
#include "pipeline/report.h"
#include "pipeline/static_inputs.h"
#include "pipeline/stored_scales.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The linears of a site that are to be quantized, in order of their roles. */
struct site_jobs {
    struct linear_job jobs[LINEAR_COUNT];
    struct qscheme schemes[LINEAR_COUNT];
    const struct recipe_stage *solvers[LINEAR_COUNT];
    struct report_input inputs[LINEAR_COUNT];
    enum linear_role roles[LINEAR_COUNT];
    char names[LINEAR_COUNT][128];
    int count;
};

const struct recipe_stage *site_solver(struct run *run, enum linear_role role, struct qscheme *scheme)
{
    const struct recipe *recipe = run->p->recipe;
    char name[128];
    int64_t rows, cols;

    model_linear_name(run->p->model, run->block_index, role, name);
    const struct recipe_stage *solver = recipe_solver(recipe, name);
    arch_linear_shape(run->config, role, &rows, &cols);
    if (solver == NULL || recipe_scheme(recipe, solver, name, rows, cols, scheme) != 0) {
        return NULL; /* a scheme that cannot be was refused before the job was accepted */
    }
    scheme->scale_dtype = run->p->format->scale_dtype(model_dtype(run->p->model));
    scheme->weight_dtype = model_dtype(run->p->model);
    return solver;
}

static void list_jobs(struct run *run, struct block *block, enum site site, struct site_jobs *out)
{
    out->count = 0;
    for (int role = 0; role < LINEAR_COUNT; role++) {
        int i = out->count;
        if (arch_linear_site[role] != site) {
            continue;
        }
        out->solvers[i] = site_solver(run, (enum linear_role)role, &out->schemes[i]);
        if (out->solvers[i] != NULL) {
            model_linear_name(run->p->model, run->block_index, (enum linear_role)role, out->names[i]);
            out->jobs[i] = (struct linear_job){
                .name = out->names[i], .weight = &block->linears[role], .params = out->solvers[i]->params, .loss = NAN};
            out->roles[i] = (enum linear_role)role;
            out->count++;
        }
    }
}

static int upload_zeros(struct run *run, const struct qtensor *q, struct tensor *zero)
{
    int64_t count = q->rows * q->groups;
    float *zeros = malloc((size_t)count * sizeof(float));

    if (zeros == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld zero points", (long long)count);
    }
    for (int64_t i = 0; i < count; i++) {
        zeros[i] = q->zeros[i];
    }
    int rc = gpu_tensor_from_host(run->p->gpu, run->stream, DTYPE_F32, 2, (const int64_t[]){q->rows, q->groups}, zeros,
                                  zero);
    free(zeros);
    return rc;
}

static int solve_on_grid(struct run *run, const struct gpu_grid *grid, struct linear_job *job)
{
    const struct gpu *gpu = run->p->gpu;
    const struct qtensor *q = &job->result;
    const int64_t shape[2] = {q->rows, q->cols};
    const int64_t groups[2] = {q->rows, q->groups};
    struct tensor codes = {0};

    int rc = gpu_tensor_from_host(gpu, run->stream, DTYPE_U8, 2, shape, q->codes, &codes);
    rc = rc != 0 ? rc : gpu_tensor_from_host(gpu, run->stream, DTYPE_F32, 2, groups, q->scales, &job->scale);
    rc = rc != 0 ? rc : upload_zeros(run, q, &job->zero);
    rc = rc != 0 ? rc : gpu->ops->dequantize(run->stream, &job->dequantized, &codes, &job->scale, &job->zero, grid);
    gpu_tensor_free(gpu, &codes);
    return rc;
}

/* Elements of a fixed set, with a scale for each tile. NF4's tiles are runs of the weight laid out flat. */
static int solve_on_tiles(struct run *run, struct linear_job *job)
{
    const struct gpu *gpu = run->p->gpu;
    const struct qtensor *q = &job->result;
    bool flat = q->scheme.kind == QTENSOR_NF4;
    int64_t rows = flat ? 1 : q->rows, cols = flat ? q->rows * q->cols : q->cols;
    const struct gpu_tiles tiles = qtensor_tiles(&q->scheme);
    struct tensor w = tensor_2d(job->dequantized.data, DTYPE_F32, rows, cols), codes = {0}, scale = {0};

    int rc = gpu_tensor_from_host(gpu, run->stream, DTYPE_U8, 2, (const int64_t[]){rows, cols}, q->codes, &codes);
    rc = rc != 0 ? rc
                 : gpu_tensor_from_host(gpu, run->stream, DTYPE_F32, 2, (const int64_t[]){q->row_groups, q->groups},
                                        q->scales, &scale);
    rc = rc != 0 ? rc : gpu->ops->tile_decode(run->stream, &w, &codes, &scale, &tiles);
    gpu_tensor_free(gpu, &codes);
    gpu_tensor_free(gpu, &scale);
    return rc;
}

static int solve_on_host(struct run *run, struct linear_job *job)
{
    float *w = malloc(tensor_bytes(&job->dequantized));

    if (w == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the weight of %s", job->name);
    }
    qtensor_dequantize(&job->result, w);
    int rc = gpu_tensor_upload(run->p->gpu, run->stream, &job->dequantized, w);
    free(w);
    return rc;
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
    int rc =
        gpu_tensor_uninitialized(run->p->gpu, DTYPE_F32, 2, (const int64_t[]){q->rows, q->cols}, &job->dequantized);
    return rc != 0      ? rc
           : is_grid(q) ? solve_on_grid(run, grid, job)
           : qtensor_scaling(q->scheme.kind) != NULL && q->scheme.kind != QTENSOR_INT && q->tensor_scale == 0
               ? solve_on_tiles(run, job)
               : solve_on_host(run, job);
}

/* What the codes stand for, and what they lost. */
static int measure(struct run *run, const struct tensor *weight, struct linear_job *job,
                   const struct layer_stats *stats, struct report_facts *facts)
{
    const struct gpu *gpu = run->p->gpu;
    const struct qtensor *q = &job->result;
    const struct gpu_grid grid = {.bits = q->scheme.bits,
                                  .group_size = q->scheme.group_size,
                                  .sym = q->scheme.sym,
                                  .scale_dtype = q->scheme.scale_dtype};
    bool on_grid = is_grid(q);

    int rc = dequantize(run, &grid, job);
    rc = rc != 0 ? rc
                 : gpu->ops->residual(run->stream, &facts->residual, weight, &job->dequantized,
                                      on_grid ? &job->scale : NULL, on_grid ? &job->zero : NULL, &grid);
    if (rc == 0 && stats != NULL && (stats->flags & STATS_HESSIAN) != 0) {
        facts->has_output = true;
        facts->samples = run->calibration.set->sequences;
        facts->tokens = stats->tokens;
        rc = gpu->ops->output_error(run->stream, &facts->output_error, &facts->output_signal, weight, &job->dequantized,
                                    &stats->hessian);
        facts->output_error = job->aimed ? job->aimed_error : facts->output_error;
    }
    return rc;
}

/* From here on the block sees this linear's input as the runtime quantizes it. */
static int place_input(struct run *run, struct block *block, enum linear_role role, const struct qtensor *q)
{
    const struct gpu *gpu = run->p->gpu;

    block->inputs[role] = q->scheme.input;
    block->inputs[role].scale = q->input_scale;
    if (q->scheme.kind != QTENSOR_INT || q->index_count == 0) {
        return 0;
    }
    float *keep = calloc((size_t)q->cols, sizeof(*keep));
    if (keep == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld columns", (long long)q->cols);
    }
    for (int64_t i = 0; i < q->index_count; i++) {
        keep[q->index[i]] = 1.0f;
    }
    int rc = gpu_tensor_from_host(gpu, run->stream, DTYPE_F32, 1, &q->cols, keep, &block->kept[role]);
    free(keep);
    return rc;
}

static int add_row(struct run *run, const struct report_facts *facts, struct report_rows *rows)
{
    if (facts->residual.nonfinite > 0) {
        int rc = err_raise(ERR_NON_FINITE_VALUE, "the quantized %s has %lld values that are not finite",
                           facts->job->name, (long long)facts->residual.nonfinite);
        return err_set_module(rc, facts->job->name);
    }
    struct report_row row;
    report_row_of(facts, &row);
    int rc = report_rows_add(rows, &row);
    run->next_row += rc == 0 ? 1 : 0;
    return rc;
}

/* The quantized weight in the float one's place, which the reference path may still need. */
static void take_weight(struct run *run, enum linear_role role, struct tensor *weight, struct tensor *dequantized)
{
    if (run->reference.hidden != NULL) {
        run->reference.float_linears[role] = *weight;
    } else {
        gpu_tensor_free(run->p->gpu, weight);
    }
    *weight = *dequantized;
    *dequantized = (struct tensor){0};
}

/* Measure what the linear lost, write its row, and put the quantized weight in the float one's place. */
static int take_result(struct run *run, struct block *block, struct site_jobs *site, int i,
                       const struct layer_stats *stats, struct report_rows *rows)
{
    struct linear_job *job = &site->jobs[i];
    struct qtensor *q = &job->result;
    enum linear_role role = site->roles[i];
    struct report_facts facts = {.index = run->next_row,
                                 .layer = run->block_index,
                                 .method = site->solvers[i]->quantizer->name,
                                 .job = job,
                                 .input = site->inputs[i]};

    q->scheme.input = site->schemes[i].input;
    q->scheme.input_threshold = site->schemes[i].input_threshold;
    q->scheme.weight_dtype = site->schemes[i].weight_dtype;
    int rc = site_scales(run, &block->linears[role], job);
    rc = rc != 0 ? rc : measure(run, &block->linears[role], job, stats, &facts);
    rc = rc != 0 ? rc : place_input(run, block, role, q);
    if (rc != 0) {
        return err_set_module(err_pass(rc, "measure %s", q->name), q->name);
    }
    take_weight(run, role, &block->linears[role], &job->dequantized);
    return add_row(run, &facts, rows);
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

static double solve_flops(const struct site_jobs *site)
{
    double n = (double)site->jobs[0].weight->shape[1], flops = 0;

    for (int i = 0; i < site->count; i++) {
        if ((site->solvers[i]->quantizer->stats & STATS_HESSIAN) != 0) {
            flops += (flops == 0 ? 2.0 / 3.0 * n * n * n : 0) + (double)site->jobs[i].weight->shape[0] * n * n;
        }
    }
    return flops;
}

/* The jobs from `first` on that its method solves, in one call, so that they share what depends on the input alone. */
static int solve_alike(const struct solve_context *context, const struct layer_stats *stats, struct site_jobs *site,
                       int first, bool done[LINEAR_COUNT])
{
    const struct quantizer *quantizer = site->solvers[first]->quantizer;
    struct linear_job jobs[LINEAR_COUNT];
    int places[LINEAR_COUNT], count = 0;

    for (int i = first; i < site->count; i++) {
        if (!done[i] && site->solvers[i]->quantizer == quantizer) {
            places[count] = i;
            jobs[count++] = site->jobs[i];
            done[i] = true;
        }
    }
    int rc = quantizer->solve(context, stats, jobs, count);
    if (rc != 0 && rc != ERR_CANCELLED && rc != ERR_INTERRUPTED && count == 1) {
        rc = err_set_module(rc, jobs[0].name); /* of several it names its own, where it can tell */
    }
    for (int i = 0; i < count; i++) {
        site->jobs[places[i]] = jobs[i];
    }
    return rc;
}

static int solve_all(struct run *run, const struct layer_stats *stats, enum site number, struct site_jobs *site)
{
    struct tick_context tick = {run, ((double)number + 0.5) / (double)SITE_COUNT};
    const struct solve_context context = {
        .gpu = run->p->gpu,
        .stream = run->stream,
        .scale_dtype = run->p->format->scale_dtype(model_dtype(run->p->model)),
        .seed = run->p->seed,
        .on_device = true,
        .tick = solve_tick,
        .tick_data = &tick,
    };
    bool done[LINEAR_COUNT] = {false};
    int rc = 0;

    for (int i = 0; rc == 0 && i < site->count; i++) {
        rc = done[i] ? 0 : solve_alike(&context, stats, site, i, done);
    }
    return rc;
}

/* A job's result goes to the block's outputs. Codes that the device keeps in memory of its own leave it when the block
 * is done. */
static int keep_result(struct run *run, struct linear_job *job, struct block_outputs *outputs)
{
    const struct gpu *gpu = run->p->gpu;
    int rc = 0;

    gpu_tensor_free(gpu, &job->scale);
    gpu_tensor_free(gpu, &job->zero);
    gpu_tensor_free(gpu, &job->dequantized); /* of one that failed */
    if (job->result.name[0] == '\0') {
        return 0; /* solve may not have come to it */
    }
    if (job->codes.data != NULL && gpu->info.host_memory) {
        rc = gpu->ops->download(run->stream, job->result.codes, job->codes.data, tensor_bytes(&job->codes));
        gpu_tensor_free(gpu, &job->codes);
    }
    outputs->list[outputs->count] = job->result;
    outputs->codes[outputs->count++] = job->codes;
    return rc;
}

int site_solve(struct run *run, struct block *block, enum site site, const struct layer_stats *stats,
               struct block_outputs *outputs, struct report_rows *rows)
{
    struct site_jobs jobs;
    double mark = clock_monotonic_seconds();

    list_jobs(run, block, site, &jobs);
    int rc = solve_all(run, stats, site, &jobs);
    rc = rc != 0 ? rc : site_inputs(run, site, stats, jobs.schemes, jobs.jobs, jobs.count, jobs.inputs);
    run_add_time(run, PHASE_SOLVE, &mark, rc == 0 && jobs.count > 0 ? solve_flops(&jobs) : 0);
    for (int i = 0; i < jobs.count; i++) {
        rc = rc != 0 ? rc : take_result(run, block, &jobs, i, stats, rows);
        int kept = keep_result(run, &jobs.jobs[i], outputs);
        rc = rc != 0 ? rc : kept;
    }
    run_add_time(run, PHASE_MEASURE, &mark, 0);
    return rc != 0 ? err_pass(rc, "block %lld site %d", (long long)run->block_index, (int)site) : 0;
}
