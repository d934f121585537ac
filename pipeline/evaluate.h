#pragma once
/* The evaluation set through both models, and their losses. */

#include "pipeline/block_writer.h"
#include "pipeline/run.h"

/* The set through the open block, on one path: its store's IN -> OUT. outputs: of modules that are solved; NULL: none
 * is. */
int evaluate_block(struct run *run, struct activations *store, struct block *block, struct block_outputs *outputs);
/* Head and losses over both paths. */
int evaluate_finish(struct run *run, struct evaluation_result *out);
