#pragma once
/* Within jobs/: the store of an engine, and the one place that says whether a principal may see a job. */

#include "jobs/jobs.h"

struct store *engine_store(const struct engine *engine);
/* ERR_NOT_FOUND when there is no such object of the principal's project. */
int access_object(struct store *store, const struct principal *who, const char *kind, const char *id);
/* The job's row; ERR_NOT_FOUND when there is none, or it belongs to another project. */
int access_job(struct store *store, const struct principal *who, const char *id, json_t **row);
