#pragma once
/* Parts of spec_check. Inside the jobs floor only; any thread. */

#include "jobs/spec.h"

/* Every pattern of the request, and every switch that a method has for some modules, changes something on this model:
 * one that does not is a typo or a misunderstanding, which would cost what it was meant to do. */
void check_patterns(const struct job_spec *spec, const struct model *model, struct faults *faults);
