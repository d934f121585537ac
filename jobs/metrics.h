#pragma once
/* What jobs do, counted for monitoring since the start of the process. Any thread. Within jobs/. */

#include "pipeline/report.h"
#include "storage/job_row.h"
#include "storage/webhook_row.h"

#include <stdio.h>

struct service;

void metrics_job_claimed(const struct job_row *job);
/* The job has got a status that is final. */
void metrics_job_finished(const char *method, enum job_status status);
/* A block is committed, with the rows of its modules. */
void metrics_block_committed(const struct report_row *rows, int row_count, int64_t bytes);
/* An attempt found that its job belongs to another. */
void metrics_lease_lost(void);
/* A rung did not pass its job's gate. */
void metrics_gate_failed(void);
/* An attempt at a message to a webhook; the message is pending when it is tried again. */
void metrics_webhook_attempt(enum delivery_status status, double seconds);
/* All of it, and what the store says, in the text of base/metrics.h. */
void metrics_write(struct service *service, FILE *out);
