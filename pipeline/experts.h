#pragma once
/* The experts of the open block, a few at a time: as many as the run's budget holds (run->expert_bytes), at least one.
 * Each turn loads its experts, takes every micro-batch through them, and frees them before the next turn. Where all of
 * them fit at once they stay, and nothing is loaded twice. */

#include "pipeline/block_writer.h"
#include "pipeline/run.h"

/* A step EXPERTS of the open block, and the turns over its experts. */
struct experts_turn {
    struct run *run;
    struct block *block;
    struct block_outputs *outputs; /* where solved modules come from; NULL: none is solved yet */
    int step;
    int64_t first, count; /* experts that are loaded */
};

/* Before the first turn over a step. */
struct experts_turn experts_begin(struct run *run, struct block *block, struct block_outputs *outputs, int step);
/* Free the experts of the last turn and load those of the next. False in *more, and nothing loaded, when there are no
 * others. */
int experts_next(struct experts_turn *turn, bool *more);
/* Load a turn that expert `expert` is in, unless it is loaded. */
int experts_seek(struct experts_turn *turn, int64_t expert);
/* Free what is loaded. */
void experts_end(struct experts_turn *turn);

/* A token set before a step EXPERTS. */
struct experts_input {
    const struct microbatches *batches;
    struct activations *const *stores; /* by plan_storage.store */
    plan_set have;                     /* values that are kept there: the step's inputs follow from them */
    enum pipeline_phase phase;
    double share; /* run_tick */
    const char *doing;
};
/* Take the set through the experts of the turn, by the weights that `block` has for them (the open block or a view of
 * it), and add what they make of it to the step's output in the stores. */
int experts_add(const struct experts_turn *turn, const struct block *block, const struct experts_input *input);
