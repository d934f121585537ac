#pragma once
/* Within jobs/: the runtimes that a request names (output.targets). */

#include "base/validation.h"
#include "formats/runtimes.h"
#include "pipeline/recipe.h"

#include <jansson.h>

#define TARGETS_NOTE_SIZE 160

/* Read output.targets (NULL: none) and output.tensor_parallel_size. */
void targets_parse(const json_t *list, int64_t tensor_parallel, struct format_targets *out,
                   struct validation_errors *errors);
/* A request's "quantization" with the group size that its targets all but demand, or, without targets, the only one of
 * its format, where it leaves that open and one method alone decides; *note says so. A new reference, or NULL: it stays
 * as it is. */
json_t *targets_defaults(const struct format_targets *targets, const char *format, const json_t *method,
                         const json_t *quantization, char note[TARGETS_NOTE_SIZE]);
/* Refuse what a target does not load of the recipe's result. The format carries the modules. */
void targets_check(const struct format_targets *targets, const struct recipe *recipe, const struct format *format,
                   const struct format_config *config, struct validation_errors *errors);
