#pragma once
/* What the layers of an architecture are made of, from the plans of a small configuration that has all that its row
 * reads: for lists of what there is, not for computing. Any thread. */

#include "models/arch.h"

#include <stddef.h>

#define ARCH_PARTS_MAX 24

struct arch_parts {
    const char *names[ARCH_PARTS_MAX]; /* static texts: "rope", "sliding_window", "experts" */
    size_t count;
    bool attention; /* some layer has it, */
    bool latent;    /* with keys and values from a latent row */
    bool folds;     /* factors can be moved between linears and what feeds them: rewriting methods do something */
    bool experts;
    bool differentiable; /* all steps have a backward pass: methods can learn */
};
/* That configuration, as a config.json. New reference; NULL: no memory. */
json_t *arch_sample(const struct arch *row);
/* False when it lacks what the row needs. */
bool arch_parts(const struct arch *row, struct arch_parts *out);
