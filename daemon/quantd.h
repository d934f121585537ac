#pragma once
/* The daemon: opens all layers and runs the event loop. One instance per process; the thread that calls quantd_run is
 * the loop thread. */

#include "daemon/config.h"

struct quantd;

/* Opens the layers, lowest first; requests are served from quantd_run on. The config must outlive it. Takes over
 * `socket`, a listening socket, unless it is -1. */
int quantd_open(const struct config *config, int socket, struct quantd **out);
/* Prints the address and serves until a signal asks for a shutdown or a lost device for a restart (restart.h), then
 * drains. */
int quantd_run(struct quantd *quantd);
/* Closes the layers, highest first. NULL is accepted. */
void quantd_close(struct quantd *quantd);
