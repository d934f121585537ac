/* What learning on solved blocks adds to a run (tune.c): the tape and two streams for as long as the run has, next to
 * each block the float weights, statistics and states of what learns, and the passes. */

#include "pipeline/end_to_end.h"
#include "pipeline/run_plan_parts.h"

#include "models/block_grad.h"
#include "quantizers/tune.h"

#include <math.h>

#define FLOAT ((int64_t)sizeof(float))
/* Learning is products, which take a quarter of the time of as many operations of the methods that solve; measured. */
#define LEARNING_SHARE 0.25
#define VISIT_OPERATIONS 100 /* of a weight that is read, and made of its codes; likewise */

int64_t memory_plan_tape(const struct plans *plans, int64_t sequences, int64_t length)
{
    const struct block_tape_spec spec = {.plans = plans, .sequences = sequences, .length = length, .rounds = true};
    int64_t bytes = block_tape_bytes(&spec);

    return bytes > 0 ? bytes : 0;
}

int64_t memory_plan_tuned(const struct recipe *recipe, const struct plan *plan, int64_t sequences)
{
    const struct recipe_stage *tuner = recipe_tuner(recipe);
    struct tune_cost cost;
    int64_t weights = 0, squares = 0, largest = 0;

    if (tuner == NULL) {
        return 0;
    }
    tuner->quantizer->tune_cost(tuner->params, sequences, &cost);
    for (int i = 0; i < plan->module_count; i++) {
        int64_t elements = plan->modules[i].rows * plan->modules[i].cols;
        weights += plan->modules[i].fixed ? 0 : elements;
        largest = elements > largest ? elements : largest;
    }
    for (int g = 0; g < plan->group_count; g++) {
        squares += plan->groups[g].columns * plan->groups[g].columns;
    }
    return weights * (FLOAT + cost.state) + (squares + largest) * FLOAT;
}

int64_t memory_plan_end_to_end(const struct recipe *recipe, const struct model *model, bool host_memory,
                               int64_t batch_tokens, int64_t tape_tokens)
{
    const struct model_config *c = model_config(model);
    struct tune_model_plan plan;

    if (!recipe_end_to_end(recipe, &plan)) {
        return 0;
    }
    bool tied = false; /* where that cannot be read, the run fails */
    int64_t table = c->vocab_size * c->hidden_size * (int64_t)dtype_rows[model_dtype(model)].bytes;
    int64_t tables = model_tied(model, &tied) == 0 && tied ? table : 2 * table;
    int64_t tape = head_tape_bytes(c, memory_plan_logits(c, host_memory), true);
    return tables + (tape > 0 ? tape : 0) + (batch_tokens + tape_tokens) * c->hidden_size * FLOAT;
}

/* What the complete model learns from; false: it does not. */
struct end_sets {
    int64_t held, learned, batch;
    double steps, measured; /* passes over the sequences that are held out */
    double visits;          /* to each block */
};

static bool end_sets_of(const struct run_load *load, struct end_sets *out)
{
    struct tune_model_plan plan;

    if (load->sequences == 0 || !recipe_end_to_end(load->recipe, &plan)) {
        return false;
    }
    int64_t held = end_to_end_held(load->sequences), learned = load->sequences - (load->sequences > 1 ? held : 0);
    int64_t batch = plan.batch < learned ? plan.batch : learned;
    int64_t batches = learned / batch;
    double steps = (double)(plan.epochs * batches), measured = (double)(plan.epochs + 1);
    *out = (struct end_sets){.held = held,
                             .learned = learned,
                             .batch = batch,
                             .steps = steps,
                             .measured = measured,
                             .visits = 2 * steps + measured * ceil((double)held / (double)batch) + 1};
    return true;
}

int64_t run_walk_end_batch(const struct run_load *load)
{
    struct end_sets sets;

    return end_sets_of(load, &sets) ? sets.batch : 0;
}

/* One block of the passes, and its evaluation once more. */
static void end_block_work(struct run_walk *w, const struct plan *plan, double forward)
{
    struct end_sets sets;
    double elements = 0, *work = w->plan->work;

    if (!end_sets_of(w->load, &sets)) {
        return;
    }
    for (int i = 0; i < plan->module_count; i++) {
        elements += (double)plan->modules[i].rows * (double)plan->modules[i].cols;
    }
    work[PHASE_SOLVE] +=
        LEARNING_SHARE * forward * (4 * sets.steps * (double)sets.batch + sets.measured * (double)sets.held) +
        VISIT_OPERATIONS * sets.visits * elements;
    work[PHASE_EVALUATE] +=
        w->eval_tokens > 0 ? plan_flops(plan, ~(plan_set)0, w->eval_tokens, w->load->eval_length) : 0;
}

/* Of the device, a block on a visit: weights and their gradients; of those on a grid the latents, too, and as it is
 * written its codes. The largest weight once more, for what steps make. *codes: all codes, which the host has. */
static int64_t end_block_bytes(const struct run_walk *w, int64_t layer, int64_t *codes, int64_t *largest)
{
    const struct plan *plan = plans_layer(model_plans(w->model), layer);
    int64_t bytes = 0;

    *codes = *largest = 0;
    for (int i = 0; i < plan->module_count; i++) {
        struct qscheme scheme;
        int64_t elements = plan->modules[i].rows * plan->modules[i].cols;
        bytes += elements * FLOAT;
        if (run_walk_solver(w, layer, i, &scheme) == NULL) {
            continue;
        }
        bytes += elements * FLOAT + (scheme.kind == QTENSOR_INT ? elements * (FLOAT + 1) : 0);
        *codes += elements;
        *largest = elements > *largest ? elements : *largest;
    }
    return bytes + *largest * FLOAT;
}

/* After the last block: one block with the gradients of its weights, the head with its way back. */
void run_walk_end(struct run_walk *w)
{
    const struct model_config *c = w->config;
    const struct run_load *load = w->load;
    struct end_sets sets;
    int64_t block = 0, host = 0;

    if (!end_sets_of(load, &sets)) {
        return;
    }
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        int64_t codes, largest, bytes = end_block_bytes(w, layer, &codes, &largest);
        block = bytes > block ? bytes : block;
        host = codes + largest * FLOAT > host ? codes + largest * FLOAT : host; /* latents on their way to the device */
    }
    int64_t lane = tune_lane(load->sequences, load->length);
    int64_t head = memory_plan_end_to_end(load->recipe, w->model, w->device->host_memory, sets.batch * load->length,
                                          lane * load->length);
    double logits = (double)(c->vocab_size * c->hidden_size * load->length);
    int64_t chunk = memory_plan_logits(c, w->device->host_memory),
            rows = (sets.batch < lane ? sets.batch : lane) * load->length;
    int64_t untouched = rows < chunk ? head_tape_bytes(c, chunk, true) - head_tape_bytes(c, rows, true) : 0;
    w->kept += w->device->host_memory ? untouched : 0;
    run_walk_note(w, STAGE_QUANTIZING, head + block, host);
    w->kept -= w->device->host_memory ? untouched : 0;
    w->plan->work[PHASE_SOLVE] +=
        LEARNING_SHARE * logits * (6 * sets.steps * (double)sets.batch + 4 * sets.measured * (double)sets.held);
}

int64_t run_walk_tuning(struct run_walk *w, const struct plan *plan)
{
    const struct recipe_stage *tuner = recipe_tuner(w->load->recipe);
    struct tune_cost cost;

    if (tuner == NULL || w->tokens == 0) {
        return 0;
    }
    tuner->quantizer->tune_cost(tuner->params, w->load->sequences, &cost);
    double forward = plan_flops(plan, ~(plan_set)0, w->load->length, w->load->length);
    w->plan->work[PHASE_SOLVE] += LEARNING_SHARE * forward * (3 * cost.learned + cost.measured);
    end_block_work(w, plan, forward);
    w->plan->work[PHASE_FORWARD] += 2 * forward * (double)w->load->sequences; /* the float path; to the next block */
    return memory_plan_tuned(w->load->recipe, plan, w->load->sequences);
}
