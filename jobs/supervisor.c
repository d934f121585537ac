/* The supervisor's thread, from the device that it opens to the last attempt that it runs.
 *
 * It sleeps until a job is made or completed, and looks by itself as well, since a wake-up is only a hint: after a few
 * seconds, then after four times as long each time, so that an idle daemon sleeps. The queue is the store. Everything
 * that it writes about a job carries the fence of its claim; when the store refuses a write, the job has moved on and
 * is no longer the supervisor's. */

#include "jobs/service.h"

#include "base/err.h"
#include "base/host.h"
#include "base/log.h"
#include "base/mem.h"
#include "jobs/job.h"
#include "jobs/metrics.h"
#include "jobs/task.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define POLL_MS 5000 /* the first look without a wake-up */
#define STORE_RETRY_MS 1000
#define BACKOFF_MS_MAX 30000
#define GARBAGE_EVERY_MS 600000
#define DRAIN_SLACK_MS 5000 /* what one tick may take beyond the deadline */
#define BUDGET_MIN ((int64_t)256 << 20)

static int64_t default_budget(void)
{
    struct host_memory memory;

    host_memory_read("", &memory);
    return memory.available / 4 > BUDGET_MIN ? memory.available / 4 : BUDGET_MIN;
}

/* Until there is work, the daemon drains, or the time is over. True: there is work. */
static bool wait_for_work(struct service *service, int64_t timeout_ms)
{
    int64_t until = clock_monotonic_ms() + timeout_ms;
    const struct timespec limit = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};

    pthread_mutex_lock(&service->supervisor.lock);
    int expired = 0;
    while (!service->supervisor.work && !service_draining(service) && expired == 0) {
        expired = pthread_cond_timedwait(&service->supervisor.wake, &service->supervisor.lock, &limit);
    }
    bool work = service->supervisor.work;
    service->supervisor.work = false;
    pthread_mutex_unlock(&service->supervisor.lock);
    return work;
}

/* Not even for new work: only a drain ends it early. */
void supervisor_back_off(struct service *service, int64_t timeout_ms)
{
    int64_t until = clock_monotonic_ms() + timeout_ms;
    const struct timespec limit = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};

    pthread_mutex_lock(&service->supervisor.lock);
    int expired = 0;
    while (!service_draining(service) && expired == 0) {
        expired = pthread_cond_timedwait(&service->supervisor.wake, &service->supervisor.lock, &limit);
    }
    pthread_mutex_unlock(&service->supervisor.lock);
}

static void set_task(struct service *service, struct task *task)
{
    pthread_mutex_lock(&service->supervisor.lock);
    service->supervisor.task = task;
    pthread_mutex_unlock(&service->supervisor.lock);
}

/* The device has failed: open it again before the next job, in a new process where nothing else helps. */
static void renew_device(struct service *service, bool in_new_process)
{
    if (in_new_process && service->supervisor.restart != NULL) {
        service->supervisor.restart(service->supervisor.restart_data);
        while (!service_draining(service)) {
            supervisor_back_off(service, BACKOFF_MS_MAX);
        }
        return;
    }
    log_err(LOG_ERROR, "device lost, opening it again", NULL);
    gpu_close(&service->supervisor.gpu);
    while (gpu_open(service->supervisor.device, service->supervisor.threads, &service->supervisor.gpu) != 0 &&
           !service_draining(service)) {
        log_err(LOG_ERROR, "device does not open", NULL);
        supervisor_back_off(service, BACKOFF_MS_MAX);
    }
}

static void run_job(struct service *service, const struct job_row *row)
{
    struct task task = {.service = service, .fence = row->fence};
    int64_t pause_ms = 0;

    snprintf(task.id, sizeof(task.id), "%s", row->id);
    log_set_trace(row->traceparent);
    set_task(service, &task);
    int rc = task_prepare(&task, service, row);
    if (rc == 0) {
        rc = task_run(&task);
    }
    set_task(service, NULL);
    metrics_device_peak(0);
    if (rc != 0) {
        log_err(LOG_DEBUG, "attempt ended", task.id);
        pause_ms = supervisor_finish(&task, rc);
    } else {
        service_job_remove_files(service, task.id);
    }
    bool lost = rc != 0 && err_group(rc) == ERR_GROUP_DEVICE && !service->supervisor.worker_process;
    bool in_new_process = service->supervisor.lost_until_exit;
    task_deinit(&task);
    log_set_trace(NULL);
    if (lost) {
        renew_device(service, in_new_process);
    }
    if (pause_ms > 0) {
        supervisor_back_off(service, pause_ms);
    }
}

static void *supervisor_main(void *data)
{
    struct service *service = data;
    int64_t swept_ms = clock_monotonic_ms(), poll_ms = POLL_MS;

    while (!service_draining(service)) {
        struct job_row row;
        if (!service->supervisor.recovered && (supervisor_recover(service) != 0 || !service->supervisor.recovered)) {
            supervisor_back_off(service, POLL_MS);
            continue;
        }
        int rc = job_claim(service->store, service->supervisor.device_info.id, &row);
        if (rc == 0) {
            run_job(service, &row);
            job_row_deinit(&row);
            poll_ms = POLL_MS;
            continue;
        }
        if (rc != ERR_NOT_FOUND) {
            log_err(LOG_ERROR, "claim failed", NULL);
            supervisor_back_off(service, rc == ERR_DISK_FULL ? POLL_MS : STORE_RETRY_MS);
            continue;
        }
        if (clock_monotonic_ms() - swept_ms >= GARBAGE_EVERY_MS) {
            service_collect_garbage(service);
            swept_ms = clock_monotonic_ms();
        }
        bool work = wait_for_work(service, poll_ms);
        poll_ms = work ? POLL_MS : poll_ms < GARBAGE_EVERY_MS / 4 ? 4 * poll_ms : GARBAGE_EVERY_MS;
    }
    pthread_mutex_lock(&service->supervisor.lock);
    service->supervisor.returned = true;
    pthread_cond_broadcast(&service->supervisor.ended);
    pthread_mutex_unlock(&service->supervisor.lock);
    return NULL;
}

void supervisor_init(struct service *service)
{
    struct supervisor *supervisor = &service->supervisor;
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&supervisor->wake, &attributes);
    pthread_cond_init(&supervisor->ended, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&supervisor->lock, NULL);
}

int supervisor_open(struct service *service, const struct service_config *config)
{
    struct supervisor *supervisor = &service->supervisor;

    supervisor->threads = config->threads;
    supervisor->worker_process = config->worker_process;
    supervisor->restart = config->restart;
    supervisor->restart_data = config->restart_data;
    supervisor->host_memory_bytes = config->host_memory_bytes > 0 ? config->host_memory_bytes : default_budget();
    snprintf(supervisor->device, sizeof(supervisor->device), "%s", config->device != NULL ? config->device : "auto");
    TRY(mem_strdup(&supervisor->module_folders, config->module_folders != NULL ? config->module_folders : ""));
    TRY(gpu_open(supervisor->device, supervisor->threads, &supervisor->gpu));
    supervisor->device_info = supervisor->gpu.info;
    if (supervisor->worker_process) {
        gpu_close(&supervisor->gpu); /* the processes open it */
    }
    log_info("device opened", LOG_S("device", supervisor->device_info.id), LOG_S("name", supervisor->device_info.name),
             LOG_I("threads", supervisor->device_info.threads));
    return 0;
}

int supervisor_start(struct service *service)
{
    struct supervisor *supervisor = &service->supervisor;

    int rc = supervisor_recover(service);
    if (rc != 0) {
        return err_pass(rc, "recover");
    }
    supervisor->work = true;
    int failed = pthread_create(&supervisor->thread, NULL, supervisor_main, service);
    if (failed != 0) {
        return err_raise_errno(failed, "cannot start the supervisor");
    }
    supervisor->started = true;
    return 0;
}

void supervisor_wake(struct service *service)
{
    struct supervisor *supervisor = &service->supervisor;

    pthread_mutex_lock(&supervisor->lock);
    supervisor->work = true;
    pthread_cond_broadcast(&supervisor->wake);
    pthread_mutex_unlock(&supervisor->lock);
}

void supervisor_tell(struct service *service, const struct job_row *job, enum supervisor_order order)
{
    struct supervisor *supervisor = &service->supervisor;

    pthread_mutex_lock(&supervisor->lock);
    const struct task *task = supervisor->task;
    if (task != NULL && strcmp(task->id, job->id) == 0 && task->fence == job->fence) {
        task_order(supervisor->task, order);
    }
    pthread_mutex_unlock(&supervisor->lock);
}

void supervisor_drain(struct service *service, int64_t timeout_ms)
{
    struct supervisor *supervisor = &service->supervisor;
    int64_t deadline = clock_monotonic_ms() + (timeout_ms > 0 ? timeout_ms : 0);
    int64_t until = deadline + DRAIN_SLACK_MS;
    const struct timespec limit = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};

    pthread_mutex_lock(&supervisor->lock);
    atomic_store(&supervisor->drain_deadline_ms, deadline);
    atomic_store(&supervisor->draining, true);
    pthread_cond_broadcast(&supervisor->wake);
    while (supervisor->started && !supervisor->returned) {
        if (pthread_cond_timedwait(&supervisor->ended, &supervisor->lock, &limit) == ETIMEDOUT) {
            log_warn("the open layer did not stop in time");
            break;
        }
    }
    pthread_mutex_unlock(&supervisor->lock);
}

void supervisor_close(struct service *service)
{
    struct supervisor *supervisor = &service->supervisor;

    if (supervisor->started) {
        if (!service_draining(service)) {
            supervisor_drain(service, 0);
        }
        pthread_join(supervisor->thread, NULL);
    }
    gpu_close(&supervisor->gpu);
    free(supervisor->module_folders);
    pthread_mutex_destroy(&supervisor->lock);
    pthread_cond_destroy(&supervisor->wake);
    pthread_cond_destroy(&supervisor->ended);
}

int supervisor_device_of(const struct service *service, const char *want, struct gpu_info *out)
{
    if (want[0] == '\0' || strcmp(want, "auto") == 0) {
        *out = service->supervisor.device_info;
        return 0;
    }
    return gpu_describe(want, service->supervisor.threads, out);
}
