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
    id_new("job", out);
    json_t *job = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:{s:i, s:{s:s}}}", "id", out, "project", "default",
                            "status", "queued", "method", priority % 2 == 0 ? "gptq" : "rtn", "model", "mdl_x",
                            "created_at", (json_int_t)queued_at, "queued_at", (json_int_t)queued_at, "request",
                            "priority", priority, "metadata", "team", priority % 2 == 0 ? "search" : "ads");
    json_t *data = json_pack("{s:s}", "status", "queued");
    ck_assert_rc_ok(store_job_create(store, job, "status", data, NULL));
    json_decref(data);
    json_decref(job);
}

/* Events of a job are 1, 2, ... without gaps, and their number is the job's seq. Returns how many. */
static inline int64_t check_events(struct store *store, const char *id)
{
    json_t *events, *job, *event;
    size_t i;

    ck_assert_rc_ok(store_events_list(store, id, 0, 0, &events));
    ck_assert_rc_ok(store_job_get(store, NULL, id, &job));
    json_array_foreach(events, i, event)
    {
        ck_assert_int_eq(int_at(event, "seq"), (int64_t)i + 1);
        ck_assert_str_eq(text_at(event, "object"), "event");
    }
    int64_t count = (int64_t)json_array_size(events);
    ck_assert_int_eq(int_at(job, "seq"), count);
    json_decref(job);
    json_decref(events);
    return count;
}
