#pragma once
/* The house, built and lived in. One instance a process; the thread that calls quantd_run is the loop thread. */

#include "daemon/config.h"

struct quantd;

/* Opens everything from the ground up; serves from quantd_run on. The config must outlive it. socket: one that listens
 * already, taken over, or -1. */
int quantd_open(const struct config *config, int socket, struct quantd **out);
/* Prints the address, serves until a signal asks to stop or a lost device to restart (restart.h), drains. */
int quantd_run(struct quantd *quantd);
/* Closes what is open, top down; NULL is fine. */
void quantd_close(struct quantd *quantd);
