#pragma once
/* The calibration set through the open block in float, next to the quantized path. */

#include "pipeline/experts.h"
#include "quantizers/quantizer.h"

/* The micro-batches of the path, where some linear takes its target from the float model: then the one of fewest inputs
 * does. */
int reference_open(struct run *run);
void reference_close(struct run *run);
/* Capacity in stats for a group's targets. */
int reference_init(struct run *run, const struct plan *plan, int group, struct layer_stats *stats);
/* The block as the reference path sees it: modules that were solved, as they were. A view (block_view_deinit). */
int reference_view(const struct run *run, const struct block *block, struct block *out);
/* The values of the quantized path that reference_pass reads for a group of these stats, next to the group's input. */
plan_set reference_reads(const struct run *run, const struct plan *plan, int group, const struct layer_stats *stats);
/* One micro-batch of the reference path to the input of a group that is not an expert's, and on to the next sum of the
 * residual stream where no other group comes before it. Where stats ask for targets (NULL: they do not), what the float
 * model has beyond the quantized path goes to them. quantized: the same micro-batch there, with the group's input and
 * the residual stream before it. */
int reference_pass(struct run *run, const struct block *reference, int group, int64_t i,
                   const struct microbatch *quantized, struct layer_stats *stats);
/* Experts of a turn that are solved, on the path: they are added up before their float weights are freed. group: one of
 * theirs. */
int reference_experts(const struct experts_turn *turn, int group);
/* When all experts have had their turn: on to the next sum of the residual stream, where it comes after `group`, their
 * last. */
int reference_pass_experts(struct run *run, struct block *block, int group);
/* Free a module's float weight. */
void reference_free(struct run *run, int module);
/* After a group: free the float weights that the path no longer needs; after the last one, all. */
void reference_release(struct run *run, const struct plan *plan, int group);
