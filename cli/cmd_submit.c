/* quantctl submit: a job from flags or from a file, its calibration records, and its end if that is waited for. */

#include "base/err.h"
#include "base/ids.h"
#include "base/json.h"
#include "cli/calibrate.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/jobrequest.h"
#include "cli/objects.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"
#include "cli/watch.h"

#include <stdio.h>
#include <string.h>

struct submit_options {
    struct jobrequest request;
    const char *key;
    bool wait, watch;
};

#define AT(member) offsetof(struct submit_options, member)

static const struct option_row submit_options[] = {
    JOBREQUEST_OPTIONS(AT(request)),
    {"idempotency-key", 0, OPTION_TEXT, "KEY", AT(key),
     .help = "Submit once, however often this is run with the same key"},
    {"wait", 'w', OPTION_FLAG, NULL, AT(wait), .help = "Wait for the end of the job; exit status 1 unless it succeeds"},
    {"watch", 0, OPTION_FLAG, NULL, AT(watch), .help = "As --wait, with progress as quantctl watch shows it"},
    {0},
};

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
    const char *file = options->request.calibration;
    bool local = jobrequest_is_local(&options->request);
    AUTO_JSON json_t *body = NULL;
    AUTO_JSON json_t *job = NULL;
    char id[128];

    TRY(local ? calibrate_check(file) : 0);
    TRY(jobrequest_body(&options->request, &body));
    TRY(jobrequest_model(cli, body));
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
