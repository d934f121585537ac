#pragma once
/* Signals that the daemon ignores and logs, and SIGHUP. Those that end it are handled in quantd.c. */

#include <uv.h>

#define SIGNALS_LOGGED 6

struct signals {
    uv_signal_t handles[SIGNALS_LOGGED];
    void (*hang_up)(void *data); /* of SIGHUP; NULL: it is logged and ignored, too */
    void *data;
};

/* Ignore them: at startup, and again once a closed loop has restored the default actions, which would kill. */
void signals_shield(void);
/* Log them from now on; the handles are closed with the loop. Returns 0 or libuv's error. */
int signals_watch(uv_loop_t *loop, struct signals *signals);
/* "SIGTERM"; static text. */
const char *signals_name(int number);
