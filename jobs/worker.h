#pragma once
/* Who runs a job's pipeline for the runner's thread. */

#include "jobs/engine.h"
#include "pipeline/pipeline.h"

/* Run it on that device (as engine_device_of says it) and come back when it has ended, as pipeline_run does; `gpu` of
 * the pipeline is the worker's to set. Messages come on the caller's thread. Runner thread. */
int worker_run(struct engine *engine, const struct gpu_info *device, const struct pipeline *pipeline);
