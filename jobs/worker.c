/* Which worker runs a job; and the one in the runner's own thread, on the engine's device or on another that the job
 * asked for. */

#include "jobs/worker.h"

#include "base/err.h"

#include <string.h>

static int run_thread(struct engine *engine, const struct gpu_info *device, const struct pipeline *pipeline)
{
    bool own = strcmp(device->id, engine->gpu.info.id) != 0;
    struct pipeline told = *pipeline;
    struct gpu other = {.ops = NULL};

    int rc = own ? gpu_open(device->id, engine->threads, &other) : 0;
    if (rc != 0) {
        return rc;
    }
    told.gpu = own ? &other : &engine->gpu;
    engine->lost_until_exit = told.gpu->ops->lost_until_exit;
    rc = pipeline_run(&told);
    if (own) {
        gpu_close(&other);
    }
    return rc;
}

int worker_run(struct engine *engine, const struct gpu_info *device, const struct pipeline *pipeline)
{
    return engine->worker_process ? worker_run_process(engine, device, pipeline) : run_thread(engine, device, pipeline);
}
