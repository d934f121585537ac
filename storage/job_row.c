/* The names of a job's states, and rows that the store has given. */

#include "storage/job_row.h"

#include <stdlib.h>
#include <string.h>

static const struct status_row {
    const char *name;
    bool final;
} statuses[STATUS_COUNT] = {
    [STATUS_AWAITING_CALIBRATION] = {"awaiting_calibration", false},
    [STATUS_QUEUED] = {"queued", false},
    [STATUS_RUNNING] = {"running", false},
    [STATUS_PAUSING] = {"pausing", false},
    [STATUS_PAUSED] = {"paused", false},
    [STATUS_CANCELLING] = {"cancelling", false},
    [STATUS_SUCCEEDED] = {"succeeded", true},
    [STATUS_FAILED] = {"failed", true},
    [STATUS_CANCELLED] = {"cancelled", true},
    [STATUS_EXPIRED] = {"expired", true},
};

const char *job_status_name(enum job_status status)
{
    return statuses[status].name;
}

bool job_status_find(const char *name, enum job_status *status)
{
    for (int i = 0; i < STATUS_COUNT; i++) {
        if (strcmp(statuses[i].name, name) == 0) {
            *status = (enum job_status)i;
            return true;
        }
    }
    return false;
}

bool job_status_is_final(enum job_status status)
{
    return statuses[status].final;
}

void job_row_deinit(struct job_row *row)
{
    if (row->texts == NULL) { /* not of the store, or released */
        return;
    }
    json_decref(row->request);
    json_decref(row->result);
    json_decref(row->error);
    json_decref(row->warnings);
    json_decref(row->gate);
    json_decref(row->checkpoint.phases);
    free(row->texts);
    *row = (struct job_row){0};
}

void job_list_deinit(struct job_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        job_row_deinit(&list->rows[i]);
    }
    free(list->rows);
    *list = (struct job_list){0};
}
