#pragma once
/* The open block's key and value cache. */

#include "pipeline/block_writer.h"
#include "pipeline/run.h"

/* After the last group before attention is solved: measure the scales of a cache that is to be quantized, keep them
 * among the outputs, and let the block read keys and values through it. After other groups nothing. */
int group_cache(struct run *run, struct block *block, int group, struct block_outputs *outputs);
/* What an analysing recipe has to say of the open block goes to run->analysis. */
int block_analyse(struct run *run, struct block *block);
