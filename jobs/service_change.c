/* What clients change about a job that is there: its name, priority and metadata; that it pauses and goes on; that it
 * is tried again. */

#include "jobs/service.h"

#include "base/err.h"
#include "base/fs.h"
#include "jobs/job.h"
#include "jobs/job_plan.h"
#include "jobs/service_admission.h"
#include "jobs/task.h"
#include "jobs/view.h"
#include "pipeline/check.h"
#include "pipeline/mixture.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- name, priority, metadata */

/* The event of a change: what the members are now. */
static json_t *change_event(const json_t *body, const json_t *request)
{
    json_t *event = json_pack("{s:s}", "message", "changed by request");
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)body, name, value)
    {
        json_object_set(event, name, json_object_get(request, name));
    }
    return event;
}

/* Under admission, so that two changes of a request do not lose one of them. */
static int change_job(struct service *service, const struct principal *who, const char *id, const json_t *body,
                      const struct spec_change *change, json_t **job)
{
    AUTO(job_row) struct job_row row = {0};
    AUTO(job_row) struct job_row after = {0};

    TRY(store_job_get(service->store, who->project, id, &row));
    AUTO_JSON json_t *request = json_deep_copy(row.request);
    spec_change_apply(change, request);
    AUTO_JSON json_t *event = change_event(body, request);
    if (request == NULL || event == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory to change a job");
    }
    const struct job_row columns = {
        .name = json_string_value(json_object_get(request, "name")),
        .priority = json_integer_value(json_object_get(request, "priority")),
        .request = request,
    };
    const struct job_update update = {
        .id = id,
        .from = STATUS_ANY,
        .fence = -1,
        .set = JOB_SET_NAME | JOB_SET_PRIORITY | JOB_SET_REQUEST,
        .row = &columns,
        .event = "log",
        .event_data = event,
    };
    TRY(store_job_update(service->store, &update, &after));
    return service_job_show(&after, job);
}

int service_job_change(struct service *service, const struct principal *who, const char *id, const json_t *body,
                       struct validation_errors *errors, json_t **job)
{
    AUTO(spec_change) struct spec_change change = {.metadata = NULL};

    TRY(service_job_check(service, who, id));
    TRY(spec_change_parse(body, errors, &change));
    pthread_mutex_lock(&service->admission);
    int rc = change_job(service, who, id, body, &change, job);
    pthread_mutex_unlock(&service->admission);
    return rc;
}

/* --- pause and resume */

/* One move, which is done already when the job is in one of two states. */
static int move_or_show(struct service *service, const struct principal *who, const char *id, enum job_event event,
                        const char *reason, const enum job_status there[2], struct job_row *row)
{
    const struct job_change change = {.fence = -1, .reason = reason};

    TRY(service_job_check(service, who, id));
    int rc = job_move(service->store, id, event, &change, row);
    if (rc != ERR_JOB_STATE_CONFLICT) {
        return rc;
    }
    const struct err_record conflict = *err_last();
    TRY(store_job_get(service->store, who->project, id, row));
    if (row->status == there[0] || row->status == there[1]) {
        return 0;
    }
    err_restore(&conflict);
    return ERR_JOB_STATE_CONFLICT;
}

int service_job_pause(struct service *service, const struct principal *who, const char *id, bool now, json_t **job)
{
    static const enum job_status there[] = {STATUS_PAUSING, STATUS_PAUSED};
    AUTO(job_row) struct job_row row = {0};

    TRY(move_or_show(service, who, id, JOB_PAUSE, "paused by request", there, &row));
    if (row.status == STATUS_PAUSING) {
        supervisor_tell(service, &row, now ? ORDER_PAUSE_NOW : ORDER_PAUSE);
    }
    return service_job_show(&row, job);
}

int service_job_resume(struct service *service, const struct principal *who, const char *id, json_t **job)
{
    static const enum job_status there[] = {STATUS_QUEUED, STATUS_RUNNING};
    AUTO(job_row) struct job_row row = {0};

    TRY(move_or_show(service, who, id, JOB_RESUME, "resumed by request", there, &row));
    if (row.status == STATUS_RUNNING) {
        supervisor_tell(service, &row, ORDER_RESUME);
    }
    supervisor_wake(service);
    return service_job_show(&row, job);
}

/* --- retry */

static bool same_input(const struct gpu_input *a, const struct gpu_input *b)
{
    return a->element == b->element && a->dynamic == b->dynamic && a->group_size == b->group_size && a->half == b->half;
}

static bool same_scheme(const struct qscheme *a, const struct qscheme *b)
{
    return a->kind == b->kind && a->bits == b->bits && a->group_size == b->group_size &&
           a->group_rows == b->group_rows && a->per_channel == b->per_channel && a->sym == b->sym &&
           a->nested == b->nested && a->codebooks == b->codebooks && a->block_type == b->block_type &&
           a->element == b->element && a->scale_dtype == b->scale_dtype && a->weight_dtype == b->weight_dtype &&
           a->input_threshold == b->input_threshold && same_input(&a->input, &b->input);
}

/* The modules of finished blocks under a request. */
static int done_modules(const struct job_spec *spec, const struct model *model, int64_t blocks,
                        struct format_module **out, int *count)
{
    struct format_module *modules;
    const char *path;
    int all, kept = 0;

    TRY(recipe_modules(&spec->recipe, spec->format, model, &modules, &all));
    for (int i = 0; i < all; i++) {
        int64_t layer = model_find_layer(model, modules[i].name, &path);
        if (layer >= 0 && layer < blocks) {
            modules[kept++] = modules[i];
        }
    }
    *out = modules;
    *count = kept;
    return 0;
}

static void refuse_contradiction(const char *pointer, const char *module, int64_t blocks,
                                 struct validation_errors *errors)
{
    validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, pointer,
                   "%s contradicts the %lld finished blocks: %s is quantized otherwise already", pointer + 1,
                   (long long)blocks, module);
    validation_hint(errors, "change only modules of the blocks after these, by \"overrides\", or how they are solved; "
                            "or create a new job");
}

/* Modules of a mixture get candidates in turn, of one request as of the other. */
static int change_assume(const struct job_spec *spec, const struct model *model)
{
    return spec->recipe.mixture != NULL ? mixture_assume(&spec->recipe, spec->format, model) : 0;
}

/* What the finished blocks hold must be what the changed request asks of them. */
static int check_finished(const struct job_spec *before, const struct job_spec *after, const struct model *model,
                          int64_t blocks, struct validation_errors *errors)
{
    AUTO_FREE struct format_module *was = NULL;
    AUTO_FREE struct format_module *is = NULL;
    AUTO_JSON json_t *old = recipe_parameters_json(&before->recipe);
    AUTO_JSON json_t *new = recipe_parameters_json(&after->recipe);
    int was_count, is_count;

    if (before->format != after->format) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/output/format",
                       "\"format\" is %s; the %lld finished blocks are for %s", after->format->name, (long long)blocks,
                       before->format->name);
        return 0;
    }
    if (!json_equal(json_object_get(old, "kv_cache"), json_object_get(new, "kv_cache"))) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/quantization/kv_cache",
                       "\"kv_cache\" contradicts the %lld finished blocks, whose keys and values were measured for "
                       "another one",
                       (long long)blocks);
    }
    const json_t *was_mixed = json_object_get(old, "mixed_precision"),
                 *is_mixed = json_object_get(new, "mixed_precision");
    if ((was_mixed != NULL || is_mixed != NULL) && !json_equal(was_mixed, is_mixed)) { /* NULL equals nothing */
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/quantization/mixed_precision",
                       "\"mixed_precision\" contradicts the %lld finished blocks, whose precisions follow from another "
                       "one",
                       (long long)blocks);
        return 0;
    }
    TRY(change_assume(before, model));
    TRY(change_assume(after, model));
    TRY(done_modules(before, model, blocks, &was, &was_count));
    TRY(done_modules(after, model, blocks, &is, &is_count));
    for (int i = 0; i < was_count || i < is_count; i++) {
        bool both = i < was_count && i < is_count && strcmp(was[i].name, is[i].name) == 0;
        if (!both || !same_scheme(&was[i].scheme, &is[i].scheme)) {
            refuse_contradiction("/quantization", i < was_count ? was[i].name : is[i].name, blocks, errors);
            return 0;
        }
    }
    return 0;
}

/* What an earlier attempt left is not there any more, or not all of it: of a cancelled job it went with the
 * cancellation, of a failed one to make space or because it had been kept for long enough. */
static bool starts_over(const struct service *service, const struct job_row *row)
{
    const struct {
        const char *file;
        bool needed;
    } parts[] = {
        {NULL, true},
        {TASK_CALIBRATION_LOG, row->calibration.bytes > 0},
        {TASK_EVALUATION_LOG, row->evaluation.bytes > 0},
    };
    char path[SERVICE_PATH_MAX];
    bool gone = row->status != STATUS_FAILED;

    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        gone = gone || (parts[i].needed &&
                        (service_job_path(service, row->id, parts[i].file, path) != 0 || access(path, R_OK) != 0));
    }
    return gone;
}

static bool same_recipe(const struct recipe *a, const struct recipe *b)
{
    AUTO_JSON json_t *first = json_pack("[o, o]", recipe_method_json(a), recipe_parameters_json(a));
    AUTO_JSON json_t *second = json_pack("[o, o]", recipe_method_json(b), recipe_parameters_json(b));

    return first != NULL && json_equal(first, second);
}

/* A job that has gone down a ladder stands where it stands: the rungs up to that one stay, and both specs become it. */
static void retry_at_rung(struct job_spec *before, struct job_spec *after, int rung, struct validation_errors *errors)
{
    bool same = after->gate.ladder_count >= rung && (rung == 0 || same_recipe(&before->recipe, &after->recipe));

    for (int i = 0; same && i < rung; i++) {
        same = same_recipe(&before->gate.ladder[i], &after->gate.ladder[i]);
    }
    if (!same) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/evaluation/gate/ladder",
                       "the job is at rung %d of its ladder, and this changes what came before or is at work", rung);
        validation_hint(errors, "keep \"quantization\" and these rungs, add others after them, or create a new job");
        return;
    }
    spec_use_rung(before, rung);
    spec_use_rung(after, rung);
}

static int check_retry(struct service *service, const struct principal *who, const struct job_row *row,
                       struct job_spec *spec, json_t *warnings, struct validation_errors *errors)
{
    AUTO(job_spec) struct job_spec before = {.metadata = NULL};
    AUTO(job_spec) struct job_spec after = {.metadata = NULL};
    struct validation_errors none = {.count = 0};
    struct model *model = NULL;

    admission_check(service, who, spec, NULL, warnings, errors);
    TRY(validation_raise(errors));
    bool rung = json_integer_value(json_object_get(row->gate, "rung")) > 0;
    if ((row->checkpoint.blocks == 0 && !rung) || starts_over(service, row)) {
        return 0;
    }
    TRY(spec_parse(row->request, &none, &before));
    TRY(service_model_open_object(service, who->project, spec->model, spec_reading(spec), &model));
    /* A recipe is bound to one model object, which check has closed: parse it again. */
    AUTO_JSON json_t *request = spec_json(spec);
    int rc = request == NULL ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory to check a retry")
                             : spec_parse(request, &none, &after);
    if (rc == 0) {
        retry_at_rung(&before, &after, (int)json_integer_value(json_object_get(row->gate, "rung")), errors);
        rc = validation_raise(errors);
    }
    rc = rc == 0 ? recipe_bind(&before.recipe, model) : rc;
    rc = rc == 0 ? recipe_bind(&after.recipe, model) : rc;
    rc = rc == 0 ? check_finished(&before, &after, model, row->checkpoint.blocks, errors) : rc;
    model_close(model);
    return rc != 0 ? rc : validation_raise(errors);
}

/* The files of finished blocks are there; blocks are about alike. */
static void leave_out_finished(const struct job_row *row, struct disk_plan *disk)
{
    int64_t total = row->progress.layers_total, done = row->checkpoint.blocks;

    disk->blocks -= total > 0 ? disk->blocks / total * (done < total ? done : total) : 0;
}

/* Records that were uploaded are gone with the job's folder; a file can be read again. */
static int refuse_gone_records(void)
{
    int rc = err_raise(ERR_JOB_STATE_CONFLICT, "the job's calibration records were streamed to it and are gone");

    return err_set_hint(rc, "create a new job and send the records again");
}

/* Since it was read, nobody has changed the job: what was checked is still so. */
static int check_unchanged(struct service *service, const struct job_row *row)
{
    struct store_status found;

    TRY(store_job_status(service->store, row->project, row->id, &found));
    return found.status == row->status && found.seq == row->seq
               ? 0
               : err_raise(ERR_JOB_STATE_CONFLICT, "the job was changed by another request meanwhile; it is %s",
                           job_status_name(found.status));
}

/* Under admission. */
static int change_retry(struct service *service, const struct job_row *row, const struct job_spec *spec,
                        const json_t *request, json_t **job)
{
    AUTO(job_row) struct job_row after = {0};
    struct job_row columns = {
        .request = (json_t *)request,
        .checkpoint = row->checkpoint,
        .progress = row->progress,
        .warnings = row->warnings,
        .reserved_bytes = spec->disk.artifact,
        .disk_bytes = disk_plan_max(&spec->disk),
        .memory = job_memory_planned(spec),
        .calibration = row->calibration,
        .evaluation = row->evaluation,
    };
    struct job_change change = {.fence = row->fence,
                                .reason = "retried by request",
                                .set = JOB_SET_REQUEST | JOB_SET_CHECKPOINT | JOB_SET_PROGRESS | JOB_SET_RESERVED |
                                       JOB_SET_MEMORY};

    TRY(check_unchanged(service, row));
    columns.checkpoint.charged = 0;
    columns.progress.elapsed_seconds = 0; /* timeout_seconds counts from here */
    if (starts_over(service, row)) {
        if (spec->calibration.stream) {
            return refuse_gone_records();
        }
        TRY(store_blocks_clear(service->store, row->id, 0));
        columns.checkpoint = (struct job_checkpoint){.blocks = 0};
        columns.progress = (struct job_progress){.known = false};
        columns.calibration = columns.evaluation = (struct job_records){.records = 0};
        change.set |= JOB_SET_RECORDS | JOB_SET_GATE; /* whose ladder begins again, too */
    }
    change.row = &columns;
    TRY(job_move(service->store, row->id, JOB_RETRY, &change, &after));
    return service_job_show(&after, job);
}

int service_job_retry(struct service *service, const struct principal *who, const char *id, const json_t *body,
                      struct validation_errors *errors, json_t **job)
{
    AUTO(job_row) struct job_row row = {0};
    AUTO(job_spec) struct job_spec spec = {.metadata = NULL};
    AUTO_JSON json_t *merged = NULL;
    AUTO_JSON json_t *warnings = json_array();

    if (service_draining(service)) {
        return err_raise(ERR_DRAINING, "the daemon is shutting down");
    }
    TRY(store_job_get(service->store, who->project, id, &row));
    if (job_next(row.status, JOB_RETRY) == STATUS_NONE) {
        bool again = json_object_size(body) == 0 && (row.status == STATUS_QUEUED || row.status == STATUS_RUNNING);
        return again
                   ? service_job_show(&row, job)
                   : err_raise(ERR_JOB_STATE_CONFLICT, "the job is %s; one that failed or was cancelled can be retried",
                               job_status_name(row.status));
    }
    TRY(spec_retry(row.request, body, errors, &merged));
    TRY(spec_parse(merged, errors, &spec));
    if (spec.calibration.stream && starts_over(service, &row)) {
        return refuse_gone_records();
    }
    TRY(check_retry(service, who, &row, &spec, warnings, errors));
    if (!starts_over(service, &row)) {
        leave_out_finished(&row, &spec.disk);
    }
    AUTO_JSON json_t *request = spec_json(&spec);
    if (request == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job");
    }
    pthread_mutex_lock(&service->admission);
    int rc = admission_enter(service, who, &spec, errors);
    rc = rc == 0 ? change_retry(service, &row, &spec, request, job) : rc;
    pthread_mutex_unlock(&service->admission);
    if (rc == 0) {
        supervisor_wake(service);
    }
    return rc;
}
