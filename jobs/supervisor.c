/* The runners' threads, from the device that each opens to the last attempt that it runs.
 *
 * A runner sleeps until a job is made or completed, and looks by itself as well, since a wake-up is only a hint: after
 * a few seconds, then after four times as long each time, so that an idle daemon sleeps. The queue is the store.
 * Everything that it writes about a job carries the fence of its claim; when the store refuses a write, the job has
 * moved on and is no longer the runner's. */

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

/* A quarter of what is free, shared by the jobs that run at once. */
static int64_t default_budget(int runners)
{
    struct host_memory memory;

    host_memory_read("", &memory);
    int64_t share = memory.available / 4 / runners;
    return share > BUDGET_MIN ? share : BUDGET_MIN;
}

/* Until there is work, the daemon drains, or the time is over. True: there is work. */
static bool wait_for_work(struct runner *runner, int64_t timeout_ms)
{
    struct supervisor *supervisor = &runner->service->supervisor;
    int64_t until = clock_monotonic_ms() + timeout_ms;
    const struct timespec limit = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};

    pthread_mutex_lock(&supervisor->lock);
    int expired = 0;
    while (!runner->work && !service_draining(runner->service) && expired == 0) {
        expired = pthread_cond_timedwait(&supervisor->wake, &supervisor->lock, &limit);
    }
    bool work = runner->work;
    runner->work = false;
    pthread_mutex_unlock(&supervisor->lock);
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

static void set_task(struct runner *runner, struct task *task)
{
    struct supervisor *supervisor = &runner->service->supervisor;

    pthread_mutex_lock(&supervisor->lock);
    runner->task = task;
    pthread_mutex_unlock(&supervisor->lock);
}

/* The device has failed: open it again before the next job, in a new process where nothing else helps. */
static void renew_device(struct runner *runner, bool in_new_process)
{
    struct service *service = runner->service;
    const struct supervisor *supervisor = &service->supervisor;

    if (in_new_process && supervisor->restart != NULL) {
        supervisor->restart(supervisor->restart_data);
        while (!service_draining(service)) {
            supervisor_back_off(service, BACKOFF_MS_MAX);
        }
        return;
    }
    log_err(LOG_ERROR, "device lost, opening it again", NULL);
    gpu_close(&runner->gpu);
    while (gpu_open(runner->device.id, supervisor->threads, &runner->gpu) != 0 && !service_draining(service)) {
        log_err(LOG_ERROR, "device does not open", NULL);
        supervisor_back_off(service, BACKOFF_MS_MAX);
    }
}

static void run_job(struct runner *runner, const struct job_row *row)
{
    struct service *service = runner->service;
    struct task task = {.service = service, .runner = runner, .fence = row->fence};
    int64_t pause_ms = 0;

    snprintf(task.id, sizeof(task.id), "%s", row->id);
    log_set_trace(row->traceparent);
    set_task(runner, &task);
    int rc = task_prepare(&task, row);
    if (rc == 0) {
        rc = task_run(&task);
    }
    set_task(runner, NULL);
    atomic_store(&runner->device_peak, 0);
    if (rc != 0) {
        log_err(LOG_DEBUG, "attempt ended", task.id);
        pause_ms = supervisor_finish(&task, rc);
    } else {
        service_job_remove_files(service, task.id);
    }
    bool lost = rc != 0 && err_group(rc) == ERR_GROUP_DEVICE && !service->supervisor.worker_process;
    bool in_new_process = runner->lost_until_exit;
    task_deinit(&task);
    log_set_trace(NULL);
    if (lost) {
        renew_device(runner, in_new_process);
    }
    if (pause_ms > 0) {
        supervisor_back_off(service, pause_ms);
    }
}

/* Whether jobs may be claimed: an earlier process's are back in the queue. The first runner sees to it. */
static bool has_recovered(const struct runner *runner)
{
    const struct supervisor *supervisor = &runner->service->supervisor;

    if (atomic_load(&supervisor->recovered)) {
        return true;
    }
    return runner == supervisor->runners && supervisor_recover(runner->service) == 0 &&
           atomic_load(&supervisor->recovered);
}

static void *runner_main(void *data)
{
    struct runner *runner = data;
    struct service *service = runner->service;
    struct supervisor *supervisor = &service->supervisor;
    int64_t swept_ms = clock_monotonic_ms(), poll_ms = POLL_MS;

    while (!service_draining(service)) {
        struct job_row row;
        if (!has_recovered(runner)) {
            supervisor_back_off(service, POLL_MS);
            continue;
        }
        int rc = job_claim(service->store, runner->device.id, runner->others, &row);
        if (rc == 0) {
            run_job(runner, &row);
            job_row_deinit(&row);
            supervisor_wake(service); /* its project may run another, on another device */
            poll_ms = POLL_MS;
            continue;
        }
        if (rc != ERR_NOT_FOUND) {
            log_err(LOG_ERROR, "claim failed", NULL);
            supervisor_back_off(service, rc == ERR_DISK_FULL ? POLL_MS : STORE_RETRY_MS);
            continue;
        }
        if (runner == supervisor->runners && clock_monotonic_ms() - swept_ms >= GARBAGE_EVERY_MS) {
            service_collect_garbage(service);
            swept_ms = clock_monotonic_ms();
        }
        bool work = wait_for_work(runner, poll_ms);
        poll_ms = work ? POLL_MS : poll_ms < GARBAGE_EVERY_MS / 4 ? 4 * poll_ms : GARBAGE_EVERY_MS;
    }
    pthread_mutex_lock(&supervisor->lock);
    runner->returned = true;
    pthread_cond_broadcast(&supervisor->ended);
    pthread_mutex_unlock(&supervisor->lock);
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

static int runner_open(struct runner *runner, const char *id)
{
    const struct supervisor *supervisor = &runner->service->supervisor;

    TRY(gpu_open(id, supervisor->threads, &runner->gpu));
    runner->device = runner->gpu.info;
    if (supervisor->worker_process) {
        gpu_close(&runner->gpu); /* the processes open it */
    }
    log_info("device opened", LOG_S("device", runner->device.id), LOG_S("name", runner->device.name),
             LOG_S("detail", runner->device.detail), LOG_I("threads", runner->device.threads));
    return 0;
}

/* The first runner also takes jobs that name a device of the machine which is not the daemon's. */
static int list_others(struct supervisor *supervisor)
{
    AUTO_JSON json_t *others = json_array();

    for (int i = 1; i < supervisor->count; i++) {
        json_array_append_new(others, json_string(supervisor->runners[i].device.id));
    }
    supervisor->runners[0].others = others != NULL ? json_dumps(others, JSON_COMPACT) : NULL;
    return supervisor->runners[0].others != NULL ? 0
                                                 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of devices");
}

int supervisor_open(struct service *service, const struct service_config *config)
{
    struct supervisor *supervisor = &service->supervisor;
    struct gpu_names names;

    TRY(gpu_find_all(config->device != NULL ? config->device : "auto", &names));
    supervisor->threads = config->threads;
    supervisor->worker_process = config->worker_process;
    supervisor->restart = config->restart;
    supervisor->restart_data = config->restart_data;
    supervisor->host_memory_bytes =
        config->host_memory_bytes > 0 ? config->host_memory_bytes : default_budget(names.count);
    TRY(mem_strdup(&supervisor->module_folders, config->module_folders != NULL ? config->module_folders : ""));
    supervisor->cpu_products = config->cpu_products != NULL ? config->cpu_products : "float32";
    TRY(mem_array(&supervisor->runners, (size_t)names.count));
    for (; supervisor->count < names.count; supervisor->count++) {
        struct runner *runner = &supervisor->runners[supervisor->count];
        runner->service = service;
        TRY(runner_open(runner, names.ids[supervisor->count]));
    }
    return list_others(supervisor);
}

int supervisor_start(struct service *service)
{
    struct supervisor *supervisor = &service->supervisor;

    int rc = supervisor_recover(service);
    if (rc != 0) {
        return err_pass(rc, "recover");
    }
    for (int i = 0; i < supervisor->count; i++) {
        struct runner *runner = &supervisor->runners[i];
        runner->work = true;
        int failed = pthread_create(&runner->thread, NULL, runner_main, runner);
        if (failed != 0) {
            return err_raise_errno(failed, "cannot start a runner");
        }
        runner->started = true;
    }
    return 0;
}

void supervisor_wake(struct service *service)
{
    struct supervisor *supervisor = &service->supervisor;

    pthread_mutex_lock(&supervisor->lock);
    for (int i = 0; i < supervisor->count; i++) {
        supervisor->runners[i].work = true;
    }
    pthread_cond_broadcast(&supervisor->wake);
    pthread_mutex_unlock(&supervisor->lock);
}

void supervisor_tell(struct service *service, const struct job_row *job, enum supervisor_order order)
{
    struct supervisor *supervisor = &service->supervisor;

    pthread_mutex_lock(&supervisor->lock);
    for (int i = 0; i < supervisor->count; i++) {
        struct task *task = supervisor->runners[i].task;
        if (task != NULL && strcmp(task->id, job->id) == 0 && task->fence == job->fence) {
            task_order(task, order);
        }
    }
    pthread_mutex_unlock(&supervisor->lock);
}

/* Under the lock. */
static bool all_returned(const struct supervisor *supervisor)
{
    bool all = true;

    for (int i = 0; i < supervisor->count; i++) {
        all = all && (!supervisor->runners[i].started || supervisor->runners[i].returned);
    }
    return all;
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
    while (!all_returned(supervisor)) {
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

    if (!service_draining(service)) {
        supervisor_drain(service, 0);
    }
    for (int i = 0; i < supervisor->count; i++) {
        struct runner *runner = &supervisor->runners[i];
        if (runner->started) {
            pthread_join(runner->thread, NULL);
        }
        gpu_close(&runner->gpu);
        free(runner->others);
    }
    free(supervisor->runners);
    free(supervisor->module_folders);
    pthread_mutex_destroy(&supervisor->lock);
    pthread_cond_destroy(&supervisor->wake);
    pthread_cond_destroy(&supervisor->ended);
}

static bool names_any(const char *want)
{
    return want[0] == '\0' || strcmp(want, "auto") == 0;
}

int supervisor_device_of(const struct service *service, const char *want, struct gpu_info *out)
{
    return runner_device_of(&service->supervisor.runners[0], want, out);
}

int runner_device_of(const struct runner *runner, const char *want, struct gpu_info *out)
{
    if (names_any(want)) {
        *out = runner->device;
        return 0;
    }
    return gpu_describe(want, runner->service->supervisor.threads, out);
}
