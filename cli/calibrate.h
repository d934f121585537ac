#pragma once
/* Records streamed into a job that waits for calibration: in batches of complete lines, each acknowledged, so that a
 * broken connection is continued where the server is. */

#include "cli/client.h"

#include <stdio.h>

/* Send the lines of in (NDJSON), which messages call name, into the job and complete its calibration. After a broken
 * connection the batch is continued after the records that the server has. records: what an earlier call has sent
 * already; so many lines are left out. */
int calibrate_stream(struct cli *cli, const char *job, FILE *in, const char *name, int64_t records);
/* Before there is a job that would wait for these records: path, "-" for standard input, is a file that can be read. */
int calibrate_check(const char *path);
/* The same with the file of that path, for a job that waits, as the server gave it; job is then as it is after that.
 * Where it fails that is said, since the job goes on waiting. */
int calibrate_file(struct cli *cli, const char *path, json_t **job);
