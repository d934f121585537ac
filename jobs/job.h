#pragma once
/* A job's life as one table: its states, the events that move it between them, and the one function that moves it. */

#include "base/ids.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct store;

enum job_event {
    JOB_COMPLETE, /* calibration is complete */
    JOB_CLAIM,    /* a worker took it */
    JOB_REQUEUE,  /* interrupted (shutdown, crash, retryable failure): goes on from its last finished block */
    JOB_CANCEL,   /* a client asked */
    JOB_STOPPED,  /* the worker obeyed a cancellation, or none runs it any more */
    JOB_SUCCEED,
    JOB_FAIL,
};

struct job_transition {
    const char *from;
    enum job_event event;
    const char *to;
};

/* Ends with from == NULL. */
extern const struct job_transition job_transitions[];

/* The state in which a new job begins. */
const char *job_first_state(bool streams_calibration);
/* The state that `event` leads to, or NULL when it is not legal from there. */
const char *job_next(const char *from, enum job_event event);

/* What goes with a move. */
struct job_change {
    int64_t fence;          /* of the claim; -1: any */
    const char *reason;     /* for status_reason and the event; NULL: none */
    json_t *columns;        /* others that the same transaction sets, beside what follows from the move; NULL: none */
    json_t *made;           /* of a success, what it made, for the event: {"artifact_id"}; NULL: none */
    const json_t *artifact; /* an artifact that the same transaction publishes; NULL: none */
};

/* Store a new job, whose columns are in `row` but for its status, with its first event. */
int job_create(struct store *store, json_t *row, bool streams_calibration, const struct idempotency_key *idempotency);
/* Make one move: its state, the times and columns that follow from it, and its "status" event, in one transaction. Only
 * this function and job_claim change the status of a job that is there. columns and made are taken, also on failure.
 * *row (may be NULL) is the job after it. ERR_JOB_STATE_CONFLICT when the move is not legal from where the job is, or
 * the fence is another's; ERR_NOT_FOUND. */
int job_move(struct store *store, const char *id, enum job_event event, const struct job_change *change, json_t **row);
/* JOB_CLAIM, of the oldest job of the highest priority that waits: see store_job_claim. ERR_NOT_FOUND: none waits. */
int job_claim(struct store *store, const char *worker, json_t **row);
