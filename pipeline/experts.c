/* Turns over the experts of a block. An expert's weights come from the checkpoint, with the factors that rewriting gave
 * them, or, once a module is solved, from its codes. The output of a step EXPERTS is a sum over experts in their order;
 * between turns it is kept like any other activation, so that the sum has the same bits however many experts a turn
 * has. */

#include "pipeline/experts.h"

#include "base/err.h"
#include "pipeline/memory_plan.h"
#include "pipeline/pass.h"
#include "pipeline/solve.h"

static const struct plan_experts *experts_of(const struct experts_turn *turn)
{
    return turn->block->plan->steps[turn->step].experts;
}

static int experts_load_module(const struct experts_turn *turn, int module)
{
    struct run *run = turn->run;
    struct block *block = turn->block;
    struct tensor *weight = &block->modules[module].weight;
    char name[PLAN_NAME_MAX];

    if (weight->data != NULL) {
        return 0;
    }
    model_module_name(run->p->model, run->block_index, module, name);
    int solved = turn->outputs != NULL ? block_outputs_find(turn->outputs, name) : -1;
    if (solved < 0 || block->plan->modules[module].bias) {
        TRY(block_load_module(run->p->model, run->p->gpu, run->stream, block, module));
    }
    if (solved < 0) {
        return 0;
    }
    gpu_tensor_free(run->p->gpu, weight);
    return solved_weight(run, turn->outputs, solved, weight);
}

static int experts_load(const struct experts_turn *turn, int64_t expert)
{
    const struct plan_experts *experts = experts_of(turn);
    int first = experts->first_module + (int)expert * experts->plan->module_count;

    for (int i = 0; i < experts->plan->module_count; i++) {
        TRY(experts_load_module(turn, first + i));
    }
    run_end_phase(turn->run, PHASE_LOAD, 0);
    return 0;
}

struct experts_turn experts_begin(struct run *run, struct block *block, struct block_outputs *outputs, int step)
{
    return (struct experts_turn){.run = run, .block = block, .outputs = outputs, .step = step};
}

void experts_end(struct experts_turn *turn)
{
    const struct plan_experts *experts = experts_of(turn);
    int count = experts->plan->module_count, first = experts->first_module + (int)turn->first * count;

    for (int i = 0; turn->count < experts->count && i < (int)turn->count * count; i++) {
        block_drop_module(turn->block, first + i, turn->run->p->gpu);
    }
    turn->count = 0;
}

static int turn_load(struct experts_turn *turn, int64_t first)
{
    const struct plan_experts *experts = experts_of(turn);
    int64_t size = memory_plan_turn(experts, turn->run->expert_bytes), left = experts->count - first;

    experts_end(turn);
    turn->first = first;
    turn->count = size < left ? size : left;
    for (int64_t i = 0; i < turn->count; i++) {
        TRY(experts_load(turn, first + i));
    }
    return 0;
}

int experts_next(struct experts_turn *turn, bool *more)
{
    int64_t first = turn->first + turn->count;

    *more = first < experts_of(turn)->count;
    if (!*more) {
        experts_end(turn);
        return 0;
    }
    return turn_load(turn, first);
}

int experts_seek(struct experts_turn *turn, int64_t expert)
{
    int64_t size = memory_plan_turn(experts_of(turn), turn->run->expert_bytes);

    if (turn->count > 0 && expert >= turn->first && expert < turn->first + turn->count) {
        return 0;
    }
    return turn_load(turn, expert / size * size);
}

static int experts_add_batch(const struct experts_turn *turn, const struct block *block,
                             const struct experts_input *input, plan_set steps, plan_set used, struct microbatch *b)
{
    const plan_set out = PLAN_BIT(block->plan->steps[turn->step].out);
    struct run *run = turn->run;

    TRY(pass_run(run, input->stores, block, b, steps, used));
    if (turn->first == 0) {
        pass_place(run, input->stores, b, out);
        TRY(block_experts_begin(&b->values, turn->step));
    } else {
        TRY(pass_open(run, input->stores, b, out));
    }
    TRY(block_experts_add(block, &b->values, turn->step, turn->first, turn->count));
    return pass_write(run, input->stores, b, out);
}

int experts_add(const struct experts_turn *turn, const struct block *block, const struct experts_input *input)
{
    const struct plan *plan = block->plan;
    const struct plan_step *step = &plan->steps[turn->step];
    plan_set want = PLAN_BIT(step->in[0]) | PLAN_BIT(step->in[1]), steps = 0, used = 0;
    double share = (double)turn->count / (double)step->experts->count;
    double flops = 0;

    TRY(pass_steps(plan, input->have, want, &steps, &used));
    for (int64_t i = 0; i < microbatches_count(input->batches); i++) {
        struct microbatch b = microbatches_at(input->batches, plan, i);
        TRY(run_tick(turn->run, input->share, input->doing));
        TRY(experts_add_batch(turn, block, input, steps, used, &b));
        flops += plan_flops(plan, steps, b.rows, 1) + share * plan_flops(plan, PLAN_BIT(turn->step), b.rows, 1);
    }
    run_end_phase(turn->run, input->phase, flops);
    return 0;
}
