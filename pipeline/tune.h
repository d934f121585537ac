#pragma once
/* Learning on the open block after its groups are solved, where the recipe has a stage that does so: what the block
 * reads on the quantized path, what the float model gives, and the steps in between. The stage sees the block as it
 * will be stored (quantizers/tune.h); rows of the report are measured again on what it leaves. */

#include "pipeline/block_writer.h"
#include "pipeline/report.h"
#include "pipeline/run.h"

/* run->tuning with its stores and the tape, where a stage learns. The calibration set's micro-batches are open. */
int tuning_open(struct run *run);
/* A resume loads the float path's store. */
void tuning_add_stores(struct run *run);
/* The float path's stream, which starts like the calibration set's; NULL: there is none. */
struct activations *tuning_store(const struct run *run);
/* The tape, and the sequences that it takes at once. */
struct block_tape *tuning_tape(const struct run *run, int64_t *batch);
void tuning_close(struct run *run); /* run->tuning becomes NULL */
/* Before the open block is changed: keep its input, and take the float path through it. */
int tuning_begin(struct run *run, struct block *block);
/* All groups are solved: learn, and put the block's input back where a pass to its output begins. */
int tuning_run(struct run *run, struct block *block, struct block_outputs *outputs, struct report_rows *rows);
/* How the open block's loss fell; NULL: nothing learns. */
const struct tune_curve *tuning_curve(const struct run *run);
