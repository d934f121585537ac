#pragma once
/* The calibration set through the open block in float, next to the quantized path. */

#include "pipeline/run.h"
#include "quantizers/quantizer.h"

/* The micro-batches of the path, where some linear takes its target from the float model: then the one of fewest inputs
 * does. */
int reference_open(struct run *run);
/* Capacity in stats for a site's targets. */
int reference_init(struct run *run, enum site site, struct layer_stats *stats);
/* The block as the reference path sees it: linears that were solved, as they were. */
struct block reference_block(const struct run *run, const struct block *block);
/* One micro-batch of the reference path through the site's half of the block. Where stats ask for targets (NULL: they
 * do not), what the float model has beyond the quantized path's inputs `in` goes to them. quantized: the batch that
 * gave `in`, its x the residual stream before the site adds to it; its own `in` is overwritten where the site adds. */
int reference_pass(struct run *run, const struct block *block, enum site site, int64_t i, struct batch *quantized,
                   const struct tensor *in, struct layer_stats *stats);
/* Let go of the float linears of a site. */
void reference_release(struct run *run, enum site site);
