#pragma once
/* A finished block as its file has it: loaded once more, with what quantization made of it in place. */

#include "pipeline/block_writer.h"
#include "pipeline/run.h"

/* The block that is open, loaded in float, becomes the quantized one. `outputs`, zeroed, gets the file's results:
 * experts that are not loaded are made from them (experts.h). Both are the caller's to release, also after a failure.
 * ERR_SOURCE_CORRUPT: the file is not what was saved. */
int block_restore(struct run *run, const struct saved_block *saved, struct block *block, struct block_outputs *outputs);
