#pragma once
/* Which activation stores a set of sequences has, from the plans alone: what is kept of each token between passes. Any
 * thread. */

#include "models/model.h"

enum stores_use { STORES_CALIBRATION, STORES_REFERENCE, STORES_EVALUATION };

/* Columns of what is kept within a block, by number of the store, as wide as in any layer; 0: there is no such store.
 * Store 0, of the residual stream, is not among them. */
void stores_values(const struct plans *plans, enum stores_use use, int64_t columns[PLAN_VALUES_MAX]);
/* Columns of what blocks give to later ones, by its number. */
void stores_shared(const struct plans *plans, int64_t columns[PLAN_SHARED_MAX]);
