#pragma once
/* Learning on the complete model (EfficientQAT's end-to-end phase: Chen et al. 2024, arXiv 2407.11062; AQLM's:
 * Egiazarian et al. 2024, arXiv 2401.06118): scales, tables, norms and biases of all blocks, with codes as they are.
 * What is learned of each block stays on the host between its visits, so that one block at a time is on the device.
 *
 * The caller opens a block, runs it, adds gradients to what learn_model_grads says, makes a step, and closes it. Thread
 * of the stream. */

#include "quantizers/tune.h"

struct learn_model_spec {
    const struct gpu *gpu; /* outlives the model, like the stream */
    struct gpu_stream *stream;
    enum dtype float_dtype; /* in which norms and biases are stored */
    struct tune_model_plan plan;
    int64_t blocks;
};

struct learn_model;
/* Nothing is known of any block yet. ERR_HOST_OUT_OF_MEMORY. Sets *out on success only. */
int learn_model_new(const struct learn_model_spec *spec, struct learn_model **out);
void learn_model_free(struct learn_model *model); /* closes what is open; NULL is fine */
CLEANUP_FREE(learn_model, struct learn_model, learn_model_free)

/* Open a block as its file has it, the same each time: its weights, norms and biases become what is learned by now. Of
 * `modules` (as many as results of the block) the float weights are not read. The block and the modules outlive the
 * visit. After a failure learn_model_close is due, too. */
int learn_model_open(struct learn_model *model, int64_t index, struct block *block, struct tune_module *modules,
                     int count);
/* Where gradients of the open block are summed: zeros at first. */
const struct block_grads *learn_model_grads(const struct learn_model *model);
/* One step of what the open block has, by these gradients; share: of the rates; step: 1 or more. */
int learn_model_step(struct learn_model *model, double share, int64_t step);
/* Results, norms and biases of the open block become the kept ones; block_norm.changed and block_module.changed say
 * which of the latter are others than at first. *changed: whether anything is. */
int learn_model_finish(struct learn_model *model, bool *changed);
void learn_model_close(struct learn_model *model);
/* Of all blocks, none of which is open: keep what is learned by now; go back to what was kept. At first that is what
 * the files have. */
void learn_model_keep(struct learn_model *model);
void learn_model_return(struct learn_model *model);
