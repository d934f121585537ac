/* A receiver that commits blocks while the run continues: the same results and order, and no block that is lost. */

#include "tests/unit/pipeline/pipeline_rig.h"

#include <malloc.h>
#include <stdatomic.h>

static void open_late(struct world *w)
{
    world_open(w, "gptq", 1);
    w->late = true;
}

/* Ticks go by while each block but the last waits, which is all that a run may do before its next block is complete. */
START_TEST(test_late_answers_change_nothing)
{
    struct world direct, late;
    world_open(&direct, "gptq", 1);
    open_late(&late);
    ck_assert_rc_ok(run(&direct, MEMORY));
    ck_assert_rc_ok(run(&late, MEMORY));
    expect_same(&direct, &late);
    ck_assert(!late.waits);
    ck_assert_int_eq(direct.ignored, 0);
    ck_assert_int_ge(late.ignored, (BLOCKS - 1) * LATE_TICKS);
    world_close(&direct);
    world_close(&late);
}
END_TEST

static pthread_t runs;
static atomic_int trims, trims_of_the_run;

/* In place of the library's. */
int malloc_trim(size_t pad)
{
    (void)pad;
    trims++;
    trims_of_the_run += pthread_equal(pthread_self(), runs) != 0;
    return 0;
}

/* Giving pages back takes locks and system calls, which the run does not wait for. */
START_TEST(test_memory_goes_back_off_the_run)
{
    struct world w;
    world_open(&w, "gptq", 1);
    runs = pthread_self();
    trims = trims_of_the_run = 0;
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_int_eq(trims, BLOCKS);
    ck_assert_int_eq(trims_of_the_run, 0);
    world_close(&w);
}
END_TEST

START_TEST(test_interruption_is_heard_late)
{
    struct world direct, late;
    world_open(&direct, "gptq", 1);
    open_late(&late);
    ck_assert_rc_ok(run(&direct, MEMORY));
    late.stop_at = 1;
    ck_assert_int_eq(run(&late, MEMORY), ERR_INTERRUPTED);
    ck_assert_str_eq(late.failure.message, "interrupted by the test");
    ck_assert_int_eq(late.block_count, 2); /* and not the one that was open */
    late.stop_at = -1;
    ck_assert_rc_ok(run(&late, MEMORY));
    expect_same(&direct, &late);
    world_close(&direct);
    world_close(&late);
}
END_TEST

START_TEST(test_failed_commit_ends_the_run)
{
    static const int64_t blocks[] = {0, BLOCKS - 1};
    for (size_t i = 0; i < 2; i++) {
        struct world w;
        open_late(&w);
        w.refuse_at = blocks[i];
        ck_assert_int_eq(run(&w, MEMORY), ERR_DISK_FULL);
        ck_assert_ptr_nonnull(strstr(w.failure.message, "not committed by the test"));
        ck_assert_int_eq(w.block_count, blocks[i]);
        w.refuse_at = -1;
        ck_assert_rc_ok(run(&w, MEMORY));
        ck_assert_int_eq(w.block_count, BLOCKS);
        world_close(&w);
    }
}
END_TEST

/* The receiver reads a block until it has answered, also when the run is cancelled meanwhile. */
START_TEST(test_cancelled_while_a_block_waits)
{
    int hits = 0;
    for (int64_t at = 8; at < 48; at += 2) {
        struct world w;
        open_late(&w);
        w.cancel_in = at;
        ck_assert_int_eq(run(&w, MEMORY), ERR_CANCELLED);
        ck_assert(!w.waits);
        hits += w.refused_waiting;
        world_close(&w);
    }
    ck_assert_int_gt(hits, 0);
}
END_TEST

UNIT_MAIN("pipeline_commits", test_late_answers_change_nothing, test_memory_goes_back_off_the_run,
          test_interruption_is_heard_late, test_failed_commit_ends_the_run, test_cancelled_while_a_block_waits)
