/* How an attempt that did not succeed ends: the job is cancelled, waits for another attempt, is paused, or has
 * failed. The checkpoint of a failed job stays, for a retry. */

#include "jobs/service.h"

#include "base/err.h"
#include "base/log.h"
#include "jobs/failure.h"
#include "jobs/job.h"
#include "jobs/metrics.h"
#include "jobs/task.h"

#include <string.h>

#define STORE_RETRY_MS 1000
#define SHORTAGE_MS 2000
#define BACKOFF_MS_MAX 30000

static int end_cancelled(struct task *task)
{
    const struct job_change change = {.fence = task->fence, .reason = "cancelled by request"};

    TRY(job_move(task->service->store, task->id, JOB_STOPPED, &change, NULL));
    service_job_remove_files(task->service, task->id);
    return 0;
}

static int end_requeued(struct task *task, const char *reason)
{
    struct task_columns columns;

    TRY(task_columns_init(task, &columns));
    const struct job_change change = {
        .fence = task->fence, .reason = reason, .set = JOB_SET_PROGRESS | JOB_SET_CHECKPOINT, .row = &columns.row};
    int rc = job_move(task->service->store, task->id, JOB_REQUEUE, &change, NULL);
    task_columns_deinit(&columns);
    return rc;
}

/* Several crashes in a row are said as such; the last one alone would look like an accident. */
static void word_crashes(const struct task *task, struct err_record *record)
{
    char last[sizeof(record->message)];

    if (record->code == ERR_WORKER_LOST && task->charged > 1) {
        snprintf(last, sizeof(last), "%s", record->message);
        snprintf(record->message, sizeof(record->message),
                 "the worker crashed repeatedly while running this job: %lld attempts in a row finished no block; the "
                 "last time, %.900s",
                 (long long)task->charged, last);
    }
}

/* The layer of the module that failed; where none is named, of the open block. -1: none. */
static int64_t failed_layer(const struct task *task, const struct err_record *record)
{
    bool open = task->layers_total > 0 && task->layers_done < task->layers_total;
    const char *path;

    if (record->module[0] == '\0') {
        return open ? task->layers_done : -1;
    }
    return task->model != NULL ? model_find_layer(task->model, record->module, &path) : -1;
}

static int end_failed(struct task *task, const struct err_record *record)
{
    const char *code = failure_code(record->code);
    AUTO_JSON json_t *error = failure_json(record, failed_layer(task, record));
    struct task_columns columns;

    if (error == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory to end a job");
    }
    TRY(task_columns_init(task, &columns));
    columns.row.error = error;
    const struct job_change change = {.fence = task->fence,
                                      .reason = code,
                                      .set = JOB_SET_ERROR | JOB_SET_PROGRESS | JOB_SET_CHECKPOINT,
                                      .row = &columns.row};
    pthread_mutex_lock(&task->service->admission); /* a retry must not find its files going */
    int rc = job_move(task->service->store, task->id, JOB_FAIL, &change, NULL);
    if (rc == 0 && record->code == ERR_DISK_FULL) { /* a job that waits for a retry would keep the disk full */
        service_job_remove_files(task->service, task->id);
    }
    pthread_mutex_unlock(&task->service->admission);
    task_columns_deinit(&columns);
    return rc;
}

/* The job cannot do anything about it, and it passes: it waits, however often, and is not counted. */
static bool is_shortage(int code)
{
    return code == ERR_NO_DESCRIPTORS;
}

/* A failure that may pass by itself, with attempts left. */
static bool may_retry(const struct task *task, int code)
{
    return is_shortage(code) || (err_retryable(code) && task->charged < task->spec.max_attempts);
}

/* How an attempt ended, told to the store. A conflict means that a client's cancellation came first. */
static int end_attempt(struct task *task, const struct err_record *record)
{
    int rc = ERR_JOB_STATE_CONFLICT;

    if (record->code == ERR_CANCELLED) {
        rc = end_cancelled(task);
    } else if (record->code == ERR_INTERRUPTED) {
        rc = end_requeued(task,
                          atomic_load(&task->pause) != PAUSE_NONE ? "paused by request" : "the daemon was shut down");
    } else if (record->code != ERR_JOB_STATE_CONFLICT && may_retry(task, record->code)) {
        rc = end_requeued(task, record->message[0] != '\0' ? record->message : err_sentence(record->code));
    } else if (record->code != ERR_JOB_STATE_CONFLICT) {
        struct err_record worded = *record;
        word_crashes(task, &worded);
        rc = end_failed(task, &worded);
    }
    return rc == ERR_JOB_STATE_CONFLICT ? end_cancelled(task) : rc;
}

/* What the attempt wrote and no other can use. On a full disk this makes the space in which the job's end is written.
 */
static void release_space(struct task *task, int code)
{
    service_job_remove_artifact(task->service, task->id);
    if (code == ERR_DISK_FULL) {
        service_collect_garbage(task->service); /* files that were blobs already */
    }
}

/* Not even the reserve was enough to tell how the attempt ended. The job ends then, and its files make room: one that
 * holds a full disk and waits would wait forever. */
static void end_without_files(struct task *task, struct err_record *record)
{
    if (record->code != ERR_CANCELLED) {
        err_take(record);
        task->charged = task->spec.max_attempts;
    }
    service_job_remove_files(task->service, task->id);
}

int64_t supervisor_finish(struct task *task, int code)
{
    struct service *service = task->service;
    struct err_record record;

    err_take(&record);
    record.code = code;
    if (code == ERR_JOB_STATE_CONFLICT) {
        metrics_lease_lost();
    }
    release_space(task, code);
    if (code != ERR_INTERRUPTED && code != ERR_CANCELLED && !is_shortage(code) &&
        task->moved_forward != task->attempt) {
        task->charged++;
    }
    for (;;) {
        int rc = end_attempt(task, &record);
        if (rc == 0 || rc == ERR_JOB_STATE_CONFLICT || rc == ERR_NOT_FOUND) {
            break;
        }
        log_err(LOG_ERROR, "job state not written", task->id);
        if (service_draining(service)) {
            break;
        }
        if (rc == ERR_DISK_FULL) {
            end_without_files(task, &record);
        }
        supervisor_back_off(service, STORE_RETRY_MS);
    }
    if (code == ERR_INTERRUPTED || !may_retry(task, code)) {
        return 0;
    }
    if (is_shortage(code)) {
        return SHORTAGE_MS;
    }
    int64_t pause_ms = (int64_t)1000 << (task->charged < 5 ? task->charged : 5);
    return pause_ms < BACKOFF_MS_MAX ? pause_ms : BACKOFF_MS_MAX;
}
