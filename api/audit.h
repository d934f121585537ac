#pragma once
/* The audit log: a file of JSON lines that is only appended to. Any thread, also of several processes at a time. */

#include <stdbool.h>

#define AUDIT_FILE "audit.log" /* in the data directory */

/* Who did what. NULL: not known, or there is none. */
struct audit_line {
    const char *request, *client, *key, *project, *operation, *object;
    int status; /* as of a request */
};

/* Create or open it for appending. ERR_STORAGE or what errno says. */
int audit_open(const char *path, int *fd);
/* Append a line with one write, so that lines are not mixed. False when it is lost. */
bool audit_write(int fd, const struct audit_line *line);
