#pragma once
/* Calls of the storage thread, for the files that make them. Within storage only; any thread but the loop. */

#include "storage/state.h"

/* The operations of the store's database. */
const struct state_ops *store_state(const struct store *store);
/* One operation on the storage thread; returns its answer. */
int store_run(struct store *store, state_op op, struct state_args args);
/* The same of what ends a job or removes something: a full disk does not stop it. */
int store_run_ending(struct store *store, state_op op, struct state_args args);
