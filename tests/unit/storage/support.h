#pragma once
/* A store in a directory of its own, and short words for rows. */

#include "storage/storage.h"
#include "tests/unit/json.h"
#include "tests/unit/scratch.h"
#include "tests/unit/unit.h"

struct bench {
    char dir[256];
    struct store *store;
};

static inline void bench_open(struct bench *bench)
{
    const struct store_config config = {.data_dir = bench->dir};
    ck_assert_rc_ok(store_open(&config, &bench->store));
}

static inline void bench_reopen(struct bench *bench)
{
    store_close(bench->store);
    bench_open(bench);
}

static inline void bench_init(struct bench *bench)
{
    scratch_make(bench->dir);
    bench_open(bench);
}

static inline void bench_deinit(struct bench *bench)
{
    store_close(bench->store);
    scratch_remove(bench->dir);
}

/* A queued job of this priority; its id in out. */
static inline void add_job(struct store *store, int priority, int64_t queued_at, char out[ID_SIZE])
{
    bool even = priority % 2 == 0;
    json_t *request = json_pack("{s:i, s:{s:s}}", "priority", priority, "metadata", "team", even ? "search" : "ads");
    const struct job_row job = {.id = out,
                                .project = "default",
                                .status = STATUS_QUEUED,
                                .method = even ? "gptq" : "rtn",
                                .model = "mdl_x",
                                .priority = priority,
                                .request = request,
                                .created_at = queued_at,
                                .queued_at = queued_at};
    json_t *data = json_pack("{s:s}", "status", "queued");
    id_new("job", out);
    ck_assert_rc_ok(store_job_create(store, &job, "status", data, NULL));
    json_decref(data);
    json_decref(request);
}

static inline struct job_row claim_job(struct store *store)
{
    struct job_row job;
    ck_assert_rc_ok(store_job_claim(store, STATUS_QUEUED, STATUS_RUNNING, "w", "[]", &job));
    return job;
}

/* A move of a job that must be of status `from` and of that fence, with an event that says where to. */
static inline int move_job(struct store *store, const char *id, enum job_status from, int64_t fence, enum job_status to,
                           const json_t *artifact)
{
    const struct job_row row = {.status = to};
    json_t *data = json_pack("{s:s}", "status", job_status_name(to));
    const struct job_update update = {.id = id,
                                      .from = from,
                                      .fence = fence,
                                      .set = JOB_SET_STATUS,
                                      .row = &row,
                                      .event = "status",
                                      .event_data = data,
                                      .artifact = artifact};
    int rc = store_job_update(store, &update, NULL);
    json_decref(data);
    return rc;
}

/* A block of a job of that fence. */
static inline int commit_block(struct store *store, const char *id, int64_t fence, const json_t *block,
                               const json_t *layers)
{
    const struct job_row row = {.checkpoint = {.blocks = 1}, .progress = {.known = true, .fraction = 0.5}};
    const struct job_update update = {.id = id,
                                      .from = STATUS_ANY,
                                      .fence = fence,
                                      .set = JOB_SET_CHECKPOINT | JOB_SET_PROGRESS,
                                      .row = &row,
                                      .event = "layer"};
    return store_block_commit(store, &update, block, layers);
}

/* Events of a job are 1, 2, ... without gaps, and their number is the job's seq. Returns how many. */
static inline int64_t check_events(struct store *store, const char *id)
{
    struct store_status status;
    json_t *events, *event;
    size_t i;

    ck_assert_rc_ok(store_events_list(store, id, 0, 0, &events));
    ck_assert_rc_ok(store_job_status(store, NULL, id, &status));
    json_array_foreach(events, i, event)
    {
        ck_assert_int_eq(int_at(event, "seq"), (int64_t)i + 1);
        ck_assert_str_eq(text_at(event, "object"), "event");
    }
    int64_t count = (int64_t)json_array_size(events);
    ck_assert_int_eq(status.seq, count);
    json_decref(events);
    return count;
}
