#pragma once
/* An service in the test's own process, over a store in a scratch directory and the bundled checkpoint. */

#include "base/json.h"
#include "jobs/job.h"
#include "jobs/jobs.h"
#include "storage/storage.h"
#include "tests/unit/scratch.h"
#include "tests/unit/unit.h"

#include <string.h>
#include <time.h>

struct rig {
    char directory[256];
    const char *root; /* of models; NULL = the bundled ones */
    struct retention retention;
    struct store *store;
    struct service *service;
    char model[ID_SIZE];
};

static inline void rig_start(struct rig *rig)
{
    const char *const roots[] = {rig->root != NULL ? rig->root : MODEL_ROOT, NULL};
    const struct store_config store = {.data_dir = rig->directory, .state = "sqlite", .blobs = "fs"};
    ck_assert_rc_ok(store_open(&store, &rig->store));
    const struct service_config config = {.store = rig->store,
                                          .model_roots = roots,
                                          .device = "cpu",
                                          .threads = 2,
                                          .max_queued = 4,
                                          .retention = rig->retention};
    ck_assert_rc_ok(service_open(&config, &rig->service));
    ck_assert_rc_ok(service_start(rig->service));
}

static inline void rig_stop(struct rig *rig, int64_t timeout_ms)
{
    service_drain(rig->service, timeout_ms);
    service_close(rig->service);
    store_close(rig->store);
}

/* As no move would do it. */
static inline void rig_set_status(struct rig *rig, const char *id, enum job_status status)
{
    const struct job_row row = {.status = status, .queued_at = 1};
    const struct job_update update = {
        .id = id, .from = STATUS_ANY, .fence = -1, .set = JOB_SET_STATUS | JOB_SET_QUEUED_AT, .row = &row};
    ck_assert_rc_ok(store_job_update(rig->store, &update, NULL));
}

/* A fresh directory with the bundled model registered. */
static inline void rig_open(struct rig *rig)
{
    struct validation_errors errors = {0};
    json_t *model;
    scratch_make(rig->directory);
    rig_start(rig);
    json_t *body = json_pack("{s:s, s:s}", "name", "tiny", "uri", "file:tiny-llama");
    ck_assert_rc_ok(service_model_register(rig->service, &principal_local, body, &errors, &model));
    snprintf(rig->model, sizeof(rig->model), "%s", json_get_string(model, "id"));
    json_decref(model);
    json_decref(body);
}

static inline void rig_close(struct rig *rig)
{
    rig_stop(rig, 0);
    scratch_remove(rig->directory);
}

/* A request with these members in addition to the model; sequences of 32 tokens, so that little text makes many. */
static inline json_t *rig_body(const struct rig *rig, const char *members)
{
    char text[1024];
    json_t *body;
    snprintf(text, sizeof(text), "{\"model\":\"%s\",%s}", rig->model, members);
    ck_assert_rc_ok(json_parse(text, strlen(text), 32, &body));
    return body;
}

static inline void rig_create(struct rig *rig, const char *members, char id[ID_SIZE])
{
    struct validation_errors errors = {0};
    json_t *job;
    json_t *body = rig_body(rig, members);
    int rc = service_job_create(rig->service, &principal_local, body, NULL, NULL, &errors, &job);
    ck_assert_msg(rc == 0, "%s: %s", members, err_last()->message);
    snprintf(id, ID_SIZE, "%s", json_get_string(job, "id"));
    json_decref(job);
    json_decref(body);
}

#define RIG_GPTQ                                                           \
    "\"method\":\"gptq\",\"quantization\":{\"bits\":4,\"group_size\":64}," \
    "\"calibration\":{\"stream\":true,\"num_samples\":16,\"sequence_length\":64},\"evaluation\":{\"hold_back\":0.25}"

/* One made-up record: the i-th of an endless, unvaried supply. Returns its length. */
static inline int rig_record(int i, char *out, size_t size)
{
    static const char *const who[] = {"the miller", "a traveller", "my neighbour", "the old teacher", "a young pilot"};
    static const char *const did[] = {"carried", "measured", "forgot", "painted", "sold", "repaired", "counted"};
    static const char *const what[] = {"seven baskets", "the broken clock", "a long letter",
                                       "every window",  "the harbour map",  "three grey stones"};
    static const char *const when[] = {"before the rain", "at noon", "in the second winter", "without a word"};
    return snprintf(out, size,
                    "{\"text\":\"On day %d %s %s %s %s, and nobody asked why. Later it was written down that %s had"
                    " %s it again.\"}\n",
                    i, who[i % 5], did[i % 7], what[i % 6], when[i % 4], who[(i + 2) % 5], did[(i + 3) % 7]);
}

/* Post records [first, first+count); asserts that all are taken. The answer's status goes to *status (static text). */
static inline void rig_upload(struct rig *rig, const char *id, int first, int count, bool complete)
{
    struct service_upload *upload;
    char line[512];
    json_t *answer;
    ck_assert_rc_ok(service_upload_open(rig->service, &principal_local, id, first, &upload));
    for (int i = first; i < first + count; i++) {
        int length = rig_record(i, line, sizeof(line));
        ck_assert_rc_ok(service_upload_feed(upload, line, (size_t)length / 2));
        ck_assert_rc_ok(service_upload_feed(upload, line + length / 2, (size_t)(length - length / 2)));
    }
    ck_assert_rc_ok(service_upload_end_take(upload, complete, &answer));
    ck_assert_int_eq(json_integer_value(json_object_get(answer, "accepted")), count);
    ck_assert_int_eq(json_integer_value(json_object_get(answer, "rejected")), 0);
    ck_assert_int_eq(json_integer_value(json_object_get(answer, "next_offset")), first + count);
    ck_assert_str_eq(json_get_string(answer, "status"), complete ? "queued" : "awaiting_calibration");
    json_decref(answer);
}

static inline json_t *rig_job(struct rig *rig, const char *id)
{
    json_t *job;
    ck_assert_rc_ok(service_job_get(rig->service, &principal_local, id, &job));
    return job;
}

static inline void rig_sleep(int ms)
{
    const struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    (void)nanosleep(&pause, NULL);
}

/* Until the job is over; its object. */
static inline json_t *rig_wait(struct rig *rig, const char *id)
{
    for (int i = 0; i < 5500; i++) {
        json_t *job = rig_job(rig, id);
        if (job_view_ended(job)) {
            return job;
        }
        json_decref(job);
        rig_sleep(20);
    }
    ck_abort_msg("job %s did not end", id);
    return NULL;
}

static inline void rig_expect_status(const json_t *job, const char *status)
{
    char *error = json_dumps(json_object_get(job, "error"), JSON_ENCODE_ANY);
    ck_assert_msg(strcmp(json_get_string(job, "status"), status) == 0, "the job is %s and not %s: %s",
                  json_get_string(job, "status"), status, error != NULL ? error : "");
    free(error);
}

/* The files of a succeeded job's artifact: [{path, bytes, sha256}...]. New reference. */
static inline json_t *rig_files(struct rig *rig, const json_t *job)
{
    json_t *artifact;
    const char *id = json_get_string(json_object_get(job, "result"), "artifact_id");
    ck_assert_ptr_nonnull(id);
    ck_assert_rc_ok(store_object_get(rig->store, "default", "art", id, &artifact));
    json_t *files = json_incref(json_object_get(artifact, "files"));
    json_decref(artifact);
    return files;
}
