#pragma once
/* A run in a process of its own: what `quantd` does when its parent starts it for that (jobs/worker_process.c). */

/* The first argument of such a process, and the second: its parent's id. */
#define CHILD_COMMAND "pipeline-process"
/* Descriptors that it starts with, in addition to the standard ones. */
enum { CHILD_SOCKET = 3, CHILD_MODEL_ROOT = 4 };

/* Take an order, run it, and say by messages how that goes. Main thread, before any other starts. parent: as on the
 * command line. The exit status: 0 when the last message was sent. */
int child_main(const char *parent);
