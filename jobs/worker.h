#pragma once
/* Who runs a job's pipeline for a runner's thread. */

#include "jobs/service.h"
#include "pipeline/pipeline.h"

/* Run it, in a thread or a process as the service was told, on that device (as runner_device_of says it) and come back
 * when it has ended, as pipeline_run does; `gpu` of the pipeline is the worker's to set. Messages come on the caller's
 * thread. The runner's thread. */
int worker_run(struct runner *runner, const struct gpu_info *device, const struct pipeline *pipeline);
/* The same in a thread of its own, with the `gpu` of the pipeline. */
int worker_run_thread(const struct pipeline *pipeline);
/* The same in a process of its own. ERR_WORKER_LOST: it crashed. */
int worker_run_process(struct service *service, const struct gpu_info *device, const struct pipeline *pipeline);
