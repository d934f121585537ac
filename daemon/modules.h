#pragma once
/* Where backend modules are looked for. */

#include <stddef.h>

#define MODULES_FOLDERS_SIZE 16384

/* Writes the folders to search in order, ':' between them: the one that was given, alone; else the executable's own,
 * the one beside it in a build tree, and the two of an installation: relative to the executable, so that a moved one
 * finds its modules, and the one that the build was configured for. Any thread. ERR_CONFIG when they do not fit. */
int modules_folders(const char *given, char *out, size_t size);
