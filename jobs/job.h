#pragma once
/* A job's life as one table: states, the moves between them, and who may make them. */

#include <stdbool.h>

enum job_move {
    JOB_COMPLETE, /* calibration is complete */
    JOB_CLAIM,    /* a runner took it */
    JOB_REQUEUE,  /* interrupted (shutdown, crash, retryable failure): goes on from its last finished block */
    JOB_CANCEL,   /* a client asked */
    JOB_STOPPED,  /* the runner obeyed a cancellation, or none runs it any more */
    JOB_SUCCEED,
    JOB_FAIL,
};

struct job_transition {
    const char *from;
    enum job_move move;
    const char *to;
};

/* Ends with from == NULL. */
extern const struct job_transition job_transitions[];

/* The state that `move` leads to, or NULL when it is not legal from there. */
const char *job_next(const char *from, enum job_move move);
/* succeeded, failed, cancelled. */
bool job_is_terminal(const char *status);
