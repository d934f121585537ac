/* The clock of phases on a device that counts its events: times come from them, and a clock that is closed, or could
 * not be opened, has none. */

#include "pipeline/phase_clock.h"
#include "tests/unit/unit.h"

#include <string.h>

/* An event is reached when it is recorded, a second after the last one was. */
struct gpu_event {
    double at;
};

static struct gpu_event made[PHASE_CLOCK_EVENTS];
static int made_count, freed_count, new_limit;
static double now;
static bool records; /* else recording fails */

static int counting_new(struct gpu_device *device, struct gpu_event **event)
{
    (void)device;
    if (made_count == new_limit) {
        return err_raise(ERR_GPU_OUT_OF_MEMORY, "no event is left");
    }
    *event = &made[made_count++];
    return 0;
}

static void counting_free(struct gpu_event *event)
{
    ck_assert_ptr_nonnull(event);
    freed_count++;
}

static int counting_record(struct gpu_stream *stream, struct gpu_event *event)
{
    (void)stream;
    ck_assert_ptr_nonnull(event);
    event->at = ++now;
    return records ? 0 : err_raise(ERR_DEVICE_LOST, "nothing is recorded");
}

static int counting_elapsed(struct gpu_event *first, struct gpu_event *last, double *seconds)
{
    *seconds = last->at - first->at;
    return 0;
}

static const struct gpu_ops counting_ops = {.event_new = counting_new,
                                            .event_free = counting_free,
                                            .event_record = counting_record,
                                            .event_elapsed = counting_elapsed};

static struct gpu counting_gpu(int limit)
{
    made_count = freed_count = 0;
    new_limit = limit;
    now = 0;
    records = true;
    return (struct gpu){.ops = &counting_ops};
}

static void expect_no_time(struct phase_clock *clock)
{
    struct pipeline_times times = {0};
    const struct pipeline_times none = {0};

    (void)err_raise(ERR_CANCELLED, "cancelled by the test");
    phase_clock_end(clock, PHASE_LOAD, &times);
    phase_clock_finish(clock, &times);
    phase_clock_close(clock);
    phase_clock_end(clock, PHASE_LOAD, &times);
    ck_assert_mem_eq(&times, &none, sizeof(times));
    ck_assert_str_eq(err_last()->message, "cancelled by the test");
}

START_TEST(test_closed)
{
    struct phase_clock clock = {.gpu = NULL};

    expect_no_time(&clock);
}
END_TEST

/* Whatever it lacked: the events that there were are given back, once. */
START_TEST(test_not_opened)
{
    struct phase_clock clock;
    const int limits[] = {0, 1, 2, PHASE_CLOCK_EVENTS - 1};

    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        const struct gpu gpu = counting_gpu(limits[i]);
        ck_assert_int_eq(phase_clock_open(&clock, &gpu, NULL), ERR_GPU_OUT_OF_MEMORY);
        expect_no_time(&clock);
        ck_assert_int_eq(made_count, limits[i]);
        ck_assert_int_eq(freed_count, limits[i]);
    }
    const struct gpu gpu = counting_gpu(PHASE_CLOCK_EVENTS);
    records = false;
    ck_assert_int_eq(phase_clock_open(&clock, &gpu, NULL), ERR_DEVICE_LOST);
    expect_no_time(&clock);
    ck_assert_int_eq(freed_count, PHASE_CLOCK_EVENTS);
}
END_TEST

/* More phases than there are events; every one is counted, in its own sum. */
START_TEST(test_events_are_used_again)
{
    const struct gpu gpu = counting_gpu(PHASE_CLOCK_EVENTS);
    struct pipeline_times times = {0};
    struct phase_clock clock;

    ck_assert_rc_ok(phase_clock_open(&clock, &gpu, NULL));
    for (int i = 0; i < 3 * PHASE_CLOCK_EVENTS; i++) {
        phase_clock_end(&clock, i % 3 == 0 ? PHASE_SOLVE : PHASE_FORWARD, &times);
    }
    phase_clock_finish(&clock, &times);
    ck_assert_double_eq(times.seconds[PHASE_SOLVE], PHASE_CLOCK_EVENTS);
    ck_assert_double_eq(times.seconds[PHASE_FORWARD], 2 * PHASE_CLOCK_EVENTS);
    phase_clock_close(&clock);
    ck_assert_int_eq(made_count, PHASE_CLOCK_EVENTS);
    ck_assert_int_eq(freed_count, PHASE_CLOCK_EVENTS);
}
END_TEST

/* A phase whose end could not be recorded is a part of the next one. */
START_TEST(test_failure_to_record)
{
    const struct gpu gpu = counting_gpu(PHASE_CLOCK_EVENTS);
    struct pipeline_times times = {0};
    struct phase_clock clock;

    ck_assert_rc_ok(phase_clock_open(&clock, &gpu, NULL));
    (void)err_raise(ERR_CANCELLED, "cancelled by the test");
    records = false;
    phase_clock_end(&clock, PHASE_SOLVE, &times);
    records = true;
    phase_clock_end(&clock, PHASE_FORWARD, &times);
    phase_clock_finish(&clock, &times);
    ck_assert_double_eq(times.seconds[PHASE_SOLVE], 0);
    ck_assert_double_eq(times.seconds[PHASE_FORWARD], 2);
    ck_assert_str_eq(err_last()->message, "cancelled by the test");
    phase_clock_close(&clock);
}
END_TEST

UNIT_MAIN("pipeline_phase_clock", test_closed, test_not_opened, test_events_are_used_again, test_failure_to_record)
