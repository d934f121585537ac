#pragma once
/* Within jobs/: how fast this machine is, for estimates of a job's time. A device is measured once, when first asked
 * about (products of three widths, copies in memory and a file, a third of a second); after each job the rates that it
 * ran at are kept for each phase, method and width of linears. All of it is in machine.json of the data directory, by
 * device. Any thread. */

#include "jobs/service.h"
#include "pipeline/run_plan.h"

struct machine_time {
    bool known;     /* else the device could not be measured */
    bool from_jobs; /* rates of finished jobs for each phase that counts; else of what was measured at first */
    double seconds; /* of all */
    double phases[PHASE_COUNT];
    double other; /* reading records, checking the checkpoint, publishing */
};

/* How long a run of this plan takes, its work by the method `method` ("gptq"). */
void machine_estimate(struct service *service, const struct gpu_info *device, const char *method,
                      const struct run_plan *plan, struct machine_time *out);
/* A job ran as planned, from its first block to its end, in `elapsed` seconds. Failures are logged. */
void machine_learn(struct service *service, const struct gpu_info *device, const char *method,
                   const struct run_plan *plan, const struct pipeline_times *times, double elapsed);
