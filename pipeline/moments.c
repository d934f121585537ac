/* The pass over the float model: see moments.h. The tape of a micro-batch has every value of one block; what is kept of
 * all blocks are their inputs, in activation stores, and one gradient of the residual stream. */

#include "pipeline/moments.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/mem.h"
#include "models/block_grad.h"
#include "pipeline/memory_plan.h"
#include "pipeline/moments_file.h"
#include "pipeline/moments_parts.h"
#include "pipeline/run_stores.h"
#include "pipeline/solve.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOMENTS_SHARE 0.1 /* of the run's progress */

/* What is kept between passes over blocks. */
struct moments {
    struct run *run; /* of its own; run->calibration is the set while embedding */
    struct calibration_set set;
    int64_t batch; /* sequences of a micro-batch */
    struct block_tape *tape;
    struct activations **inputs; /* [layers + 1]: of each block, and the last one's output */
    struct activations *gradient;
    struct activations *shared[PLAN_SHARED_MAX], *dshared[PLAN_SHARED_MAX]; /* what crosses layers; NULL: none */
    double done, units;                                                     /* blocks forward and, thrice, back */
};

static bool moments_wanted(struct run *run, int module)
{
    struct qscheme scheme;
    const struct recipe_stage *solver = module_solver(run, module, &scheme);

    return solver != NULL && solver->quantizer->output_tokens != NULL &&
           solver->quantizer->output_tokens(solver->params) != 0;
}

/* Names of the modules that have them. New reference. */
static json_t *moments_modules(struct run *run)
{
    json_t *names = json_array();
    char name[PLAN_NAME_MAX];

    for (run->block_index = 0; run->block_index < run->config->num_layers; run->block_index++) {
        const struct plan *plan = plans_layer(model_plans(run->p->model), run->block_index);
        for (int i = 0; i < plan->module_count; i++) {
            if (moments_wanted(run, i)) {
                model_module_name(run->p->model, run->block_index, i, name);
                json_array_append_new(names, json_string(name));
            }
        }
    }
    run->block_index = 0;
    return names;
}

static int moments_tick(struct moments *m, int64_t block, double by)
{
    m->done += by;
    return message_send_progress(m->run->sender, MOMENTS_SHARE * m->done / m->units, block, "measuring", NULL);
}

/* --- blocks */

static int moments_load(struct moments *m, int64_t layer, struct block *block)
{
    struct run *run = m->run;

    TRY(moments_tick(m, layer, 0));
    TRY(block_load(run->p->model, layer, run->p->gpu, run->stream, NULL, block));
    for (int i = 0; i < block->plan->module_count; i++) {
        if (block->plan->modules[i].expert >= 0) {
            TRY(block_load_module(run->p->model, run->p->gpu, run->stream, block, i));
        }
    }
    run_end_phase(run, PHASE_LOAD, 0);
    return 0;
}

static struct activations *moments_store(const struct moments *m, const struct plan *plan, int64_t layer, int value)
{
    return value == 0 ? m->inputs[layer] : m->shared[plan->values[value].shared];
}

static bool moments_has(plan_set set, int value)
{
    return (set & PLAN_BIT(value)) != 0;
}

static int moments_forward(struct moments *m, const struct block *block, int64_t layer, int64_t first, int64_t count)
{
    const struct plan *plan = block->plan;
    struct run *run = m->run;

    TRY(block_tape_begin(m->tape, plan, count, m->set.ids + first * m->set.length));
    for (int v = 0; v < plan->value_count; v++) {
        if (moments_has(plan->inputs, v)) {
            const struct tensor rows = block_tape_value(m->tape, v);
            TRY(activations_read(moments_store(m, plan, layer, v), ACTIVATIONS_IN, first * m->set.length, &rows,
                                 run->p->gpu, run->stream));
        }
    }
    TRY(block_tape_forward(block, m->tape));
    run_end_phase(run, PHASE_FORWARD, plan_flops(plan, ~(plan_set)0, count * m->set.length, m->set.length));
    return 0;
}

/* Forward, and the values that later blocks read to their stores. */
static int moments_keep(struct moments *m, const struct block *block, int64_t layer, int64_t first, int64_t count)
{
    const struct plan *plan = block->plan;

    TRY(moments_forward(m, block, layer, first, count));
    for (int v = 0; v < plan->value_count; v++) {
        if (v == plan->output || moments_has(plan->given, v)) {
            const struct tensor rows = block_tape_value(m->tape, v);
            struct activations *to = v == plan->output ? m->inputs[layer + 1] : m->shared[plan->values[v].shared];
            TRY(activations_write(to, first * m->set.length, &rows, m->run->p->gpu, m->run->stream));
        }
    }
    return 0;
}

/* Forward once more, and back: the gradient of the output is there, and what later blocks have of what this one gives;
 * that of its inputs takes their places. */
static int moments_reverse(struct moments *m, const struct block *block, int64_t layer, const struct block_grads *grads,
                           int64_t first, int64_t count)
{
    const struct plan *plan = block->plan;
    const struct gpu *gpu = m->run->p->gpu;
    struct gpu_stream *stream = m->run->stream;
    int64_t row = first * m->set.length;

    TRY(moments_forward(m, block, layer, first, count));
    for (int v = 0; v < plan->value_count; v++) {
        if (v == plan->output || moments_has(plan->given, v)) {
            const struct tensor rows = block_tape_gradient(m->tape, v);
            struct activations *from = v == plan->output ? m->gradient : m->dshared[plan->values[v].shared];
            TRY(activations_read(from, ACTIVATIONS_IN, row, &rows, gpu, stream));
        }
    }
    TRY(block_tape_backward(block, m->tape, grads, plan->inputs));
    for (int v = 0; v < plan->value_count; v++) {
        if (!moments_has(plan->inputs, v)) {
            continue;
        }
        const struct tensor rows = block_tape_gradient(m->tape, v);
        struct activations *to = v == 0 ? m->gradient : m->dshared[plan->values[v].shared];
        if (v != 0) { /* other blocks may have added to it; the value's own memory serves for what is there */
            const struct tensor before = block_tape_value(m->tape, v);
            TRY(activations_read(to, ACTIVATIONS_IN, row, &before, gpu, stream));
            TRY(gpu->ops->add(stream, &rows, &before));
        }
        TRY(activations_write(to, row, &rows, gpu, stream));
    }
    run_end_phase(m->run, PHASE_STATISTICS, 2 * plan_flops(plan, ~(plan_set)0, count * m->set.length, m->set.length));
    return 0;
}

/* Stores that a block wrote: what is read of them from now on. */
static int moments_turn(struct moments *m, const struct plan *plan, int64_t layer, bool back)
{
    for (int v = 0; v < plan->value_count; v++) {
        int shared = plan->values[v].shared;
        if (back ? moments_has(plan->inputs, v) && v != 0 : moments_has(plan->given, v)) {
            TRY(activations_turn(back ? m->dshared[shared] : m->shared[shared]));
        }
    }
    return activations_turn(back ? m->gradient : m->inputs[layer + 1]);
}

/* grads->modules and its tensors are the caller's to release, also after a failure. */
static int moments_new(struct moments *m, const struct plan *plan, struct block_grads *grads)
{
    TRY(mem_array(&grads->modules, (size_t)plan->module_count));
    for (int i = 0; i < plan->module_count; i++) {
        const int64_t shape[2] = {plan->modules[i].rows, plan->modules[i].rows};
        if (moments_wanted(m->run, i)) {
            TRY(gpu_tensor_new(m->run->p->gpu, DTYPE_F32, 2, shape, &grads->modules[i].moments));
        }
    }
    return 0;
}

static int moments_block(struct moments *m, int64_t layer, bool back)
{
    struct run *run = m->run;
    struct block_grads grads = {.modules = NULL};
    struct block block = {0};

    run->block_index = layer;
    int rc = moments_load(m, layer, &block);
    if (rc == 0 && back) {
        rc = moments_new(m, block.plan, &grads);
    }
    for (int64_t first = 0; rc == 0 && first < m->set.sequences; first += m->batch) {
        int64_t left = m->set.sequences - first, count = left < m->batch ? left : m->batch;
        rc = back ? moments_reverse(m, &block, layer, &grads, first, count)
                  : moments_keep(m, &block, layer, first, count);
        rc = rc != 0 ? rc : moments_tick(m, layer, (back ? 3.0 : 1.0) * (double)count / (double)m->set.sequences);
    }
    rc = rc != 0 ? rc : moments_turn(m, block.plan, layer, back);
    if (rc == 0 && back) {
        rc = moments_write(run, &block, &grads);
    }
    for (int i = 0; grads.modules != NULL && i < block.plan->module_count; i++) {
        gpu_tensor_free(run->p->gpu, &grads.modules[i].moments);
    }
    free(grads.modules);
    block_deinit(&block, run->p->gpu);
    return rc != 0 ? err_pass(rc, "output moments of block %lld", (long long)layer) : 0;
}

/* --- around the blocks */

static int moments_head(struct moments *m)
{
    struct run *run = m->run;
    const struct gpu *gpu = run->p->gpu;
    const int64_t shape[2] = {m->batch * m->set.length, run->config->hidden_size};
    AUTO_TENSOR(x, gpu);
    struct moments_labels labels;

    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, shape, &x));
    int rc = moments_labels_init(run, shape[0], &labels);
    for (int64_t first = 0; rc == 0 && first < m->set.sequences; first += m->batch) {
        int64_t left = m->set.sequences - first, row = first * m->set.length;
        const struct tensor rows = tensor_rows(&x, 0, (left < m->batch ? left : m->batch) * m->set.length);
        rc = activations_read(m->inputs[run->config->num_layers], ACTIVATIONS_IN, row, &rows, gpu, run->stream);
        rc = rc != 0 ? rc : moments_labels_backward(&labels, row, &rows);
        rc = rc != 0 ? rc : activations_write(m->gradient, row, &rows, gpu, run->stream);
        rc = rc != 0 ? rc : moments_tick(m, run->config->num_layers, 0);
    }
    moments_labels_deinit(&labels);
    run_end_phase(run, PHASE_STATISTICS, 0);
    return rc != 0 ? rc : activations_turn(m->gradient);
}

/* Zeros where no block has added to a gradient yet. */
static int moments_zero(struct moments *m, struct activations *store, int64_t width)
{
    const struct gpu *gpu = m->run->p->gpu;
    int64_t tokens = m->set.sequences * m->set.length, most = m->batch * m->set.length;
    const int64_t shape[2] = {most, width};
    AUTO_TENSOR(zeros, gpu);

    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, shape, &zeros));
    for (int64_t row = 0; row < tokens; row += most) {
        const struct tensor rows = tensor_rows(&zeros, 0, tokens - row < most ? tokens - row : most);
        TRY(activations_write(store, row, &rows, gpu, m->run->stream));
    }
    return activations_turn(store);
}

/* After a failure moments_close is due, too. */
static int moments_open(struct moments *m)
{
    struct run *run = m->run;
    const struct pipeline *p = run->p;
    const struct plans *plans = model_plans(p->model);
    struct microbatches *batches = &run->calibration;
    int64_t columns[PLAN_SHARED_MAX];
    char name[32];

    TRY(p->gpu->ops->stream_new(p->gpu->device, &run->stream));
    run->budget.stream = run->stream;
    TRY(phase_clock_open(&run->clock, p->gpu, run->stream));
    TRY(microbatches_init(batches, &m->set, plans, run->batch_tokens, p->gpu, run->stream));
    m->batch = batches->batch;
    TRY(mem_array(&m->inputs, (size_t)run->config->num_layers + 1));
    for (int64_t i = 0; i <= run->config->num_layers; i++) {
        snprintf(name, sizeof(name), "moments-%lld", (long long)i);
        TRY(run_new_store(run, name, batches, run->config->hidden_size, &m->inputs[i]));
    }
    TRY(run_new_store(run, "moments-gradient", batches, run->config->hidden_size, &m->gradient));
    stores_shared(plans, columns);
    for (int i = 0; i < PLAN_SHARED_MAX; i++) {
        if (columns[i] > 0) {
            snprintf(name, sizeof(name), "moments-shared-%d", i);
            TRY(run_new_store(run, name, batches, columns[i], &m->shared[i]));
            snprintf(name, sizeof(name), "moments-dshared-%d", i);
            TRY(run_new_store(run, name, batches, columns[i], &m->dshared[i]));
            TRY(moments_zero(m, m->dshared[i], columns[i]));
        }
    }
    TRY(microbatches_embed(batches, m->inputs[0], p->model, p->gpu, run->stream));
    microbatches_deinit(batches, p->gpu);
    const struct block_tape_spec spec = {.plans = plans, .sequences = m->batch, .length = m->set.length};
    return block_tape_new(&spec, p->gpu, run->stream, &m->tape);
}

static void moments_close(struct moments *m)
{
    struct run *run = m->run;

    for (int64_t i = 0; m->inputs != NULL && i <= run->config->num_layers; i++) {
        activations_free(m->inputs[i]);
    }
    free(m->inputs);
    activations_free(m->gradient);
    for (int i = 0; i < PLAN_SHARED_MAX; i++) {
        activations_free(m->shared[i]);
        activations_free(m->dshared[i]);
    }
    block_tape_free(m->tape);
    microbatches_deinit(&run->calibration, run->p->gpu);
    phase_clock_finish(&run->clock, &run->sender->times);
    phase_clock_close(&run->clock);
    if (run->stream != NULL) {
        run->p->gpu->ops->stream_free(run->stream);
    }
}

static int moments_run(struct moments *m)
{
    int64_t layers = m->run->config->num_layers;

    m->units = 4 * (double)layers;
    TRY(moments_open(m));
    for (int64_t i = 0; i < layers; i++) {
        TRY(moments_block(m, i, false));
    }
    TRY(moments_head(m));
    for (int64_t i = layers - 1; i >= 0; i--) {
        TRY(moments_block(m, i, true));
    }
    return 0;
}

int moments_pass(const struct run *attempt)
{
    const struct pipeline *p = attempt->p;
    struct checkpoint none = {.sender = attempt->sender};
    struct run run = {
        .p = p,
        .config = attempt->config,
        .sender = attempt->sender,
        .checkpoint = &none,
        .batch_tokens = attempt->batch_tokens,
        .budget = {.limit = p->host_memory_bytes, .gpu = p->gpu},
    };
    char key[DIGEST_HEX_SIZE];

    if (recipe_output_tokens(p->recipe) == 0 || p->calibration == NULL) {
        return 0;
    }
    struct moments m = {.run = &run, .set = *p->calibration};
    m.set.sequences = memory_plan_moments_sequences(p->recipe, m.set.sequences, m.set.length);
    AUTO_JSON json_t *modules = moments_modules(&run);
    TRY(moments_key(&run, &m.set, modules, key));
    if (moments_are_there(p->directory, run.config->num_layers, key)) {
        return 0;
    }
    int rc = moments_run(&m);
    moments_close(&m);
    return rc != 0 ? err_pass(rc, "output moments") : moments_finish(p->directory, key);
}
