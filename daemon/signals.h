#pragma once
/* Signals that ask for nothing the daemon has: it stays, and says so in the log. Those that end it are the loop owner's
 * (quantd.c). */

#include <uv.h>

#define SIGNALS_NOTED 6

struct signals {
    uv_signal_t handles[SIGNALS_NOTED];
};

/* First thing in the process, and again when a loop has let go of them: none of them kills. */
void signals_shield(void);
/* Note them in the log from now on; the handles are closed with the loop. 0 or what libuv says. */
int signals_watch(uv_loop_t *loop, struct signals *signals);
/* "SIGTERM"; static text. */
const char *signals_name(int number);
