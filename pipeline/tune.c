/* The learning stage of a block.
 *
 *   solved groups, x of the quantized path, y = block(x_f) of the float path -> steps -> codes, scales, norms
 *   -> rows of the report measured again -> x through the block once more, to the next one
 *
 * The float path is a residual stream of its own, taken through each block before anything of it is changed. Two stores
 * are kept: the block's input, since solving works in the place of the stream, and the float path's stream, whose OUT
 * side is what the block is to give. */

#include "pipeline/tune.h"

#include "base/err.h"
#include "base/mem.h"
#include "pipeline/evaluate.h"
#include "pipeline/pass.h"
#include "pipeline/run_stores.h"
#include "pipeline/solve.h"
#include "pipeline/tuned.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* How a block's time is divided, for progress. */
#define SOLVING_SHARE 0.2
#define LEARNING_SHARE 0.75

int tuning_open(struct run *run)
{
    const struct recipe_stage *stage = recipe_tuner(run->p->recipe);
    const struct plans *plans = model_plans(run->p->model);
    struct microbatches *batches = &run->calibration;
    struct tuning *t;

    if (stage == NULL || batches->set == NULL) {
        return 0;
    }
    TRY(mem_new(&run->tuning));
    t = run->tuning;
    t->stage = stage;
    t->batch = tune_lane(batches->set->sequences, batches->set->length);
    const struct block_tape_spec spec = {
        .plans = plans, .sequences = t->batch, .length = batches->set->length, .rounds = true};
    t->tape_bytes = block_tape_bytes(&spec);
    TRY(block_tape_new(&spec, run->p->gpu, run->stream, &t->tape));
    TRY(run_new_store(run, "tuning-input", batches, run->config->hidden_size, &t->input));
    TRY(run_new_store(run, "tuning", batches, run->config->hidden_size, &t->target));
    return run_open_shared_stores(run, batches, "tuning", t->shared);
}

void tuning_add_stores(struct run *run)
{
    if (run->tuning != NULL) {
        struct tune_model_plan unused;
        /* The last block's are the teacher of end_to_end. */
        checkpoint_add(run->checkpoint, "tuning", run->tuning->target, recipe_end_to_end(run->p->recipe, &unused));
    }
}

struct activations *tuning_store(const struct run *run)
{
    return run->tuning != NULL ? run->tuning->target : NULL;
}

struct block_tape *tuning_tape(const struct run *run, int64_t *batch)
{
    *batch = run->tuning->batch;
    return run->tuning->tape;
}

void tuning_close(struct run *run)
{
    struct tuning *t = run->tuning;

    if (t == NULL) {
        return;
    }
    tuned_clear(run);
    block_tape_free(t->tape);
    activations_free(t->input);
    activations_free(t->target);
    for (int i = 0; i < PLAN_SHARED_MAX; i++) {
        activations_free(t->shared[i]);
    }
    free(t);
    run->tuning = NULL;
}

const struct tune_curve *tuning_curve(const struct run *run)
{
    return run->tuning != NULL ? &run->tuning->curve : NULL;
}

/* --- what is kept of the block */

int tuning_begin(struct run *run, struct block *block)
{
    struct tuning *t = run->tuning;
    struct activations *stores[PLAN_VALUES_MAX];

    if (t == NULL) {
        return 0;
    }
    run->part_begin = 0;
    run->part_left = 1 - SOLVING_SHARE;
    for (int64_t i = 0; i < microbatches_count(&run->calibration); i++) {
        struct microbatch b = microbatches_at(&run->calibration, block->plan, i);
        TRY(pass_open(run, run->stores, &b, PLAN_BIT(0)));
        TRY(microbatch_write(&b, 0, t->input, run->p->gpu, run->stream));
    }
    memcpy(stores, run->stores, sizeof(stores)); /* what a pass keeps within a block: solving makes it once more */
    memcpy(stores + PLAN_SHARED_STORE, t->shared, sizeof(t->shared));
    stores[0] = t->target;
    return calibration_forward(run, stores, block, NULL);
}

/* --- learning */

static int tuning_input(void *data, int64_t sequence, int value, const struct tensor *rows)
{
    struct run *run = data;
    const struct plan *plan = plans_layer(model_plans(run->p->model), run->block_index);
    struct activations *store =
        value == 0 ? run->tuning->input : run->stores[plan->storages[plan->values[value].storage].store];

    return activations_read(store, ACTIVATIONS_OUT, sequence * run->calibration.set->length, rows, run->p->gpu,
                            run->stream);
}

static int tuning_target(void *data, int64_t sequence, const struct tensor *rows)
{
    struct run *run = data;

    return activations_read(run->tuning->target, ACTIVATIONS_OUT, sequence * run->calibration.set->length, rows,
                            run->p->gpu, run->stream);
}

static int tuning_tick(void *data, const struct tune_progress *progress)
{
    struct run *run = data;

    run->learning = *progress;
    return run_tick(run, (double)progress->step / (double)progress->steps, "tuning");
}

/* Results, all of them on the host, with the weights that they stand for. */
static int tuning_modules(struct run *run, struct block_outputs *outputs, struct tune_module *modules)
{
    const struct tuning *t = run->tuning;

    for (int i = 0; i < t->count; i++) {
        struct qscheme scheme;
        const struct recipe_stage *solver = module_solver(run, t->list[i].module, &scheme);
        int output = block_outputs_find(outputs, t->list[i].name);
        if (output < 0) {
            return err_raise(ERR_INTERNAL, "%s is not among the block's outputs", t->list[i].name);
        }
        TRY(block_outputs_download(outputs, output, run->p->gpu, run->stream));
        modules[i] = (struct tune_module){.module = t->list[i].module,
                                          .result = &outputs->list[output],
                                          .weight = &t->list[i].weight,
                                          .learns = t->stage->quantizer->solve == NULL ||
                                                    (solver != NULL && solver->quantizer == t->stage->quantizer)};
    }
    return 0;
}

static int tuning_learn(struct run *run, struct block *block, struct tune_module *modules)
{
    struct tuning *t = run->tuning;
    const struct calibration_set *set = run->calibration.set;
    const struct tune_context context = {
        .gpu = run->p->gpu,
        .stream = run->stream,
        .params = t->stage->params,
        .seed = run->p->seed ^ (uint64_t)(run->block_index + 1) * 0xd1342543de82ef95u,
        .float_dtype = model_dtype(run->p->model),
        .block = block,
        .modules = modules,
        .count = t->count,
        .sequences = set->sequences,
        .length = set->length,
        .batch = t->batch,
        .tape = t->tape,
        .ids = set->ids,
        .input = tuning_input,
        .target = tuning_target,
        .tick = tuning_tick,
        .data = run,
        .curve = &t->curve,
    };

    t->curve = (struct tune_curve){.bytes = t->tape_bytes};
    return t->stage->quantizer->tune(&context);
}

/* A row of the report, of what is stored now. */
static int tuning_measure(struct run *run, struct block *block, struct tuned *tuned, const struct tune_module *module,
                          struct report_rows *rows)
{
    const struct gpu *gpu = run->p->gpu;
    const struct layer_stats *stats = tuned->stats >= 0 ? &run->tuning->stats[tuned->stats] : NULL;
    struct report_row *row = &rows->list[tuned->facts.index - rows->list[0].index], before = *row;
    struct linear_job *job = &tuned->job;

    job->name = tuned->name;
    job->result = *module->result; /* its arrays stay the result's */
    job->loss = NAN;               /* what the solver minimised is not what was learned */
    job->aimed = false;
    tuned->facts.job = job;
    tuned->facts.has_output = false;
    int rc = solved_measure(run, &tuned->weight, job, stats, &tuned->facts);
    if (rc == 0) {
        report_row_of(&tuned->facts, row);
        memcpy(row->target, before.target, sizeof(row->target));
        row->output_relative_mse = stats != NULL ? row->output_relative_mse : before.output_relative_mse;
        gpu_tensor_free(gpu, &block->modules[tuned->module].weight);
        block->modules[tuned->module].weight = tensor_move(&job->dequantized);
    }
    gpu_tensor_free(gpu, &job->scale);
    gpu_tensor_free(gpu, &job->zero);
    gpu_tensor_free(gpu, &job->dequantized);
    return rc != 0 ? err_set_module(err_pass(rc, "measure %s", tuned->name), tuned->name) : 0;
}

/* The stream again as the block read it. */
static int tuning_restore_input(struct run *run, const struct block *block)
{
    for (int64_t i = 0; i < microbatches_count(&run->calibration); i++) {
        struct microbatch b = microbatches_at(&run->calibration, block->plan, i);
        microbatch_place(&b, 0, run->stores[0], run->p->gpu);
        TRY(microbatch_read(&b, 0, run->tuning->input, ACTIVATIONS_OUT, run->p->gpu, run->stream));
        TRY(microbatch_write(&b, 0, run->stores[0], run->p->gpu, run->stream));
    }
    return 0;
}

int tuning_run(struct run *run, struct block *block, struct block_outputs *outputs, struct report_rows *rows)
{
    struct tuning *t = run->tuning;
    AUTO_FREE struct tune_module *modules = NULL;

    run->part_begin = SOLVING_SHARE;
    run->part_left = 1 - SOLVING_SHARE - LEARNING_SHARE;
    if (t->count > 0) {
        TRY(mem_array(&modules, (size_t)t->count));
        TRY(tuning_modules(run, outputs, modules));
        int rc = tuning_learn(run, block, modules);
        run->learning = (struct tune_progress){.steps = 0};
        run_end_phase(run, PHASE_SOLVE, 0);
        if (rc != 0) {
            return err_pass(rc, "%s of block %lld", t->stage->quantizer->name, (long long)run->block_index);
        }
    }
    run->part_begin = SOLVING_SHARE + LEARNING_SHARE;
    run->part_left = 0;
    for (int i = 0; i < t->count && t->curve.best_step > 0; i++) {
        TRY(tuning_measure(run, block, &t->list[i], &modules[i], rows));
    }
    run_end_phase(run, PHASE_MEASURE, 0);
    return tuning_restore_input(run, block);
}
