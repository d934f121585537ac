/* The runner: one thread that owns the device, claims a job, works on it, and says how it ended.
 *
 * It sleeps until a job is made or completed, and looks by itself every few seconds, since a wake-up is only a hint:
 * the queue is the store. Every word it writes about a job carries the fence of its claim; when the store refuses one,
 * the job has moved on and is no longer the runner's. */

#include "jobs/engine.h"

#include "base/err.h"
#include "base/log.h"
#include "jobs/failure.h"
#include "jobs/job.h"
#include "jobs/task.h"

#include <string.h>
#include <time.h>

#define POLL_MS 5000
#define STORE_RETRY_MS 1000
#define SHORTAGE_MS 2000
#define BACKOFF_MS_MAX 30000
#define GARBAGE_EVERY_MS 600000

/* Until there is work, the daemon drains, or the time is over. */
static void wait_for_work(struct engine *engine, int64_t timeout_ms)
{
    int64_t until = clock_monotonic_ms() + timeout_ms;
    const struct timespec limit = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};

    pthread_mutex_lock(&engine->lock);
    int expired = 0;
    while (!engine->work && !engine_draining(engine) && expired == 0) {
        expired = pthread_cond_timedwait(&engine->wake, &engine->lock, &limit);
    }
    engine->work = false;
    pthread_mutex_unlock(&engine->lock);
}

/* Not even for new work: only a drain ends it early. */
static void back_off(struct engine *engine, int64_t timeout_ms)
{
    int64_t until = clock_monotonic_ms() + timeout_ms;
    const struct timespec limit = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};

    pthread_mutex_lock(&engine->lock);
    int expired = 0;
    while (!engine_draining(engine) && expired == 0) {
        expired = pthread_cond_timedwait(&engine->wake, &engine->lock, &limit);
    }
    pthread_mutex_unlock(&engine->lock);
}

static void set_task(struct engine *engine, struct task *task)
{
    pthread_mutex_lock(&engine->lock);
    engine->task = task;
    pthread_mutex_unlock(&engine->lock);
}

static int end_cancelled(struct task *task)
{
    const struct job_change change = {.fence = task->fence, .reason = "cancelled by request"};

    TRY(job_move(task->engine->store, task->id, JOB_STOPPED, &change, NULL));
    engine_job_remove_files(task->engine, task->id);
    log_info("job cancelled", LOG_S("job", task->id));
    return 0;
}

static int end_requeued(struct task *task, const char *reason)
{
    struct task_columns columns;

    TRY(task_columns_init(task, &columns));
    const struct job_change change = {
        .fence = task->fence, .reason = reason, .set = JOB_SET_PROGRESS | JOB_SET_CHECKPOINT, .row = &columns.row};
    int rc = job_move(task->engine->store, task->id, JOB_REQUEUE, &change, NULL);
    task_columns_deinit(&columns);
    if (rc == 0) {
        log_info("job requeued", LOG_S("job", task->id), LOG_S("reason", reason));
    }
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

static int end_failed(struct task *task, const struct err_record *record)
{
    bool open = task->layers_total > 0 && task->layers_done < task->layers_total;
    const char *code = failure_code(record->code);
    AUTO_JSON json_t *error = failure_json(record, open ? task->layers_done : -1);
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
    int rc = job_move(task->engine->store, task->id, JOB_FAIL, &change, NULL);
    task_columns_deinit(&columns);
    if (rc == 0) {
        engine_job_remove_files(task->engine, task->id);
        log_warn("job failed", LOG_S("job", task->id), LOG_S("code", code), LOG_S("error", record->message));
    }
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
        rc = end_requeued(task, "the daemon was shut down");
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
    engine_job_remove_artifact(task->engine, task->id);
    if (code == ERR_DISK_FULL) {
        engine_collect_garbage(task->engine); /* files that were blobs already */
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
    engine_job_remove_files(task->engine, task->id);
}

/* Does not return before the store has it: a job whose row says that it runs while no worker runs it would wait for a
 * restart. Returns how long to wait before the next attempt at anything. */
static int64_t finish_attempt(struct task *task, int code)
{
    struct engine *engine = task->engine;
    struct err_record record;

    err_take(&record);
    record.code = code;
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
        if (engine_draining(engine)) {
            break;
        }
        if (rc == ERR_DISK_FULL) {
            end_without_files(task, &record);
        }
        back_off(engine, STORE_RETRY_MS);
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

/* The device has failed: open it again before the next job, in a new process where nothing else helps. */
static void renew_device(struct engine *engine, bool in_new_process)
{
    if (in_new_process && engine->restart != NULL) {
        engine->restart(engine->restart_data);
        while (!engine_draining(engine)) {
            back_off(engine, BACKOFF_MS_MAX);
        }
        return;
    }
    log_err(LOG_ERROR, "device lost, opening it again", NULL);
    gpu_close(&engine->gpu);
    while (gpu_open(engine->device, engine->threads, &engine->gpu) != 0 && !engine_draining(engine)) {
        log_err(LOG_ERROR, "device does not open", NULL);
        back_off(engine, BACKOFF_MS_MAX);
    }
}

static void run_job(struct engine *engine, const struct job_row *row)
{
    struct task task = {.engine = engine};
    int64_t pause_ms = 0;

    snprintf(task.id, sizeof(task.id), "%s", row->id);
    log_info("job claimed", LOG_S("job", task.id), LOG_I("attempt", row->attempt));
    set_task(engine, &task);
    int rc = task_prepare(&task, engine, row);
    rc = rc != 0 ? rc : task_run(&task);
    set_task(engine, NULL);
    if (rc != 0) {
        log_err(LOG_DEBUG, "attempt ended", task.id);
        pause_ms = finish_attempt(&task, rc);
    } else {
        engine_job_remove_files(engine, task.id);
        log_info("job succeeded", LOG_S("job", task.id), LOG_F("seconds", clock_monotonic_seconds() - task.started));
    }
    bool lost = rc != 0 && err_group(rc) == ERR_GROUP_DEVICE && !engine->worker_process;
    bool in_new_process = engine->lost_until_exit;
    task_deinit(&task);
    if (lost) {
        renew_device(engine, in_new_process);
    }
    if (pause_ms > 0) {
        back_off(engine, pause_ms);
    }
}

void *runner_main(void *data)
{
    struct engine *engine = data;
    int64_t swept_ms = clock_monotonic_ms();

    while (!engine_draining(engine)) {
        struct job_row row;
        if (!engine->recovered && (engine_recover(engine) != 0 || !engine->recovered)) {
            back_off(engine, POLL_MS);
            continue;
        }
        int rc = job_claim(engine->store, engine->device_info.id, &row);
        if (rc == 0) {
            run_job(engine, &row);
            job_row_deinit(&row);
            continue;
        }
        if (rc != ERR_NOT_FOUND) {
            log_err(LOG_ERROR, "claim failed", NULL);
            back_off(engine, rc == ERR_DISK_FULL ? POLL_MS : STORE_RETRY_MS);
            continue;
        }
        if (clock_monotonic_ms() - swept_ms >= GARBAGE_EVERY_MS) {
            engine_collect_garbage(engine);
            swept_ms = clock_monotonic_ms();
        }
        wait_for_work(engine, POLL_MS);
    }
    pthread_mutex_lock(&engine->lock);
    engine->runner_ended = true;
    pthread_cond_broadcast(&engine->ended);
    pthread_mutex_unlock(&engine->lock);
    return NULL;
}
