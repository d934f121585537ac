#pragma once
/* What the files of the end-to-end phase (end_to_end.c) share: its state, visits to a block, and passes of some
 * sequences through all of them. */

#include "pipeline/block_restore.h"
#include "pipeline/run.h"
#include "quantizers/learn_model.h"

struct end_to_end {
    struct run *run;
    struct tune_model_plan plan;
    int64_t layers, length, hidden;
    struct learn_model *model;
    struct block_tape *tape;
    int64_t batch; /* sequences of the tape */
    struct head head;
    struct head_tape *head_tape;
    struct activations *inputs; /* [layers, the step's tokens]: of each block */
    struct tensor x, teacher;   /* F32 [the step's tokens, hidden]; [a lane's, hidden] */
    int64_t *order; /* sequences: those that are held out, then from `first` on the others; of one sequence the same */
    int64_t held, first, learned, steps, step;
    double share; /* of the rates: 1, or less after a loss that was not finite */
    bool diverged;
    struct tune_curve curve;
};

/* A block that is on the device. */
struct end_visit {
    struct block block;
    struct block_outputs outputs;
    struct tune_module *modules;
    int count;
};
/* The block as learned by now. end_visit_close is due after a failure, too. */
int end_visit_open(struct end_to_end *e, int64_t index, struct end_visit *v);
void end_visit_close(struct end_to_end *e, struct end_visit *v);

/* From the embedding of these sequences to their loss, the mean KL of a token; x becomes its gradient where backward.
 */
int end_forward(struct end_to_end *e, const int64_t *sequences, int64_t count, bool backward, double *loss);
/* Back from dL/dx of a block's output, in x, to that of its input, and a step of what it has. */
int end_backward(struct end_to_end *e, int64_t index, const int64_t *sequences, int64_t count, double share);
