#pragma once
/* Words to the service manager (sd_notify's protocol): one datagram to $NOTIFY_SOCKET. */

/* "READY=1", "STOPPING=1", "STATUS=..."; does nothing when nobody listens. Any thread. */
void notify_send(const char *words);
/* Not ready for a moment; READY=1 ends it. */
void notify_restart(void);
