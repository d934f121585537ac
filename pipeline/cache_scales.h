#pragma once
/* The open block's key and value cache. */

#include "pipeline/block_writer.h"
#include "pipeline/run.h"

/* After the solved SITE_ATTENTION: measure the scales of a cache that is to be quantized, keep them among the outputs,
 * and let the block read keys and values through it. */
int site_cache(struct run *run, struct block *block, struct block_outputs *outputs);
/* What an analysing recipe has to say of the open block goes to run->analysis. */
int sites_analyse(struct run *run, struct block *block);
