#pragma once
/* The first and the last line of a run's log. Any thread. */

#include "daemon/config.h"

/* Version, libraries, address and every option. module_folders: those that are searched. */
void report_start(const struct config *config, const char *module_folders, uint16_t port);
/* clean: every request was answered before the end. */
void report_end(const char *reason, double seconds, bool clean);
