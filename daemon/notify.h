#pragma once
/* Notifications to the service manager (sd_notify's protocol): one datagram to $NOTIFY_SOCKET. */

#include <uv.h>

/* "READY=1", "STOPPING=1", "STATUS=..."; does nothing when $NOTIFY_SOCKET is not set. Any thread. */
void notify_send(const char *state);
/* RELOADING=1: not ready until the next READY=1. */
void notify_reloading(void);
/* Sends WATCHDOG=1 from iterations of the loop, twice in each interval in which the manager expects one
 * ($WATCHDOG_USEC), so that it ends a loop that hangs; does nothing where it expects none. */
void notify_watchdog(uv_loop_t *loop, uv_timer_t *timer);
