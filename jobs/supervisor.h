#pragma once
/* The supervisor: a runner for each device of the daemon, which is a thread that owns the device. It claims a job, has
 * a worker run it, commits what the worker says, and records how the attempt ended; as many jobs run at once as there
 * are devices. All that runners share is in the store and in struct supervisor. Within jobs/. */

#include "base/ids.h"
#include "gpu/gpu.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct service;
struct service_config;
struct job_row;
struct task;

struct runner {
    struct service *service;
    struct gpu gpu;               /* the thread's; opened once and kept */
    struct gpu_info device;       /* as first opened, for others to read */
    char *others;                 /* as store_job_claim takes it */
    bool lost_until_exit;         /* a device like the one that the last job ran on, once lost, needs a new process */
    _Atomic int64_t device_peak;  /* of the job that runs, in bytes; 0: none runs */
    bool work, started, returned; /* under the supervisor's lock, as the next one */
    struct task *task;            /* that is worked on, or NULL */
    pthread_t thread;
};

struct supervisor {
    struct runner *runners; /* at least one, once open */
    int count;
    int threads;
    int64_t host_memory_bytes;   /* activation budget of a job that names none */
    bool worker_process;         /* jobs run in processes of their own; no runner's `gpu` is open then */
    char *module_folders;        /* for these */
    const char *cpu_products;    /* and of theirs, a word of gpu_cpu_products; static */
    void (*restart)(void *data); /* as in the configuration */
    void *restart_data;

    pthread_mutex_t lock;
    pthread_cond_t wake;   /* monotonic clock: there is work, or the daemon drains */
    pthread_cond_t ended;  /* monotonic clock: a thread has returned */
    atomic_bool recovered; /* until then the first runner tries again and the others wait */

    atomic_bool draining;
    _Atomic int64_t drain_deadline_ms; /* on the monotonic clock */
};

/* Of a zeroed service: what supervisor_close releases. */
void supervisor_init(struct service *service);
/* Open the devices. */
int supervisor_open(struct service *service, const struct service_config *config);
/* Recover, and start the threads. */
int supervisor_start(struct service *service);
/* A job may be waiting. */
void supervisor_wake(struct service *service);
/* What a client wants of the task that runs: to drop what it is at, to stop after the open block, to stop now, to go
 * on.
 */
enum supervisor_order { ORDER_CANCEL, ORDER_PAUSE, ORDER_PAUSE_NOW, ORDER_RESUME };
/* Tell the attempt that the job was in when it was moved: `job` is its row after that. Another attempt, or another job,
 * has nothing to do with it. */
void supervisor_tell(struct service *service, const struct job_row *job, enum supervisor_order order);
/* Claim nothing more; wait until the threads have returned, or for a little longer than timeout_ms. */
void supervisor_drain(struct service *service, int64_t timeout_ms);
void supervisor_close(struct service *service);
/* What the device is that runs a job which asks for `want`, as it was when it was first opened: of "auto" and "" the
 * first runner's, else the one of that name. Any thread; opens none that was opened before. */
int supervisor_device_of(const struct service *service, const char *want, struct gpu_info *out);
/* The same of a job that this runner has claimed: of "auto" and "" its own. */
int runner_device_of(const struct runner *runner, const char *want, struct gpu_info *out);

/* Sleep, also when there is work: only a drain ends it early. A runner's thread. */
void supervisor_back_off(struct service *service, int64_t timeout_ms);

/* --- supervisor_end.c */
/* Record how an attempt that failed with `code` and this thread's error record ended. Does not return before the store
 * has it: a job whose row says that it runs while no worker runs it would wait for a restart. Returns how long to wait
 * before the next attempt at anything. */
int64_t supervisor_finish(struct task *task, int code);

/* --- supervisor_recover.c */
/* What an earlier process left: stray folders go, running jobs go back into the queue, cancelling ones end. A disk that
 * is too full for that does not count as a failure: `recovered` stays false, and the thread tries it again. */
int supervisor_recover(struct service *service);
