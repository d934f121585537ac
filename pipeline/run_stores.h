#pragma once
/* The activation stores of a run: which it has, opened and closed. */

#include "pipeline/run.h"
#include "pipeline/stores.h"

/* A store of `width` columns for the tokens of a set. */
int run_new_store(struct run *run, const char *name, const struct microbatches *batches, int64_t width,
                  struct activations **out);
/* What a set keeps within a block, to `out` by number: files "<stem>-<number>". */
int run_open_value_stores(struct run *run, const struct microbatches *batches, const char *stem, enum stores_use use,
                          struct activations **out);
/* What blocks of a set give to later ones, likewise. The stores outlive blocks without being saved: a resume begins
 * with the embeddings. */
int run_open_shared_stores(struct run *run, const struct microbatches *batches, const char *stem,
                           struct activations **out);
/* All stores of the calibration set. */
int run_open_calibration(struct run *run);
/* Those of all sets, which are added to the checkpoint, and the float model's last activations of an earlier run where
 * these are still what was saved. */
int run_open_stores(struct run *run);
/* Those of an evaluation whose micro-batches are there; name: of their files, at most 10 characters. After a failure
 * evaluation_close is due, too. */
int evaluation_open(struct run *run, const char *name, struct evaluation *e);
/* With its micro-batches; zeroed is fine. */
void evaluation_close(const struct run *run, struct evaluation *e);
