#pragma once
/* Within jobs/: whether a job of a request can be taken. */

#include "jobs/service.h"

/* The model of a request that describes one in place of naming it. */
#define SUBMISSION_NO_MODEL "mdl_00000000000000000000000000"

/* A request for a job, as far as it was read. */
struct submission {
    struct job_spec spec;
    json_t *described; /* the model that it describes in place of naming one, not stored yet; or NULL */
    json_t *warnings;
    const struct trace *trace;
    const struct idempotency_key *idempotency;
};
/* Negative with errors filled. A model that the request describes is looked at only where the rest of it can be read,
 * unless its method is "auto". */
int submission_read(struct service *service, const struct principal *who, const json_t *body, struct submission *out,
                    struct validation_errors *errors);
void submission_deinit(struct submission *submission); /* zeroed is fine */
CLEANUP_DEINIT(submission, struct submission, submission_deinit)

/* JSON Schema of a body of POST /v1/quantization/recommendations, but for "model". New reference. */
json_t *recommend_schema(void);

/* Everything that the job would run into: what it refers to, its model (`described`, or NULL: the stored one that the
 * spec names), its device. Fills in what the model decides. Takes long; without the lock. */
void admission_check(struct service *service, const struct principal *who, struct job_spec *spec,
                     const json_t *described, json_t *warnings, struct validation_errors *errors);
/* Its parts, for those who look at the model too: all but the model; the model, which the caller closes (negative with
 * an error added); the job on that model, and whether there is the device that would run it, in *device. */
void admission_check_named(struct service *service, const struct principal *who, const struct job_spec *spec,
                           struct validation_errors *errors);
int admission_open(struct service *service, const struct principal *who, const struct job_spec *spec,
                   const json_t *described, struct model **model, struct validation_errors *errors);
bool admission_check_model(struct service *service, const struct principal *who, struct job_spec *spec,
                           const struct model *model, struct gpu_info *device, json_t *warnings,
                           struct validation_errors *errors);
/* Under admission: what another request could have changed meanwhile, and whether there is room for one more. */
int admission_enter(struct service *service, const struct principal *who, const struct job_spec *spec,
                    struct validation_errors *errors);
/* Room on the disk, in the queue (as many as wait, not those that run), and in the project. */
int admission_capacity(struct service *service, const struct principal *who, const struct job_spec *spec);
