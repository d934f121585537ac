/* Admission and what clients may do to a job: create, look, cancel, delete.
 *
 * A job that cannot finish is refused before it gets an id, with every reason. After that the store's transactions
 * order everything: each move names the status it leaves, so a client and the supervisor cannot both make one. */

#include "jobs/service.h"

#include "base/err.h"
#include "jobs/job.h"
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

static void check_files(struct service *service, const struct principal *who, const struct job_spec *spec,
                        struct validation_errors *errors)
{
    check_file(service, who, spec->calibration.file_id, "calibration", "/calibration/file_id", errors);
    check_file(service, who, spec->evaluation.file_id, "evaluation", "/evaluation/file_id", errors);
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

static void check_model(struct service *service, const struct principal *who, struct job_spec *spec, json_t *warnings,
                        struct validation_errors *errors)
{
    struct gpu_info device;
    struct model *model;

    int rc = service_model_open_object(service, who->project, spec->model, &model);
    if (rc != 0) {
        const struct err_record why = *err_last();
        bool ours = rc == ERR_NOT_FOUND;
        validation_add(errors,
                       ours                       ? ERR_INVALID_PARAMETER
                       : rc == ERR_SOURCE_CHANGED ? ERR_DIGEST_MISMATCH
                                                  : rc,
                       "/model", "%s", ours ? "there is no model with this id" : why.message);
        validation_hint(errors, "%s", ours ? "GET /v1/models lists the models" : why.hint);
        return;
    }
    bool known = check_device(service, spec, &device, errors);
    if (spec_check(spec, model, known ? &device : NULL, errors) == 0) {
        rc = recipe_warnings(&spec->recipe, spec->format, model, warnings);
    }
    if (rc != 0) {
        validation_add(errors, rc, "", "%s", err_last()->message);
    }
    model_close(model);
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

/* On the disk, and in the queue: as many as wait, not those that run. */
static int check_capacity(struct service *service)
{
    int64_t counts[STATUS_COUNT];

    TRY(store_ready(service->store)); /* a job that cannot write would only be in the way */
    TRY(store_job_counts(service->store, NULL, counts));
    int64_t waiting = counts[STATUS_QUEUED] + counts[STATUS_AWAITING_CALIBRATION];
    return waiting < service->max_queued ? 0 : err_raise(ERR_QUEUE_FULL, "%lld jobs wait already", (long long)waiting);
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
                                .created_at = clock_unix_seconds()};
    TRY(job_create(service->store, &row, spec->calibration.stream, idempotency));
    return service_job_get(service, who, id, job);
}

/* Under admission: only what another request could change. */
static int admit_job(struct service *service, const struct principal *who, const struct job_spec *spec,
                     const struct trace *trace, json_t *warnings, const struct idempotency_key *idempotency,
                     struct validation_errors *errors, json_t **job)
{
    check_references(service, who, spec, errors);
    TRY(validation_raise(errors));
    TRY(check_capacity(service));
    return store_new(service, who, spec, trace, warnings, idempotency, job);
}

int service_job_create(struct service *service, const struct principal *who, const json_t *body,
                       const struct trace *trace, const struct idempotency_key *idempotency,
                       struct validation_errors *errors, json_t **job)
{
    AUTO(job_spec) struct job_spec spec = {.metadata = NULL};
    AUTO_JSON json_t *warnings = json_array();

    if (service_draining(service)) {
        return err_raise(ERR_DRAINING, "the daemon is shutting down");
    }
    if (warnings == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job");
    }
    TRY(spec_parse(body, errors, &spec));
    check_files(service, who, &spec, errors); /* what takes long goes without the lock */
    check_model(service, who, &spec, warnings, errors);
    TRY(validation_raise(errors));
    pthread_mutex_lock(&service->admission);
    int rc = admit_job(service, who, &spec, trace, warnings, idempotency, errors, job);
    pthread_mutex_unlock(&service->admission);
    if (rc == 0) {
        supervisor_wake(service);
    }
    return rc;
}

static int show(const struct job_row *row, json_t **job)
{
    json_t *view = view_job(row);

    if (view == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job object");
    }
    *job = view;
    return 0;
}

int service_job_get(struct service *service, const struct principal *who, const char *id, json_t **job)
{
    AUTO(job_row) struct job_row row = {0};

    TRY(store_job_get(service->store, who->project, id, &row));
    return show(&row, job);
}

int service_job_cancel(struct service *service, const struct principal *who, const char *id, json_t **job)
{
    static const struct job_change change = {.fence = -1, .reason = "cancelled by request"};
    AUTO(job_row) struct job_row row = {0};

    TRY(service_job_check(service, who, id));
    int rc = job_move(service->store, id, JOB_CANCEL, &change, &row);
    if (rc == ERR_JOB_STATE_CONFLICT) { /* asked for again: it is on its way, or there */
        const struct err_record conflict = *err_last();
        TRY(store_job_get(service->store, who->project, id, &row));
        if (row.status != STATUS_CANCELLED && row.status != STATUS_CANCELLING) {
            err_restore(&conflict);
            return ERR_JOB_STATE_CONFLICT;
        }
        return show(&row, job);
    }
    if (rc != 0) {
        return rc;
    }
    job_status_is_final(row.status) ? service_job_remove_files(service, id) : supervisor_cancel(service, id);
    return show(&row, job);
}

int service_job_delete(struct service *service, const struct principal *who, const char *id)
{
    struct store_status found;

    TRY(store_job_status(service->store, who->project, id, &found));
    if (!job_status_is_final(found.status)) {
        return err_raise(ERR_JOB_STATE_CONFLICT, "the job is %s; cancel it first", job_status_name(found.status));
    }
    TRY(store_job_delete(service->store, id));
    service_job_remove_files(service, id);
    return 0;
}
