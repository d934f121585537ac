/* The functions of jobs/jobs.h, as thin as the tests of api/ allow. */

#include "fake_service.h"

#include "base/err.h"
#include "base/metrics.h"
#include "jobs/job.h"
#include "jobs/service_access.h"
#include "jobs/view.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct service_upload {
    struct service *service;
    char job[ID_SIZE];
    int64_t bytes, records, start;
};

static void pause_ms(int ms)
{
    const struct timespec time = {ms / 1000, (long)(ms % 1000) * 1000000L};
    if (ms > 0) {
        (void)nanosleep(&time, NULL);
    }
}

struct store *service_store(const struct service *service)
{
    return service->store;
}

json_t *service_system(struct service *service, const struct principal *who)
{
    return json_pack("{s:s, s:s}", "object", "system", "version", "test");
}

void service_metrics(struct service *service, FILE *out)
{
    metrics_family(out, "quantd_jobs", "gauge", "Stored jobs.");
}

json_t *service_runtimes(void)
{
    return json_pack("{s:s, s:[], s:b}", "object", "list", "data", "has_more", 0);
}

json_t *service_methods(struct service *service)
{
    return json_pack("{s:s, s:[{s:s}, {s:s}], s:b}", "object", "list", "data", "name", "rtn", "name", "gptq",
                     "has_more", 0);
}

int service_method(struct service *service, const char *name, json_t **method)
{
    if (strcmp(name, "rtn") != 0 && strcmp(name, "gptq") != 0) {
        return err_raise(ERR_NOT_FOUND, "there is no method of this name");
    }
    *method = json_pack("{s:s, s:s}", "object", "method", "name", name);
    return 0;
}

static void check_members(const json_t *body, const char *const *names, size_t required,
                          struct validation_errors *errors)
{
    const char *key;
    json_t *value;
    char pointer[160];
    for (size_t i = 0; i < required; i++) {
        if (!json_is_string(json_object_get(body, names[i]))) {
            (void)snprintf(pointer, sizeof(pointer), "/%s", names[i]);
            validation_add(errors, ERR_MISSING_PARAMETER, pointer, "is required");
        }
    }
    json_object_foreach((json_t *)body, key, value)
    {
        size_t at = 0;
        while (names[at] != NULL && strcmp(names[at], key) != 0) {
            at++;
        }
        if (names[at] == NULL) {
            (void)snprintf(pointer, sizeof(pointer), "/%s", key);
            validation_add(errors, ERR_UNKNOWN_PARAMETER, pointer, "is not a member of this request");
        }
    }
}

int service_model_register(struct service *service, const struct principal *who, const json_t *body,
                           struct validation_errors *errors, json_t **model)
{
    static const char *const names[] = {"name", "uri", "expected_sha256", NULL};
    check_members(body, names, 2, errors);
    int rc = validation_raise(errors);
    if (rc < 0) {
        return rc;
    }
    char id[ID_SIZE];
    id_new("mdl", id);
    json_t *made =
        json_pack("{s:s, s:s, s:s, s:s, s:I}", "id", id, "object", "model", "name",
                  json_string_value(json_object_get(body, "name")), "uri",
                  json_string_value(json_object_get(body, "uri")), "created_at", (json_int_t)clock_unix_seconds());
    rc = store_object_put(service->store, "default", "mdl", made);
    if (rc < 0) {
        json_decref(made);
        return rc;
    }
    atomic_fetch_add(&service->models, 1);
    *model = made;
    return 0;
}

int service_file_create(struct service *service, const struct principal *who, const json_t *file)
{
    return store_object_put(service->store, who->project, "file", file);
}

int service_room(struct service *service, const struct principal *who, int64_t bytes, int64_t *room)
{
    *room = INT64_MAX;
    return 0;
}

static int fake_quota(const char *project, json_t **quota)
{
    *quota = json_pack("{s:s, s:s}", "object", "project.quota", "project", project);
    return 0;
}

int service_quota_get(struct service *service, const char *project, json_t **quota)
{
    return fake_quota(project, quota);
}

int service_quota_set(struct service *service, const char *project, const json_t *body,
                      struct validation_errors *errors, json_t **quota)
{
    return fake_quota(project, quota);
}

int service_project_list(struct service *service, const struct page *page, json_t **list)
{
    return store_project_list(service->store, page, list);
}

int service_model_delete(struct service *service, const struct principal *who, const char *id)
{
    return store_object_delete(service->store, "default", "mdl", id);
}

int service_artifact_delete(struct service *service, const struct principal *who, const char *id)
{
    return store_object_delete(service->store, "default", "art", id);
}

int service_file_delete(struct service *service, const struct principal *who, const char *id)
{
    return store_object_delete(service->store, "default", "file", id);
}

/* Resumable uploads, verification and signatures need the service itself: the end-to-end tests have them. */

static int absent(void)
{
    return err_raise(ERR_NOT_FOUND, "the stand-in has none");
}

int service_artifact_verify(struct service *service, const struct principal *who, const char *id, json_t **answer)
{
    return absent();
}

int service_artifact_signature(struct service *service, const struct principal *who, const char *id,
                               char sha256[DIGEST_HEX_SIZE])
{
    return absent();
}

int service_artifact_sign(struct service *service, const struct principal *who, const char *id, json_t **artifact)
{
    return absent();
}

int service_artifact_oci(struct service *service, const struct principal *who, const char *id, struct service_oci *out)
{
    return absent();
}

void service_oci_deinit(struct service_oci *oci)
{
}

int service_transfer_create(struct service *service, const struct principal *who, const char *purpose, const char *name,
                            int64_t length, json_t **object)
{
    return absent();
}

int service_transfer_open(struct service *service, const struct principal *who, const char *id,
                          const struct service_piece *piece, struct service_transfer **out)
{
    return absent();
}

int service_transfer_feed(struct service_transfer *transfer, const char *data, size_t size)
{
    return absent();
}

void service_transfer_digest(struct service_transfer *transfer, char sha256[DIGEST_HEX_SIZE])
{
    sha256[0] = '\0';
}

void service_transfer_refuse(struct service_transfer *transfer)
{
}

int service_transfer_end_take(struct service_transfer *transfer, bool complete, int64_t *offset, json_t **file)
{
    return absent();
}

void service_transfer_abort(struct service_transfer *transfer)
{
}

int service_transfer_delete(struct service *service, const struct principal *who, const char *id)
{
    return absent();
}

static int put_job(struct service *service, enum job_status status, json_t *body,
                   const struct idempotency_key *idempotency, char id[ID_SIZE])
{
    const char *method = json_string_value(json_object_get(body, "method"));
    const struct job_row job = {.id = id,
                                .project = "default",
                                .status = status,
                                .name = "",
                                .model = json_string_value(json_object_get(body, "model")),
                                .method = method != NULL ? method : "rtn",
                                .request = body};
    json_t *data = json_pack("{s:s, s:n}", "status", job_status_name(status), "from");
    id_new("job", id);
    int rc = store_job_create(service->store, &job, "status", data, idempotency);
    json_decref(data);
    return rc;
}

void fake_service_job(struct service *service, enum job_status status, char id[ID_SIZE])
{
    json_t *body = json_pack("{s:s, s:s, s:{s:b}}", "model", "mdl_0", "method", "gptq", "calibration", "stream", 1);
    if (put_job(service, status, body, NULL, id) < 0) {
        abort();
    }
    json_decref(body);
}

int service_estimate(struct service *service, const struct principal *who, const json_t *body,
                     struct validation_errors *errors, json_t **estimate)
{
    (void)service, (void)who, (void)body, (void)errors;
    *estimate = json_pack("{s:s}", "object", "estimate");
    return 0;
}

int service_recommend(struct service *service, const struct principal *who, const json_t *body,
                      struct validation_errors *errors, json_t **recommendation)
{
    (void)service, (void)who, (void)body, (void)errors;
    *recommendation = json_pack("{s:s}", "object", "recommendation");
    return 0;
}

int service_job_create(struct service *service, const struct principal *who, const json_t *body,
                       const struct trace *trace, const struct idempotency_key *idempotency,
                       struct validation_errors *errors, json_t **job)
{
    static const char *const names[] = {"model", "method", "name", "calibration", "metadata", NULL};
    check_members(body, names, 2, errors);
    int rc = validation_raise(errors);
    if (rc < 0) {
        return rc;
    }
    atomic_fetch_add(&service->creating, 1);
    while (atomic_load(&service->hold_create)) {
        pause_ms(1);
    }
    char id[ID_SIZE];
    bool stream = json_is_true(json_object_get(json_object_get(body, "calibration"), "stream"));
    json_t *copy = json_copy((json_t *)body);
    rc = put_job(service, job_first_state(stream), copy, idempotency, id);
    json_decref(copy);
    if (rc == 0) {
        atomic_fetch_add(&service->jobs, 1);
    }
    return rc < 0 ? rc : service_job_get(service, who, id, job);
}

int service_job_get(struct service *service, const struct principal *who, const char *id, json_t **job)
{
    struct job_row row;
    int rc = store_job_get(service->store, NULL, id, &row);
    if (rc == 0) {
        *job = view_job(&row);
        job_row_deinit(&row);
    }
    return rc;
}

int service_job_list(struct service *service, const struct principal *who, const struct page *page, json_t **list)
{
    struct page own = *page;
    struct job_list found;

    own.project = who->project;
    TRY(store_job_list(service->store, &own, &found));
    *list = view_jobs(&found);
    job_list_deinit(&found);
    return 0;
}

int service_job_cancel(struct service *service, const struct principal *who, const char *id, json_t **job)
{
    const struct job_change change = {.fence = -1};
    int rc = job_move(service->store, id, JOB_CANCEL, &change, NULL);
    return rc < 0 && rc != ERR_JOB_STATE_CONFLICT ? rc : service_job_get(service, who, id, job);
}

static int fake_move(struct service *service, const struct principal *who, const char *id, enum job_event event,
                     json_t **job)
{
    const struct job_change change = {.fence = -1};
    int rc = job_move(service->store, id, event, &change, NULL);
    return rc < 0 ? rc : service_job_get(service, who, id, job);
}

int service_job_pause(struct service *service, const struct principal *who, const char *id, bool now, json_t **job)
{
    (void)now;
    return fake_move(service, who, id, JOB_PAUSE, job);
}

int service_job_resume(struct service *service, const struct principal *who, const char *id, json_t **job)
{
    return fake_move(service, who, id, JOB_RESUME, job);
}

int service_job_retry(struct service *service, const struct principal *who, const char *id, const json_t *body,
                      struct validation_errors *errors, json_t **job)
{
    (void)body;
    (void)errors;
    return fake_move(service, who, id, JOB_RETRY, job);
}

int service_job_change(struct service *service, const struct principal *who, const char *id, const json_t *body,
                       struct validation_errors *errors, json_t **job)
{
    static const char *const names[] = {"name", "priority", "metadata", NULL};
    check_members(body, names, 0, errors);
    int rc = validation_raise(errors);
    return rc < 0 ? rc : service_job_get(service, who, id, job);
}

int service_jobs_compare(struct service *service, const struct principal *who, const char *const *ids, int count,
                         json_t **comparison)
{
    for (int i = 0; i < count; i++) {
        TRY(service_job_check(service, who, ids[i]));
    }
    *comparison = json_pack("{s:s, s:[], s:[]}", "object", "quantization.comparison", "jobs", "modules");
    return 0;
}

int service_job_delete(struct service *service, const struct principal *who, const char *id)
{
    struct store_status found;
    int rc = store_job_status(service->store, NULL, id, &found);
    if (rc < 0) {
        return rc;
    }
    return job_status_is_final(found.status) ? store_job_delete(service->store, id)
                                             : err_raise(ERR_JOB_STATE_CONFLICT, "the job has not ended");
}

int service_job_report(struct service *service, const struct principal *who, const char *id, json_t **report)
{
    struct store_status found;
    int rc = store_job_status(service->store, NULL, id, &found);
    if (rc < 0) {
        return rc;
    }
    *report = json_pack("{s:s, s:s}", "object", "quantization.report", "job_id", id);
    return 0;
}

const char *const *service_layer_columns(void)
{
    static const char *const columns[] = {"index", "module", "relative_mse", "fallback", NULL};
    return columns;
}

void service_schemas(json_t *components)
{
    static const char *const names[] = {"ModelRequest", "JobRequest", "JobChange", "Layer"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        json_object_set_new(components, names[i], json_pack("{s:s}", "type", "object"));
    }
}

static int64_t records_of(struct service *service, const char *job)
{
    struct job_row row;
    if (store_job_get(service->store, NULL, job, &row) < 0) {
        return -1;
    }
    int64_t records = row.calibration.records;
    job_row_deinit(&row);
    return records;
}

int service_upload_open(struct service *service, const struct principal *who, const char *job, int64_t offset,
                        struct service_upload **out)
{
    int64_t records = records_of(service, job);
    if (records < 0) {
        return ERR_NOT_FOUND;
    }
    if (offset >= 0 && offset != records) {
        return err_raise(ERR_OFFSET_MISMATCH, "%lld records are here", (long long)records);
    }
    struct service_upload *upload = calloc(1, sizeof(*upload));
    upload->service = service;
    upload->start = records;
    (void)snprintf(upload->job, sizeof(upload->job), "%s", job);
    atomic_fetch_add(&service->uploads, 1);
    *out = upload;
    return 0;
}

int service_upload_feed(struct service_upload *upload, const char *data, size_t size)
{
    struct service *service = upload->service;
    pause_ms(atomic_load(&service->feed_delay_ms));
    upload->bytes += (int64_t)size;
    atomic_fetch_add(&service->fed, (long long)size);
    if ((int)size > atomic_load(&service->largest)) {
        atomic_store(&service->largest, (int)size);
    }
    for (size_t i = 0; i < size; i++) {
        upload->records += data[i] == '\n';
    }
    long long limit = atomic_load(&service->fail_after);
    return limit > 0 && upload->bytes > limit ? err_raise(ERR_JOB_STATE_CONFLICT, "the job takes no more") : 0;
}

int service_upload_end_take(struct service_upload *upload, bool complete, json_t **answer)
{
    struct service *service = upload->service;
    int64_t total = upload->start + upload->records;
    const struct job_row row = {.status = STATUS_QUEUED, .calibration = {.records = total}};
    const struct job_update update = {.id = upload->job,
                                      .from = STATUS_ANY,
                                      .fence = -1,
                                      .set = JOB_SET_RECORDS | (complete ? JOB_SET_STATUS : 0),
                                      .row = &row,
                                      .event = complete ? "status" : NULL};
    int rc = store_job_update(service->store, &update, NULL);
    *answer = json_pack("{s:I, s:i, s:I, s:I, s:i, s:[]}", "accepted", (json_int_t)upload->records, "rejected", 0,
                        "tokens", (json_int_t)upload->bytes, "next_offset", (json_int_t)total, "needed", 1, "errors");
    if (rc == 0 && complete && total == 0) {
        rc = err_raise(ERR_INSUFFICIENT_CALIBRATION, "0 tokens of 1");
    }
    atomic_fetch_add(&service->ends, 1);
    free(upload);
    return rc;
}

void service_upload_abort(struct service_upload *upload)
{
    atomic_fetch_add(&upload->service->aborts, 1);
    free(upload);
}
