#pragma once
/* Restart in place: exec with the same PID, arguments and listening socket. Loop thread, except for restart_now. */

/* Call first in main. Remembers how this process was started; argv must stay valid. */
void restart_remember(char **argv);
/* Prepare a restart that will listen on a copy of this socket. */
int restart_prepare(int socket);
/* Cancel the prepared restart. */
void restart_forget(void);
/* Restart if one is prepared; async-signal-safe. Returns 0 when none is, or errno when exec failed. */
int restart_now(void);
