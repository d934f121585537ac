#pragma once
/* Warnings about learning that came to nothing, or whose loss rose, from the notes of finished blocks (tuning.h). */

#include "pipeline/recipe.h"

#include <jansson.h>
#include <stddef.h>

#define TUNING_WARNING_SIZE 512

/* The loss is that of the start, to a millionth; it is less, though it rose far above the first on the way. */
extern const char tuning_kept_nothing[], tuning_diverged[];

/* What is to be said of learning on blocks, or with `model` of end_to_end: one of the codes above and its text, or
 * NULL. blocks: rows of the store, in their order. */
const char *tuning_warning(const json_t *blocks, const struct recipe *recipe, bool model,
                           char text[TUNING_WARNING_SIZE]);
