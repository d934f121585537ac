/* The table of moves: exactly the legal ones, terminal states without a way out; and each event in each state over a
 * store: what it sets, what it announces, what it refuses. */

#include "base/ids.h"
#include "jobs/job.h"
#include "jobs/jobs.h"
#include "storage/storage.h"
#include "tests/unit/json.h"
#include "tests/unit/scratch.h"

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
            ck_assert_ptr_null(job_next(over[i], (enum job_event)move));
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

/* How a job comes into each state. */
static const struct {
    const char *state;
    bool streams;
    enum job_event path[3];
    int length;
} ways[] = {
    {"awaiting_calibration", true, {JOB_COMPLETE}, 0},
    {"queued", true, {JOB_COMPLETE}, 1},
    {"running", false, {JOB_CLAIM}, 1},
    {"cancelling", false, {JOB_CLAIM, JOB_CANCEL}, 2},
    {"cancelled", false, {JOB_CLAIM, JOB_CANCEL, JOB_STOPPED}, 3},
    {"succeeded", false, {JOB_CLAIM, JOB_SUCCEED}, 2},
    {"failed", false, {JOB_CLAIM, JOB_FAIL}, 2},
};

static int move(struct store *store, const char *id, enum job_event event, json_t **row)
{
    const struct job_change change = {.fence = -1,
                                      .reason = "why",
                                      .columns = json_pack("{s:s}", "name", "moved"),
                                      .made = event == JOB_SUCCEED ? json_pack("{s:n}", "artifact_id") : NULL};
    return job_move(store, id, event, &change, row);
}

static void make(struct store *store, size_t way, char id[ID_SIZE])
{
    id_new("job", id);
    json_t *row = json_pack("{s:s, s:s, s:s, s:{}, s:I}", "id", id, "project", "default", "method", "rtn", "request",
                            "created_at", (json_int_t)1000);
    ck_assert_rc_ok(job_create(store, row, ways[way].streams, NULL));
    json_decref(row);
    for (int i = 0; i < ways[way].length; i++) {
        ck_assert_rc_ok(move(store, id, ways[way].path[i], NULL));
    }
}

static bool is_set(const json_t *row, const char *column)
{
    return !json_is_null(json_object_get(row, column));
}

static const json_t *last_event(const json_t *events)
{
    return json_array_get(events, json_array_size(events) - 1);
}

START_TEST(test_each_event_in_each_state)
{
    char dir[256];
    struct store *store;
    scratch_make(dir);
    const struct store_config config = {.data_dir = dir};
    ck_assert_rc_ok(store_open(&config, &store));

    for (size_t way = 0; way < sizeof(ways) / sizeof(ways[0]); way++) {
        for (int e = JOB_COMPLETE; e <= JOB_FAIL; e++) {
            const enum job_event event = (enum job_event)e;
            const char *from = ways[way].state, *to = job_next(from, event);
            char id[ID_SIZE];
            json_t *before, *row = NULL, *events;
            make(store, way, id);
            ck_assert_rc_ok(store_job_get(store, NULL, id, &before));
            ck_assert_str_eq(text_at(before, "status"), from);

            int rc = move(store, id, event, &row);
            ck_assert_rc_ok(store_events_list(store, id, 0, 0, &events));
            const json_t *data = json_object_get(last_event(events), "data");
            if (to == NULL) {
                json_t *after;
                ck_assert_int_eq(rc, ERR_JOB_STATE_CONFLICT);
                ck_assert_rc_ok(store_job_get(store, NULL, id, &after));
                ck_assert_msg(json_equal(before, after), "a refused event %d changed a job that is %s", e, from);
                json_decref(after);
            } else {
                ck_assert_rc_ok(rc);
                ck_assert_str_eq(text_at(row, "status"), to);
                ck_assert_str_eq(text_at(row, "name"), "moved");
                ck_assert_str_eq(text_at(last_event(events), "type"), "status");
                ck_assert_str_eq(text_at(data, "status"), to);
                ck_assert_str_eq(text_at(data, "from"), from);
                ck_assert_str_eq(text_at(data, "reason"), event == JOB_SUCCEED ? "" : "why");
                ck_assert_int_eq(is_set(row, "status_reason"), event != JOB_SUCCEED);
                ck_assert_int_eq(is_set(row, "finished_at"), job_is_terminal(to));
                ck_assert_int_eq(is_set(row, "cancelled_at"), event == JOB_CANCEL || event == JOB_STOPPED);
                ck_assert_int_eq(is_set(row, "queued_at"), is_set(before, "queued_at") || event == JOB_COMPLETE);
            }
            json_decref(events);
            json_decref(before);
            json_decref(row);
        }
    }
    store_close(store);
    scratch_remove(dir);
}
END_TEST

/* A claim is the table's move as well: the oldest that waits, with a new fence, which moves must then name. */
START_TEST(test_claim)
{
    char dir[256], id[ID_SIZE];
    struct store *store;
    json_t *row;
    scratch_make(dir);
    const struct store_config config = {.data_dir = dir};
    ck_assert_rc_ok(store_open(&config, &store));

    ck_assert_int_eq(job_claim(store, "w", &row), ERR_NOT_FOUND);
    make(store, 0, id);
    ck_assert_int_eq(job_claim(store, "w", &row), ERR_NOT_FOUND); /* it awaits its calibration */
    ck_assert_rc_ok(move(store, id, JOB_COMPLETE, NULL));
    ck_assert_rc_ok(job_claim(store, "w", &row));
    ck_assert_str_eq(text_at(row, "id"), id);
    ck_assert_str_eq(text_at(row, "status"), job_next("queued", JOB_CLAIM));
    ck_assert_str_eq(text_at(row, "worker"), "w");
    const struct job_change stale = {.fence = int_at(row, "fence") - 1}, held = {.fence = int_at(row, "fence")};
    json_decref(row);
    ck_assert_int_eq(job_move(store, id, JOB_REQUEUE, &stale, NULL), ERR_JOB_STATE_CONFLICT);
    ck_assert_rc_ok(job_move(store, id, JOB_REQUEUE, &held, &row));
    ck_assert(!is_set(row, "worker"));
    json_decref(row);
    ck_assert_int_eq(job_move(store, "job_none", JOB_CANCEL, &stale, NULL), ERR_NOT_FOUND);
    store_close(store);
    scratch_remove(dir);
}
END_TEST

UNIT_MAIN("job", test_legal_moves, test_illegal_moves, test_terminal_states_never_change, test_no_dead_ends,
          test_each_event_in_each_state, test_claim)
