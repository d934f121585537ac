/* quantctl quota: what projects may have and what they have, for administrators. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/objects.h"
#include "cli/print.h"
#include "cli/safe.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct quota_options {
    struct option_texts set;
};

static const struct option_row quota_options[] = {
    {"set", 0, OPTION_TEXTS, "NAME=N", offsetof(struct quota_options, set),
     .help = "Set max_queued_jobs, max_running_jobs, max_stored_bytes or max_upload_bytes (suffix K, M, G or T): 0 = "
             "none, default = the daemon's; repeatable"},
    {0},
};

static const struct quota_member {
    const char *limit, *use, *title;
    bool bytes;
} members[] = {
    {"max_queued_jobs", "queued_jobs", "queued jobs", false},
    {"max_running_jobs", "running_jobs", "running jobs", false},
    {"max_stored_bytes", "stored_bytes", "stored", true},
    {"max_upload_bytes", "upload_bytes", "being uploaded", true},
};
#define MEMBERS (sizeof(members) / sizeof(members[0]))

/* A number with a suffix, in units of 1024. */
static bool quota_number(const char *text, int64_t *out)
{
    static const char suffixes[] = "KMGT";
    char *end;
    int shift = 0;
    long long value = strtoll(text, &end, 10);
    const char *suffix = *end != '\0' ? strchr(suffixes, toupper((unsigned char)*end)) : NULL;

    if (suffix != NULL && end[1] == '\0') {
        shift = 10 * (int)(suffix - suffixes + 1);
        end++;
    }
    bool good = isdigit((unsigned char)text[0]) && *end == '\0' && value >= 0 && value <= INT64_MAX >> shift;
    *out = good ? value << shift : 0;
    return good;
}

/* One NAME=N into the body of a PUT. */
static int quota_assign(json_t *body, const char *item)
{
    const char *equals = strchr(item, '=');
    int64_t number;

    for (size_t i = 0; equals != NULL && i < MEMBERS; i++) {
        size_t length = strlen(members[i].limit);
        if ((size_t)(equals - item) != length || memcmp(item, members[i].limit, length) != 0) {
            continue;
        }
        bool unset = strcmp(equals + 1, "default") == 0;
        if (!unset && !quota_number(equals + 1, &number)) {
            return err_raise(ERR_CONFIG, "--set: \"%.80s\" is neither a number nor default", equals + 1);
        }
        json_object_set_new(body, members[i].limit, unset ? json_null() : json_integer(number));
        return 0;
    }
    return err_set_hint(err_raise(ERR_CONFIG, "--set: \"%.80s\" is not NAME=N", item),
                        "the names are max_queued_jobs, max_running_jobs, max_stored_bytes and max_upload_bytes");
}

static int quota_path(const char *project, char *out, size_t size)
{
    snprintf(out, size, "/v1/projects/");
    TRY(http_escape(out, size, project, ""));
    return http_escape(out, size, "/quota", "/");
}

static int quota_change(struct cli *cli, const char *path, const struct option_texts *set, json_t **quota)
{
    AUTO_JSON json_t *body = json_object();
    AUTO_JSON json_t *before = NULL;

    for (size_t i = 0; i < set->count; i++) { /* nothing is asked if one is wrong */
        TRY(quota_assign(body, set->items[i]));
    }
    TRY(client_get(cli, path, &before));
    for (size_t i = 0; i < MEMBERS; i++) {
        json_t *value = json_object_get(before, members[i].limit);
        if (json_object_get(body, members[i].limit) == NULL && json_is_integer(value)) {
            json_object_set(body, members[i].limit, value);
        }
    }
    return client_send(cli, "PUT", path, body, quota);
}

static const char *quota_value(const struct quota_member *member, const json_t *value, const char *none, char *out)
{
    if (!json_is_integer(value)) {
        snprintf(out, PRINT_SIZE, "%s", none);
    } else if (member->bytes) {
        return print_bytes(json_number_value(value), out);
    } else {
        snprintf(out, PRINT_SIZE, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    }
    return out;
}

static int quota_print(const struct cli *cli, const json_t *quota)
{
    const json_t *effective = json_object_get(quota, "effective"), *usage = json_object_get(quota, "usage");
    const char *const titles[] = {"", ">USED", ">ALLOWED", "SET BY", NULL};
    char reserved[PRINT_SIZE];

    if (cli->json) {
        print_json(quota);
        return 0;
    }
    AUTO(table) struct table *table = table_new(titles);
    for (size_t i = 0; i < MEMBERS; i++) {
        const struct quota_member *member = &members[i];
        const json_t *limit = json_object_get(effective, member->limit);
        char used[PRINT_SIZE], allowed[PRINT_SIZE];
        bool own = json_is_integer(json_object_get(quota, member->limit));
        TABLE_ROW(table, member->title, quota_value(member, json_object_get(usage, member->use), "-", used),
                  quota_value(member, limit, "no limit", allowed), own ? "quota" : "default");
    }
    safe_printf(stdout, "project %s\n", print_text(quota, "project"));
    TRY(table_print(table, stdout));
    double bytes = json_number_value(json_object_get(usage, "reserved_bytes"));
    if (bytes > 0) {
        printf("%s more are reserved for artifacts of jobs that have not ended\n", print_bytes(bytes, reserved));
    }
    return 0;
}

static const char *quota_cell(const json_t *object, const char *key, char *out)
{
    const struct quota_member *member = &members[0];
    char used[PRINT_SIZE], allowed[PRINT_SIZE];

    while (strcmp(member->limit, key) != 0) {
        member++;
    }
    const json_t *limit = json_object_get(json_object_get(object, "effective"), key);
    snprintf(out, OBJECTS_CELL, "%s of %s",
             quota_value(member, json_object_get(json_object_get(object, "usage"), member->use), "-", used),
             quota_value(member, limit, "no limit", allowed));
    return out;
}

static const struct objects_column quota_columns[] = {
    {"PROJECT", objects_text, "project"},
    {"QUEUED JOBS", quota_cell, "max_queued_jobs"},
    {"RUNNING", quota_cell, "max_running_jobs"},
    {"STORED", quota_cell, "max_stored_bytes"},
    {"BEING UPLOADED", quota_cell, "max_upload_bytes"},
    {0},
};

static const struct objects quota_objects = {"/v1/projects", "project", "a project", quota_columns, NULL};

static int quota_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct quota_options *options = given;
    AUTO_JSON json_t *quota = NULL;
    char path[CLIENT_PATH_MAX];

    if (count == 0 && options->set.count > 0) {
        return err_raise(ERR_CONFIG, "--set needs the name of a project");
    }
    if (count == 0) {
        return objects_list(cli, &quota_objects, quota_objects.path, 0);
    }
    TRY(quota_path(arguments[0], path, sizeof(path)));
    TRY(options->set.count > 0 ? quota_change(cli, path, &options->set, &quota) : client_get(cli, path, &quota));
    return quota_print(cli, quota);
}

const struct command command_quota = {
    .name = "quota",
    .arguments = "[PROJECT]",
    .summary = "What projects may have and what they have; for administrators",
    .details = "Without PROJECT all of them are listed.",
    .min = 0,
    .max = 1,
    .options = quota_options,
    .size = sizeof(struct quota_options),
    .run = quota_run,
};
