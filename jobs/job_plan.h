#pragma once
/* Within jobs/: a job as a run that was planned from headers alone (pipeline/run_plan.h), with the sets that pass
 * through it. Any thread. */

#include "jobs/service.h"
#include "pipeline/run_plan.h"

/* Sequences of both sets, as far as they follow from the request and the sizes of the files that it names. */
struct job_sets {
    int64_t sequences, length; /* of the calibration set, without what is held back */
    int64_t eval_sequences, eval_length;
    bool known; /* else the number is an estimate from the file's size, or, of a stream, of one micro-batch */
};

/* Of a checked spec. who: whose files are looked up. */
int job_sets_of(struct service *service, const struct principal *who, const struct job_spec *spec,
                const struct model *model, struct job_sets *out);
/* Activations that a job of this spec may keep in the host's memory. */
int64_t job_host_budget(const struct service *service, const struct job_spec *spec);
/* The spec is checked against the model. */
int job_plan_make(const struct service *service, const struct job_spec *spec, const struct job_sets *sets,
                  const struct model *model, const struct gpu_info *device, struct run_plan *out);
/* The same with the memory of the rung of the gate's ladder that takes the most; work is the first rung's. The spec is
 * at its first rung, before and afterwards. */
int job_plan_ladder(const struct service *service, struct job_spec *spec, const struct job_sets *sets,
                    const struct model *model, const struct gpu_info *device, struct run_plan *out);
/* At the peak, of the device: as planned, or, of a device with memory of its own, at most. */
int64_t job_plan_device(const struct job_spec *spec, const struct run_plan *plan, const struct model *model,
                        const struct gpu_info *device);
/* What is known before it runs, of a spec that job_check_memory has looked at. */
struct job_memory job_memory_planned(const struct job_spec *spec);
/* Activations in files to the spec's disk plan, and what it takes of the device to the spec; an error where the host
 * has not the memory that the run takes with its activations, which spec_check does not look at. */
void job_check_memory(struct service *service, const struct principal *who, struct job_spec *spec,
                      const struct model *model, const struct gpu_info *device, struct validation_errors *errors);
