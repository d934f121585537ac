/* Expiry and retention. Everything is decided by times in the store, so that a restart changes nothing.
 *
 * The thread sleeps until the first job that waits expires, or until retention is due, and is woken by each new job: an
 * idle daemon wakes up a few times an hour. */

#include "jobs/sweep.h"

#include "base/err.h"
#include "base/log.h"
#include "jobs/job.h"
#include "jobs/service.h"

#include <dirent.h>
#include <string.h>
#include <time.h>

#define SWEEP_MS 1000              /* at least, between looks for jobs that expire */
#define SWEEP_MS_MAX 600000        /* at most: a clock that is set meanwhile is noticed */
#define RETENTION_MS_MIN 60000     /* between looks for what has been kept for long enough: */
#define RETENTION_PART (1000 / 60) /* a sixtieth of the time, so many milliseconds a second */
#define SWEEP_PAGE 100

static bool stopping(struct sweep *sweep)
{
    pthread_mutex_lock(&sweep->lock);
    bool stop = sweep->stop;
    pthread_mutex_unlock(&sweep->lock);
    return stop;
}

static struct timespec sweep_limit(int64_t until_ms)
{
    return (struct timespec){.tv_sec = until_ms / 1000, .tv_nsec = until_ms % 1000 * 1000000};
}

/* Until the time, or until there is news, but SWEEP_MS at least. False: there is nothing more to do. */
static bool sweep_wait(struct sweep *sweep, int64_t until_ms)
{
    const struct timespec least = sweep_limit(clock_monotonic_ms() + SWEEP_MS), limit = sweep_limit(until_ms);
    int expired = 0;

    pthread_mutex_lock(&sweep->lock);
    while (!sweep->stop && !sweep->news && expired == 0) {
        expired = pthread_cond_timedwait(&sweep->wake, &sweep->lock, &limit);
    }
    for (expired = 0; !sweep->stop && expired == 0;) {
        expired = pthread_cond_timedwait(&sweep->wake, &sweep->lock, &least);
    }
    sweep->news = false;
    bool stop = sweep->stop;
    pthread_mutex_unlock(&sweep->lock);
    return !stop;
}

/* --- walks over jobs and objects, oldest first */

/* Look at each job of the status. more: set to false to end the walk. */
static int each_job(struct service *service, enum job_status status,
                    int (*look)(struct service *service, const struct job_row *row, bool *more))
{
    char after[ID_SIZE] = "";
    bool more = true;

    while (more && !stopping(&service->sweep)) {
        const struct page page = {.limit = SWEEP_PAGE,
                                  .status = job_status_name(status),
                                  .ascending = true,
                                  .after = after[0] != '\0' ? after : NULL};
        AUTO(job_list) struct job_list list = {.rows = NULL};
        TRY(store_job_list(service->store, &page, &list));
        more = list.more;
        for (size_t i = 0; i < list.count; i++) {
            snprintf(after, sizeof(after), "%s", list.rows[i].id);
            TRY(look(service, &list.rows[i], &more));
        }
    }
    return 0;
}

static int expire_job(struct service *service, const struct job_row *row, bool *more)
{
    static const struct job_change change = {.fence = -1, .reason = "its calibration did not become complete in time"};
    int64_t after = json_integer_value(json_object_get(row->request, "expires_after_seconds"));
    int64_t left = row->created_at + after - clock_unix_seconds();

    (void)more;
    if (after <= 0 || left > 0) {
        int64_t at = after > 0 && left < SWEEP_MS_MAX / 1000 ? clock_monotonic_ms() + left * 1000 : INT64_MAX;
        service->sweep.look_ms = at < service->sweep.look_ms ? at : service->sweep.look_ms;
        return 0;
    }
    int rc = job_move(service->store, row->id, JOB_EXPIRE, &change, NULL);
    if (rc == ERR_JOB_STATE_CONFLICT || rc == ERR_NOT_FOUND) { /* a client was quicker */
        return 0;
    }
    if (rc == 0) {
        service_job_remove_files(service, row->id);
        log_info("job expired", LOG_S("job", row->id));
    }
    return rc;
}

static int delete_ended(struct service *service, const struct job_row *row, bool *more)
{
    int64_t cutoff = clock_unix_seconds() - service->sweep.retention.jobs;

    *more = *more && row->created_at < cutoff; /* a job that is younger ended later */
    if (row->finished_at == 0 || row->finished_at >= cutoff) {
        return 0;
    }
    int rc = service_job_delete_ended(service, NULL, row->id);
    if (rc == 0) {
        log_info("job deleted", LOG_S("job", row->id), LOG_S("reason", "retention"));
    }
    return rc == ERR_NOT_FOUND || rc == ERR_JOB_STATE_CONFLICT ? 0 : rc; /* deleted or retried meanwhile */
}

static int sweep_jobs(struct service *service)
{
    for (int status = 0; status < STATUS_COUNT; status++) {
        if (job_status_is_final((enum job_status)status)) {
            TRY(each_job(service, (enum job_status)status, delete_ended));
        }
    }
    return 0;
}

/* Look at each object of the kind that was made before `cutoff`. *any: one of them went. */
static int each_object(struct service *service, const char *kind, int64_t cutoff,
                       int (*look)(struct service *service, const char *id, int64_t cutoff, bool *gone), bool *any)
{
    char after[ID_SIZE] = "";
    bool more = true;

    while (more && !stopping(&service->sweep)) {
        const struct page page = {.limit = SWEEP_PAGE, .ascending = true, .after = after[0] != '\0' ? after : NULL};
        AUTO_JSON json_t *list = NULL;
        size_t i;
        json_t *object;
        TRY(store_object_list(service->store, kind, &page, &list));
        more = json_is_true(json_object_get(list, "has_more"));
        json_array_foreach(json_object_get(list, "data"), i, object)
        {
            bool gone = false;
            snprintf(after, sizeof(after), "%s", json_string_value(json_object_get(object, "id")));
            if (json_integer_value(json_object_get(object, "created_at")) >= cutoff) {
                return 0; /* and the rest is younger still */
            }
            TRY(look(service, after, cutoff, &gone));
            *any = *any || gone;
        }
    }
    return 0;
}

static int sweep_artifact(struct service *service, const char *id, int64_t cutoff, bool *gone)
{
    (void)cutoff;
    int rc = store_artifact_delete(service->store, NULL, id);
    if (rc == 0) {
        *gone = true;
        log_info("artifact deleted", LOG_S("artifact", id), LOG_S("reason", "retention"));
    }
    return rc == ERR_NOT_FOUND ? 0 : rc;
}

static int sweep_artifacts(struct service *service)
{
    bool any = false;

    int rc =
        each_object(service, "art", clock_unix_seconds() - service->sweep.retention.artifacts, sweep_artifact, &any);
    if (any) {
        service_collect_garbage(service);
    }
    return rc;
}

static int sweep_upload(struct service *service, const char *id, int64_t cutoff, bool *gone)
{
    int rc = service_transfer_expire(service, id, cutoff, gone);
    if (*gone) {
        log_info("upload deleted", LOG_S("upload", id), LOG_S("reason", "retention"));
    }
    return rc == ERR_NOT_FOUND ? 0 : rc;
}

static int sweep_uploads(struct service *service)
{
    bool any = false;

    return each_object(service, "upl", clock_unix_seconds() - service->sweep.retention.uploads, sweep_upload, &any);
}

/* Under admission: a retry must not find its files going. */
static void sweep_checkpoint(struct service *service, const char *id, int64_t cutoff)
{
    AUTO(job_row) struct job_row row = {0};

    pthread_mutex_lock(&service->admission);
    if (store_job_get(service->store, NULL, id, &row) == 0 && row.status == STATUS_FAILED && row.finished_at < cutoff) {
        service_job_remove_files(service, id);
        log_info("checkpoint deleted", LOG_S("job", id), LOG_S("reason", "retention"));
    }
    pthread_mutex_unlock(&service->admission);
}

/* Folders are few: only jobs that failed keep theirs once they have ended. */
static int sweep_checkpoints(struct service *service)
{
    char path[SERVICE_PATH_MAX];
    int64_t cutoff = clock_unix_seconds() - service->sweep.retention.checkpoints;

    snprintf(path, sizeof(path), "%s/jobs", store_data_dir(service->store));
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return 0; /* no job has been there yet */
    }
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        if (id_valid(entry->d_name, "job")) {
            sweep_checkpoint(service, entry->d_name, cutoff);
        }
    }
    closedir(folder);
    return 0;
}

static int sweep_deliveries(struct service *service)
{
    int64_t cutoff = clock_unix_seconds() - service->sweep.retention.deliveries, removed = SWEEP_PAGE;

    while (removed == SWEEP_PAGE && !stopping(&service->sweep)) {
        TRY(store_delivery_sweep(service->store, cutoff, SWEEP_PAGE, &removed));
    }
    return 0;
}

static void told(int rc, const char *what)
{
    if (rc != 0) {
        log_err(LOG_WARN, "not swept", what);
    }
}

static void sweep_retained(struct service *service)
{
    const struct retention *retention = &service->sweep.retention;

    if (retention->jobs > 0) {
        told(sweep_jobs(service), "jobs");
    }
    if (retention->artifacts > 0) {
        told(sweep_artifacts(service), "artifacts");
    }
    if (retention->checkpoints > 0) {
        told(sweep_checkpoints(service), "checkpoints");
    }
    if (retention->uploads > 0) {
        told(sweep_uploads(service), "uploads");
    }
    if (retention->deliveries > 0) {
        told(sweep_deliveries(service), "deliveries");
    }
}

/* What is kept for a week need not go in the minute in which the week ends. */
static int64_t retention_every_ms(const struct retention *retention)
{
    const int64_t seconds[] = {retention->jobs, retention->artifacts, retention->checkpoints, retention->deliveries,
                               retention->uploads};
    int64_t every = SWEEP_MS_MAX;

    for (size_t i = 0; i < sizeof(seconds) / sizeof(seconds[0]); i++) {
        if (seconds[i] > 0 && seconds[i] < every / RETENTION_PART) {
            every = seconds[i] * RETENTION_PART;
        }
    }
    return every > RETENTION_MS_MIN ? every : RETENTION_MS_MIN;
}

static void *sweep_main(void *data)
{
    struct service *service = data;
    struct sweep *sweep = &service->sweep;
    int64_t every = retention_every_ms(&sweep->retention), retain_ms = clock_monotonic_ms();

    sweep->look_ms = retain_ms;
    while (sweep_wait(sweep, sweep->look_ms)) {
        if (clock_monotonic_ms() >= retain_ms) {
            sweep_retained(service);
            retain_ms = clock_monotonic_ms() + every;
        }
        sweep->look_ms = retain_ms;
        told(each_job(service, STATUS_AWAITING_CALIBRATION, expire_job), "jobs that wait");
    }
    return NULL;
}

void sweep_init(struct sweep *sweep)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&sweep->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&sweep->lock, NULL);
}

int sweep_start(struct service *service)
{
    struct sweep *sweep = &service->sweep;

    int failed = pthread_create(&sweep->thread, NULL, sweep_main, service);
    if (failed != 0) {
        return err_raise_errno(failed, "cannot start the sweep");
    }
    sweep->started = true;
    return 0;
}

void sweep_wake(struct sweep *sweep)
{
    pthread_mutex_lock(&sweep->lock);
    sweep->news = true;
    pthread_cond_broadcast(&sweep->wake);
    pthread_mutex_unlock(&sweep->lock);
}

void sweep_stop(struct sweep *sweep)
{
    pthread_mutex_lock(&sweep->lock);
    bool started = sweep->started;
    sweep->started = false;
    sweep->stop = true;
    pthread_cond_broadcast(&sweep->wake);
    pthread_mutex_unlock(&sweep->lock);
    if (started) {
        pthread_join(sweep->thread, NULL);
    }
}

void sweep_close(struct sweep *sweep)
{
    sweep_stop(sweep);
    pthread_cond_destroy(&sweep->wake);
    pthread_mutex_destroy(&sweep->lock);
}
