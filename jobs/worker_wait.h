#pragma once
/* Waiting for child processes. Any thread; each child by one thread. */

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* Wait until the child has ended; *status as of waitpid, 0 when it is no longer a child of this process. False: it has
 * not ended within timeout_ms. */
bool worker_wait(pid_t pid, int64_t timeout_ms, int *status);
/* The same, but kill it once grace_ms are over. A child that does not end even so (it is inside a system call that no
 * signal interrupts) is left to a thread, which reaps it whenever it ends. False: that happened; *status is not set. */
bool worker_end(pid_t pid, int64_t grace_ms, int64_t kill_ms, int *status);
