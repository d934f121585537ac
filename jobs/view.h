#pragma once
/* Rows of jobs as JSON: what the API shows. Nowhere else is a row turned into JSON. Any thread. */

#include "storage/job_row.h"

/* All: new references; NULL: no memory. */
/* The job object: every member is always there, null when it has no value. */
json_t *view_job(const struct job_row *row);
/* A page of jobs as a list object. */
json_t *view_jobs(const struct job_list *list);
/* {"passed","rung","rungs_total","rungs"}; null without a gate. */
json_t *view_gate(const struct job_row *row);
/* {"block","step","fraction",...,"eta_seconds"}; null before the first attempt. */
json_t *view_progress(const struct job_progress *progress);
/* {"source_bytes",...}; null before the first attempt. */
json_t *view_memory(const struct job_memory *memory);
/* "mode" of a stored request: "architecture" or "model_free". */
const char *view_mode(const json_t *request);
/* A count of bytes; null for 0. */
json_t *view_bytes(int64_t bytes);
/* How many jobs there are of each status, without those of which there are none. */
json_t *view_counts(const int64_t counts[]);
