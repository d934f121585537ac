#pragma once
/* Restart in place: the process becomes a fresh one with the same PID, arguments and listening socket. Loop thread, but
 * for restart_now. */

/* First of all: what this process was started with. argv must stay. */
void restart_remember(char **argv);
/* One is due, and will listen on a copy of this socket. */
int restart_prepare(int socket);
/* It is not due any more. */
void restart_forget(void);
/* Does what is due; safe in a signal handler. Comes back with 0 when nothing is, else with what errno says. */
int restart_now(void);
