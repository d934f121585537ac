/* The line of a transfer. */

#include "cli/progress.h"

#include "base/ids.h"
#include "cli/print.h"

#include <stdio.h>
#include <unistd.h>

#define PROGRESS_SHOW_MS 200

void progress_init(struct progress *progress, bool quiet)
{
    *progress = (struct progress){.started_at = clock_monotonic_ms(), .hidden = quiet || isatty(STDERR_FILENO) == 0};
}

void progress_show(struct progress *progress, bool last)
{
    char bytes[PRINT_SIZE], total[PRINT_SIZE], speed[PRINT_SIZE];
    int64_t now = clock_monotonic_ms();

    if (progress->hidden || (!last && now - progress->shown_at < PROGRESS_SHOW_MS)) {
        return;
    }
    progress->shown_at = now;
    double seconds = (double)(now - progress->started_at) / 1000;
    fprintf(stderr, "\r%s of %s, %s/s\x1b[K%s", print_bytes((double)progress->bytes, bytes),
            print_bytes((double)progress->total, total),
            print_bytes(seconds > 0 ? (double)progress->bytes / seconds : 0, speed), last ? "\n" : "");
}
