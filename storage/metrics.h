#pragma once
/* How long each operation of the database takes. Within storage only. */

#include "storage/state.h"

/* One of `ops` took so many seconds. Any thread. */
void storage_metrics_observe(const struct state_ops *ops, state_op op, double seconds);
void storage_metrics_write(const struct state_ops *ops, FILE *out);
