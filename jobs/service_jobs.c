/* Admission and what clients may do to a job: create, look, cancel, delete.
 *
 * A job that cannot finish is refused before it gets an id, with every reason. After that the store's transactions
 * order everything: each move names the status it leaves, so a client and the supervisor cannot both make one. */

#include "jobs/service.h"

#include "base/bytes.h"
#include "base/err.h"
#include "base/fs.h"
#include "jobs/job.h"
#include "jobs/job_plan.h"
#include "jobs/quota.h"
#include "jobs/recommend.h"
#include "jobs/signature.h"
#include "jobs/task.h"
#include "jobs/view.h"
#include "pipeline/check.h"

#include <string.h>

static void check_file(struct service *service, const struct principal *who, const char *id, const char *purpose,
                       const char *pointer, struct validation_errors *errors)
{
    json_t *file;

    if (id[0] == '\0') {
        return;
    }
    int rc = store_object_get(service->store, who->project, "file", id, &file);
    if (rc != 0) {
        if (rc == ERR_NOT_FOUND) {
            validation_add(errors, ERR_INVALID_PARAMETER, pointer, "there is no file %s", id);
            validation_hint(errors, "GET /v1/files?purpose=%s lists them", purpose);
        } else {
            validation_add(errors, rc, pointer, "%s", err_last()->message);
        }
        return;
    }
    const char *found = json_string_value(json_object_get(file, "purpose"));
    if (found == NULL || strcmp(found, purpose) != 0) {
        validation_add(errors, ERR_INVALID_PARAMETER, pointer,
                       "\"file_id\" names a file of purpose %s; it must be one of purpose %s",
                       found != NULL ? found : "none", purpose);
    }
    json_decref(file);
}

static void check_webhook_id(struct service *service, const struct principal *who, const char *id,
                             struct validation_errors *errors)
{
    AUTO_JSON json_t *webhook = NULL;

    if (id[0] == '\0') {
        return;
    }
    int rc = store_webhook_get(service->store, who->project, id, &webhook);
    if (rc == ERR_NOT_FOUND) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/webhook_id", "there is no webhook %s", id);
        validation_hint(errors, "GET /v1/webhooks lists them");
    } else if (rc != 0) {
        validation_add(errors, rc, "/webhook_id", "%s", err_last()->message);
    }
}

static void check_files(struct service *service, const struct principal *who, const struct job_spec *spec,
                        struct validation_errors *errors)
{
    check_file(service, who, spec->calibration.file_id, "calibration", "/calibration/file_id", errors);
    check_file(service, who, spec->evaluation.file_id, "evaluation", "/evaluation/file_id", errors);
    check_webhook_id(service, who, spec->webhook_id, errors);
}

/* The device that would run the job, which judges it; false, with the error: there is no such device. */
static bool check_device(const struct service *service, const struct job_spec *spec, struct gpu_info *out,
                         struct validation_errors *errors)
{
    if (supervisor_device_of(service, spec->resources.device, out) != 0) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/resources/device", "%s", err_last()->message);
        return false;
    }
    return true;
}

int admission_open(struct service *service, const struct principal *who, const struct job_spec *spec,
                   const json_t *described, struct model **model, struct validation_errors *errors)
{
    enum model_reading reading = spec_reading(spec);

    int rc = described != NULL ? service_model_open_described(service, described, reading, model)
                               : service_model_open_object(service, who->project, spec->model, reading, model);
    if (rc != 0) {
        const struct err_record why = *err_last();
        bool ours = rc == ERR_NOT_FOUND;
        validation_add(errors,
                       ours                       ? ERR_INVALID_PARAMETER
                       : rc == ERR_SOURCE_CHANGED ? ERR_DIGEST_MISMATCH
                                                  : rc,
                       "/model", "%s", ours ? "there is no model with this id" : why.message);
        validation_hint(errors, "%s", ours ? "GET /v1/models lists the models" : why.hint);
    }
    return rc;
}

bool admission_check_model(struct service *service, const struct principal *who, struct job_spec *spec,
                           const struct model *model, struct gpu_info *device, json_t *warnings,
                           struct validation_errors *errors)
{
    size_t before = errors->count;
    int rc = 0;

    bool known = check_device(service, spec, device, errors);
    if (spec_check(spec, model, known ? device : NULL, errors) == 0) {
        spec_warn_targets(spec, warnings);
        rc = recipe_warnings(&spec->recipe, spec->format, model, warnings);
    }
    if (rc != 0) {
        validation_add(errors, rc, "", "%s", err_last()->message);
    }
    if (known && errors->count == before) {
        job_check_memory(service, who, spec, model, device, errors);
    }
    return known;
}

/* What the request refers to is there now, and stays while admission is held. */
static void check_references(struct service *service, const struct principal *who, const struct job_spec *spec,
                             struct validation_errors *errors)
{
    json_t *model = NULL;

    check_files(service, who, spec, errors);
    int rc = store_object_get(service->store, who->project, "mdl", spec->model, &model);
    if (rc != 0) {
        validation_add(errors, rc == ERR_NOT_FOUND ? ERR_INVALID_PARAMETER : rc, "/model", "%s",
                       rc == ERR_NOT_FOUND ? "there is no model with this id" : err_last()->message);
    }
    json_decref(model);
}

static int refuse_disk(const struct disk_plan *disk, int64_t space, int64_t reserved)
{
    const double sizes[] = {(double)disk_plan_max(disk), (double)disk->blocks, (double)disk->artifact,
                            (double)disk->activations,   (double)space,        (double)reserved};
    const struct bytes_unit unit = bytes_unit_of(sizes, 6);
    char need[BYTES_SIZE], blocks[BYTES_SIZE], artifact[BYTES_SIZE], files[BYTES_SIZE], there[BYTES_SIZE];
    char taken[BYTES_SIZE];

    return err_raise(ERR_DISK_FULL,
                     "the job stores about %s until its artifact is published (finished blocks %s, artifact %s, "
                     "activations %s), and %s are free, of which jobs that have not ended will take %s",
                     bytes_in(&unit, sizes[0], need), bytes_in(&unit, sizes[1], blocks),
                     bytes_in(&unit, sizes[2], artifact), bytes_in(&unit, sizes[3], files),
                     bytes_in(&unit, sizes[4], there), bytes_in(&unit, sizes[5], taken));
}

int admission_capacity(struct service *service, const struct principal *who, const struct job_spec *spec)
{
    int64_t counts[STATUS_COUNT];

    TRY(store_ready(service->store)); /* a job that cannot write would only be in the way */
    TRY(store_job_counts(service->store, NULL, counts));
    int64_t waiting = counts[STATUS_QUEUED] + counts[STATUS_AWAITING_CALIBRATION];
    if (waiting >= service->max_queued) {
        return err_raise(ERR_QUEUE_FULL, "%lld jobs wait already", (long long)waiting);
    }
    struct quota_row use;
    TRY(store_quota_get(service->store, who->project, &use));
    int64_t need = disk_plan_max(&spec->disk), space = fs_free_bytes(store_data_dir(service->store));
    if (space >= 0 && need > space - use.disk_bytes) {
        int rc = refuse_disk(&spec->disk, space, use.disk_bytes);
        return err_set_hint(rc, "delete artifacts and files that nobody needs, or move the data directory to a larger "
                                "disk; fewer calibration.num_samples make fewer activations");
    }
    return quota_admit_job(service, who, spec->disk.artifact);
}

static int store_new(struct service *service, const struct principal *who, const struct job_spec *spec,
                     const struct trace *trace, json_t *warnings, const struct idempotency_key *idempotency,
                     json_t **job)
{
    char id[ID_SIZE];
    AUTO_JSON json_t *request = spec_json(spec);

    if (request == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job");
    }
    id_new("job", id);
    const struct job_row row = {.id = id,
                                .name = spec->name,
                                .project = who->project,
                                .model = spec->model,
                                .method = spec->recipe.name,
                                .priority = spec->priority,
                                .request = request,
                                .traceparent = trace != NULL && trace->parent[0] != '\0' ? trace->parent : NULL,
                                .tracestate = trace != NULL && trace->state[0] != '\0' ? trace->state : NULL,
                                .warnings = warnings,
                                .reserved_bytes = spec->disk.artifact,
                                .disk_bytes = disk_plan_max(&spec->disk),
                                .memory = job_memory_planned(spec),
                                .created_at = clock_unix_seconds()};
    TRY(job_create(service->store, &row, spec->calibration.stream, idempotency));
    return service_job_get(service, who, id, job);
}

static void check_signing(const struct service *service, const struct job_spec *spec, struct validation_errors *errors)
{
    bool wanted;

    int rc = signature_wanted(service, spec->output.sign, &wanted);
    if (rc != 0) {
        const struct err_record why = *err_last();
        validation_add(errors, rc, why.param, "%s", why.message);
        validation_hint(errors, "%s", why.hint);
    }
}

void admission_check_named(struct service *service, const struct principal *who, const struct job_spec *spec,
                           struct validation_errors *errors)
{
    check_files(service, who, spec, errors);
    check_signing(service, spec, errors);
}

void admission_check(struct service *service, const struct principal *who, struct job_spec *spec,
                     const json_t *described, json_t *warnings, struct validation_errors *errors)
{
    struct gpu_info device;
    struct model *model;

    admission_check_named(service, who, spec, errors);
    if (admission_open(service, who, spec, described, &model, errors) == 0) {
        (void)admission_check_model(service, who, spec, model, &device, warnings, errors);
        model_close(model);
    }
}

int admission_enter(struct service *service, const struct principal *who, const struct job_spec *spec,
                    struct validation_errors *errors)
{
    check_references(service, who, spec, errors);
    TRY(validation_raise(errors));
    return admission_capacity(service, who, spec);
}

void submission_deinit(struct submission *submission)
{
    spec_deinit(&submission->spec);
    json_decref(submission->described);
    json_decref(submission->warnings);
}

/* Under admission. A model that was stored for a job that is refused after all has been seen by nobody. */
static int enter_and_store(struct service *service, const struct principal *who, struct submission *submission,
                           struct validation_errors *errors, json_t **job)
{
    struct job_spec *spec = &submission->spec;
    bool made = false;

    if (submission->described != NULL) {
        TRY(service_model_take(service, who, submission->described, spec->model, &made));
    }
    int rc = admission_enter(service, who, spec, errors);
    rc = rc == 0 ? store_new(service, who, spec, submission->trace, submission->warnings, submission->idempotency, job)
                 : rc;
    if (rc != 0 && made) {
        const struct err_record refused = *err_last();
        if (service_model_unused(service, who, spec->model) == 0) { /* the job may be there, and its answer fail */
            (void)store_object_delete(service->store, who->project, "mdl", spec->model);
        }
        err_restore(&refused);
    }
    return rc;
}

static int create_checked(struct service *service, const struct principal *who, struct submission *submission,
                          struct validation_errors *errors, json_t **job)
{
    /* What takes long goes without the lock. */
    admission_check(service, who, &submission->spec, submission->described, submission->warnings, errors);
    TRY(validation_raise(errors));
    pthread_mutex_lock(&service->admission);
    int rc = enter_and_store(service, who, submission, errors, job);
    pthread_mutex_unlock(&service->admission);
    return rc;
}

int submission_read(struct service *service, const struct principal *who, const json_t *body, struct submission *out,
                    struct validation_errors *errors)
{
    const json_t *registration = json_object_get(body, "model");
    AUTO_JSON json_t *request = json_copy((json_t *)body);

    out->warnings = json_array();
    if (out->warnings == NULL || request == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job");
    }
    TRY(recommend_resolve(service, who, request, errors));
    if (!json_is_object(registration)) {
        return spec_parse(request, errors, &out->spec);
    }
    if (json_object_set_new(request, "model", json_string(SUBMISSION_NO_MODEL)) != 0) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job");
    }
    TRY(spec_parse(request, errors, &out->spec));
    return service_model_describe(service, registration, out->spec.mode == SPEC_MODEL_FREE, errors, &out->described);
}

int service_job_create(struct service *service, const struct principal *who, const json_t *body,
                       const struct trace *trace, const struct idempotency_key *idempotency,
                       struct validation_errors *errors, json_t **job)
{
    AUTO(submission) struct submission submission = {.trace = trace, .idempotency = idempotency};

    if (service_draining(service)) {
        return err_raise(ERR_DRAINING, "the daemon is shutting down");
    }
    TRY(submission_read(service, who, body, &submission, errors));
    TRY(create_checked(service, who, &submission, errors, job));
    sweep_wake(&service->sweep);
    supervisor_wake(service);
    return 0;
}

int service_job_show(const struct job_row *row, json_t **job)
{
    json_t *view = view_job(row);

    if (view == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job object");
    }
    *job = view;
    return 0;
}

/* When the job that runs is expected to end; 0: nothing runs, negative: nothing can be said. */
static int64_t running_until(struct service *service)
{
    const struct page page = {.limit = 1, .status = job_status_name(STATUS_RUNNING)};
    AUTO(job_list) struct job_list list = {.rows = NULL};

    if (store_job_list(service->store, &page, &list) != 0) {
        return -1;
    }
    if (list.count == 0) {
        return 0;
    }
    int64_t at = list.rows[0].progress.estimated_finish_at;
    return at != 0 ? at : -1;
}

/* Its place in the queue, unless its project may run none; of the next one also when it is expected to start. */
static int show_queue(struct service *service, const struct job_row *row, json_t *job)
{
    struct quota_state quota;
    int64_t ahead;

    TRY(quota_read(service, row->project, &quota));
    quota_explain(&quota, job);
    if (quota_forbids(&quota)) {
        return 0;
    }
    TRY(store_job_ahead(service->store, row->id, &ahead));
    json_object_set_new(job, "queue_position", json_integer(ahead + 1));
    if (ahead == 0) {
        int64_t until = running_until(service);
        if (until >= 0) {
            json_object_set_new(job, "estimated_start_at", json_integer(until != 0 ? until : clock_unix_seconds()));
        }
    }
    return 0;
}

int service_job_get(struct service *service, const struct principal *who, const char *id, json_t **job)
{
    AUTO(job_row) struct job_row row = {0};

    TRY(store_job_get(service->store, who->project, id, &row));
    TRY(service_job_show(&row, job));
    return row.status == STATUS_QUEUED ? show_queue(service, &row, *job) : 0;
}

/* Why jobs of the page that wait in the queue are passed over. */
static int explain_queued(struct service *service, const struct principal *who, const struct job_list *jobs,
                          json_t *list)
{
    struct quota_state quota;
    bool any = false;
    size_t i;
    json_t *job;

    for (i = 0; i < jobs->count; i++) {
        any = any || jobs->rows[i].status == STATUS_QUEUED;
    }
    if (!any) {
        return 0;
    }
    TRY(quota_read(service, who->project, &quota));
    json_array_foreach(json_object_get(list, "data"), i, job)
    {
        quota_explain(&quota, job);
    }
    return 0;
}

int service_job_list(struct service *service, const struct principal *who, const struct page *page, json_t **list)
{
    struct page own = *page;
    AUTO(job_list) struct job_list found = {.rows = NULL};

    own.project = who->project;
    TRY(store_job_list(service->store, &own, &found));
    AUTO_JSON json_t *view = view_jobs(&found);
    if (view == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of jobs");
    }
    TRY(explain_queued(service, who, &found, view));
    *list = MOVE(view);
    return 0;
}

/* Under admission: a retry must not find its files going. */
static int cancel_job(struct service *service, const char *id, struct job_row *row)
{
    static const struct job_change change = {.fence = -1, .reason = "cancelled by request"};

    TRY(job_move(service->store, id, JOB_CANCEL, &change, row));
    if (job_status_is_final(row->status)) {
        service_job_remove_files(service, id);
    }
    return 0;
}

int service_job_cancel(struct service *service, const struct principal *who, const char *id, json_t **job)
{
    AUTO(job_row) struct job_row row = {0};

    TRY(service_job_check(service, who, id));
    pthread_mutex_lock(&service->admission);
    int rc = cancel_job(service, id, &row);
    pthread_mutex_unlock(&service->admission);
    if (rc == ERR_JOB_STATE_CONFLICT) { /* asked for again: it is on its way, or there */
        const struct err_record conflict = *err_last();
        TRY(store_job_get(service->store, who->project, id, &row));
        if (row.status != STATUS_CANCELLED && row.status != STATUS_CANCELLING) {
            err_restore(&conflict);
            return ERR_JOB_STATE_CONFLICT;
        }
        return service_job_show(&row, job);
    }
    if (rc != 0) {
        return rc;
    }
    if (!job_status_is_final(row.status)) {
        supervisor_tell(service, &row, ORDER_CANCEL);
    }
    return service_job_show(&row, job);
}

/* Under admission: a retry moves a job out of its end. */
static int delete_ended_job(struct service *service, const char *project, const char *id)
{
    struct store_status found;

    TRY(store_job_status(service->store, project, id, &found));
    if (!job_status_is_final(found.status)) {
        return err_raise(ERR_JOB_STATE_CONFLICT, "the job is %s; cancel it first", job_status_name(found.status));
    }
    TRY(store_job_delete(service->store, id));
    service_job_remove_files(service, id);
    return 0;
}

int service_job_delete_ended(struct service *service, const char *project, const char *id)
{
    pthread_mutex_lock(&service->admission);
    int rc = delete_ended_job(service, project, id);
    pthread_mutex_unlock(&service->admission);
    return rc;
}

int service_job_delete(struct service *service, const struct principal *who, const char *id)
{
    return service_job_delete_ended(service, who->project, id);
}
