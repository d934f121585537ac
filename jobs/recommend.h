#pragma once
/* Within jobs/: which ways to quantize a model lead to a goal. */

#include "jobs/service_admission.h"

/* What is asked for; borrowed. */
struct recommend_ask {
    const json_t *body;            /* the members of POST /v1/quantization/recommendations */
    const char *pointer;           /* where these are in the request, "" or "/recommendation" */
    const json_t *stated;          /* a job whose "quantization" and "output" precede each way's own, or NULL */
    const struct gpu_info *device; /* that has to hold the job's blocks, or NULL */
};
/* The object that clients get. Negative with errors filled. */
int recommend_ways(struct service *service, const struct principal *who, const struct recommend_ask *ask,
                   struct validation_errors *errors, json_t **out);

/* Members of `stated` (a job, or NULL), in place of those that `job` has: method, quantization, output. */
void recommend_state(const json_t *stated, json_t *job);

/* "larger_model (Run a larger model on one machine), ..."; "a100-40gb, a100-80gb, ...; or its numbers as an object". */
void recommend_goal_names(char *out, size_t size);
void recommend_accelerator_names(char *out, size_t size);

/* JSON Schema of a job's "recommendation". New reference. */
json_t *recommend_job_schema(void);
/* A job's request whose method is "auto" becomes one of the best way that fits; of another method nothing happens.
 * Negative with errors filled: every reason for which there is no way. */
int recommend_resolve(struct service *service, const struct principal *who, json_t *request,
                      struct validation_errors *errors);
