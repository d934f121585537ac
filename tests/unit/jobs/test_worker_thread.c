/* A run in a thread of its own: its messages come on the caller's, and it computes while that one commits. */

#include "jobs/worker.h"
#include "tests/unit/pipeline/pipeline_rig.h"

#include "base/ids.h"

#include <time.h>

static void open_threaded(struct world *w)
{
    world_open(w, "gptq", 1);
    w->worker = worker_run_thread;
}

START_TEST(test_same_as_on_the_callers_thread)
{
    struct world direct, threaded;
    world_open(&direct, "gptq", 1);
    open_threaded(&threaded);
    ck_assert_rc_ok(run(&direct, MEMORY));
    ck_assert_rc_ok(run(&threaded, MEMORY));
    expect_same(&direct, &threaded);
    ck_assert_double_gt(threaded.fraction, 0);
    world_close(&direct);
    world_close(&threaded);
}
END_TEST

static double processor_seconds(void)
{
    struct timespec spent;
    ck_assert_int_eq(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent), 0);
    return (double)spent.tv_sec + 1e-9 * (double)spent.tv_nsec;
}

static bool computed_meanwhile[BLOCKS];

/* A commit that takes until the process has computed, or much too long. */
static int slow_receive(void *data, const struct message *message)
{
    if (message->kind == MESSAGE_BLOCK_DONE) {
        double before = processor_seconds(), limit = clock_monotonic_seconds() + 5;
        bool *computed = &computed_meanwhile[message->block.saved.index];
        while (!*computed && clock_monotonic_seconds() < limit) {
            (void)nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
            *computed = processor_seconds() - before > 0.02;
        }
    }
    return on_message(data, message);
}

static int run_slowly(const struct pipeline *pipeline)
{
    struct pipeline slow = *pipeline;
    slow.receive = slow_receive;
    return worker_run_thread(&slow);
}

START_TEST(test_computes_while_a_block_is_committed)
{
    struct world w;
    open_threaded(&w);
    w.worker = run_slowly;
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_int_eq(w.block_count, BLOCKS);
    for (int i = 0; i + 1 < BLOCKS; i++) {
        ck_assert_msg(computed_meanwhile[i], "nothing was computed while block %d was committed", i);
    }
    world_close(&w);
}
END_TEST

START_TEST(test_refused_progress_stops_the_run)
{
    struct world w;
    open_threaded(&w);
    w.cancel_in = 0; /* the first that is taken */
    ck_assert_int_eq(run(&w, MEMORY), ERR_CANCELLED);
    ck_assert_str_eq(w.failure.message, "refused by the test");
    ck_assert_int_lt(w.block_count, BLOCKS);
    world_close(&w);
}
END_TEST

START_TEST(test_interruption_and_failed_commit)
{
    struct world direct, w;
    world_open(&direct, "gptq", 1);
    ck_assert_rc_ok(run(&direct, MEMORY));
    open_threaded(&w);
    w.stop_at = 0;
    ck_assert_int_eq(run(&w, MEMORY), ERR_INTERRUPTED);
    ck_assert_int_eq(w.block_count, 1);
    w.stop_at = -1;
    w.refuse_at = 1;
    ck_assert_int_eq(run(&w, MEMORY), ERR_DISK_FULL);
    ck_assert_str_eq(w.failure.message, "not committed by the test");
    ck_assert_int_eq(w.block_count, 1);
    w.refuse_at = -1;
    ck_assert_rc_ok(run(&w, MEMORY));
    expect_same(&direct, &w);
    world_close(&direct);
    world_close(&w);
}
END_TEST

UNIT_MAIN("worker_thread", test_same_as_on_the_callers_thread, test_computes_while_a_block_is_committed,
          test_refused_progress_stops_the_run, test_interruption_and_failed_commit)
