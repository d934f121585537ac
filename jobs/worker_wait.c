/* A child is asked for at intervals: waitpid has no time limit, and a pidfd is not there on every kernel and in every
 * sandbox. */

#include "jobs/worker_wait.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/log.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#define INTERVAL_MS 5

bool worker_wait(pid_t pid, int64_t timeout_ms, int *status)
{
    int64_t until = clock_monotonic_ms() + timeout_ms;

    for (;;) {
        pid_t found = waitpid(pid, status, WNOHANG);
        if (found == pid) {
            return true;
        }
        if (found < 0 && errno == ECHILD) { /* nobody's child any more: another process may have its id */
            *status = 0;
            return true;
        }
        if (clock_monotonic_ms() >= until) {
            return false;
        }
        (void)poll(NULL, 0, INTERVAL_MS);
    }
}

static void *reap(void *data)
{
    pid_t *pid = data;
    int status;

    while (waitpid(*pid, &status, 0) < 0 && errno == EINTR) {
    }
    log_info("a run's process that did not end has ended", LOG_I("pid", *pid));
    free(pid);
    return NULL;
}

static void reap_later(pid_t pid)
{
    pid_t *copy = malloc(sizeof(*copy));
    pthread_t thread;

    if (copy != NULL) {
        *copy = pid;
        if (pthread_create(&thread, NULL, reap, copy) == 0) {
            (void)pthread_detach(thread);
            return;
        }
        free(copy);
    }
    log_warn("a run's process cannot be waited for", LOG_I("pid", pid));
}

bool worker_end(pid_t pid, int64_t grace_ms, int64_t kill_ms, int *status)
{
    if (worker_wait(pid, grace_ms, status)) {
        return true;
    }
    (void)kill(pid, SIGKILL);
    if (worker_wait(pid, kill_ms, status)) {
        return true;
    }
    log_warn("a run's process was killed and has not ended", LOG_I("pid", pid));
    reap_later(pid);
    return false;
}
