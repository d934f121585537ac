#pragma once
/* Within jobs/: the store of an service, and what a principal may see. */

#include "jobs/jobs.h"

struct store *service_store(const struct service *service);
/* ERR_NOT_FOUND when there is no such object of the principal's project. */
int access_object(struct store *store, const struct principal *who, const char *kind, const char *id);
