/* The job object (docs: every member always there, null when it has no value). Pure: a row in, an object out, so that
 * the same row always shows the same and its ETag holds. */

#include "jobs/engine.h"

#include <string.h>

/* Columns shown as they are. */
static const char *const plain_columns[] = {
    "id",     "name",    "project", "model",      "method",    "status",     "status_reason", "phase",
    "memory", "attempt", "error",   "created_at", "queued_at", "started_at", "finished_at",   "cancelled_at",
};

/* Members of the stored request shown as they are. */
static const char *const request_members[] = {
    "quantization", "output",       "evaluation",      "resources", "seed",
    "priority",     "max_attempts", "timeout_seconds", "metadata",
};

static const char *const progress_members[] = {
    "block",        "step",          "fraction",          "layers_done",     "layers_total",
    "modules_done", "modules_total", "tokens_calibrated", "elapsed_seconds", "eta_seconds",
};

static const char *const result_members[] = {
    "artifact_id",       "artifact_deleted_at", "bits_per_weight",    "compression_ratio",
    "perplexity_before", "perplexity_after",    "kl_divergence_mean", "worst_layers",
};

static const char *const calibration_counts[] = {"records", "tokens", "sequences", "digest"};

#define COUNT(list) (sizeof(list) / sizeof((list)[0]))

static void copy_members(json_t *to, const json_t *from, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        json_t *value = json_object_get(from, names[i]);
        json_object_set_new(to, names[i], value != NULL ? json_incref(value) : json_null());
    }
}

/* Null stays null; else exactly the named members. */
static json_t *select_members(const json_t *from, const char *const *names, size_t count)
{
    if (!json_is_object(from)) {
        return json_null();
    }
    json_t *object = json_object();
    copy_members(object, from, names, count);
    return object;
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
static void fill_length(json_t *evaluation, const json_t *calibration)
{
    if (json_integer_value(json_object_get(evaluation, "sequence_length")) == 0 && json_is_object(evaluation)) {
        json_object_set(evaluation, "sequence_length", json_object_get(calibration, "sequence_length"));
    }
}

static json_t *view_calibration(const json_t *row, const json_t *request)
{
    json_t *calibration = view_data(json_object_get(request, "calibration"));

    if (calibration == NULL) {
        return json_null();
    }
    copy_members(calibration, json_object_get(row, "calibration"), calibration_counts, COUNT(calibration_counts));
    return calibration;
}

static json_t *view_checkpoint(const json_t *row)
{
    static const char *const names[] = {"layer", "saved_at"};
    const json_t *checkpoint = json_object_get(row, "checkpoint");

    return json_is_integer(json_object_get(checkpoint, "layer")) ? select_members(checkpoint, names, COUNT(names))
                                                                 : json_null();
}

json_t *engine_job_view(struct engine *engine, const json_t *row)
{
    const json_t *request = json_object_get(row, "request");
    const json_t *warnings = json_object_get(row, "warnings");
    const json_t *finish = json_object_get(json_object_get(row, "progress"), "estimated_finish_at");
    const char *status = json_string_value(json_object_get(row, "status"));
    bool running = status != NULL && strcmp(status, "running") == 0;
    json_t *job = json_pack("{s:s}", "object", "quantization.job");

    (void)engine;
    if (job == NULL) {
        return NULL;
    }
    copy_members(job, row, plain_columns, COUNT(plain_columns));
    copy_members(job, request, request_members, COUNT(request_members));
    json_object_set(job, "worker_id", json_object_get(row, "worker"));
    if (json_is_object(json_object_get(job, "evaluation"))) {
        json_object_set_new(job, "evaluation", view_data(json_object_get(job, "evaluation")));
    }
    fill_length(json_object_get(job, "evaluation"), json_object_get(request, "calibration"));
    json_object_set_new(job, "calibration", view_calibration(row, request));
    json_object_set_new(job, "progress",
                        select_members(json_object_get(row, "progress"), progress_members, COUNT(progress_members)));
    json_object_set_new(job, "result",
                        select_members(json_object_get(row, "result"), result_members, COUNT(result_members)));
    json_object_set_new(job, "checkpoint", view_checkpoint(row));
    json_object_set_new(job, "warnings", json_is_array(warnings) ? json_incref((json_t *)warnings) : json_array());
    json_object_set_new(job, "estimated_finish_at",
                        running && json_is_integer(finish) ? json_incref((json_t *)finish) : json_null());
    return job;
}
