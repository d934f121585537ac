/* A pass that measures what each unit of a model loses under each candidate; sensitivity_plan.c says which rows are
 * measured and how the others follow.
 *
 * Blocks stay in float. In each, the inputs of every group give H, every candidate is solved by its own method, and its
 * output error is tr(dW H dW^T). For what it does to the logits, a stream begins: what the block makes of the tokens
 * with that one unit quantized. Streams go through the float blocks after it, and at the head each is held against the
 * float model's logits. H comes from the head of the calibration set and streams from its tail, since a method that
 * fits its codes to the inputs would look better on the same ones. */

#include "pipeline/sensitivity_parts.h"

#include "base/err.h"
#include "pipeline/block_pass.h"
#include "pipeline/evaluate.h"
#include "pipeline/report.h"
#include "pipeline/run_stores.h"
#include "pipeline/solve.h"

#include <stdio.h>
#include <string.h>

const struct recipe_stage sensitivity_nothing;

static void try_candidate(struct run *run, int c)
{
    run->sensitivity->candidate = c;
    run->trial = &run->sensitivity->request->candidates->list[c].solver;
}

static unsigned sensitivity_needs(struct run *run, const struct plan_group *group)
{
    const struct sensitivity *s = run->sensitivity;
    struct qscheme scheme;
    unsigned wants = 0;

    if (run->trial == &sensitivity_nothing) {
        return 0;
    }
    for (int c = 0; c < s->request->candidates->count; c++) {
        try_candidate(run, c);
        for (int i = 0; i < group->count; i++) {
            const struct recipe_stage *solver = module_solver(run, group->modules[i], &scheme);
            wants |= solver != NULL ? quantizer_stats(solver->quantizer, solver->params) | STATS_HESSIAN : 0;
        }
    }
    try_candidate(run, 0);
    return wants;
}

/* Rows of `from` on one side, all of them, to the OUT side of `to`. */
static int copy_store(struct run *run, struct activations *from, enum activations_side side, struct activations *to,
                      int64_t width)
{
    const struct microbatches *batches = &run->evaluation.batches;
    int64_t total = batches->set->sequences * batches->set->length, rows = batches->batch * batches->set->length;
    const struct gpu *gpu = run->p->gpu;
    AUTO_TENSOR(buffer, gpu);

    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, (const int64_t[]){rows, width}, &buffer));
    for (int64_t first = 0; first < total; first += rows) {
        struct tensor part = tensor_rows(&buffer, 0, total - first < rows ? total - first : rows);
        TRY(activations_read(from, side, first, &part, gpu, run->stream));
        TRY(activations_write(to, first, &part, gpu, run->stream));
    }
    return 0;
}

/* Another stream, where the float path is: before the open block. */
static int begin_stream(struct run *run, int row, struct sensitivity_stream **out)
{
    struct sensitivity *s = run->sensitivity;
    const struct microbatches *batches = &run->evaluation.batches;
    int64_t columns[PLAN_SHARED_MAX];
    char name[24];

    struct sensitivity_stream *stream = &s->streams[s->stream_count];
    *stream = (struct sensitivity_stream){.row = row};
    snprintf(name, sizeof(name), "probe-%d", s->stream_count++);
    TRY(run_new_store(run, name, batches, run->config->hidden_size, &stream->store));
    TRY(run_open_shared_stores(run, batches, name, stream->shared));
    TRY(copy_store(run, run->evaluation.float_model, ACTIVATIONS_IN, stream->store, run->config->hidden_size));
    TRY(activations_turn(stream->store));
    stores_shared(model_plans(run->p->model), columns);
    for (int i = 0; i < PLAN_SHARED_MAX; i++) {
        if (stream->shared[i] != NULL) {
            TRY(copy_store(run, run->evaluation.shared[0][i], ACTIVATIONS_OUT, stream->shared[i], columns[i]));
        }
    }
    *out = stream;
    return 0;
}

/* A stream through the open block. */
static int carry_stream(struct run *run, const struct sensitivity_stream *stream, struct block *block,
                        struct block_outputs *outputs)
{
    struct sensitivity *s = run->sensitivity;

    memcpy(run->evaluation.shared[1], stream->shared, sizeof(stream->shared));
    int rc = evaluate_block(run, stream->store, block, outputs);
    memset(run->evaluation.shared[1], 0, sizeof(run->evaluation.shared[1]));
    s->work_done += 1;
    run->pass_done = s->work_done / s->work_total;
    return rc;
}

struct trial {
    struct run *run;
    struct block *block;
};

/* The open block with one of its modules as the candidate has it. */
static int begin_linear(const struct trial *trial, int row, int module, const struct block_module *placed)
{
    struct block_module *own = &trial->block->modules[module], before = *own;
    struct sensitivity_stream *stream;

    TRY(begin_stream(trial->run, row, &stream));
    *own = *placed;
    int rc = carry_stream(trial->run, stream, trial->block, NULL);
    *own = before;
    return rc;
}

/* Results of experts wait in a file until the block's experts are all solved. */
static int keep_expert(struct run *run, int row, struct linear_job *job)
{
    struct block_outputs *outputs = &run->sensitivity->experts[row];

    TRY(block_outputs_reserve(outputs));
    block_outputs_add_take(outputs, &job->result, &job->codes);
    job->result = (struct qtensor){.codes = NULL};
    job->codes = (struct tensor){.data = NULL};
    return block_outputs_spill(outputs, outputs->count - 1, run->p->directory, run->p->gpu, run->stream);
}

static int take_trial(void *data, int module, const struct block_module *placed, struct linear_job *job,
                      const struct report_facts *facts)
{
    const struct trial *trial = data;
    struct sensitivity *s = trial->run->sensitivity;
    const struct sensitivity_unit *unit = sensitivity_unit_of(s, trial->block->index, module);
    int row = unit != NULL ? sensitivity_row_of(s, unit, s->candidate) : -1;

    if (row < 0) {
        return err_raise(ERR_INTERNAL, "module %d has no row for candidate %d", module, s->candidate);
    }
    struct sensitivity_sums *sums = &s->sums[row];
    int64_t count = job->result.rows * job->result.cols;
    sums->error_sq += facts->residual.error_sq;
    sums->weight_sq += facts->residual.weight_sq;
    sums->bits += qtensor_bits_per_weight(&job->result) * (double)count;
    sums->parameters += count;
    if (facts->has_output) { /* H is twice the second moment */
        sums->output_error += 0.5 * facts->output_error * (double)facts->tokens;
        sums->output_signal += 0.5 * facts->output_signal * (double)facts->tokens;
    }
    if (!s->planned[row]) {
        return 0;
    }
    return unit->step >= 0 ? keep_expert(trial->run, row, job) : begin_linear(trial, row, module, placed);
}

static int sensitivity_group(struct run *run, struct block *block, int group, const struct layer_stats *stats)
{
    struct trial trial = {run, block};

    for (int c = 0; c < run->sensitivity->request->candidates->count; c++) {
        try_candidate(run, c);
        TRY(group_try(run, block, group, stats, take_trial, &trial));
    }
    try_candidate(run, 0);
    return 0;
}

const struct run_trials sensitivity_trials = {.needs = sensitivity_needs, .group = sensitivity_group};

static void drop_experts(struct run *run, struct block *block)
{
    for (int m = 0; m < block->plan->module_count; m++) {
        if (block->plan->modules[m].expert >= 0) {
            block_drop_module(block, m, run->p->gpu);
        }
    }
}

/* The open block with a unit's experts from their results. None may be loaded, before and afterwards. */
static int begin_experts(struct run *run, struct block *block, const struct sensitivity_unit *unit, int row)
{
    struct sensitivity *s = run->sensitivity;
    struct block_outputs *outputs = &s->experts[row];
    struct sensitivity_stream *stream;

    TRY(begin_stream(run, row, &stream));
    drop_experts(run, block);
    for (int i = 0; i < unit->modules && outputs->count > 0; i++) {
        block->modules[unit->module + i * unit->stride].input = outputs->list[0].scheme.input;
    }
    int rc = carry_stream(run, stream, block, outputs);
    for (int i = 0; i < unit->modules; i++) {
        block->modules[unit->module + i * unit->stride].input = (struct gpu_input){.element = DTYPE_F32};
    }
    drop_experts(run, block);
    block_outputs_deinit(outputs, run->p->gpu);
    *outputs = (struct block_outputs){.count = 0};
    return rc;
}

/* Rows of the open block from what was added up. */
static void finish_rows(struct sensitivity *s, int64_t layer)
{
    int first, count = sensitivity_units(s, layer, &first);

    for (int i = first; i < first + count; i++) {
        for (int r = s->units[i].first_row; r < s->units[i].first_row + s->units[i].rows; r++) {
            const struct sensitivity_sums *sums = &s->sums[r];
            struct sensitivity_row *row = &s->table.rows[r];
            row->parameters = sums->parameters;
            row->bits_per_weight = sums->parameters > 0 ? sums->bits / (double)sums->parameters : 0;
            row->relative_mse = sums->weight_sq > 0 ? sums->error_sq / sums->weight_sq : 0;
            row->output_relative_mse = sums->output_signal > 0 ? sums->output_error / sums->output_signal : 0;
            row->output_mse = sums->output_error / (double)s->tokens;
        }
    }
}

/* Every candidate of the open block, whose calibration inputs advance. */
static int try_block(struct run *run, struct block *block)
{
    struct sensitivity *s = run->sensitivity;
    struct block_outputs outputs = {.count = 0};
    struct report_rows rows = {.count = 0};
    int first, count = sensitivity_units(s, block->index, &first);

    try_candidate(run, 0);
    int rc = block_solve(run, block, &outputs, &rows);
    run->trial = &sensitivity_nothing;
    block_outputs_deinit(&outputs, run->p->gpu);
    report_rows_deinit(&rows);
    for (int i = first; rc == 0 && i < first + count; i++) {
        const struct sensitivity_unit *unit = &s->units[i];
        for (int r = unit->first_row; rc == 0 && unit->step >= 0 && r < unit->first_row + unit->rows; r++) {
            rc = s->planned[r] ? begin_experts(run, block, unit, r) : 0;
        }
    }
    finish_rows(s, block->index);
    s->work_done += s->request->candidates->count * count;
    run->pass_done = s->work_done / s->work_total;
    return rc;
}

/* The calibration set through a block that an earlier wave tried. */
static int advance_block(struct run *run, struct block *block)
{
    struct block_outputs outputs = {.count = 0};
    struct report_rows rows = {.count = 0};
    int rc = block_solve(run, block, &outputs, &rows);

    block_outputs_deinit(&outputs, run->p->gpu);
    report_rows_deinit(&rows);
    return rc;
}

int sensitivity_block(struct run *run, struct block *block, int64_t first, int64_t end)
{
    struct sensitivity *s = run->sensitivity;
    int under_way = s->stream_count;

    for (int i = 0; i < under_way; i++) {
        TRY(carry_stream(run, &s->streams[i], block, NULL));
    }
    if (block->index < end) {
        TRY(block->index < first ? advance_block(run, block) : try_block(run, block));
    }
    TRY(evaluate_block(run, run->evaluation.float_model, block, NULL));
    if (block->index < end && block->index + 1 < run->config->num_layers) {
        TRY(activations_turn(run->stores[0]));
    }
    TRY(activations_turn(run->evaluation.float_model));
    for (int i = 0; i < s->stream_count; i++) {
        TRY(activations_turn(s->streams[i].store));
    }
    return 0;
}
