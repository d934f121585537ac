#pragma once
/* The directories in which backend modules are searched for. */

#include <stddef.h>

#define MODULES_FOLDERS_SIZE 16384

/* Writes the directories in search order, separated by ':'. A given directory is the only one. Otherwise: the
 * executable's own, the one next to it in a build tree, and two of an installation: one relative to the executable, so
 * that a relocated installation finds its modules, and the one configured at build time. Any thread. ERR_CONFIG when
 * they do not fit. */
int modules_folders(const char *given, char *out, size_t size);
