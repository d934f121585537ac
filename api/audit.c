/* Lines of the audit log. Bodies, queries and keys are not in them. */

#include "api/audit.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/ids.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>

int audit_open(const char *path, int *fd)
{
    int opened = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (opened < 0) {
        return err_raise_errno(errno, "cannot open the audit log %s", path);
    }
    *fd = opened;
    return 0;
}

bool audit_write(int fd, const struct audit_line *line)
{
    AUTO_JSON json_t *tree =
        json_pack("{s:I, s:s?, s:s?, s:s?, s:s?, s:s, s:s?, s:i}", "at", (json_int_t)clock_unix_seconds(), "request",
                  line->request, "client", line->client, "key", line->key, "project", line->project, "operation",
                  line->operation, "object", line->object, "status", line->status);
    AUTO_FREE char *text = tree != NULL ? json_dumps(tree, JSON_COMPACT) : NULL;
    return text != NULL && dprintf(fd, "%s\n", text) >= 0;
}
