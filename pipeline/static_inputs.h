#pragma once
/* Scales of static inputs. */

#include "pipeline/run.h"

bool input_is_static(const struct qscheme *scheme);
/* Scales of static inputs into the results of a group's modules, all solved and their weights still in float, and what
 * there is to say of them into out[count]. share: how much of the block is done. */
int group_inputs(struct run *run, double share, const struct layer_stats *stats, const struct qscheme *schemes,
                 struct linear_job *jobs, int count, struct report_input *out);
