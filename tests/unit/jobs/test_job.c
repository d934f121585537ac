/* The table of moves: exactly the legal ones, terminal states without a way out. */

#include "jobs/job.h"
#include "tests/unit/unit.h"

#include <string.h>

START_TEST(test_legal_moves)
{
    ck_assert_str_eq(job_next("awaiting_calibration", JOB_COMPLETE), "queued");
    ck_assert_str_eq(job_next("queued", JOB_CLAIM), "running");
    ck_assert_str_eq(job_next("running", JOB_REQUEUE), "queued");
    ck_assert_str_eq(job_next("running", JOB_CANCEL), "cancelling");
    ck_assert_str_eq(job_next("queued", JOB_CANCEL), "cancelled");
    ck_assert_str_eq(job_next("cancelling", JOB_STOPPED), "cancelled");
    ck_assert_str_eq(job_next("running", JOB_SUCCEED), "succeeded");
    ck_assert_str_eq(job_next("running", JOB_FAIL), "failed");
}
END_TEST

START_TEST(test_illegal_moves)
{
    ck_assert_ptr_null(job_next("queued", JOB_COMPLETE));
    ck_assert_ptr_null(job_next("queued", JOB_SUCCEED));
    ck_assert_ptr_null(job_next("cancelling", JOB_SUCCEED));
    ck_assert_ptr_null(job_next("cancelling", JOB_REQUEUE));
    ck_assert_ptr_null(job_next("no such state", JOB_CLAIM));
}
END_TEST

START_TEST(test_terminal_states_never_change)
{
    static const char *const over[] = {"succeeded", "failed", "cancelled"};

    for (size_t i = 0; i < sizeof(over) / sizeof(over[0]); i++) {
        ck_assert(job_is_terminal(over[i]));
        for (int move = JOB_COMPLETE; move <= JOB_FAIL; move++) {
            ck_assert_ptr_null(job_next(over[i], (enum job_move)move));
        }
    }
}
END_TEST

/* Each state that the table reaches either ends or goes on. */
START_TEST(test_no_dead_ends)
{
    for (const struct job_transition *row = job_transitions; row->from != NULL; row++) {
        bool onward = false;
        ck_assert(!job_is_terminal(row->from));
        for (const struct job_transition *next = job_transitions; next->from != NULL; next++) {
            onward = onward || strcmp(next->from, row->to) == 0;
        }
        ck_assert(onward != job_is_terminal(row->to));
    }
}
END_TEST

UNIT_MAIN("job", test_legal_moves, test_illegal_moves, test_terminal_states_never_change, test_no_dead_ends)
