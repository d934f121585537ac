#pragma once
/* A stand-in for the job service over a real store: it makes rows and moves, and runs nothing. The knobs let tests slow
 * it down, break it and count what reached it. */

#include "jobs/jobs.h"
#include "storage/storage.h"

#include <stdatomic.h>

struct service {
    struct store *store;
    atomic_int models, jobs;          /* created */
    atomic_int uploads, ends, aborts; /* of calibration */
    atomic_llong fed;                 /* bytes */
    atomic_int largest;               /* bytes of one feed */
    atomic_int feed_delay_ms;         /* each feed sleeps so long */
    atomic_int creating;              /* job creations begun */
    atomic_bool hold_create;          /* they do not go on while this is set */
    atomic_llong fail_after;          /* a feed beyond so many bytes fails; 0 = never */
};

/* A job of that status; its id. */
void fake_service_job(struct service *service, enum job_status status, char id[ID_SIZE]);
