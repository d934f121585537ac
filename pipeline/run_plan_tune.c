/* What learning on solved blocks adds to a run (tune.c): the tape and two streams for as long as the run has, next to
 * each block the float weights, statistics and states of what learns, and the passes. */

#include "pipeline/run_plan_parts.h"

#include "models/block_grad.h"
#include "quantizers/tune.h"

#define FLOAT ((int64_t)sizeof(float))
/* Learning is products, which take a quarter of the time of as many operations of the methods that solve; measured. */
#define LEARNING_SHARE 0.25

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
                               int64_t tape_tokens, int64_t length)
{
    const struct model_config *c = model_config(model);
    struct tune_model_plan plan;

    if (!recipe_end_to_end(recipe, &plan)) {
        return 0;
    }
    int64_t tables = 2 * c->vocab_size * c->hidden_size * (int64_t)dtype_rows[model_dtype(model)].bytes;
    int64_t tape = head_tape_bytes(c, memory_plan_logits(c, host_memory), true);
    return tables + (tape > 0 ? tape : 0) + (plan.batch * length + tape_tokens) * c->hidden_size * FLOAT;
}

int64_t run_walk_tuning(struct run_walk *w, const struct plan *plan)
{
    const struct recipe_stage *tuner = recipe_tuner(w->load->recipe);
    struct tune_model_plan complete;
    struct tune_cost cost;

    if (tuner == NULL || w->tokens == 0) {
        return 0;
    }
    tuner->quantizer->tune_cost(tuner->params, w->load->sequences, &cost);
    double forward = plan_flops(plan, ~(plan_set)0, w->load->length, w->load->length);
    w->plan->work[PHASE_SOLVE] += LEARNING_SHARE * forward * (3 * cost.learned + cost.measured);
    if (recipe_end_to_end(w->load->recipe, &complete)) {
        w->plan->work[PHASE_SOLVE] +=
            LEARNING_SHARE * 4 * forward * (double)complete.epochs * (double)w->load->sequences;
    }
    w->plan->work[PHASE_FORWARD] += 2 * forward * (double)w->load->sequences; /* the float path; to the next block */
    return memory_plan_tuned(w->load->recipe, plan, w->load->sequences);
}
