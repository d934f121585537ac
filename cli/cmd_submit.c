/* quantctl submit: a job from flags or from a file, its calibration records, and its end if that is waited for. */

#include "base/err.h"
#include "base/ids.h"
#include "base/json.h"
#include "cli/calibrate.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/jobfile.h"
#include "cli/members.h"
#include "cli/models.h"
#include "cli/objects.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"
#include "cli/watch.h"

#include <stdio.h>
#include <string.h>

struct submit_options {
    const char *file, *name, *model, *format, *calibration, *evaluation, *device, *key, *webhook;
    struct option_texts methods, set, metadata;
    int64_t bits, group_size, samples, length, seed, priority, attempts, timeout;
    bool model_free, wait, watch;
};

#define AT(member) offsetof(struct submit_options, member)

static const struct option_row submit_options[] = {
    {"file", 'f', OPTION_TEXT, "FILE", AT(file), .help = "Job file in YAML or JSON; \"-\" is standard input"},
    {"model", 'm', OPTION_TEXT, "MODEL", AT(model), .help = "Model: its id, its name, or file:PATH below a model root"},
    {"method", 0, OPTION_TEXTS, "METHOD", AT(methods), .help = "Method; repeat for a list of stages"},
    {"bits", 'b', OPTION_INT, "N", AT(bits), .help = "quantization.bits", 1, 64},
    {"group-size", 'g', OPTION_INT, "N", AT(group_size), .help = "quantization.group_size", -1, 1000000},
    {"set", 0, OPTION_TEXTS, "NAME=VALUE", AT(set),
     .help = "Any other member: damp_percent=0.02 of quantization, output.max_shard_bytes=... of another object; "
             "repeatable"},
    {"format", 0, OPTION_TEXT, "FORMAT", AT(format), .help = "output.format"},
    {"model-free", 0, OPTION_FLAG, NULL, AT(model_free),
     .help = "Quantize from names and shapes alone (mode model_free), without calibration"},
    {"calibration", 'c', OPTION_TEXT, "FILE", AT(calibration),
     .help = "Calibration records: a local NDJSON file (\"-\": standard input), or file_... of the server"},
    {"num-samples", 0, OPTION_INT, "N", AT(samples), .help = "calibration.num_samples", 1, INT64_MAX},
    {"sequence-length", 0, OPTION_INT, "N", AT(length), .help = "calibration.sequence_length", 1, INT64_MAX},
    {"evaluation", 0, OPTION_TEXT, "FILE|FRACTION", AT(evaluation),
     .help = "Evaluate on file_... of the server, or on this fraction of the calibration records"},
    {"name", 'n', OPTION_TEXT, "NAME", AT(name), .help = "Name of the job"},
    {"metadata", 0, OPTION_TEXTS, "KEY=VALUE", AT(metadata), .help = "Metadata for filters; repeatable"},
    {"device", 0, OPTION_TEXT, "DEVICE", AT(device), .help = "resources.device"},
    {"seed", 0, OPTION_INT, "N", AT(seed), .help = "Seed", 0, INT64_MAX},
    {"priority", 0, OPTION_INT, "N", AT(priority), .help = "Priority", -1000000, 1000000},
    {"max-attempts", 0, OPTION_INT, "N", AT(attempts), .help = "Attempts without progress", 1, 1000000},
    {"time-limit", 0, OPTION_INT, "SECONDS", AT(timeout), .help = "timeout_seconds: the job's time limit", 1,
     INT64_MAX},
    {"webhook", 0, OPTION_TEXT, "WEBHOOK", AT(webhook), .help = "Webhook (wh_...) that is told of the job's end"},
    {"idempotency-key", 0, OPTION_TEXT, "KEY", AT(key),
     .help = "Submit once, however often this is run with the same key"},
    {"wait", 'w', OPTION_FLAG, NULL, AT(wait), .help = "Wait for the end of the job; exit status 1 unless it succeeds"},
    {"watch", 0, OPTION_FLAG, NULL, AT(watch), .help = "As --wait, with progress as quantctl watch shows it"},
    {0},
};

/* --- the body */

static int set_methods(json_t *body, const struct option_texts *methods)
{
    if (methods->count == 1) {
        return members_text(body, "method", methods->items[0]);
    }
    if (methods->count > 1) {
        json_t *list = json_array();
        for (size_t i = 0; i < methods->count; i++) {
            (void)json_array_append_new(list, json_string(methods->items[i]));
        }
        (void)json_object_set_new(body, "method", list);
    }
    return 0;
}

static int set_calibration(json_t *body, const struct submit_options *options)
{
    const char *file = options->calibration;

    if (file != NULL && strncmp(file, "file_", 5) == 0) {
        TRY(members_text(members_object(body, "calibration"), "file_id", file));
    } else if (file != NULL) {
        (void)json_object_set_new(members_object(body, "calibration"), "stream", json_true());
    }
    if (options->samples != OPTION_UNSET || options->length != OPTION_UNSET) {
        members_int(members_object(body, "calibration"), "num_samples", options->samples);
        members_int(members_object(body, "calibration"), "sequence_length", options->length);
    }
    if (options->evaluation != NULL && strncmp(options->evaluation, "file_", 5) == 0) {
        return members_text(members_object(body, "evaluation"), "file_id", options->evaluation);
    }
    if (options->evaluation != NULL) {
        json_t *fraction = jobfile_scalar(options->evaluation, strlen(options->evaluation));
        if (!json_is_number(fraction)) {
            json_decref(fraction);
            return err_raise(ERR_CONFIG, "--evaluation: \"%.80s\" is neither file_... nor a fraction such as 0.1",
                             options->evaluation);
        }
        (void)json_object_set_new(members_object(body, "evaluation"), "hold_back", fraction);
    }
    return 0;
}

static int make_body(const struct submit_options *options, json_t **out)
{
    AUTO_JSON json_t *body = NULL;

    if (options->file != NULL) {
        TRY(jobfile_read(options->file, &body));
    } else {
        body = json_object();
    }
    TRY(members_text(body, "name", options->name));
    TRY(members_text(body, "model", options->model));
    TRY(members_text(body, "webhook_id", options->webhook));
    TRY(options->model_free ? members_text(body, "mode", "model_free") : 0);
    TRY(set_methods(body, &options->methods));
    if (options->bits != OPTION_UNSET || options->group_size != OPTION_UNSET) {
        members_int(members_object(body, "quantization"), "bits", options->bits);
        members_int(members_object(body, "quantization"), "group_size", options->group_size);
    }
    TRY(options->format != NULL ? members_text(members_object(body, "output"), "format", options->format) : 0);
    TRY(options->device != NULL ? members_text(members_object(body, "resources"), "device", options->device) : 0);
    TRY(set_calibration(body, options));
    for (size_t i = 0; i < options->set.count; i++) {
        TRY(members_set(body, options->set.items[i]));
    }
    for (size_t i = 0; i < options->metadata.count; i++) {
        TRY(members_metadata(body, options->metadata.items[i]));
    }
    members_int(body, "seed", options->seed);
    members_int(body, "priority", options->priority);
    members_int(body, "max_attempts", options->attempts);
    members_int(body, "timeout_seconds", options->timeout);
    *out = MOVE(body);
    return 0;
}

/* --- the model */

/* body's model by its id: a name is looked up. A URI becomes a registration within the job: it adds no model where the
 * folder has one already or the job is refused, and the body is the same when the command is repeated. */
static int resolve_model(struct cli *cli, json_t *body)
{
    const char *model = json_get_string(body, "model");
    AUTO_JSON json_t *id = NULL;

    if (model == NULL) {
        return json_object_get(body, "model") != NULL
                   ? 0
                   : err_set_hint(err_raise(ERR_CONFIG, "the job has no model"), "--model, or model: in the job file");
    }
    if (strncmp(model, "mdl_", 4) == 0) {
        return 0;
    }
    if (strncasecmp(model, "file:", 5) == 0) {
        id = json_pack("{s:s}", "uri", model);
        (void)json_object_set(body, "model", id);
        return 0;
    }
    TRY(models_find(cli, model, &id));
    (void)json_object_set(body, "model", id);
    return 0;
}

/* --- the job */

static int create_job(struct cli *cli, const json_t *body, const char *key, json_t **job)
{
    char header[320], made[ID_SIZE];
    AUTO_FREE char *text = json_dumps(body, JSON_COMPACT);

    if (text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the request");
    }
    id_new("qctl", made);
    snprintf(header, sizeof(header), "Idempotency-Key: %s", key != NULL ? key : made);
    if (strpbrk(header, "\r\n") != NULL || (key != NULL && (strlen(key) > 255 || key[0] == '\0'))) {
        return err_raise(ERR_CONFIG, "--idempotency-key: 1 to 255 visible characters");
    }
    const char *const headers[] = {header, NULL};
    const struct http_call call = {.method = "POST",
                                   .path = objects_jobs.path,
                                   .headers = headers,
                                   .repeatable = true, /* the key makes one job of all */
                                   .type = "application/json",
                                   .body = text,
                                   .size = strlen(text)};
    int rc = client_call(cli, &call, job);
    return rc == STATUS_UNREACHABLE ? client_call(cli, &call, job) : rc;
}

/* Send the records if the job waits for them. Its state is asked for: the answer to a repeated idempotency key is the
 * first one, and some records may have arrived since. */
static int send_calibration(struct cli *cli, const char *id, const char *path, json_t **job)
{
    json_decref(*job);
    *job = NULL;
    TRY(job_get(cli, id, job));
    if (strcmp(print_text(*job, "status"), "awaiting_calibration") != 0) {
        return 0;
    }
    return calibrate_file(cli, path, job);
}

static int submit_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct submit_options *options = given;
    const char *file = options->calibration;
    bool local = file != NULL && strncmp(file, "file_", 5) != 0;
    AUTO_JSON json_t *body = NULL;
    AUTO_JSON json_t *job = NULL;
    char id[128];

    TRY(local ? calibrate_check(file) : 0);
    TRY(make_body(options, &body));
    TRY(resolve_model(cli, body));
    TRY(create_job(cli, body, options->key, &job));
    snprintf(id, sizeof(id), "%s", print_text(job, "id"));
    if (!cli->quiet) {
        safe_printf(stderr, "job %s\n", id);
    }
    TRY(local ? send_calibration(cli, id, file, &job) : 0);
    if (options->wait || options->watch) {
        json_decref(job);
        job = NULL;
        TRY(watch_job(cli, id, options->watch && !cli->json ? watch_choose(cli, false) : WATCH_NOTHING, &job));
    }
    if (cli->json) {
        print_json(job);
    } else if (options->wait || options->watch) {
        TRY(job_print(job));
    } else {
        safe_printf(stdout, "%s\n", id);
    }
    return options->wait || options->watch ? job_outcome(job) : 0;
}

const struct command command_submit = {
    .name = "submit",
    .summary = "Submit a job from options or from a job file",
    .details = "A job file has the members of POST /v1/quantization/jobs; options take precedence over it. Standard "
               "output is the job's id.\n\n"
               "  quantctl submit -m tiny --method gptq -b 4 -g 64 -c texts.ndjson --wait",
    .options = submit_options,
    .size = sizeof(struct submit_options),
    .run = submit_run,
};
