#pragma once
/* Parts of spec_check. Inside the jobs floor only; any thread. */

#include "pipeline/spec.h"

/* Match the request's patterns (spec_bind). False, with the faults, when they cost too much to say what each module
 * would get. */
bool check_costs(struct job_spec *spec, const struct model *model, struct faults *faults);
/* Every pattern of the request, and every switch that a method has for some modules, changes something on this model:
 * one that does not is a typo or a misunderstanding, which would cost what it was meant to do. */
void check_patterns(const struct job_spec *spec, const struct model *model, struct faults *faults);
/* The shape of every module takes its parameters. */
void check_shapes(const struct job_spec *spec, const struct model *model, struct faults *faults);
/* The format carries the modules and the cache; the first that does is chosen where the request names none. */
void check_format(struct job_spec *spec, const struct model *model, struct format_module *modules, int count,
                  struct faults *faults);
