#pragma once
/* The evaluation set through both models, and their losses. */

#include "pipeline/run.h"

/* The set through the open block, on one path: its store's IN -> OUT. */
int evaluate_block(struct run *run, struct activations *store, const struct block *block);
/* Head and losses over both paths. */
int evaluate_finish(struct run *run, struct evaluation_result *out);
