/* A job as several commands see it. */

#include "cli/job.h"

#include "base/err.h"
#include "base/json.h"
#include "cli/objects.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

int job_path(char *out, size_t size, const char *id, const char *below)
{
    TRY(objects_path(out, size, &objects_jobs, id));
    return http_escape(out, size, below, "/?=&");
}

int job_get(struct cli *cli, const char *id, json_t **out)
{
    return objects_get(cli, &objects_jobs, id, out);
}

bool job_is_terminal(const char *status)
{
    return strcmp(status, "succeeded") == 0 || strcmp(status, "failed") == 0 || strcmp(status, "cancelled") == 0 ||
           strcmp(status, "expired") == 0;
}

int job_outcome(const json_t *job)
{
    const char *status = print_text(job, "status");
    const json_t *error = json_object_get(job, "error");

    if (strcmp(status, "succeeded") == 0) {
        return 0;
    }
    if (!json_is_object(error)) {
        return status_fail(STATUS_JOB, "%s is %s", print_text(job, "id"), status);
    }
    int rc = status_fail(STATUS_JOB, "%s %s: %s (%s)", print_text(job, "id"), status, print_text(error, "message"),
                         print_text(error, "code"));
    const char *hint = json_get_string(error, "hint");
    return hint != NULL && hint[0] != '\0' ? err_set_hint(rc, "%s", hint) : rc;
}

int job_find_artifact(struct cli *cli, const char *name, char *out, size_t size)
{
    AUTO_JSON json_t *job = NULL;

    if (strncmp(name, "job_", 4) != 0) {
        snprintf(out, size, "%s", name);
        return 0;
    }
    TRY(job_get(cli, name, &job));
    TRY(job_outcome(job));
    const char *id = json_get_string(json_object_get(job, "result"), "artifact_id");
    if (id == NULL) {
        return status_fail(STATUS_JOB, "%s has no artifact", name);
    }
    snprintf(out, size, "%s", id);
    return 0;
}

const char *job_method(const json_t *job, char out[JOB_METHOD_SIZE])
{
    const json_t *method = json_object_get(job, "method"), *stage;
    size_t i, at = 0;

    if (!json_is_array(method)) {
        return print_text(job, "method");
    }
    out[0] = '\0';
    json_array_foreach(method, i, stage)
    {
        const char *name = json_string_value(stage);
        if (at < JOB_METHOD_SIZE) {
            at += (size_t)snprintf(out + at, JOB_METHOD_SIZE - at, "%s%s", i > 0 ? "," : "", name != NULL ? name : "-");
        }
    }
    return out;
}

const char *job_percent(const json_t *job, char out[PRINT_SIZE])
{
    const json_t *fraction = json_object_get(json_object_get(job, "progress"), "fraction");

    if (!json_is_number(fraction)) {
        return "-";
    }
    snprintf(out, PRINT_SIZE, "%.0f%%", json_number_value(fraction) * 100);
    return out;
}

const char *job_eta(const json_t *job, char out[PRINT_SIZE])
{
    const json_t *eta = json_object_get(json_object_get(job, "progress"), "eta_seconds");
    bool running = strcmp(print_text(job, "status"), "running") == 0;

    return running && json_is_number(eta) ? print_seconds(json_number_value(eta), out) : "-";
}

void job_print_result(const json_t *result)
{
    char a[PRINT_SIZE], b[PRINT_SIZE];

    if (!json_is_object(result)) {
        return;
    }
    safe_printf(stdout, "artifact      %s%s\n", print_text(result, "artifact_id"),
                json_is_integer(json_object_get(result, "artifact_deleted_at")) ? " (deleted)" : "");
    safe_printf(stdout, "bits/weight   %s\n", print_number(result, "bits_per_weight", 5, a));
    safe_printf(stdout, "compression   %sx\n", print_number(result, "compression_ratio", 4, a));
    if (json_is_number(json_object_get(result, "perplexity_after"))) {
        safe_printf(stdout, "perplexity    %s before, %s after\n", print_number(result, "perplexity_before", 6, a),
                    print_number(result, "perplexity_after", 6, b));
        safe_printf(stdout, "mean KL       %s nats\n", print_number(result, "kl_divergence_mean", 4, a));
    }
}

void job_print_gate(const json_t *gate)
{
    char a[PRINT_SIZE], b[PRINT_SIZE], c[PRINT_SIZE];
    const json_t *rung, *reason;
    size_t i, k;

    json_array_foreach(json_object_get(gate, "rungs"), i, rung)
    {
        const json_t *bits = json_object_get(json_object_get(rung, "quantization"), "bits");
        safe_printf(stdout, "rung %-8zu %s: %s, %s", i + 1,
                    json_is_true(json_object_get(rung, "passed")) ? "passed" : "failed", print_text(rung, "method"),
                    json_is_integer(bits) ? print_value(bits, a) : "");
        safe_printf(stdout, "%sperplexity %s, mean KL %s nats, top-1 agreement %s\n",
                    json_is_integer(bits) ? " bits, " : "", print_number(rung, "perplexity", 6, a),
                    print_number(rung, "kl_divergence", 4, b), print_number(rung, "top1_agreement", 4, c));
        const json_t *said = json_object_get(rung, "generation");
        if (json_is_object(said)) {
            safe_printf(stdout,
                        "              generation: agreement %s with the float model, repetition %s before, %s after\n",
                        print_number(said, "agreement", 3, a), print_number(said, "repetition_before", 3, b),
                        print_number(said, "repetition_after", 3, c));
        }
        json_array_foreach(json_object_get(rung, "reasons"), k, reason)
        {
            safe_printf(stdout, "              %s\n", print_text(reason, "message"));
        }
    }
}

void job_print_choice(const json_t *chosen)
{
    const json_t *accelerator = json_object_get(chosen, "accelerator");

    if (!json_is_object(chosen)) {
        return;
    }
    safe_printf(
        stdout, "chosen        %s, for %s on %s. %s\n", print_text(chosen, "choice"), print_text(chosen, "goal"),
        json_is_string(accelerator) ? json_string_value(accelerator) : "the accelerator", print_text(chosen, "reason"));
    if (json_get_string(chosen, "caution") != NULL) {
        safe_printf(stdout, "caution       %s\n", print_text(chosen, "caution"));
    }
}

static void print_state(const json_t *job)
{
    const json_t *error = json_object_get(job, "error"), *warning;
    char text[PRINT_SIZE], eta[PRINT_SIZE];
    size_t i;

    safe_printf(stdout, "status        %s", print_text(job, "status"));
    if (json_get_string(job, "status_reason") != NULL) {
        safe_printf(stdout, " (%s)", print_text(job, "status_reason"));
    }
    if (json_get_string(job, "phase") != NULL) {
        safe_printf(stdout, ", %s, %s done, ETA %s", print_text(job, "phase"), job_percent(job, text),
                    job_eta(job, eta));
    }
    putchar('\n');
    if (json_is_integer(json_object_get(job, "queue_position"))) {
        safe_printf(stdout, "queue         position %s", print_value(json_object_get(job, "queue_position"), text));
        if (json_is_integer(json_object_get(job, "estimated_start_at"))) {
            safe_printf(stdout, ", starts about %s", print_time(job, "estimated_start_at", text));
        }
        putchar('\n');
    }
    if (json_is_object(error)) {
        safe_printf(stdout, "error         %s (%s)\n", print_text(error, "message"), print_text(error, "code"));
        if (json_get_string(error, "module") != NULL) {
            safe_printf(stdout, "module        %s\n", print_text(error, "module"));
        }
        if (json_get_string(error, "hint") != NULL) {
            safe_printf(stdout, "hint          %s\n", print_text(error, "hint"));
        }
    }
    json_array_foreach(json_object_get(job, "warnings"), i, warning)
    {
        safe_printf(stdout, "warning       %s (%s)\n", print_text(warning, "message"), print_text(warning, "code"));
    }
}

int job_print(const json_t *job)
{
    char method[JOB_METHOD_SIZE], text[PRINT_SIZE];
    const json_t *calibration = json_object_get(job, "calibration");

    safe_printf(stdout, "id            %s\n", print_text(job, "id"));
    safe_printf(stdout, "name          %s\n", print_text(job, "name"));
    safe_printf(stdout, "model         %s\n", print_text(job, "model"));
    safe_printf(stdout, "method        %s\n", job_method(job, method));
    safe_printf(stdout, "format        %s\n", print_text(json_object_get(job, "output"), "format"));
    job_print_choice(json_object_get(job, "recommendation"));
    print_state(job);
    if (json_is_object(calibration)) {
        safe_printf(stdout, "calibration   %s records,", print_value(json_object_get(calibration, "records"), text));
        safe_printf(stdout, " %s tokens\n", print_value(json_object_get(calibration, "tokens"), text));
    }
    job_print_gate(json_object_get(job, "gate"));
    safe_printf(stdout, "created       %s\n", print_time(job, "created_at", text));
    safe_printf(stdout, "started       %s\n", print_time(job, "started_at", text));
    safe_printf(stdout, "finished      %s\n", print_time(job, "finished_at", text));
    job_print_result(json_object_get(job, "result"));
    return 0;
}

/* --- columns of lists */

static const char *method_cell(const json_t *job, const char *key, char *out)
{
    return job_method(job, out);
}

static const char *percent_cell(const json_t *job, const char *key, char *out)
{
    return job_percent(job, out);
}

static const char *eta_cell(const json_t *job, const char *key, char *out)
{
    return job_eta(job, out);
}

static_assert(OBJECTS_CELL >= JOB_METHOD_SIZE && OBJECTS_CELL >= PRINT_SIZE, "a cell has room for each text");

static const struct objects_column jobs_columns[] = {
    {"ID", objects_text, "id"},
    {"NAME", objects_text, "name"},
    {"METHOD", method_cell, NULL},
    {"STATUS", objects_text, "status"},
    {">DONE", percent_cell, NULL},
    {">ETA", eta_cell, NULL},
    {"CREATED", objects_time, "created_at"},
    {0},
};

const struct objects objects_jobs = {"/v1/quantization/jobs", "job", "a job", jobs_columns, job_print};
