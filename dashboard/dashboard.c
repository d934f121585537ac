/* Finding a file of the dashboard. The table is short. */

#include "dashboard/dashboard.h"

#include <string.h>

const struct dashboard_file *dashboard_find(const char *path)
{
    for (const struct dashboard_file *file = dashboard_files; file->path != NULL; file++) {
        if (strcmp(file->path, path) == 0) {
            return file;
        }
    }
    return NULL;
}
