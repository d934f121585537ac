/* The state machine of a job (reliability: one table, every other move is refused).
 *
 *   awaiting_calibration -> queued -> running -> succeeded | failed
 *                                       running -> queued (requeue), running -> cancelling -> cancelled
 *
 * A move is made by one store transaction that names the state it leaves, so two actors cannot both make it. */

#include "jobs/job.h"

#include <stddef.h>
#include <string.h>

const struct job_transition job_transitions[] = {
    {"awaiting_calibration", JOB_COMPLETE, "queued"},
    {"awaiting_calibration", JOB_CANCEL, "cancelled"},
    {"queued", JOB_CLAIM, "running"},
    {"queued", JOB_CANCEL, "cancelled"},
    {"running", JOB_REQUEUE, "queued"},
    {"running", JOB_CANCEL, "cancelling"},
    {"running", JOB_SUCCEED, "succeeded"},
    {"running", JOB_FAIL, "failed"},
    {"cancelling", JOB_STOPPED, "cancelled"},
    {NULL, JOB_COMPLETE, NULL},
};

const char *job_next(const char *from, enum job_move move)
{
    for (const struct job_transition *row = job_transitions; row->from != NULL; row++) {
        if (row->move == move && strcmp(row->from, from) == 0) {
            return row->to;
        }
    }
    return NULL;
}

bool job_is_terminal(const char *status)
{
    return strcmp(status, "succeeded") == 0 || strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0;
}
