/* quantctl jobs: lists, one job, and the deletion of jobs that have ended. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/objects.h"

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
    int64_t limit = options->limit != OPTION_UNSET ? options->limit : 20;
    char path[CLIENT_PATH_MAX];

    snprintf(path, sizeof(path), "%s", objects_jobs.path);
    TRY(jobs_add_filters(options, path, sizeof(path)));
    return objects_list(cli, &objects_jobs, path, options->all ? 0 : limit);
}

const struct command command_jobs_list = {
    .name = "jobs list",
    .summary = "List jobs, newest first",
    .options = list_options,
    .size = sizeof(struct list_options),
    .run = jobs_list_run,
};

/* --- show, delete */

const struct command command_jobs_show = {
    .name = "jobs show",
    .arguments = "JOB",
    .summary = "Show one job",
    .min = 1,
    .max = 1,
    .objects = &objects_jobs,
    .act = objects_show,
};

const struct command command_jobs_delete = {
    .name = "jobs delete",
    .arguments = "JOB...",
    .summary = "Delete jobs that have ended",
    .min = 1,
    .max = -1,
    .objects = &objects_jobs,
    .act = objects_delete,
};
