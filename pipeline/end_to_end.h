#pragma once
/* Learning on the complete model after its last block is committed, where the recipe asks for it: scales, tables, norms
 * and biases of all blocks against the KL divergence of the model's logits from the float model's, on the calibration
 * set. */

#include "pipeline/run.h"

/* All blocks are committed. They have other files afterwards, which are committed too, and the evaluation set is on its
 * quantized path at the end of the blocks again. 0 at once where the recipe does not ask for it. A run that was stopped
 * at any time ends in the same bytes: until all new files are there nothing of the old ones changes. */
int end_to_end_run(struct run *run);
/* Of so many sequences those that decide which epoch is kept; a single one learns, too. */
int64_t end_to_end_held(int64_t sequences);
