#pragma once
/* Scales against the type that they are stored in. */

#include "pipeline/run.h"

/* Name in job->fallback, and in a warning, scales of the result that their stored type does not hold. weight: F32 [N,K]
 * on the device, what the result stands for. */
int check_stored_scales(struct run *run, const struct tensor *weight, struct linear_job *job);
/* Whether there may be such scales; without a look at weights. */
bool stored_scales_suspect(const struct qtensor *q);
/* The stored scale of static inputs whose range ends at `max`; named likewise where it does not fit. */
float stored_input_scale(float max, enum dtype element, enum dtype dtype, struct linear_job *job);
