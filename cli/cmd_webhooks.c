/* quantctl webhooks: who is told when jobs end. */

#include "base/err.h"
#include "base/ids.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/objects.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define TEST_WAIT_MS 30000 /* for the outcome of a test, which the server tries for five seconds */
#define TEST_POLL_MS 100

static void show_types(const json_t *webhook)
{
    const json_t *events = json_object_get(webhook, "events"), *type;
    size_t i;

    safe_printf(stdout, "events    %s", json_is_array(events) ? "" : "all");
    json_array_foreach(events, i, type)
    {
        safe_printf(stdout, "%s%s", i > 0 ? ", " : "", json_string_value(type));
    }
    safe_printf(stdout, "\n");
}

static int show_webhook(const json_t *webhook)
{
    safe_printf(stdout, "id        %s\n", print_text(webhook, "id"));
    safe_printf(stdout, "name      %s\n", print_text(webhook, "name"));
    safe_printf(stdout, "url       %s\n", print_text(webhook, "url"));
    safe_printf(stdout, "jobs      %s\n", print_text(webhook, "jobs"));
    show_types(webhook);
    if (json_is_true(json_object_get(webhook, "disabled"))) {
        safe_printf(stdout, "disabled  %s\n", print_text(webhook, "disabled_reason"));
    }
    if (json_get_string(webhook, "secret") != NULL) {
        safe_printf(stdout, "secret    %s\n", print_text(webhook, "secret"));
    }
    return 0;
}

static const char *state_cell(const json_t *webhook, const char *key, char *out)
{
    return json_is_true(json_object_get(webhook, key)) ? "disabled" : "enabled";
}

static const struct objects_column webhooks_columns[] = {
    {"ID", objects_text, "id"},
    {"NAME", objects_text, "name"},
    {"URL", objects_text, "url"},
    {"JOBS", objects_text, "jobs"},
    {"STATE", state_cell, "disabled"},
    {"CREATED", objects_time, "created_at"},
    {0},
};

const struct objects objects_webhooks = {"/v1/webhooks", "wh", "a webhook", webhooks_columns, show_webhook};

static int webhooks_list_run(struct cli *cli, const void *given, int count, char **arguments)
{
    return objects_list(cli, &objects_webhooks, objects_webhooks.path, 0);
}

const struct command command_webhooks_list = {
    .name = "webhooks list",
    .summary = "List the webhooks",
    .run = webhooks_list_run,
};

const struct command command_webhooks_show = {
    .name = "webhooks show",
    .arguments = "WEBHOOK",
    .summary = "Show one webhook",
    .min = 1,
    .max = 1,
    .objects = &objects_webhooks,
    .act = objects_show,
};

const struct command command_webhooks_delete = {
    .name = "webhooks delete",
    .arguments = "WEBHOOK...",
    .summary = "Delete webhooks, with what waits for them",
    .min = 1,
    .max = -1,
    .objects = &objects_webhooks,
    .act = objects_delete,
};

/* --- create, update */

struct webhook_options {
    const char *name, *url;
    struct option_texts events;
    bool named, all_jobs, all_events, disable, enable;
};

#define AT(member) offsetof(struct webhook_options, member)
#define EVENT_ROW                                                                       \
    {                                                                                   \
        "event", 'e', OPTION_TEXTS, "TYPE", AT(events),                                 \
            .help = "Only this type of message: succeeded, failed, cancelled, paused, " \
                    "expired; repeatable (default: all)"                                \
    }
#define NAMED_ROW                                                                                              \
    {                                                                                                          \
        "named", 0, OPTION_FLAG, NULL, AT(named), .help = "Only jobs that name the webhook (submit --webhook)" \
    }

static const struct option_row create_options[] = {
    {"name", 'n', OPTION_TEXT, "NAME", AT(name), .help = "A name for people"},  EVENT_ROW, NAMED_ROW,
    {"disable", 0, OPTION_FLAG, NULL, AT(disable), .help = "Send nothing yet"}, {0},
};

static const struct option_row update_options[] = {
    {"name", 'n', OPTION_TEXT, "NAME", AT(name), .help = "Another name"},
    {"url", 0, OPTION_TEXT, "URL", AT(url), .help = "Another URL"},
    EVENT_ROW,
    {"all-events", 0, OPTION_FLAG, NULL, AT(all_events), .help = "Every type of message"},
    NAMED_ROW,
    {"all-jobs", 0, OPTION_FLAG, NULL, AT(all_jobs), .help = "Every job of the project"},
    {"disable", 0, OPTION_FLAG, NULL, AT(disable), .help = "Send nothing any more; what waits is dropped"},
    {"enable", 0, OPTION_FLAG, NULL, AT(enable), .help = "Send again"},
    {0},
};

/* "failed" is "quantization.job.failed". */
static json_t *event_types(const struct option_texts *events)
{
    json_t *types = json_array();

    for (size_t i = 0; i < events->count; i++) {
        bool complete = strchr(events->items[i], '.') != NULL;
        (void)json_array_append_new(types, json_sprintf("%s%s", complete ? "" : "quantization.job.", events->items[i]));
    }
    return types;
}

static int make_webhook_body(const struct webhook_options *options, const char *url, json_t **out)
{
    AUTO_JSON json_t *body = json_pack("{s:s*, s:s*}", "url", url, "name", options->name);

    if (body == NULL) {
        return err_raise(ERR_CONFIG, "an argument is not UTF-8");
    }
    if ((options->events.count > 0 && options->all_events) || (options->named && options->all_jobs) ||
        (options->disable && options->enable)) {
        return err_raise(ERR_CONFIG, "two of the options contradict each other");
    }
    if (options->events.count > 0) {
        (void)json_object_set_new(body, "events", event_types(&options->events));
    } else if (options->all_events) {
        (void)json_object_set_new(body, "events", json_null());
    }
    if (options->named || options->all_jobs) {
        (void)json_object_set_new(body, "jobs", json_string(options->named ? "named" : "all"));
    }
    if (options->disable || options->enable) {
        (void)json_object_set_new(body, "disabled", json_boolean(options->disable));
    }
    *out = MOVE(body);
    return 0;
}

static int webhooks_create_run(struct cli *cli, const void *given, int count, char **arguments)
{
    AUTO_JSON json_t *body = NULL;
    AUTO_JSON json_t *webhook = NULL;

    TRY(make_webhook_body(given, arguments[0], &body));
    TRY(client_send(cli, "POST", objects_webhooks.path, body, &webhook));
    if (!cli->quiet && !cli->json) {
        fputs("keep the secret: it is not shown again\n", stderr);
    }
    return objects_print(cli, &objects_webhooks, webhook);
}

const struct command command_webhooks_create = {
    .name = "webhooks create",
    .arguments = "URL",
    .summary = "Make a webhook, which is told when jobs end",
    .details = "The server sends to hosts that its operator allows (quantd --webhook-host). The secret, by which a "
               "receiver checks messages, is shown once.",
    .min = 1,
    .max = 1,
    .options = create_options,
    .size = sizeof(struct webhook_options),
    .run = webhooks_create_run,
};

static int webhooks_update_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct webhook_options *options = given;
    char path[CLIENT_PATH_MAX];
    AUTO_JSON json_t *body = NULL;
    AUTO_JSON json_t *webhook = NULL;

    TRY(objects_path(path, sizeof(path), &objects_webhooks, arguments[0]));
    TRY(make_webhook_body(options, options->url, &body));
    if (json_object_size(body) == 0) {
        return err_raise(ERR_CONFIG, "there is nothing to change; webhooks update --help lists the options");
    }
    TRY(client_send(cli, "PATCH", path, body, &webhook));
    return objects_print(cli, &objects_webhooks, webhook);
}

const struct command command_webhooks_update = {
    .name = "webhooks update",
    .arguments = "WEBHOOK",
    .summary = "Change a webhook, or enable it again",
    .min = 1,
    .max = 1,
    .options = update_options,
    .size = sizeof(struct webhook_options),
    .run = webhooks_update_run,
};

/* --- rotate, test, deliveries */

static int webhook_path(char *out, size_t size, const char *id, const char *rest)
{
    char path[CLIENT_PATH_MAX];

    TRY(objects_path(path, sizeof(path), &objects_webhooks, id));
    return snprintf(out, size, "%s%s", path, rest) < (int)size ? 0 : err_raise(ERR_CONFIG, "the path is too long");
}

static int webhooks_rotate_run(struct cli *cli, const void *given, int count, char **arguments)
{
    char path[CLIENT_PATH_MAX];
    AUTO_JSON json_t *webhook = NULL;

    TRY(webhook_path(path, sizeof(path), arguments[0], "/secret"));
    TRY(client_send(cli, "POST", path, NULL, &webhook));
    if (!cli->quiet && !cli->json) {
        fputs("keep the secret: it is not shown again\n", stderr);
    }
    return objects_print(cli, &objects_webhooks, webhook);
}

const struct command command_webhooks_rotate = {
    .name = "webhooks rotate",
    .arguments = "WEBHOOK",
    .summary = "Give a webhook another secret; for a day messages have both signatures",
    .min = 1,
    .max = 1,
    .run = webhooks_rotate_run,
};

/* *delivery as it is once it has ended. */
static int wait_delivery(struct cli *cli, const char *webhook, json_t **delivery)
{
    int64_t until = clock_monotonic_ms() + TEST_WAIT_MS;
    char path[CLIENT_PATH_MAX], rest[CLIENT_PATH_MAX / 2];

    (void)snprintf(rest, sizeof(rest), "/deliveries/%.80s", print_text(*delivery, "id"));
    TRY(webhook_path(path, sizeof(path), webhook, rest));
    while (strcmp(print_text(*delivery, "status"), "pending") == 0 && clock_monotonic_ms() < until) {
        const struct timespec pause = {.tv_nsec = TEST_POLL_MS * 1000000L};
        json_t *now = NULL;
        (void)nanosleep(&pause, NULL);
        TRY(client_get(cli, path, &now));
        json_decref(*delivery);
        *delivery = now;
    }
    return 0;
}

static int webhooks_test_run(struct cli *cli, const void *given, int count, char **arguments)
{
    char path[CLIENT_PATH_MAX], text[PRINT_SIZE];
    AUTO_JSON json_t *delivery = NULL;

    TRY(webhook_path(path, sizeof(path), arguments[0], "/test"));
    TRY(client_send(cli, "POST", path, NULL, &delivery));
    TRY(wait_delivery(cli, arguments[0], &delivery));
    bool delivered = strcmp(print_text(delivery, "status"), "delivered") == 0;
    if (cli->json) {
        print_json(delivery);
    } else if (!delivered || !cli->quiet) {
        safe_printf(stdout, "%s: %s\n", print_text(delivery, "status"),
                    delivered ? print_value(json_object_get(delivery, "response_status"), text)
                              : print_text(delivery, "error"));
    }
    return delivered ? 0 : status_shown(STATUS_JOB);
}

const struct command command_webhooks_test = {
    .name = "webhooks test",
    .arguments = "WEBHOOK",
    .summary = "Send a test message; exit status 1 unless it is delivered",
    .min = 1,
    .max = 1,
    .run = webhooks_test_run,
};

static const struct objects_column deliveries_columns[] = {
    {"ID", objects_text, "id"},
    {"TYPE", objects_text, "type"},
    {"JOB", objects_text, "job_id"},
    {"STATUS", objects_text, "status"},
    {">ATTEMPTS", objects_value, "attempts"},
    {"LAST", objects_time, "last_attempt_at"},
    {"NEXT", objects_time, "next_attempt_at"},
    {"ERROR", objects_text, "error"},
    {0},
};

static const struct objects objects_deliveries = {NULL, "msg", "a delivery", deliveries_columns, NULL};

struct deliveries_options {
    const char *status, *job;
    int64_t limit;
};

static const struct option_row deliveries_options[] = {
    {"status", 0, OPTION_TEXT, "STATUS", offsetof(struct deliveries_options, status),
     .help = "Deliveries of this status: pending, delivered or failed"},
    {"job", 0, OPTION_TEXT, "JOB", offsetof(struct deliveries_options, job), .help = "Deliveries about this job"},
    {"limit", 'n', OPTION_INT, "N", offsetof(struct deliveries_options, limit),
     .help = "At most N deliveries, newest first (default: 20)", 1, 1000000},
    {0},
};

static int webhooks_deliveries_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct deliveries_options *options = given;
    char path[CLIENT_PATH_MAX];

    TRY(webhook_path(path, sizeof(path), arguments[0], "/deliveries"));
    TRY(options->status != NULL ? client_query(path, sizeof(path), "status", options->status) : 0);
    TRY(options->job != NULL ? client_query(path, sizeof(path), "job_id", options->job) : 0);
    return objects_list(cli, &objects_deliveries, path, options->limit != OPTION_UNSET ? options->limit : 20);
}

const struct command command_webhooks_deliveries = {
    .name = "webhooks deliveries",
    .arguments = "WEBHOOK",
    .summary = "List what was sent to a webhook, and what waits",
    .min = 1,
    .max = 1,
    .options = deliveries_options,
    .size = sizeof(struct deliveries_options),
    .run = webhooks_deliveries_run,
};
