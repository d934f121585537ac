/* The job object (docs: every member always there, null when it has no value). Pure: a row in, an object out, so that
 * the same row always shows the same and its ETag holds. */

#include "jobs/view.h"

#include "jobs/jobs.h"
#include "jobs/spec.h"
#include "jobs/transitions.h"

#include <string.h>

/* Members of the stored request shown as they are. */
static const char *const request_members[] = {
    "quantization",
    "output",
    "evaluation",
    "resources",
    "seed",
    "priority",
    "max_attempts",
    "timeout_seconds",
    "expires_after_seconds",
    "webhook_id",
    "metadata",
    "recommendation",
};

static const char *const result_members[] = {
    "artifact_id",      "artifact_deleted_at", "bits_per_weight", "compression_ratio", "perplexity_before",
    "perplexity_after", "kl_divergence_mean",  "top1_agreement",  "worst_layers",      "mixed_precision",
};

#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

static void copy_members(json_t *to, const json_t *from, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        json_t *value = json_object_get(from, names[i]);
        json_object_set_new(to, names[i], value != NULL ? json_incref(value) : json_null());
    }
}

static json_t *time_or_null(int64_t seconds)
{
    return seconds != 0 ? json_integer(seconds) : json_null();
}

static json_t *document_or_null(json_t *document)
{
    return document != NULL ? json_incref(document) : json_null();
}

const char *view_mode(const json_t *request)
{
    const char *mode = json_string_value(json_object_get(request, "mode"));

    return mode != NULL ? mode : spec_modes[SPEC_ARCHITECTURE]; /* a job of before there was another */
}

json_t *view_bytes(int64_t bytes)
{
    return bytes > 0 ? json_integer(bytes) : json_null();
}

json_t *view_progress(const struct job_progress *progress)
{
    if (!progress->known) {
        return json_null();
    }
    return json_pack("{s:o, s:s?, s:f, s:I, s:I, s:I, s:I, s:I, s:f, s:o}", "block",
                     progress->block > 0 ? json_integer(progress->block) : json_null(), "step", progress->step,
                     "fraction", progress->fraction, "layers_done", (json_int_t)progress->layers_done, "layers_total",
                     (json_int_t)progress->layers_total, "modules_done", (json_int_t)progress->modules_done,
                     "modules_total", (json_int_t)progress->modules_total, "tokens_calibrated",
                     (json_int_t)progress->tokens_calibrated, "elapsed_seconds", progress->elapsed_seconds,
                     "eta_seconds",
                     progress->estimated_finish_at != 0 ? json_integer(progress->eta_seconds) : json_null());
}

json_t *view_memory(const struct job_memory *memory)
{
    if (memory->source_bytes == 0) {
        return json_null();
    }
    return json_pack("{s:I, s:o, s:o, s:o, s:I}", "source_bytes", (json_int_t)memory->source_bytes, "artifact_bytes",
                     view_bytes(memory->artifact_bytes), "gpu_peak_bytes", view_bytes(memory->gpu_peak_bytes),
                     "host_peak_bytes", view_bytes(memory->host_peak_bytes), "estimated_gpu_bytes",
                     (json_int_t)memory->estimated_gpu_bytes);
}

/* No value is null: a file that was not given has no id. */
static json_t *view_data(const json_t *part)
{
    json_t *data = json_copy((json_t *)part);
    const char *id = json_string_value(json_object_get(data, "file_id"));

    if (id != NULL && id[0] == '\0') {
        json_object_set_new(data, "file_id", json_null());
    }
    return data;
}

/* A held-back tail has the calibration's length. */
static json_t *view_evaluation(const json_t *request)
{
    const json_t *found = json_object_get(request, "evaluation");

    if (!json_is_object(found)) {
        return json_null();
    }
    json_t *evaluation = view_data(found);
    if (json_object_get(evaluation, "gate") == NULL) {
        json_object_set_new(evaluation, "gate", json_null());
    }
    if (json_integer_value(json_object_get(evaluation, "sequence_length")) == 0) {
        json_object_set(evaluation, "sequence_length",
                        json_object_get(json_object_get(request, "calibration"), "sequence_length"));
    }
    return evaluation;
}

/* A request that leaves it to the daemon does not say whether to sign. */
static json_t *view_output(const json_t *request)
{
    json_t *output = json_copy(json_object_get(request, "output"));

    if (output == NULL) {
        return json_null();
    }
    if (json_object_get(output, "sign") == NULL) {
        json_object_set_new(output, "sign", json_null());
    }
    if (json_object_get(output, "targets") == NULL) {
        json_object_set_new(output, "targets", json_null());
    }
    if (json_object_get(output, "tensor_parallel_size") == NULL) {
        json_object_set_new(output, "tensor_parallel_size", json_integer(1));
    }
    return output;
}

/* The targets with the versions that were checked. */
static json_t *view_targets(const json_t *request)
{
    const json_t *output = json_object_get(request, "output");
    struct format_targets targets = {.tensor_parallel =
                                         json_integer_value(json_object_get(output, "tensor_parallel_size"))};
    size_t i;
    json_t *item;

    json_array_foreach(json_object_get(output, "targets"), i, item)
    {
        if (targets.count < FORMAT_TARGETS_MAX &&
            runtime_target_parse(json_string_value(item), &targets.items[targets.count]) == 0) {
            targets.count++;
        }
    }
    return runtime_targets_json(&targets, NULL, NULL);
}

static json_t *view_calibration(const struct job_row *row)
{
    const struct job_records *found = &row->calibration;
    json_t *calibration = view_data(json_object_get(row->request, "calibration"));

    if (calibration == NULL) {
        return json_null();
    }
    if (json_object_get(calibration, "report_tokens") == NULL) {
        json_object_set_new(calibration, "report_tokens", json_integer(0)); /* of a version that measured on all */
    }
    json_object_set_new(calibration, "records", json_integer(found->records));
    json_object_set_new(calibration, "tokens", json_integer(found->tokens));
    json_object_set_new(calibration, "sequences", found->digest != NULL ? json_integer(found->sequences) : json_null());
    json_object_set_new(calibration, "digest", found->digest != NULL ? json_string(found->digest) : json_null());
    return calibration;
}

static json_t *view_checkpoint(const struct job_checkpoint *checkpoint)
{
    if (checkpoint->blocks == 0) {
        return json_null();
    }
    return json_pack("{s:I, s:I}", "layer", (json_int_t)checkpoint->blocks - 1, "saved_at",
                     (json_int_t)checkpoint->saved_at);
}

/* Null stays null; else exactly the named members. */
static json_t *view_result(const json_t *result)
{
    if (!json_is_object(result)) {
        return json_null();
    }
    json_t *object = json_object();
    copy_members(object, result, result_members, COUNT(result_members));
    return object;
}

/* What can be done with the job now, and where; null for what cannot. */
static json_t *view_links(const struct job_row *row)
{
    static const struct {
        const char *name;
        enum job_event event;
    } actions[] = {{"calibration", JOB_COMPLETE},
                   {"cancel", JOB_CANCEL},
                   {"pause", JOB_PAUSE},
                   {"resume", JOB_RESUME},
                   {"retry", JOB_RETRY}};
    static const char *const parts[] = {"events", "layers", "report"};
    const char *artifact = json_string_value(json_object_get(row->result, "artifact_id"));
    json_t *links = json_object();

    json_object_set_new(links, "self", json_sprintf("/v1/quantization/jobs/%s", row->id));
    for (size_t i = 0; i < COUNT(parts); i++) {
        json_object_set_new(links, parts[i], json_sprintf("/v1/quantization/jobs/%s/%s", row->id, parts[i]));
    }
    for (size_t i = 0; i < COUNT(actions); i++) {
        bool applies = job_next(row->status, actions[i].event) != STATUS_NONE;
        json_object_set_new(links, actions[i].name,
                            applies ? json_sprintf("/v1/quantization/jobs/%s/%s", row->id, actions[i].name)
                                    : json_null());
    }
    json_object_set_new(links, "artifact", artifact != NULL ? json_sprintf("/v1/artifacts/%s", artifact) : json_null());
    return links;
}

/* When a job that waits for its calibration expires. */
static json_t *view_expiry(const struct job_row *row)
{
    int64_t after = json_integer_value(json_object_get(row->request, "expires_after_seconds"));

    return row->status == STATUS_AWAITING_CALIBRATION && after > 0 ? json_integer(row->created_at + after)
                                                                   : json_null();
}

json_t *view_gate(const struct job_row *row)
{
    const json_t *asked = json_object_get(json_object_get(row->request, "evaluation"), "gate");
    json_t *rungs = json_object_get(row->gate, "rungs"), *passed = json_object_get(row->gate, "passed");

    if (!json_is_object(asked)) {
        return json_null();
    }
    json_int_t rung = json_integer_value(json_object_get(row->gate, "rung"));
    bool judged = (json_int_t)json_array_size(rungs) > rung; /* the rung that is at work is the last of them */
    return json_pack("{s:o, s:I, s:I, s:o}", "passed", judged ? json_incref(passed) : json_null(), "rung", rung,
                     "rungs_total", (json_int_t)json_array_size(json_object_get(asked, "ladder")) + 1, "rungs",
                     rungs != NULL ? json_incref(rungs) : json_array());
}

json_t *view_job(const struct job_row *row)
{
    json_t *job = json_pack(
        "{s:s, s:s, s:s?, s:s?, s:s?, s:s?, s:s, s:s?, s:s?, s:o, s:I, s:o, s:I, s:o, s:o, s:o, s:o}", "object",
        "quantization.job", "id", row->id, "name", row->name, "project", row->project, "model", row->model, "method",
        row->method, "status", job_status_name(row->status), "status_reason", row->status_reason, "phase", row->phase,
        "memory", view_memory(&row->memory), "attempt", (json_int_t)row->attempt, "error", document_or_null(row->error),
        "created_at", (json_int_t)row->created_at, "queued_at", time_or_null(row->queued_at), "started_at",
        time_or_null(row->started_at), "finished_at", time_or_null(row->finished_at), "cancelled_at",
        time_or_null(row->cancelled_at));
    if (job == NULL) {
        return NULL;
    }
    copy_members(job, row->request, request_members, COUNT(request_members));
    json_object_set_new(job, "mode", json_string(view_mode(row->request)));
    json_object_set_new(job, "output", view_output(row->request));
    json_object_set_new(job, "targets", view_targets(row->request));
    json_object_set_new(job, "evaluation", view_evaluation(row->request));
    json_object_set_new(job, "gate", view_gate(row));
    json_object_set_new(job, "traceparent", row->traceparent != NULL ? json_string(row->traceparent) : json_null());
    json_object_set_new(job, "tracestate", row->tracestate != NULL ? json_string(row->tracestate) : json_null());
    json_object_set_new(job, "priority", json_integer(row->priority));
    json_object_set_new(job, "worker_id", row->worker != NULL ? json_string(row->worker) : json_null());
    json_object_set_new(job, "calibration", view_calibration(row));
    json_object_set_new(job, "progress", view_progress(&row->progress));
    json_object_set_new(job, "result", view_result(row->result));
    json_object_set_new(job, "checkpoint", view_checkpoint(&row->checkpoint));
    json_object_set_new(job, "warnings", json_is_array(row->warnings) ? json_incref(row->warnings) : json_array());
    json_object_set_new(job, "estimated_finish_at",
                        row->status == STATUS_RUNNING ? time_or_null(row->progress.estimated_finish_at) : json_null());
    json_object_set_new(job, "expires_at", view_expiry(row));
    json_object_set_new(job, "queue_position", json_null());
    json_object_set_new(job, "estimated_start_at", json_null());
    json_object_set_new(job, "links", view_links(row));
    return job;
}

json_t *view_jobs(const struct job_list *list)
{
    json_t *data = json_array();

    for (size_t i = 0; i < list->count; i++) {
        if (json_array_append_new(data, view_job(&list->rows[i])) != 0) {
            json_decref(data);
            return NULL;
        }
    }
    return json_pack("{s:s, s:o, s:s?, s:s?, s:b}", "object", "list", "data", data, "first_id",
                     list->count > 0 ? list->rows[0].id : NULL, "last_id",
                     list->count > 0 ? list->rows[list->count - 1].id : NULL, "has_more", (int)list->more);
}

json_t *view_counts(const int64_t counts[])
{
    json_t *object = json_object();

    for (int i = 0; i < STATUS_COUNT; i++) {
        if (counts[i] > 0) {
            json_object_set_new(object, job_status_name((enum job_status)i), json_integer(counts[i]));
        }
    }
    return object;
}

bool job_view_ended(const json_t *job)
{
    const char *name = json_string_value(json_object_get(job, "status"));
    enum job_status status;

    return name != NULL && job_status_find(name, &status) && job_status_is_final(status);
}
