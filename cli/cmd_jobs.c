/* quantctl jobs: lists, one job, and the deletion of jobs that have ended. */

#include "base/err.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/print.h"
#include "cli/safe.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* --- list */

struct list_options {
    const char *status, *method, *model;
    struct option_texts metadata;
    int64_t created_after, limit;
    bool all;
};

#define AT(member) offsetof(struct list_options, member)

static const struct option_row list_options[] = {
    {"status", 0, OPTION_TEXT, "STATUS", AT(status), .help = "Jobs of this status: queued, running, succeeded, ..."},
    {"method", 0, OPTION_TEXT, "METHOD", AT(method), .help = "Jobs of this method"},
    {"model", 'm', OPTION_TEXT, "MODEL", AT(model), .help = "Jobs of this model (mdl_...)"},
    {"metadata", 0, OPTION_TEXTS, "KEY=VALUE", AT(metadata), .help = "Jobs with this metadata; repeatable"},
    {"created-after", 0, OPTION_INT, "SECONDS", AT(created_after), .help = "Jobs created after this Unix time", 0,
     INT64_MAX},
    {"limit", 'n', OPTION_INT, "N", AT(limit), .help = "At most N jobs, newest first (default: 20)", 1, 1000000},
    {"all", 'a', OPTION_FLAG, NULL, AT(all), .help = "All jobs"},
    {0},
};

static int jobs_add_filters(const struct list_options *options, char *path, size_t size)
{
    char text[CLIENT_PATH_MAX];

    TRY(options->status != NULL ? client_query(path, size, "status", options->status) : 0);
    TRY(options->method != NULL ? client_query(path, size, "method", options->method) : 0);
    TRY(options->model != NULL ? client_query(path, size, "model_id", options->model) : 0);
    if (options->created_after != OPTION_UNSET) {
        snprintf(text, sizeof(text), "%" PRId64, options->created_after);
        TRY(client_query(path, size, "created_after", text));
    }
    for (size_t i = 0; i < options->metadata.count; i++) {
        const char *item = options->metadata.items[i], *equals = strchr(item, '=');
        if (equals == NULL || equals == item) {
            return err_raise(ERR_CONFIG, "--metadata: \"%.80s\" is not KEY=VALUE", item);
        }
        snprintf(text, sizeof(text), "metadata[%.*s]", (int)(equals - item), item);
        TRY(client_query(path, size, text, equals + 1));
    }
    return 0;
}

static int jobs_list_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct list_options *options = given;
    AUTO_JSON json_t *list = NULL;
    const json_t *job;
    size_t i;
    char path[CLIENT_PATH_MAX] = CLIENT_JOBS;

    TRY(jobs_add_filters(options, path, sizeof(path)));
    TRY(client_list(cli, path, options->all ? 0 : options->limit != OPTION_UNSET ? options->limit : 20, &list));
    if (cli->json) {
        print_json(list);
        return 0;
    }
    AUTO(table)
    struct table *table =
        table_new((const char *const[]){"ID", "NAME", "METHOD", "STATUS", ">DONE", ">ETA", "CREATED", NULL});
    json_array_foreach(json_object_get(list, "data"), i, job)
    {
        char method[JOB_METHOD_SIZE], done[PRINT_SIZE], eta[PRINT_SIZE], created[PRINT_SIZE];
        TABLE_ROW(table, print_text(job, "id"), print_text(job, "name"), job_method(job, method),
                  print_text(job, "status"), job_percent(job, done), job_eta(job, eta),
                  print_time(job, "created_at", created));
    }
    TRY(table_print(table, stdout));
    if (json_is_true(json_object_get(list, "has_more")) && !cli->quiet) {
        fputs("there are more; --all or --limit N shows them\n", stderr);
    }
    return 0;
}

const struct command command_jobs_list = {
    .name = "jobs list",
    .summary = "List jobs, newest first",
    .options = list_options,
    .size = sizeof(struct list_options),
    .run = jobs_list_run,
};

/* --- show, delete */

static int jobs_show_run(struct cli *cli, const void *given, int count, char **arguments)
{
    AUTO_JSON json_t *job = NULL;

    TRY(job_get(cli, arguments[0], &job));
    if (cli->json) {
        print_json(job);
    } else {
        job_print(job);
    }
    return 0;
}

const struct command command_jobs_show = {
    .name = "jobs show",
    .arguments = "JOB",
    .summary = "Show one job",
    .min = 1,
    .max = 1,
    .run = jobs_show_run,
};

static int jobs_delete_run(struct cli *cli, const void *given, int count, char **arguments)
{
    return client_delete(cli, CLIENT_JOBS, "job", "a job", count, arguments);
}

const struct command command_jobs_delete = {
    .name = "jobs delete",
    .arguments = "JOB...",
    .summary = "Delete jobs that have ended",
    .min = 1,
    .max = -1,
    .run = jobs_delete_run,
};
