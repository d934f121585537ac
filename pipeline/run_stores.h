#pragma once
/* The activation stores of a run: which it has, opened and closed. */

#include "pipeline/run.h"

/* Those of all sets, which are added to the checkpoint, and the float model's last activations of an earlier run where
 * these are still what was saved. */
int run_open_stores(struct run *run);
/* Those of an evaluation whose micro-batches are there; name: of their files, at most 10 characters. After a failure
 * evaluation_close is due, too. */
int evaluation_open(struct run *run, const char *name, struct evaluation *e);
/* With its micro-batches; zeroed is fine. */
void evaluation_close(const struct run *run, struct evaluation *e);
