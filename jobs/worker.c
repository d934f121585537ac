/* Which worker runs a job; and on which device the one in a thread does: the runner's, or another that the job asked
 * for. */

#include "jobs/worker.h"

#include "base/err.h"

#include <string.h>

static int run_thread(struct runner *runner, const struct gpu_info *device, const struct pipeline *pipeline)
{
    bool own = strcmp(device->id, runner->device.id) != 0;
    struct pipeline told = *pipeline;
    struct gpu other = {.ops = NULL};

    int rc = own ? gpu_open(device->id, runner->service->supervisor.threads, &other) : 0;
    if (rc != 0) {
        return rc;
    }
    told.gpu = own ? &other : &runner->gpu;
    runner->lost_until_exit = told.gpu->ops->lost_until_exit;
    rc = worker_run_thread(&told);
    if (own) {
        gpu_close(&other);
    }
    return rc;
}

int worker_run(struct runner *runner, const struct gpu_info *device, const struct pipeline *pipeline)
{
    return runner->service->supervisor.worker_process ? worker_run_process(runner->service, device, pipeline)
                                                      : run_thread(runner, device, pipeline);
}
