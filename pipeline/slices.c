/* A block through which nothing passes, a slice of rows at a time: read, widened, solved, measured, and left, while it
 * is in the caches. No weight is in memory in float beyond its slice.
 *
 * Methods say by rows_alone that a slice of rows gives that slice of their result. Slices follow from the shape alone;
 * their sums are added in order. */

#include "pipeline/slices.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "pipeline/memory_plan.h"
#include "pipeline/report.h"
#include "pipeline/solve.h"
#include "pipeline/static_inputs.h"
#include "pipeline/stored_scales.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A module on its way. */
struct sliced {
    struct run *run;
    const struct plan_module *module;
    const struct recipe_stage *solver;
    const struct qscheme *scheme;
    struct model_part part; /* where its weight is stored */
    void *bytes;            /* of a slice, as stored */
    struct tensor weight;   /* of a slice, F32 */
    struct linear_job job;  /* of the complete module */
    struct report_facts facts;
    struct anatomy_sums sums;
    double share; /* of the block that is done */
};

int64_t slices_rows(int64_t rows, int64_t cols)
{
    int64_t most = SLICES_ELEMENTS / cols;

    return most < 1 ? 1 : most < rows ? most : rows;
}

bool slices_take(const struct recipe_stage *solver, const struct qscheme *scheme, int64_t cols)
{
    return solver->quantizer->rows_alone != NULL && solver->quantizer->rows_alone(solver->params, cols) &&
           !input_is_static(scheme);
}

bool slices_fit(struct run *run, int64_t index)
{
    const struct plan *plan = plans_layer(model_plans(run->p->model), index);
    struct qscheme scheme;

    if (run->calibration.set != NULL || run->evaluation.batches.set != NULL || !run->p->gpu->info.host_memory ||
        recipe_analyses(run->p->recipe)) {
        return false;
    }
    for (int i = 0; i < plan->module_count; i++) {
        const struct recipe_stage *solver = module_solver(run, i, &scheme);
        if (solver != NULL && !slices_take(solver, &scheme, plan->modules[i].cols)) {
            return false;
        }
    }
    return true;
}

/* --- one slice */

/* Arrays of a slice's result to their place in those of the complete one, codes as its file has them. */
static int slice_take_parts(const struct linear_job *slice, int64_t first, struct qtensor *q)
{
    struct qtensor_part from[QTENSOR_PARTS_MAX], to[QTENSOR_PARTS_MAX];
    int64_t rows = slice->result.rows;
    int count = qtensor_parts(&slice->result, from);

    if (qtensor_parts(q, to) != count) {
        return err_raise(ERR_INTERNAL, "a slice of %s has other arrays", q->name);
    }
    for (int i = 0; i < count; i++) {
        int64_t all = to[i].rows * to[i].cols, part = from[i].rows * from[i].cols;
        size_t width = dtype_rows[to[i].dtype].bytes;
        const void *data =
            from[i].data == slice->result.codes && slice->codes.data != NULL ? slice->codes.data : from[i].data;
        if (q->packed && to[i].data == q->codes) {
            TRY(qtensor_pack_rows(q, first, rows, data));
            continue;
        }
        if (all % q->rows != 0 || part != all / q->rows * rows) {
            return err_raise(ERR_INTERNAL, "rows of %s do not stand alone", q->name);
        }
        memcpy((char *)to[i].data + (size_t)(first * (all / q->rows)) * width, data, (size_t)part * width);
    }
    return 0;
}

static int slice_tick(void *data)
{
    const struct sliced *s = data;

    return run_tick(s->run, s->share, "quantizing");
}

static int slice_solve(struct sliced *s, struct linear_job *job)
{
    const struct solve_context context = {.gpu = s->run->p->gpu,
                                          .stream = s->run->stream,
                                          .scale_dtype = s->scheme->scale_dtype,
                                          .seed = s->run->p->seed,
                                          .on_device = true,
                                          .tick = slice_tick,
                                          .tick_data = s};
    int rc = s->solver->quantizer->solve(&context, NULL, job, 1);

    run_end_phase(s->run, PHASE_SOLVE, 0);
    return rc != 0 && rc != ERR_CANCELLED && rc != ERR_INTERRUPTED ? err_set_module(rc, job->name) : rc;
}

static int slice_measure(struct sliced *s, struct linear_job *job, int64_t first)
{
    struct report_facts facts = {.job = job};

    TRY(solved_residual(s->run, &s->weight, job, &facts.residual));
    gpu_residual_add(&s->facts.residual, &facts.residual);
    TRY(anatomy_add(&s->sums, s->run->p->gpu, s->run->stream, &s->weight, &job->dequantized,
                    anatomy_group(&job->result)));
    TRY(slice_take_parts(job, first, &s->job.result));
    s->job.seconds += job->seconds;
    run_end_phase(s->run, PHASE_MEASURE, 0);
    return 0;
}

static void slice_drop(const struct gpu *gpu, struct linear_job *job)
{
    gpu_tensor_free(gpu, &job->codes);
    gpu_tensor_free(gpu, &job->scale);
    gpu_tensor_free(gpu, &job->zero);
    gpu_tensor_free(gpu, &job->dequantized);
    qtensor_deinit(&job->result);
}

/* Rows [first, first + count). */
static int slice_run(struct sliced *s, int64_t first, int64_t count)
{
    struct linear_job job = {.name = s->job.name,
                             .weight = &s->weight,
                             .params = s->solver->params,
                             .finite = true, /* model_load_rows has looked */
                             .scores = s->module->scores,
                             .loss = NAN};

    s->weight.shape[0] = count;
    TRY(model_load_rows(&s->part, first, count, s->bytes, s->run->p->gpu, s->run->stream, &s->weight));
    run_end_phase(s->run, PHASE_LOAD, 0);
    int rc = slice_solve(s, &job);
    rc = rc == 0 ? slice_measure(s, &job, first) : rc;
    slice_drop(s->run->p->gpu, &job);
    return rc;
}

/* --- one module */

/* Scales that their type does not hold are rare, and the weights that say so are looked at once more. */
static int sliced_check_scales(struct sliced *s)
{
    const struct gpu *gpu = s->run->p->gpu;
    AUTO_TENSOR(weight, gpu);

    if (!stored_scales_suspect(&s->job.result)) {
        return 0;
    }
    TRY(model_load_part(&s->part, gpu, s->run->stream, &weight));
    return check_stored_scales(s->run, &weight, &s->job);
}

static int sliced_report(struct sliced *s, struct report_rows *rows)
{
    struct report_row row;

    s->facts.index = s->run->next_row;
    s->facts.layer = s->run->block_index;
    s->facts.method = s->solver->quantizer->name;
    s->facts.job = &s->job;
    TRY(sliced_check_scales(s));
    TRY(anatomy_finish(&s->sums, &s->facts.anatomy));
    if (s->facts.residual.nonfinite > 0) {
        int rc = err_raise(ERR_NON_FINITE_VALUE, "the quantized %s has %lld values that are not finite", s->job.name,
                           (long long)s->facts.residual.nonfinite);
        return err_set_module(rc, s->job.name);
    }
    report_row_of(&s->facts, &row);
    TRY(report_rows_add(rows, &row));
    s->run->next_row++;
    return 0;
}

static int sliced_rows(struct sliced *s, struct report_rows *rows)
{
    const struct plan_module *m = s->module;
    int64_t step = slices_rows(m->rows, m->cols);

    for (int64_t first = 0; first < m->rows; first += step) {
        TRY(slice_run(s, first, m->rows - first < step ? m->rows - first : step));
    }
    return sliced_report(s, rows);
}

static int sliced_open(struct sliced *s, const char *name)
{
    const struct gpu *gpu = s->run->p->gpu;
    const struct plan_module *m = s->module;
    int64_t step = slices_rows(m->rows, m->cols);
    struct qtensor *q = &s->job.result;
    struct qscheme made;

    TRY(s->solver->quantizer->scheme(s->solver->params, m->rows, m->cols, &made));
    made.scale_dtype = s->scheme->scale_dtype;
    made.weight_dtype = s->scheme->weight_dtype;
    made.input = s->scheme->input;
    made.input_threshold = s->scheme->input_threshold;
    TRY(qtensor_new_packed(name, &made, m->rows, m->cols, q));
    TRY(mem_buffer((unsigned char **)&s->bytes, (size_t)(step * m->cols) * sizeof(float)));
    TRY(anatomy_begin(&s->sums, m->cols));
    return gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, (const int64_t[]){step, m->cols}, &s->weight);
}

static void sliced_close(struct sliced *s)
{
    gpu_tensor_free(s->run->p->gpu, &s->weight);
    free(s->bytes);
    anatomy_drop(&s->sums);
    qtensor_deinit(&s->job.result);
}

static int sliced_module(struct run *run, int i, struct block_outputs *outputs, struct report_rows *rows)
{
    const struct plan *plan = plans_layer(model_plans(run->p->model), run->block_index);
    const struct plan_module *m = &plan->modules[i];
    const struct tensor no_codes = {.data = NULL};
    char name[PLAN_NAME_MAX];
    struct qscheme scheme;
    struct sliced s = {.run = run,
                       .module = m,
                       .scheme = &scheme,
                       .part = model_part(run->p->model, run->block_index, m, false),
                       .job = {.name = name, .loss = NAN},
                       .share = (double)i / (double)plan->module_count};

    s.solver = module_solver(run, i, &scheme);
    if (s.solver == NULL) {
        return 0;
    }
    model_module_name(run->p->model, run->block_index, i, name);
    int rc = sliced_open(&s, name);
    rc = rc == 0 ? sliced_rows(&s, rows) : rc;
    rc = rc == 0 ? block_outputs_reserve(outputs) : rc;
    if (rc == 0) {
        const struct qtensor made = qtensor_move(&s.job.result);
        block_outputs_add_take(outputs, &made, &no_codes);
        if (m->expert >= 0 && memory_plan_takes_turns(plan, run->expert_bytes)) {
            rc = block_outputs_spill(outputs, outputs->count - 1, run->p->directory, run->p->gpu, run->stream);
        }
    }
    sliced_close(&s);
    return rc;
}

int block_solve_slices(struct run *run, struct block_outputs *outputs, struct report_rows *rows)
{
    const struct plan *plan = plans_layer(model_plans(run->p->model), run->block_index);

    for (int g = 0; g < plan->group_count; g++) {
        for (int k = 0; k < plan->groups[g].count; k++) {
            int rc = sliced_module(run, plan->groups[g].modules[k], outputs, rows);
            if (rc != 0) {
                return err_pass(rc, "block %lld, input group %d", (long long)run->block_index, g);
            }
        }
    }
    return 0;
}
