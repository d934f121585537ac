#pragma once
/* The time that a run spends in each phase, from the end of the phase before to its own. Where the device computes on
 * the host's cores it is the monotonic clock's, elsewhere the device's, by events on its stream, without waiting for
 * it. */

#include "pipeline/message.h"

#include "gpu/gpu.h"

#define PHASE_CLOCK_EVENTS 64 /* phases that may be under way at once */

/* Zeroed: closed. */
struct phase_clock {
    const struct gpu *gpu;
    struct gpu_stream *stream;
    double begun; /* where the device computes on the host's cores: the open phase, in monotonic seconds */
    struct gpu_event *events[PHASE_CLOCK_EVENTS]; /* a ring: `count` phases end at those after events[first] */
    enum pipeline_phase phases[PHASE_CLOCK_EVENTS];
    int first, count;
};

/* The first phase begins. After a failure the clock is closed. */
int phase_clock_open(struct phase_clock *clock, const struct gpu *gpu, struct gpu_stream *stream);
/* The phase ends, with all that is queued by now, and the next one begins. *times gets the time of this phase or, on
 * another device, of the oldest ones that have ended. A failure to measure is ignored: the device's error shows at the
 * next call; of a closed clock, whose run failed before or while it was opened, no phase ends. This thread's error
 * record stays. */
void phase_clock_end(struct phase_clock *clock, enum pipeline_phase phase, struct pipeline_times *times);
/* Wait for all phases that were ended, and add them to *times. This thread's error record stays. */
void phase_clock_finish(struct phase_clock *clock, struct pipeline_times *times);
void phase_clock_close(struct phase_clock *clock);
