#pragma once
/* A job's life: the one function that moves it between its states (jobs/transitions.h). */

#include "jobs/transitions.h"
#include "storage/storage.h"

/* What goes with a move. */
struct job_change {
    int64_t fence;             /* of the claim; -1: any */
    const char *reason;        /* for status_reason and the event; NULL: none */
    unsigned set;              /* JOB_SET_...: other columns of `row`, in addition to those that follow from the move */
    const struct job_row *row; /* NULL: none */
    const json_t *made;        /* of a success, what it made, for the event: {"artifact_id"}; NULL: none */
    const json_t *artifact;    /* an artifact that the same transaction publishes; NULL: none */
};

/* Store a new job, with its first event. job: all but its status and queued_at. */
int job_create(struct store *store, const struct job_row *job, bool streams_calibration,
               const struct idempotency_key *idempotency);
/* Make one move: its state, the times and columns that follow from it, and its "status" event, in one transaction. Only
 * this function and job_claim change the status of a job that is there. *after (may be NULL) is the job after it.
 * ERR_JOB_STATE_CONFLICT when the move is not legal from where the job is, or the fence is another's; ERR_NOT_FOUND. */
int job_move(struct store *store, const char *id, enum job_event event, const struct job_change *change,
             struct job_row *after);
/* JOB_CLAIM, of the oldest job of the highest priority that waits and that a worker of this name may run: see
 * store_job_claim. ERR_NOT_FOUND: none waits. */
int job_claim(struct store *store, const char *worker, const char *others, struct job_row *job);
