/* quantctl jobs: lists, one job, and the deletion of jobs that have ended. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/members.h"
#include "cli/models.h"
#include "cli/objects.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* --- list */

struct list_options {
    const char *status, *method, *model, *created_after;
    struct option_texts metadata;
    int64_t limit;
    bool all;
};

#define AT(member) offsetof(struct list_options, member)

static const struct option_row list_options[] = {
    {"status", 0, OPTION_TEXT, "STATUS", AT(status), .help = "Jobs of this status: queued, running, succeeded, ..."},
    {"method", 0, OPTION_TEXT, "METHOD", AT(method), .help = "Jobs of this method"},
    {"model", 'm', OPTION_TEXT, "MODEL", AT(model), .help = "Jobs of this model: its id or its name"},
    {"metadata", 0, OPTION_TEXTS, "KEY=VALUE", AT(metadata), .help = "Jobs with this metadata; repeatable"},
    {"created-after", 0, OPTION_TEXT, "TIME", AT(created_after),
     .help = "Jobs created after this time: 2026-11-29, \"2026-11-29 20:30\" (local time), or Unix seconds"},
    {"limit", 'n', OPTION_INT, "N", AT(limit), .help = "At most N jobs, newest first (default: 20)", 1, 1000000},
    {"all", 'a', OPTION_FLAG, NULL, AT(all), .help = "All jobs"},
    {0},
};

/* Unix seconds, or a time as the lists show it. */
static int jobs_parse_time(const char *text, int64_t *out)
{
    static const char *const forms[] = {"%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M",
                                        "%Y-%m-%d"};
    char *end = NULL;

    errno = 0;
    intmax_t seconds = strtoimax(text, &end, 10);
    if (text[0] >= '0' && text[0] <= '9' && *end == '\0' && errno == 0) {
        *out = (int64_t)seconds;
        return 0;
    }
    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++) {
        struct tm time = {.tm_isdst = -1};
        const char *rest = strptime(text, forms[i], &time);
        if (rest != NULL && (rest[0] == '\0' || strcmp(rest, "Z") == 0)) {
            *out = (int64_t)(rest[0] == 'Z' ? timegm(&time) : mktime(&time));
            return 0;
        }
    }
    return err_raise(
        ERR_CONFIG, "--created-after: \"%.80s\" is neither a time such as \"2026-11-29 20:30\" nor Unix seconds", text);
}

static int jobs_add_filters(struct cli *cli, const struct list_options *options, char *path, size_t size)
{
    char text[CLIENT_PATH_MAX];
    AUTO_JSON json_t *model = NULL;
    int64_t after = 0;

    TRY(options->status != NULL ? client_query(path, size, "status", options->status) : 0);
    TRY(options->method != NULL ? client_query(path, size, "method", options->method) : 0);
    if (options->model != NULL && strncmp(options->model, "mdl_", 4) != 0) {
        TRY(models_find(cli, options->model, &model));
        TRY(client_query(path, size, "model_id", json_string_value(model)));
    } else if (options->model != NULL) {
        TRY(client_query(path, size, "model_id", options->model));
    }
    if (options->created_after != NULL) {
        TRY(jobs_parse_time(options->created_after, &after));
        snprintf(text, sizeof(text), "%" PRId64, after);
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
    TRY(jobs_add_filters(cli, options, path, sizeof(path)));
    return objects_list(cli, &objects_jobs, path, options->all ? 0 : limit);
}

const struct command command_jobs_list = {
    .name = "jobs list",
    .summary = "List jobs, newest first",
    .options = list_options,
    .size = sizeof(struct list_options),
    .run = jobs_list_run,
};

/* --- show */

const struct command command_jobs_show = {
    .name = "jobs show",
    .arguments = "JOB",
    .summary = "Show one job",
    .min = 1,
    .max = 1,
    .objects = &objects_jobs,
    .act = objects_show,
};

/* --- update */

struct update_options {
    const char *name;
    struct option_texts metadata;
    int64_t priority;
};

static const struct option_row update_options[] = {
    {"name", 'n', OPTION_TEXT, "NAME", offsetof(struct update_options, name), .help = "Another name"},
    {"priority", 0, OPTION_INT, "N", offsetof(struct update_options, priority), .help = "Another priority", -1000000,
     1000000},
    {"metadata", 0, OPTION_TEXTS, "KEY=VALUE", offsetof(struct update_options, metadata),
     .help = "Metadata in place of all that there is; repeatable"},
    {0},
};

static int jobs_update_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct update_options *options = given;
    AUTO_JSON json_t *body = json_object();
    AUTO_JSON json_t *job = NULL;
    char path[CLIENT_PATH_MAX];

    TRY(objects_path(path, sizeof(path), &objects_jobs, arguments[0]));
    TRY(members_text(body, "name", options->name));
    members_int(body, "priority", options->priority);
    for (size_t i = 0; i < options->metadata.count; i++) {
        TRY(members_metadata(body, options->metadata.items[i]));
    }
    if (json_object_size(body) == 0) {
        return err_raise(ERR_CONFIG, "there is nothing to change; jobs update --help lists the options");
    }
    TRY(client_send(cli, "PATCH", path, body, &job));
    return objects_print(cli, &objects_jobs, job);
}

const struct command command_jobs_update = {
    .name = "jobs update",
    .arguments = "JOB",
    .summary = "Change a job's name, priority or metadata",
    .min = 1,
    .max = 1,
    .options = update_options,
    .size = sizeof(struct update_options),
    .run = jobs_update_run,
};

/* --- delete */

const struct command command_jobs_delete = {
    .name = "jobs delete",
    .arguments = "JOB...",
    .summary = "Delete jobs that have ended",
    .min = 1,
    .max = -1,
    .objects = &objects_jobs,
    .act = objects_delete,
};
