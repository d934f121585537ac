#pragma once
/* A pass of a micro-batch over the open block, from what is kept to what a group reads. */

#include "pipeline/run.h"

/* Values of a micro-batch, which all have stores: from there, in place where that can be; about to be made, likewise;
 * to there. */
int pass_open(struct run *run, struct microbatch *b, plan_set values);
void pass_place(struct run *run, struct microbatch *b, plan_set values);
int pass_write(struct run *run, const struct microbatch *b, plan_set values);
/* plan_steps, or ERR_INTERNAL. */
int pass_steps(const struct plan *plan, plan_set have, plan_set want, plan_set *steps, plan_set *used);
/* What is kept when the pass to a group begins; after the last group: to the layer's output. */
plan_set pass_kept_before(const struct plan *plan, int group);
