/* Requests about webhooks, the bodies of messages to them, and the times of attempts. */

#include "jobs/webhooks.h"

#include "base/err.h"
#include "base/params.h"
#include "jobs/view.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define TRY_SECONDS_MAX 3600
#define TRY_FOR_SECONDS 86400

/* --- messages */

#define TYPE_PREFIX "quantization.job."

static const struct {
    enum job_status status;
    const char *type;
} told[] = {
    {STATUS_SUCCEEDED, TYPE_PREFIX "succeeded"}, {STATUS_FAILED, TYPE_PREFIX "failed"},
    {STATUS_CANCELLED, TYPE_PREFIX "cancelled"}, {STATUS_PAUSED, TYPE_PREFIX "paused"},
    {STATUS_EXPIRED, TYPE_PREFIX "expired"},
};

const char *const webhook_types[] = {TYPE_PREFIX "succeeded", TYPE_PREFIX "failed",  TYPE_PREFIX "cancelled",
                                     TYPE_PREFIX "paused",    TYPE_PREFIX "expired", NULL};

const char *webhook_type_of(enum job_status status)
{
    for (size_t i = 0; i < sizeof(told) / sizeof(told[0]); i++) {
        if (told[i].status == status) {
            return told[i].type;
        }
    }
    return NULL;
}

static json_t *message_of(const char *type, const char *member, json_t *value_taken)
{
    char text[32];
    time_t now = (time_t)clock_unix_seconds();
    struct tm utc;

    (void)strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    return json_pack("{s:s, s:s, s:{s:o}}", "type", type, "timestamp", text, "data", member, value_taken);
}

json_t *webhook_message(const char *type, const struct job_row *job)
{
    return message_of(type, "job", view_job(job));
}

json_t *webhook_test_message(const char *webhook)
{
    return message_of(WEBHOOK_TEST, "webhook_id", json_string(webhook));
}

int64_t webhook_next_try(int64_t created_at, int64_t now, int64_t attempts, int64_t wait, uint64_t random)
{
    int64_t last = created_at + TRY_FOR_SECONDS;
    int64_t delay = attempts < 1 ? 1 : attempts > 12 ? TRY_SECONDS_MAX : (int64_t)1 << (attempts - 1);

    if (now >= last) {
        return -1;
    }
    delay = delay * (int64_t)(800 + random % 401) / 1000;
    wait = wait < TRY_SECONDS_MAX ? wait : TRY_SECONDS_MAX;
    delay = delay < wait ? wait : delay;
    delay = delay < 1 ? 1 : delay;
    return now + delay < last ? now + delay : last;
}

/* --- requests */

static const char *const jobs_names[] = {"all", "named", NULL};

#define ROW(type_, member, fallback_, ...)                                                             \
    {                                                                                                  \
        .name = #member, .type = (type_), .offset = offsetof(struct webhook_request, member),          \
        .size = sizeof(((struct webhook_request *)NULL)->member), .fallback = (fallback_), __VA_ARGS__ \
    }
#define URL_HELP "Where messages go: an https URL on a host that the daemon sends to (--webhook-host)."
#define OTHER_ROWS                                                                                              \
    ROW(PARAMS_STRING, name, "\"\"", .help = "A name for people; need not be unique."),                         \
        ROW(PARAMS_STRINGS, events, "null", .help = "Types of messages that it gets; null: all."),              \
        ROW(PARAMS_ENUM, jobs, "\"all\"", .choices = jobs_names,                                                \
            .help = "all: it is told of every job of the project; named: of those whose webhook_id names it."), \
        ROW(PARAMS_BOOL, disabled, "false", .help = "It gets no messages, and those that wait for it fail.")

static const struct params_row create_rows[] = {
    ROW(PARAMS_STRING, url, NULL, .help = URL_HELP),
    OTHER_ROWS,
    {.name = NULL},
};
static const struct params_row *const create_tables[] = {create_rows, NULL};

static const struct params_row change_rows[] = {
    ROW(PARAMS_STRING, url, "null", .help = URL_HELP),
    OTHER_ROWS,
    {.name = NULL},
};
static const struct params_row *const change_tables[] = {change_rows, NULL};

static bool is_type(const char *text)
{
    for (size_t i = 0; webhook_types[i] != NULL; i++) {
        if (strcmp(webhook_types[i], text) == 0) {
            return true;
        }
    }
    return false;
}

static void check_events(const json_t *events, struct validation_errors *errors)
{
    size_t i;
    json_t *item;

    if (events != NULL && json_array_size(events) == 0) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/events", "\"events\" is empty, so that nothing would be sent");
        validation_hint(errors, "null or no member at all: every type; \"disabled\": true stops messages");
    }
    json_array_foreach(events, i, item)
    {
        char pointer[32], names[256];
        if (!is_type(json_string_value(item))) {
            (void)snprintf(pointer, sizeof(pointer), "/events/%zu", i);
            params_join(webhook_types, names, sizeof(names));
            validation_add(errors, ERR_INVALID_PARAMETER, pointer, "\"%.80s\" is not a type of message",
                           json_string_value(item));
            validation_hint(errors, "%s", names);
        }
    }
}

static int request_parse(const struct params_row *const *tables, const json_t *body, struct webhook_request *out,
                         struct validation_errors *errors)
{
    AUTO(webhook_request) struct webhook_request request = {.events = NULL};

    if (params_parse(tables, body, "", &request, errors) == 0) {
        check_events(request.events, errors);
    }
    TRY(validation_raise(errors));
    *out = request;
    request.events = NULL;
    return 0;
}

int webhook_create_parse(const json_t *body, struct webhook_request *out, struct validation_errors *errors)
{
    return request_parse(create_tables, body, out, errors);
}

int webhook_change_parse(const json_t *body, struct webhook_request *out, unsigned *set,
                         struct validation_errors *errors)
{
    static const struct {
        const char *name;
        unsigned set;
    } members[] = {{"name", WEBHOOK_SET_NAME},
                   {"url", WEBHOOK_SET_URL},
                   {"events", WEBHOOK_SET_EVENTS},
                   {"jobs", WEBHOOK_SET_JOBS},
                   {"disabled", WEBHOOK_SET_DISABLED}};

    TRY(request_parse(change_tables, body, out, errors));
    *set = 0;
    for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
        *set |= json_object_get(body, members[i].name) != NULL ? members[i].set : 0;
    }
    return 0;
}

void webhook_request_deinit(struct webhook_request *request)
{
    json_decref(request->events);
    request->events = NULL;
}

/* The types that "events" may have. */
static json_t *named_types(json_t *schema)
{
    json_t *names = json_array();
    json_t *events = json_object_get(json_object_get(schema, "properties"), "events");

    for (size_t i = 0; webhook_types[i] != NULL; i++) {
        json_array_append_new(names, json_string(webhook_types[i]));
    }
    json_object_set_new(events, "items", json_pack("{s:s, s:o}", "type", "string", "enum", names));
    json_object_set_new(events, "minItems", json_integer(1));
    return schema;
}

json_t *webhook_create_schema(void)
{
    return named_types(params_schema(create_tables));
}

json_t *webhook_change_schema(void)
{
    return named_types(params_schema(change_tables));
}
