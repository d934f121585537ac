/* A ring of events marks the ends of phases on the device's stream; a time is read when its event is needed again. */

#include "pipeline/phase_clock.h"

#include "base/err.h"
#include "base/ids.h"

static int clock_begin(struct phase_clock *clock)
{
    const struct gpu *gpu = clock->gpu;

    if (gpu->info.host_memory) {
        return 0;
    }
    for (int i = 0; i < PHASE_CLOCK_EVENTS; i++) {
        TRY(gpu->ops->event_new(gpu->device, &clock->events[i]));
    }
    return gpu->ops->event_record(clock->stream, clock->events[0]);
}

int phase_clock_open(struct phase_clock *clock, const struct gpu *gpu, struct gpu_stream *stream)
{
    *clock = (struct phase_clock){.gpu = gpu, .stream = stream, .begun = clock_monotonic_seconds()};
    int rc = clock_begin(clock);

    if (rc != 0) {
        phase_clock_close(clock);
    }
    return rc;
}

/* The oldest phase has a time; this waits for it to end. */
static void finish_first(struct phase_clock *clock, struct pipeline_times *times)
{
    int last = (clock->first + 1) % PHASE_CLOCK_EVENTS;
    double seconds = 0;

    if (clock->gpu->ops->event_elapsed(clock->events[clock->first], clock->events[last], &seconds) == 0) {
        times->seconds[clock->phases[clock->first]] += seconds;
    }
    clock->first = last;
    clock->count--;
}

void phase_clock_end(struct phase_clock *clock, enum pipeline_phase phase, struct pipeline_times *times)
{
    struct err_record record;

    if (clock->gpu == NULL) {
        return;
    }
    if (clock->gpu->info.host_memory) {
        double now = clock_monotonic_seconds();
        times->seconds[phase] += now - clock->begun;
        clock->begun = now;
        return;
    }
    err_take(&record);
    if (clock->count == PHASE_CLOCK_EVENTS - 1) { /* all other events are in use */
        finish_first(clock, times);
    }
    int last = (clock->first + clock->count) % PHASE_CLOCK_EVENTS;
    if (clock->gpu->ops->event_record(clock->stream, clock->events[(last + 1) % PHASE_CLOCK_EVENTS]) == 0) {
        clock->phases[last] = phase;
        clock->count++;
    }
    err_restore(&record);
}

void phase_clock_finish(struct phase_clock *clock, struct pipeline_times *times)
{
    struct err_record record;

    err_take(&record);
    while (clock->count > 0) {
        finish_first(clock, times);
    }
    err_restore(&record);
}

void phase_clock_close(struct phase_clock *clock)
{
    for (int i = 0; clock->gpu != NULL && i < PHASE_CLOCK_EVENTS; i++) {
        if (clock->events[i] != NULL) {
            clock->gpu->ops->event_free(clock->events[i]);
        }
    }
    *clock = (struct phase_clock){.gpu = NULL};
}
