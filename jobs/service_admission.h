#pragma once
/* Within jobs/: whether a job of a request can be taken. */

#include "jobs/service.h"

/* Everything that the job would run into: what it refers to, its model (`described`, or NULL: the stored one that the
 * spec names), its device. Fills in what the model decides. Takes long; without the lock. */
void admission_check(struct service *service, const struct principal *who, struct job_spec *spec,
                     const json_t *described, json_t *warnings, struct validation_errors *errors);
/* Under admission: what another request could have changed meanwhile, and whether there is room for one more. */
int admission_enter(struct service *service, const struct principal *who, const struct job_spec *spec,
                    struct validation_errors *errors);
