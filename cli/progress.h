#pragma once
/* One line on a terminal's standard error: how much of a transfer is done, and how fast. */

#include <stdbool.h>
#include <stdint.h>

struct progress {
    int64_t bytes, total;
    int64_t started_at, shown_at; /* in ms */
    bool hidden;
};

/* quiet: nothing is shown; neither is it where standard error is not a terminal. */
void progress_init(struct progress *progress, bool quiet);
/* At most five times a second; last: in any case, and the line ends. */
void progress_show(struct progress *progress, bool last);
