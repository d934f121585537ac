/* The module of a GPU must be found where a build and an installation put it, without an option. */

#include "daemon/modules.h"

#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH_SIZE 4096

/* From the executable's folder: itself, the build tree's, and the installation's. */
static const char *const beside[] = {"", "/../gpu/cuda", ("/../" QUANTD_MODULE_LIBDIR)};
#define BESIDE_COUNT (sizeof(beside) / sizeof(beside[0]))

/* Adds a folder unless it is there already; an existing one under its real name, so that one place is searched once. */
static int add(const char *folder, char *out, size_t size)
{
    char real[PATH_SIZE];
    size_t used = strlen(out), length;

    if (realpath(folder, real) == NULL) {
        snprintf(real, sizeof(real), "%s", folder);
    }
    if (strchr(real, ':') != NULL) { /* it cannot stand in the list */
        return err_raise(ERR_CONFIG, "the module folder \"%.300s\" has a ':' in its path; move it", real);
    }
    length = strlen(real);
    for (const char *at = out; (at = strstr(at, real)) != NULL; at += length) {
        if ((at == out || at[-1] == ':') && (at[length] == '\0' || at[length] == ':')) {
            return 0;
        }
    }
    if (snprintf(out + used, size - used, "%s%s", used > 0 ? ":" : "", real) >= (int)(size - used)) {
        return err_raise(ERR_CONFIG, "the paths of the module folders are too long; name one with --module-dir");
    }
    return 0;
}

int modules_folders(const char *given, char *out, size_t size)
{
    char executable[PATH_SIZE], folder[PATH_SIZE + 64];
    int rc = 0;

    out[0] = '\0';
    if (given != NULL) {
        return add(given, out, size);
    }
    ssize_t length = readlink("/proc/self/exe", executable, sizeof(executable) - 1);
    char *slash = NULL;
    if (length > 0) {
        executable[length] = '\0';
        slash = strrchr(executable, '/');
    }
    for (size_t i = 0; slash != NULL && i < BESIDE_COUNT && rc == 0; i++) {
        *slash = '\0';
        snprintf(folder, sizeof(folder), "%s%s", executable, beside[i]);
        if (i == 0 || access(folder, F_OK) == 0) {
            rc = add(folder, out, size);
        }
    }
    return rc != 0 ? rc : add(QUANTD_MODULE_DIR, out, size);
}
