#pragma once
/* What a device that works by itself spent on each phase, by events on its stream: nothing waits for the device to
 * learn it. A phase gets the device's time from the event before to its own, which is what was queued in between. */

#include "pipeline/message.h"

#include "gpu/gpu.h"

#define PHASE_CLOCK_EVENTS 64 /* phases that may be under way at once */

/* Zeroed: closed. */
struct phase_clock {
    const struct gpu *gpu;
    struct gpu_stream *stream;
    struct gpu_event *events[PHASE_CLOCK_EVENTS]; /* a ring: `count` phases end at those after events[first] */
    enum pipeline_phase phases[PHASE_CLOCK_EVENTS];
    int first, count;
};

/* The first phase begins. After a failure phase_clock_close is due, too. */
int phase_clock_open(struct phase_clock *clock, const struct gpu *gpu, struct gpu_stream *stream);
/* The phase ends with what is queued by now, and the next one begins. Adds to *times what has ended for long; a device
 * that cannot tell is not asked again: its error shows at the next call. This thread's error record stays. */
void phase_clock_end(struct phase_clock *clock, enum pipeline_phase phase, struct pipeline_times *times);
/* Wait for all phases that were ended, and add them to *times. This thread's error record stays. */
void phase_clock_finish(struct phase_clock *clock, struct pipeline_times *times);
void phase_clock_close(struct phase_clock *clock);
