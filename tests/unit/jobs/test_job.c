/* The table of moves: exactly the legal ones, terminal states without a way out; and each event in each state over a
 * store: what it sets, what it announces, what it refuses. */

#include "base/ids.h"
#include "jobs/job.h"
#include "jobs/view.h"
#include "storage/storage.h"
#include "tests/unit/json.h"
#include "tests/unit/scratch.h"

#include <string.h>

START_TEST(test_legal_moves)
{
    ck_assert_int_eq(job_next(STATUS_AWAITING_CALIBRATION, JOB_COMPLETE), STATUS_QUEUED);
    ck_assert_int_eq(job_next(STATUS_QUEUED, JOB_CLAIM), STATUS_RUNNING);
    ck_assert_int_eq(job_next(STATUS_RUNNING, JOB_REQUEUE), STATUS_QUEUED);
    ck_assert_int_eq(job_next(STATUS_RUNNING, JOB_CANCEL), STATUS_CANCELLING);
    ck_assert_int_eq(job_next(STATUS_QUEUED, JOB_CANCEL), STATUS_CANCELLED);
    ck_assert_int_eq(job_next(STATUS_CANCELLING, JOB_STOPPED), STATUS_CANCELLED);
    ck_assert_int_eq(job_next(STATUS_RUNNING, JOB_SUCCEED), STATUS_SUCCEEDED);
    ck_assert_int_eq(job_next(STATUS_RUNNING, JOB_FAIL), STATUS_FAILED);
    ck_assert_int_eq(job_next(STATUS_QUEUED, JOB_PAUSE), STATUS_PAUSED);
    ck_assert_int_eq(job_next(STATUS_RUNNING, JOB_PAUSE), STATUS_PAUSING);
    ck_assert_int_eq(job_next(STATUS_PAUSING, JOB_REQUEUE), STATUS_PAUSED);
    ck_assert_int_eq(job_next(STATUS_PAUSING, JOB_RESUME), STATUS_RUNNING);
    ck_assert_int_eq(job_next(STATUS_PAUSING, JOB_CANCEL), STATUS_CANCELLING);
    ck_assert_int_eq(job_next(STATUS_PAUSING, JOB_SUCCEED), STATUS_SUCCEEDED);
    ck_assert_int_eq(job_next(STATUS_PAUSING, JOB_FAIL), STATUS_FAILED);
    ck_assert_int_eq(job_next(STATUS_PAUSED, JOB_RESUME), STATUS_QUEUED);
    ck_assert_int_eq(job_next(STATUS_PAUSED, JOB_CANCEL), STATUS_CANCELLED);
    ck_assert_int_eq(job_next(STATUS_FAILED, JOB_RETRY), STATUS_QUEUED);
    ck_assert_int_eq(job_next(STATUS_CANCELLED, JOB_RETRY), STATUS_QUEUED);
    ck_assert_int_eq(job_next(STATUS_AWAITING_CALIBRATION, JOB_EXPIRE), STATUS_EXPIRED);
}
END_TEST

START_TEST(test_illegal_moves)
{
    ck_assert_int_eq(job_next(STATUS_QUEUED, JOB_COMPLETE), STATUS_NONE);
    ck_assert_int_eq(job_next(STATUS_QUEUED, JOB_SUCCEED), STATUS_NONE);
    ck_assert_int_eq(job_next(STATUS_CANCELLING, JOB_SUCCEED), STATUS_NONE);
    ck_assert_int_eq(job_next(STATUS_CANCELLING, JOB_REQUEUE), STATUS_NONE);
    ck_assert_int_eq(job_next(STATUS_NONE, JOB_CLAIM), STATUS_NONE);
    ck_assert_int_eq(job_next(STATUS_AWAITING_CALIBRATION, JOB_PAUSE), STATUS_NONE);
    ck_assert_int_eq(job_next(STATUS_PAUSED, JOB_CLAIM), STATUS_NONE);
    ck_assert_int_eq(job_next(STATUS_SUCCEEDED, JOB_RETRY), STATUS_NONE);
    ck_assert_int_eq(job_next(STATUS_QUEUED, JOB_EXPIRE), STATUS_NONE);
}
END_TEST

START_TEST(test_names)
{
    static const char *const names[] = {"awaiting_calibration", "queued",    "running", "pausing",   "paused",
                                        "cancelling",           "succeeded", "failed",  "cancelled", "expired"};
    enum job_status status;

    for (int i = 0; i < STATUS_COUNT; i++) {
        ck_assert_str_eq(job_status_name((enum job_status)i), names[i]);
        ck_assert(job_status_find(names[i], &status));
        ck_assert_int_eq(status, i);
    }
    ck_assert(!job_status_find("no such state", &status));
    ck_assert(!job_status_find("", &status));
}
END_TEST

/* But for a retry, where something is left to be done. */
START_TEST(test_terminal_states_never_change)
{
    static const enum job_status over[] = {STATUS_SUCCEEDED, STATUS_FAILED, STATUS_CANCELLED, STATUS_EXPIRED};

    for (size_t i = 0; i < sizeof(over) / sizeof(over[0]); i++) {
        ck_assert(job_status_is_final(over[i]));
        bool unfinished = over[i] == STATUS_FAILED || over[i] == STATUS_CANCELLED;
        for (int move = JOB_COMPLETE; move < JOB_EVENT_COUNT; move++) {
            ck_assert_int_eq(job_next(over[i], (enum job_event)move),
                             unfinished && move == JOB_RETRY ? STATUS_QUEUED : STATUS_NONE);
        }
    }
}
END_TEST

/* Each state that the table reaches either ends or goes on. */
START_TEST(test_no_dead_ends)
{
    for (const struct job_transition *row = job_transitions; row->from != STATUS_NONE; row++) {
        bool onward = false;
        ck_assert(row->event == JOB_RETRY || !job_status_is_final(row->from));
        for (const struct job_transition *next = job_transitions; next->from != STATUS_NONE; next++) {
            onward = onward || (next->from == row->to && next->event != JOB_RETRY);
        }
        ck_assert(onward != job_status_is_final(row->to));
    }
}
END_TEST

/* How a job comes into each state. */
static const struct {
    enum job_status state;
    bool streams;
    enum job_event path[3];
    int length;
} ways[] = {
    {STATUS_AWAITING_CALIBRATION, true, {JOB_COMPLETE}, 0},
    {STATUS_QUEUED, true, {JOB_COMPLETE}, 1},
    {STATUS_RUNNING, false, {JOB_CLAIM}, 1},
    {STATUS_PAUSING, false, {JOB_CLAIM, JOB_PAUSE}, 2},
    {STATUS_PAUSED, false, {JOB_PAUSE}, 1},
    {STATUS_EXPIRED, true, {JOB_EXPIRE}, 1},
    {STATUS_CANCELLING, false, {JOB_CLAIM, JOB_CANCEL}, 2},
    {STATUS_CANCELLED, false, {JOB_CLAIM, JOB_CANCEL, JOB_STOPPED}, 3},
    {STATUS_SUCCEEDED, false, {JOB_CLAIM, JOB_SUCCEED}, 2},
    {STATUS_FAILED, false, {JOB_CLAIM, JOB_FAIL}, 2},
};

static int move(struct store *store, const char *id, enum job_event event, struct job_row *after)
{
    const struct job_row row = {.name = "moved"};
    json_t *made = event == JOB_SUCCEED ? json_pack("{s:n}", "artifact_id") : NULL;
    const struct job_change change = {.fence = -1, .reason = "why", .set = JOB_SET_NAME, .row = &row, .made = made};

    int rc = job_move(store, id, event, &change, after);
    json_decref(made);
    return rc;
}

static void make(struct store *store, size_t way, char id[ID_SIZE])
{
    const struct job_row row = {.id = id, .project = "default", .method = "rtn", .created_at = 1000};

    id_new("job", id);
    ck_assert_rc_ok(job_create(store, &row, ways[way].streams, NULL));
    for (int i = 0; i < ways[way].length; i++) {
        ck_assert_rc_ok(move(store, id, ways[way].path[i], NULL));
    }
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
        for (int e = JOB_COMPLETE; e < JOB_EVENT_COUNT; e++) {
            const enum job_event event = (enum job_event)e;
            enum job_status from = ways[way].state, to = job_next(from, event);
            char id[ID_SIZE];
            struct job_row before, row = {0};
            json_t *events;
            make(store, way, id);
            ck_assert_rc_ok(store_job_get(store, NULL, id, &before));
            ck_assert_int_eq(before.status, from);

            int rc = move(store, id, event, &row);
            ck_assert_rc_ok(store_events_list(store, id, 0, 0, &events));
            const json_t *data = json_object_get(last_event(events), "data");
            if (to == STATUS_NONE) {
                struct job_row after;
                ck_assert_int_eq(rc, ERR_JOB_STATE_CONFLICT);
                ck_assert_rc_ok(store_job_get(store, NULL, id, &after));
                json_t *was = view_job(&before), *is = view_job(&after);
                ck_assert_msg(json_equal(was, is), "a refused event %d changed a job that is %s", e,
                              job_status_name(from));
                ck_assert_int_eq(before.seq, after.seq);
                json_decref(was);
                json_decref(is);
                job_row_deinit(&after);
            } else {
                ck_assert_rc_ok(rc);
                ck_assert_int_eq(row.status, to);
                ck_assert_str_eq(row.name, "moved");
                ck_assert_str_eq(text_at(last_event(events), "type"), "status");
                ck_assert_str_eq(text_at(data, "status"), job_status_name(to));
                ck_assert_str_eq(text_at(data, "from"), job_status_name(from));
                ck_assert_str_eq(text_at(data, "reason"), event == JOB_SUCCEED ? "" : "why");
                ck_assert_int_eq(row.status_reason != NULL, event != JOB_SUCCEED);
                ck_assert_int_eq(row.finished_at != 0, job_status_is_final(to));
                ck_assert_int_eq(row.cancelled_at != 0, event == JOB_CANCEL || event == JOB_STOPPED);
                ck_assert_int_eq(row.queued_at != 0,
                                 before.queued_at != 0 || event == JOB_COMPLETE || event == JOB_RETRY);
                ck_assert_int_eq(row.worker != NULL,
                                 before.worker != NULL && event != JOB_REQUEUE && event != JOB_RETRY);
            }
            json_decref(events);
            job_row_deinit(&before);
            job_row_deinit(&row);
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
    struct job_row row;
    scratch_make(dir);
    const struct store_config config = {.data_dir = dir};
    ck_assert_rc_ok(store_open(&config, &store));

    ck_assert_int_eq(job_claim(store, "w", "[]", &row), ERR_NOT_FOUND);
    make(store, 0, id);
    ck_assert_int_eq(job_claim(store, "w", "[]", &row), ERR_NOT_FOUND); /* it awaits its calibration */
    ck_assert_rc_ok(move(store, id, JOB_COMPLETE, NULL));
    ck_assert_rc_ok(job_claim(store, "w", "[]", &row));
    ck_assert_str_eq(row.id, id);
    ck_assert_int_eq(row.status, job_next(STATUS_QUEUED, JOB_CLAIM));
    ck_assert_str_eq(row.worker, "w");
    const struct job_change stale = {.fence = row.fence - 1}, held = {.fence = row.fence};
    job_row_deinit(&row);
    ck_assert_int_eq(job_move(store, id, JOB_REQUEUE, &stale, NULL), ERR_JOB_STATE_CONFLICT);
    ck_assert_rc_ok(job_move(store, id, JOB_REQUEUE, &held, &row));
    ck_assert_ptr_null(row.worker);
    job_row_deinit(&row);
    ck_assert_int_eq(job_move(store, "job_none", JOB_CANCEL, &stale, NULL), ERR_NOT_FOUND);
    store_close(store);
    scratch_remove(dir);
}
END_TEST

UNIT_MAIN("job", test_legal_moves, test_illegal_moves, test_names, test_terminal_states_never_change, test_no_dead_ends,
          test_each_event_in_each_state, test_claim)
