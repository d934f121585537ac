/* The state machine of a job: one table, and every other move is refused.
 *
 *   awaiting_calibration -> queued -> running -> succeeded | failed
 *                                       running -> queued (requeue), running -> cancelling -> cancelled
 *   running -> pausing -> paused -> queued (resume), failed | cancelled -> queued (retry)
 *   awaiting_calibration -> expired */

#include "jobs/transitions.h"

#include <stddef.h>

const struct job_transition job_transitions[] = {
    {STATUS_AWAITING_CALIBRATION, JOB_COMPLETE, STATUS_QUEUED},
    {STATUS_AWAITING_CALIBRATION, JOB_CANCEL, STATUS_CANCELLED},
    {STATUS_AWAITING_CALIBRATION, JOB_EXPIRE, STATUS_EXPIRED},
    {STATUS_QUEUED, JOB_CLAIM, STATUS_RUNNING},
    {STATUS_QUEUED, JOB_CANCEL, STATUS_CANCELLED},
    {STATUS_QUEUED, JOB_PAUSE, STATUS_PAUSED},
    {STATUS_RUNNING, JOB_REQUEUE, STATUS_QUEUED},
    {STATUS_RUNNING, JOB_CANCEL, STATUS_CANCELLING},
    {STATUS_RUNNING, JOB_SUCCEED, STATUS_SUCCEEDED},
    {STATUS_RUNNING, JOB_FAIL, STATUS_FAILED},
    {STATUS_RUNNING, JOB_PAUSE, STATUS_PAUSING},
    /* It goes on until it can stop, and may end or be wanted again before that. */
    {STATUS_PAUSING, JOB_REQUEUE, STATUS_PAUSED},
    {STATUS_PAUSING, JOB_RESUME, STATUS_RUNNING},
    {STATUS_PAUSING, JOB_CANCEL, STATUS_CANCELLING},
    {STATUS_PAUSING, JOB_SUCCEED, STATUS_SUCCEEDED},
    {STATUS_PAUSING, JOB_FAIL, STATUS_FAILED},
    {STATUS_PAUSED, JOB_RESUME, STATUS_QUEUED},
    {STATUS_PAUSED, JOB_CANCEL, STATUS_CANCELLED},
    {STATUS_CANCELLING, JOB_STOPPED, STATUS_CANCELLED},
    {STATUS_FAILED, JOB_RETRY, STATUS_QUEUED},
    {STATUS_CANCELLED, JOB_RETRY, STATUS_QUEUED},
    {STATUS_NONE, JOB_COMPLETE, STATUS_NONE},
};

enum job_status job_first_state(bool streams_calibration)
{
    return streams_calibration ? STATUS_AWAITING_CALIBRATION : STATUS_QUEUED;
}

enum job_status job_next(enum job_status from, enum job_event event)
{
    for (const struct job_transition *row = job_transitions; row->from != STATUS_NONE; row++) {
        if (row->event == event && row->from == from) {
            return row->to;
        }
    }
    return STATUS_NONE;
}
