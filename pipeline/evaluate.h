#pragma once
/* The evaluation set through both models, and their losses. */

#include "pipeline/block_writer.h"
#include "pipeline/run.h"

/* The set through the open block, on one path: its store's IN -> OUT. outputs: of modules that are solved; NULL: none
 * is. */
int evaluate_block(struct run *run, struct activations *store, struct block *block, struct block_outputs *outputs);
/* The same on the quantized path, with inputs that the runtime rounds although the file does not say so. The block is
 * not to be used again. */
int evaluate_quantized(struct run *run, struct block *block, struct block_outputs *outputs);
/* The evaluation set from its embedding through all blocks, on the path of this store: in float, or as their files have
 * them. All blocks are committed. */
int evaluate_saved(struct run *run, struct activations *store);
/* The calibration set through the open block, likewise: from the IN side of stores[0] to its OUT side. stores: by
 * plan_storage.store, with those of shared values; what they have is used up. */
int calibration_forward(struct run *run, struct activations *const *stores, struct block *block,
                        struct block_outputs *outputs);
/* The mean KL(float || it) of each of `count` streams of the evaluation set, in nats for each predicted token, to
 * kl. Their stores' IN are what the last block made, like the float path's. */
int evaluate_divergences(struct run *run, struct activations *const *streams, int count, double *kl);
/* Head and losses over both paths. */
int evaluate_finish(struct run *run, struct evaluation_result *out);
