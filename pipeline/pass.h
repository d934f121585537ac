#pragma once
/* A pass of a micro-batch over the open block, from what is kept to what a group reads. */

#include "pipeline/run.h"

/* Values of a micro-batch, which all have stores, by plan_storage.store: from there, in place where that can be; about
 * to be made, likewise; to there. */
int pass_open(struct run *run, struct activations *const *stores, struct microbatch *b, plan_set values);
/* Steps of a micro-batch from the values `used`, each of which is opened once all before it is done: until then its
 * place may be that of another value. */
int pass_run(struct run *run, struct activations *const *stores, const struct block *block, struct microbatch *b,
             plan_set steps, plan_set used);
void pass_place(struct run *run, struct activations *const *stores, struct microbatch *b, plan_set values);
int pass_write(struct run *run, struct activations *const *stores, const struct microbatch *b, plan_set values);
/* plan_steps, or ERR_INTERNAL. */
int pass_steps(const struct plan *plan, plan_set have, plan_set want, plan_set *steps, plan_set *used);
/* What is kept when the pass to a group begins: to the first the layer's inputs; after the last: to its output. */
plan_set pass_kept_before(const struct plan *plan, int group);
