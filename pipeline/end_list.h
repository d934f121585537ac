#pragma once
/* The list of what end_to_end made of a model's blocks: which file each of them is to have, and how the loss fell. It
 * is written once all of these files are there, and blocks are committed with them by it.
 *
 *   "quantd end-to-end" | version | curve | blocks | file, digest before, digest after of each | digest of all that
 *
 * Fields are as in frames (wire.h). */

#include "base/digest.h"
#include "quantizers/tune.h"

#include <stdbool.h>

#define END_LIST_FILE "end-to-end.list"
#define END_LIST_VERSION 2 /* 1 had no header */

struct end_list_block {
    char file[64];                                        /* the new one */
    char before[DIGEST_HEX_SIZE], after[DIGEST_HEX_SIZE]; /* of the old one's bytes and of its */
};

/* Zeroed is empty; end_list_deinit. */
struct end_list {
    struct tune_curve curve;
    struct end_list_block *blocks; /* owned */
    int64_t count;
};

/* Into the run's folder, at once. */
int end_list_write(const char *directory, const struct end_list *list);
/* *found: there is one. What another version wrote, or what is not complete, is none. *out is set where it was found.
 */
int end_list_read(const char *directory, struct end_list *out, bool *found);
void end_list_deinit(struct end_list *list);
