/* Backend modules are found without an option both in a build tree and in an installation. */

#include "daemon/modules.h"

#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH_SIZE 4096

/* Relative to the executable's directory: itself, that of a build tree, and that of an installation. */
static const char *const relative[] = {"", "/../gpu/cuda", ("/../" QUANTD_MODULE_LIBDIR)};
#define RELATIVE_COUNT (sizeof(relative) / sizeof(relative[0]))

/* Append a directory unless it is in the list. Symbolic links are resolved, so that no directory is searched twice. */
static int modules_add(const char *folder, char *out, size_t size)
{
    char real[PATH_SIZE];
    size_t used = strlen(out), length;

    if (realpath(folder, real) == NULL) {
        snprintf(real, sizeof(real), "%s", folder);
    }
    if (strchr(real, ':') != NULL) { /* the separator of the list */
        return err_raise(
            ERR_CONFIG,
            "the path of the module directory \"%.300s\" contains a ':', which separates directories; move it", real);
    }
    length = strlen(real);
    for (const char *at = out; (at = strstr(at, real)) != NULL; at += length) {
        if ((at == out || at[-1] == ':') && (at[length] == '\0' || at[length] == ':')) {
            return 0;
        }
    }
    if (snprintf(out + used, size - used, "%s%s", used > 0 ? ":" : "", real) >= (int)(size - used)) {
        return err_raise(ERR_CONFIG, "the paths of the module directories are too long; set one with --module-dir");
    }
    return 0;
}

int modules_folders(const char *given, char *out, size_t size)
{
    char executable[PATH_SIZE], folder[PATH_SIZE + 64];
    out[0] = '\0';
    if (given != NULL) {
        return modules_add(given, out, size);
    }
    ssize_t length = readlink("/proc/self/exe", executable, sizeof(executable) - 1);
    char *slash = NULL;
    if (length > 0) {
        executable[length] = '\0';
        slash = strrchr(executable, '/');
    }
    for (size_t i = 0; slash != NULL && i < RELATIVE_COUNT; i++) {
        *slash = '\0';
        snprintf(folder, sizeof(folder), "%s%s", executable, relative[i]);
        if (i == 0 || access(folder, F_OK) == 0) {
            TRY(modules_add(folder, out, size));
        }
    }
    return modules_add(QUANTD_MODULE_DIR, out, size);
}
