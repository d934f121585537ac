#pragma once
/* A job's life as one table: its states, and the events that move it between them. */

#include "storage/job_row.h"

enum job_event {
    JOB_COMPLETE, /* calibration is complete */
    JOB_CLAIM,    /* a worker took it */
    JOB_REQUEUE,  /* interrupted (shutdown, crash, retryable failure): goes on from its last finished block */
    JOB_CANCEL,   /* a client asked */
    JOB_STOPPED,  /* the worker obeyed a cancellation, or none runs it any more */
    JOB_SUCCEED,
    JOB_FAIL,
    JOB_PAUSE,  /* a client asked; a job that runs stops first */
    JOB_RESUME, /* a client asked */
    JOB_RETRY,  /* a client asked: goes on from its last finished block */
    JOB_EXPIRE, /* its calibration never became complete */
    JOB_EVENT_COUNT,
};

struct job_transition {
    enum job_status from;
    enum job_event event;
    enum job_status to;
};

/* Ends with from == STATUS_NONE. */
extern const struct job_transition job_transitions[];

/* The state in which a new job begins. */
enum job_status job_first_state(bool streams_calibration);
/* The state that `event` leads to; STATUS_NONE when it is not legal from there. */
enum job_status job_next(enum job_status from, enum job_event event);
