/* Which worker runs a job; and the one in the supervisor's own thread, on the service's device or on another that the
 * job asked for. */

#include "jobs/worker.h"

#include "base/err.h"

#include <string.h>

static int run_thread(struct service *service, const struct gpu_info *device, const struct pipeline *pipeline)
{
    bool own = strcmp(device->id, service->supervisor.gpu.info.id) != 0;
    struct pipeline told = *pipeline;
    struct gpu other = {.ops = NULL};

    int rc = own ? gpu_open(device->id, service->supervisor.threads, &other) : 0;
    if (rc != 0) {
        return rc;
    }
    told.gpu = own ? &other : &service->supervisor.gpu;
    service->supervisor.lost_until_exit = told.gpu->ops->lost_until_exit;
    rc = pipeline_run(&told);
    if (own) {
        gpu_close(&other);
    }
    return rc;
}

int worker_run(struct service *service, const struct gpu_info *device, const struct pipeline *pipeline)
{
    return service->supervisor.worker_process ? worker_run_process(service, device, pipeline)
                                              : run_thread(service, device, pipeline);
}
