#pragma once
/* The open block, changed before anything is solved. */

#include "pipeline/block_writer.h"
#include "pipeline/run.h"

/* Let every stage that rewrites change the open block, one input group after the other. */
int block_rewrite(struct run *run, struct block *block);
/* The float tensors that were changed and are stored as such. */
int block_keep_changes(struct run *run, struct block *block, struct block_outputs *outputs);
