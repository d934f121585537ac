#pragma once
/* A job followed to its end by its events: bars on a terminal, plain lines elsewhere. */

#include "cli/client.h"

enum watch_output {
    WATCH_NOTHING,
    WATCH_EVENTS, /* each event as a line of JSON */
    WATCH_LINES,
    WATCH_BARS,
};

/* What standard output should get: bars if it is a terminal, lines if not; what --json and --quiet ask for. */
enum watch_output watch_choose(const struct cli *cli, bool lines);
/* Follow job id; *job is its state in the end. A broken connection is opened again after the last event that was seen;
 * STATUS_UNREACHABLE after several minutes without one, or when the first connection fails. */
int watch_job(struct cli *cli, const char *id, enum watch_output output, json_t **job);
