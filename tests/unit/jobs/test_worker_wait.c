/* Child processes that end, that must be killed, and that outlive their killing. */

#include "base/ids.h"
#include "jobs/worker_wait.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static pid_t child_that_waits(void)
{
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        for (;;) {
            pause();
        }
    }
    return pid;
}

static double cpu_seconds(void)
{
    struct timespec used;
    ck_assert_int_eq(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used), 0);
    return (double)used.tv_sec + (double)used.tv_nsec * 1e-9;
}

START_TEST(test_one_that_ends)
{
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) {
        _exit(7);
    }
    ck_assert(worker_wait(pid, 60000, &status));
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    ck_assert(worker_wait(pid, 0, &status)); /* nobody's child any more */
    ck_assert_int_eq(status, 0);
}
END_TEST

/* Waiting takes time, not the processor. */
START_TEST(test_waiting_does_not_spin)
{
    int status;
    pid_t pid = child_that_waits();
    int64_t begin = clock_monotonic_ms();
    double cpu = cpu_seconds();
    ck_assert(!worker_wait(pid, 1000, &status));
    ck_assert_int_ge(clock_monotonic_ms() - begin, 1000);
    ck_assert(cpu_seconds() - cpu < 0.5);
    ck_assert(worker_end(pid, 0, 60000, &status));
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}
END_TEST

/* As one in a system call that cannot be interrupted: it has not ended when the patience is over, and does later. */
START_TEST(test_one_that_outlives_its_killing_is_reaped)
{
    int status = -1;
    pid_t pid = child_that_waits();
    bool ended = worker_end(pid, 0, -1, &status); /* no patience at all: it may be gone even so */
    ck_assert(!ended || WIFSIGNALED(status));
    int64_t until = clock_monotonic_ms() + 60000;
    while (kill(pid, 0) == 0) { /* a zombie is still there */
        ck_assert_int_lt(clock_monotonic_ms(), until);
        (void)poll(NULL, 0, 1);
    }
    ck_assert_int_eq(errno, ESRCH);
}
END_TEST

UNIT_MAIN("worker_wait", test_one_that_ends, test_waiting_does_not_spin, test_one_that_outlives_its_killing_is_reaped)
