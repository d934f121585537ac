#pragma once
/* Notifications to the service manager (sd_notify's protocol): one datagram to $NOTIFY_SOCKET. */

/* "READY=1", "STOPPING=1", "STATUS=..."; does nothing when $NOTIFY_SOCKET is not set. Any thread. */
void notify_send(const char *state);
/* RELOADING=1: not ready until the next READY=1. */
void notify_reloading(void);
