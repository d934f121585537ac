#pragma once
/* Scales of static inputs. */

#include "pipeline/run.h"

bool site_input_is_static(const struct qscheme *scheme);
/* Scales of static inputs into the results of a site's linears, all solved and their weights still in float, and what
 * there is to say of them into out[count]. */
int site_inputs(struct run *run, enum site site, const struct layer_stats *stats, const struct qscheme *schemes,
                struct linear_job *jobs, int count, struct report_input *out);
