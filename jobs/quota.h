#pragma once
/* Within jobs/: what a project may have. A project's own quota takes precedence over the daemon's default. Admission is
 * the gate: what was accepted is never refused later, also when the quota was lowered meanwhile. */

#include "jobs/service.h"

struct quota_state {
    struct quota_row row;
    int64_t allowed[QUOTA_COUNT]; /* INT64_MAX: no limit */
};

/* The daemon's defaults, for the store too. */
void quota_open(struct service *service, const struct project_limits *limits);
int quota_read(struct service *service, const char *project, struct quota_state *out);
/* Under admission: ERR_QUOTA_EXCEEDED when the project may not have another job, whose artifact will have so many
 * bytes; the same of a file, and of an upload. */
int quota_admit_job(struct service *service, const struct principal *who, int64_t artifact_bytes);
int quota_admit_file(struct service *service, const struct principal *who, int64_t bytes);
int quota_admit_upload(struct service *service, const struct principal *who, int64_t bytes);
/* Queued jobs of the project are passed over now; for ever, as far as is known: its quota is none. */
bool quota_holds(const struct quota_state *state);
bool quota_forbids(const struct quota_state *state);
/* Queued jobs among those that are shown (an array, or one) say why they are passed over. */
void quota_explain(const struct quota_state *state, json_t *job);
