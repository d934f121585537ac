/* Calibration records streamed into a waiting job.
 *
 * The bytes go through the writer into <job>/calibration.tok as they come: nothing is kept in memory but the line at
 * hand. What counts is (records, tokens, bytes) in the job's row, written after the fsync; the next open cuts the log
 * back to it, so an upload that broke off leaves no trace and a retry never doubles a sample. */

#include "jobs/service.h"

#include "base/err.h"
#include "base/fs.h"
#include "jobs/job.h"
#include "jobs/records.h"
#include "jobs/task.h"
#include "models/calibration.h"

#include <stdlib.h>
#include <string.h>

struct service_upload {
    struct service *service;
    struct service_upload *next; /* under service->uploads_lock */
    char job[ID_SIZE];
    char path[SERVICE_PATH_MAX];
    int64_t committed; /* records acknowledged before */
    int64_t length;    /* tokens of a sequence */
    struct job_spec spec;
    struct tokenizer *tokenizer;
    char tokenizer_error[SERVICE_REASON_SIZE]; /* "": none */
    struct chat *chat;
    struct calibration_writer *writer;
    json_t *warnings; /* of the job, with what this upload adds */
};

/* One at a time per job. */
static int register_upload(struct service_upload *upload)
{
    struct service *service = upload->service;
    bool taken = false;

    pthread_mutex_lock(&service->uploads_lock);
    for (struct service_upload *other = service->uploads; other != NULL; other = other->next) {
        taken = taken || strcmp(other->job, upload->job) == 0;
    }
    if (!taken) {
        upload->next = service->uploads;
        service->uploads = upload;
    }
    pthread_mutex_unlock(&service->uploads_lock);
    return taken ? err_raise(ERR_JOB_STATE_CONFLICT, "another upload into this job is under way") : 0;
}

static void unregister_upload(struct service_upload *upload)
{
    struct service *service = upload->service;

    pthread_mutex_lock(&service->uploads_lock);
    for (struct service_upload **at = &service->uploads; *at != NULL; at = &(*at)->next) {
        if (*at == upload) {
            *at = upload->next;
            break;
        }
    }
    pthread_mutex_unlock(&service->uploads_lock);
}

/* The job ended, or was deleted, while the upload was opened: whoever ended it did not see the folder. */
static void upload_sweep(const struct service_upload *upload)
{
    struct store_status found;
    struct err_record earlier;

    if (upload->path[0] == '\0') {
        return;
    }
    err_take(&earlier);
    int rc = store_job_status(upload->service->store, NULL, upload->job, &found);
    if (rc == ERR_NOT_FOUND || (rc == 0 && !service_job_keeps_files(found.status))) {
        service_job_remove_files(upload->service, upload->job);
    }
    err_restore(&earlier);
}

void service_upload_abort(struct service_upload *upload)
{
    if (upload == NULL) {
        return;
    }
    calibration_writer_free(upload->writer);
    upload_sweep(upload);
    tokenizer_free(upload->tokenizer);
    chat_free(upload->chat);
    json_decref(upload->warnings);
    spec_deinit(&upload->spec);
    unregister_upload(upload);
    free(upload);
}

static int check_status(const struct job_row *row, int64_t offset)
{
    if (job_next(row->status, JOB_COMPLETE) == STATUS_NONE) {
        return err_raise(ERR_JOB_STATE_CONFLICT, "the job is %s and takes no calibration records",
                         job_status_name(row->status));
    }
    if (offset >= 0 && offset != row->calibration.records) {
        return err_raise(ERR_OFFSET_MISMATCH, "%lld records are accepted so far", (long long)row->calibration.records);
    }
    return 0;
}

static int upload_watch(void *data)
{
    return service_draining(data) ? err_raise(ERR_DRAINING, "the daemon is shutting down") : 0;
}

static int open_writer(struct service_upload *upload, const struct job_row *row)
{
    const struct job_records *counts = &row->calibration;
    AUTO(model) struct model *model = NULL;
    char folder[SERVICE_PATH_MAX];

    TRY(service_model_open_object(upload->service, NULL, upload->spec.model, spec_reading(&upload->spec), &model));
    upload->warnings = json_is_array(row->warnings) ? json_deep_copy(row->warnings) : json_array();
    if (upload->warnings == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an upload");
    }
    upload->committed = counts->records;
    upload->length = spec_sequence_length(&upload->spec, model_config(model));
    TRY(service_tokenizer_open(model, &upload->tokenizer, upload->tokenizer_error));
    TRY(chat_open(model, &upload->chat));
    TRY(service_job_path(upload->service, upload->job, NULL, folder));
    TRY(service_job_path(upload->service, upload->job, TASK_CALIBRATION_LOG, upload->path));
    TRY(fs_make_dirs(folder));
    const struct calibration_reading reading = {.tokenizer = upload->tokenizer,
                                                .tokenizer_error =
                                                    upload->tokenizer_error[0] != '\0' ? upload->tokenizer_error : NULL,
                                                .chat = upload->chat,
                                                .vocab_size = model_config(model)->vocab_size,
                                                .text_field = upload->spec.calibration.text_field,
                                                .add_special_tokens = upload->spec.calibration.add_special_tokens,
                                                .watch = upload_watch,
                                                .watch_data = upload->service};
    return calibration_writer_open(upload->path, counts->records, counts->tokens, counts->bytes, &reading,
                                   &upload->writer);
}

static int open_upload(struct service_upload *upload, const struct principal *who, int64_t offset)
{
    struct validation_errors errors = {0};
    AUTO(job_row) struct job_row row = {0};

    TRY(store_job_get(upload->service->store, who->project, upload->job, &row));
    TRY(check_status(&row, offset));
    TRY(spec_parse(row.request, &errors, &upload->spec));
    return open_writer(upload, &row);
}

int service_upload_open(struct service *service, const struct principal *who, const char *job, int64_t offset,
                        struct service_upload **out)
{
    struct service_upload *upload;

    if (service_draining(service)) {
        return err_raise(ERR_DRAINING, "the daemon is shutting down");
    }
    upload = calloc(1, sizeof(*upload));
    if (upload == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an upload");
    }
    upload->service = service;
    snprintf(upload->job, sizeof(upload->job), "%s", job);
    int rc = register_upload(upload);
    if (rc != 0) {
        free(upload);
        return rc;
    }
    rc = open_upload(upload, who, offset);
    if (rc != 0) {
        service_upload_abort(upload);
        return rc;
    }
    *out = upload;
    return 0;
}

int service_upload_feed(struct service_upload *upload, const char *data, size_t size)
{
    return calibration_writer_feed(upload->writer, data, size);
}

/* Is there at least one sequence in what was sent? */
static int check_enough(const struct service_upload *upload, const struct calibration_counts *counts)
{
    if (upload->spec.calibration.packing) {
        if (counts->tokens >= upload->length) {
            return 0;
        }
        int rc = err_raise(ERR_INSUFFICIENT_CALIBRATION, "%lld tokens are fewer than one sequence of %lld",
                           (long long)counts->tokens, (long long)upload->length);
        return err_set_hint(rc, "send at least %lld more tokens, or make a job with a smaller sequence_length",
                            (long long)(upload->length - counts->tokens));
    }
    const struct calibration_spec one = {.num_samples = 1, .sequence_length = upload->length};
    struct calibration_set set;
    int rc = calibration_set_load(upload->path, counts->records, counts->bytes, &one, &set);
    if (rc == 0) {
        calibration_set_deinit(&set);
        return 0;
    }
    return err_set_hint(rc, "without packing a record must have %lld tokens by itself", (long long)upload->length);
}

/* Tokens still missing from the set that was asked for. */
static int64_t needed(const struct service_upload *upload, const struct calibration_counts *counts)
{
    int64_t sequences = upload->spec.calibration.num_samples > 0 ? upload->spec.calibration.num_samples : 1;
    int64_t wanted = sequences * upload->length;
    return counts->tokens < wanted ? wanted - counts->tokens : 0;
}

static json_t *upload_error_list(const struct service_upload *upload, const struct calibration_counts *counts)
{
    const struct calibration_error *errors = calibration_writer_errors(upload->writer);
    json_t *list = json_array();

    for (size_t i = 0; i < counts->error_count; i++) {
        json_array_append_new(list, json_pack("{s:I, s:s, s:s}", "line", (json_int_t)errors[i].line, "code",
                                              err_api_code(errors[i].code), "detail", errors[i].detail));
    }
    return list;
}

static json_t *answer_of(const struct service_upload *upload, const struct calibration_counts *counts,
                         enum job_status status)
{
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:o, s:O, s:s}", "object", "quantization.calibration", "accepted",
                     (json_int_t)counts->accepted, "rejected", (json_int_t)counts->rejected, "tokens",
                     (json_int_t)counts->tokens, "next_offset", (json_int_t)counts->records, "needed",
                     (json_int_t)needed(upload, counts), "errors", upload_error_list(upload, counts), "warnings",
                     upload->warnings, "status", job_status_name(status));
}

/* The counts and, when complete, the move into the queue: one transaction. */
static int commit(struct service_upload *upload, const struct calibration_counts *counts, bool complete)
{
    struct store *store = upload->service->store;
    const struct job_row row = {
        .calibration = {.records = counts->records, .tokens = counts->tokens, .bytes = counts->bytes},
        .warnings = upload->warnings};
    const unsigned set = JOB_SET_RECORDS | JOB_SET_WARNINGS;

    if (complete) {
        const struct job_change change = {.fence = -1, .set = set, .row = &row};
        return job_move(store, upload->job, JOB_COMPLETE, &change, NULL);
    }
    AUTO_JSON json_t *event = json_pack("{s:s, s:I, s:I}", "message", "calibration records accepted", "records",
                                        (json_int_t)counts->records, "tokens", (json_int_t)counts->tokens);
    if (event == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an upload's counts");
    }
    const struct job_update update = {.id = upload->job,
                                      .from = job_first_state(true),
                                      .fence = -1,
                                      .set = set,
                                      .row = &row,
                                      .event = "log",
                                      .event_data = event};
    return store_job_update(store, &update, NULL);
}

int service_upload_end_take(struct service_upload *upload, bool complete, json_t **answer)
{
    struct calibration_counts counts;
    struct err_record shortage = {0};

    int rc = calibration_writer_sync(upload->writer, true);
    if (rc != 0) {
        service_upload_abort(upload);
        return rc;
    }
    calibration_writer_counts(upload->writer, &counts);
    records_warn_notes(upload->warnings, "calibration", upload->writer, true);
    if (complete && check_enough(upload, &counts) != 0) {
        err_take(&shortage);
        complete = false;
    }
    if (complete || counts.records != upload->committed) {
        rc = commit(upload, &counts, complete);
    }
    if (rc == 0) {
        *answer = answer_of(upload, &counts,
                            complete ? job_next(job_first_state(true), JOB_COMPLETE) : job_first_state(true));
        rc = *answer != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an answer");
    }
    struct service *service = upload->service;
    service_upload_abort(upload); /* what was committed stays */
    if (rc == 0 && complete) {
        supervisor_wake(service);
    }
    if (rc == 0 && shortage.code != 0) {
        err_restore(&shortage);
        rc = shortage.code;
    }
    return rc;
}
