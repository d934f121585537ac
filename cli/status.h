#pragma once
/* The exit status of quantctl, which scripts rely on (docs/quantctl.md), and how a command fails.
 *
 * A function of cli/ returns 0, a negative code of base/err.def, or one of these. In each case of failure the record of
 * base/err.h has the sentence for the user; main prints it, unless it is empty because the problem was shown already.
 */

enum status {
    STATUS_OK,
    STATUS_JOB,         /* a job ended as failed, cancelled or expired */
    STATUS_USAGE,       /* arguments, job file, profile or credentials are wrong; nothing was sent */
    STATUS_UNREACHABLE, /* the server, or a registry, could not be reached, or the connection broke or stalled */
    STATUS_REFUSED,     /* the server refused the request (4xx) */
    STATUS_SERVER,      /* the server failed (5xx), or its answer is not one of quantd */
    STATUS_LOCAL,       /* a local file or directory cannot be read or written */
    STATUS_MISMATCH,    /* content differs from its digest, a signature is missing or does not verify, or a name in a
                            manifest is unsafe */
};

/* Write the error record's sentence; returns status. */
int status_fail(enum status status, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Returns status with an empty record: what there is to say was printed. */
int status_shown(enum status status);
/* The exit status of a return value of this folder. */
int status_exit(int rc);
