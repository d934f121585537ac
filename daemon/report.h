#pragma once
/* The first and the last line of a run's log. Any thread. */

#include "daemon/config.h"

/* Version, libraries, address and everything that was set. module_folders: those that were searched. */
void report_start(const struct config *config, const char *module_folders, uint16_t port);
/* reason: why it ends; clean: everything was drained and closed in time. */
void report_end(const char *reason, double seconds, bool clean);
