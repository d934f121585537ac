#pragma once
/* How long things are kept, in seconds; 0 = until a client deletes them. */

#include <stdint.h>

struct retention {
    int64_t jobs;        /* that have ended, since then, with their events and reports; their artifacts stay */
    int64_t artifacts;   /* since they were published */
    int64_t checkpoints; /* the files of failed jobs, from which a retry goes on, since the failure */
    int64_t deliveries;  /* to webhooks, that have ended, since they were made */
    int64_t uploads;     /* that have not become files, since their last piece */
};
