/* Requests to quantd and what they answer. */

#include "cli/client.h"

#include "base/err.h"
#include "base/json.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define CLIENT_JSON_DEPTH 64
#define CLIENT_JSON_MEMORY ((size_t)2 << 30)
#define CLIENT_IDLE_SECONDS 60
#define CLIENT_PAGE 100
#define CLIENT_BUSY_SECONDS 60
#define CLIENT_BUSY_ATTEMPTS 5
#define CLIENT_LIST_MAX 1000000

int client_open(struct cli *cli)
{
    if (cli->http != NULL) {
        return 0;
    }
    TRY(profile_load(cli->server, cli->ca_file, &cli->profile));
    return client_connect(cli);
}

int client_connect(struct cli *cli)
{
    const struct http_options options = {
        .url = cli->profile.url,
        .key = cli->profile.key,
        .ca_file = cli->profile.ca_file,
        .insecure = cli->insecure,
        .idle_seconds = cli->timeout_seconds > 0 ? cli->timeout_seconds : CLIENT_IDLE_SECONDS,
    };
    return http_open(&options, &cli->http);
}

void client_close(struct cli *cli)
{
    if (cli->http != NULL) {
        http_close(cli->http);
        cli->http = NULL;
    }
    profile_deinit(&cli->profile);
}

/* --- problems */

static const char *member_text(const json_t *object, const char *key)
{
    const char *text = json_get_string(object, key);
    return text != NULL ? text : "";
}

static void show_fault(const json_t *fault)
{
    const char *param = member_text(fault, "param"), *hint = member_text(fault, "hint");

    safe_printf(stderr, "  %s%s%s\n", param, param[0] != '\0' ? ": " : "", member_text(fault, "detail"));
    if (hint[0] != '\0') {
        safe_printf(stderr, "      hint: %s\n", hint);
    }
}

/* What the server says to change; of a key that is missing or not one, how quantctl takes keys. */
static const char *problem_hint(const json_t *problem, long status, bool key)
{
    return status != 401 ? member_text(problem, "hint")
           : !key ? "quantctl login remembers a key, QUANTD_API_KEY has one; quantd key create makes the first one"
                  : member_text(problem, "hint");
}

static void show_problem(const json_t *problem, long status, bool key)
{
    const json_t *errors = json_object_get(problem, "errors"), *fault;
    const char *detail = member_text(problem, "detail"), *request = member_text(problem, "request_id");
    const char *hint = problem_hint(problem, status, key);
    size_t i;

    /* Errors of lines are those of records, which calibrate.c shows by their place in the file. */
    if (json_array_size(errors) > 0 && json_object_get(json_array_get(errors, 0), "line") == NULL) {
        safe_printf(stderr, "quantctl: refused (%ld %s):\n", status, member_text(problem, "code"));
        json_array_foreach(errors, i, fault)
        {
            show_fault(fault);
        }
    } else {
        safe_printf(stderr, "quantctl: %s (%ld %s)\n", detail[0] != '\0' ? detail : member_text(problem, "title"),
                    status, member_text(problem, "code"));
        if (member_text(problem, "param")[0] != '\0') {
            safe_printf(stderr, "  at %s\n", member_text(problem, "param"));
        }
        if (hint[0] != '\0') {
            safe_printf(stderr, "  hint: %s\n", hint);
        }
    }
    if (status >= 500 && request[0] != '\0') {
        safe_printf(stderr, "  request %s; the server's log has the reason\n", request);
    }
}

int client_refused(struct cli *cli, const struct http_answer *answer)
{
    enum status outcome = answer->status >= 400 && answer->status < 500 ? STATUS_REFUSED : STATUS_SERVER;
    AUTO_JSON json_t *problem = NULL;
    const struct json_budget budget = {CLIENT_JSON_DEPTH, JSON_MEMORY_MAX, 0};

    if (answer->status == 400 && answer->body != NULL && strncmp(http_url(cli->http), "http://", 7) == 0 &&
        strstr(answer->body, "HTTPS") != NULL) { /* of quantd, nginx and others */
        return err_set_hint(status_fail(outcome, "%s: the server expects TLS at this port", http_url(cli->http)),
                            "write https:// in the URL");
    }
    if (strcmp(answer->type, "application/problem+json") != 0 || answer->body == NULL ||
        json_parse_within(answer->body, answer->size, &budget, &problem) != 0 || !json_is_object(problem)) {
        return err_set_hint(status_fail(outcome, "%s answered with status %ld and \"%s\", not as quantd does",
                                        http_url(cli->http), answer->status, answer->type),
                            "is that the URL of a quantd server?");
    }
    show_problem(problem, answer->status, cli->profile.key != NULL);
    if (cli->json) {
        print_json(problem);
    }
    return status_shown(outcome);
}

/* --- calls */

int client_raw(struct cli *cli, const struct http_call *call, struct http_answer *answer)
{
    TRY(client_open(cli));
    return http_call(cli->http, call, answer);
}

int client_parse(struct cli *cli, const struct http_answer *answer, json_t **out)
{
    const struct json_budget budget = {CLIENT_JSON_DEPTH, CLIENT_JSON_MEMORY, JSON_REJECT_DUPLICATES};

    if (strcmp(answer->type, "application/json") != 0) {
        return err_set_hint(
            status_fail(STATUS_SERVER, "%s answered with \"%s\", not with JSON", http_url(cli->http), answer->type),
            "is that the URL of a quantd server?");
    }
    if (json_parse_within(answer->body != NULL ? answer->body : "", answer->size, &budget, out) != 0) {
        char why[256];
        snprintf(why, sizeof(why), "%s", err_last()->message);
        return status_fail(STATUS_SERVER, "%s answered with JSON that cannot be read: %s", http_url(cli->http), why);
    }
    if (!json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        return status_fail(STATUS_SERVER, "%s answered with JSON that is not an object", http_url(cli->http));
    }
    return 0;
}

void client_problem_code(const struct http_answer *answer, char *out, size_t size)
{
    const struct json_budget budget = {CLIENT_JSON_DEPTH, JSON_MEMORY_MAX, 0};
    AUTO_JSON json_t *problem = NULL;

    out[0] = '\0';
    if (answer->body != NULL && strcmp(answer->type, "application/problem+json") == 0 &&
        json_parse_within(answer->body, answer->size, &budget, &problem) == 0) {
        (void)snprintf(out, size, "%s", member_text(problem, "code"));
    }
}

/* A server that is busy (503) or that limits a client (429) says when to come back. */
bool client_busy(const struct http_answer *answer)
{
    char code[64];

    if ((answer->status != 429 && answer->status != 503) || answer->retry_after < 0 ||
        answer->retry_after > CLIENT_BUSY_SECONDS) {
        return false;
    }
    client_problem_code(answer, code, sizeof(code));
    return strcmp(code, "quota_exceeded") != 0;
}

int client_patient(struct cli *cli, const struct http_call *call, struct http_answer *answer)
{
    bool repeatable = call->repeatable || strcmp(call->method, "GET") == 0;

    TRY(client_raw(cli, call, answer));
    for (int attempt = 1; repeatable && client_busy(answer) && attempt < CLIENT_BUSY_ATTEMPTS; attempt++) {
        const struct timespec pause = {.tv_sec = answer->retry_after > 0 ? answer->retry_after : 1};
        if (!cli->quiet) {
            safe_printf(stderr, "the server is busy (%ld); again in %lld s\n", answer->status, (long long)pause.tv_sec);
        }
        (void)nanosleep(&pause, NULL);
        TRY(client_raw(cli, call, answer));
    }
    return 0;
}

int client_call(struct cli *cli, const struct http_call *call, json_t **out)
{
    AUTO(http_answer) struct http_answer answer = {0};

    TRY(client_patient(cli, call, &answer));
    if (answer.status < 200 || answer.status > 299) {
        return client_refused(cli, &answer);
    }
    return out != NULL ? client_parse(cli, &answer, out) : 0;
}

int client_get(struct cli *cli, const char *path, json_t **out)
{
    return client_call(cli, &(struct http_call){.method = "GET", .path = path}, out);
}

int client_send(struct cli *cli, const char *method, const char *path, const json_t *body, json_t **out)
{
    AUTO_FREE char *text = body != NULL ? json_dumps(body, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;

    if (body != NULL && text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the request");
    }
    return client_call(cli,
                       &(struct http_call){.method = method,
                                           .path = path,
                                           .type = body != NULL ? "application/json" : NULL,
                                           .body = text,
                                           .size = text != NULL ? strlen(text) : 0},
                       out);
}

/* --- lists */

int client_list(struct cli *cli, const char *path, int64_t max, json_t **out)
{
    AUTO_JSON json_t *list = json_pack("{s:s,s:[]}", "object", "list", "data");
    json_t *all = json_object_get(list, "data");
    char after[128] = "";
    bool more = true;

    max = max > 0 ? max : CLIENT_LIST_MAX;
    while (more && (int64_t)json_array_size(all) < max) {
        AUTO_JSON json_t *page = NULL;
        char url[CLIENT_PATH_MAX], limit[24];
        int64_t left = max - (int64_t)json_array_size(all);

        snprintf(limit, sizeof(limit), "%" PRId64, left < CLIENT_PAGE ? left : CLIENT_PAGE);
        snprintf(url, sizeof(url), "%s", path);
        TRY(client_query(url, sizeof(url), "limit", limit));
        if (after[0] != '\0') {
            TRY(client_query(url, sizeof(url), "after", after));
        }
        TRY(client_get(cli, url, &page));
        json_t *data = json_object_get(page, "data");
        const char *last = json_get_string(page, "last_id");
        if (!json_is_array(data)) {
            return status_fail(STATUS_SERVER, "%s answered a list without data", http_url(cli->http));
        }
        more = json_is_true(json_object_get(page, "has_more")) && last != NULL && strcmp(last, after) != 0 &&
               json_array_size(data) > 0;
        snprintf(after, sizeof(after), "%s", last != NULL ? last : "");
        if (json_array_extend(all, data) != 0) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list");
        }
    }
    json_object_set_new(list, "has_more", json_boolean(more));
    *out = MOVE(list);
    return 0;
}

/* --- paths */

int client_query(char *path, size_t size, const char *name, const char *value)
{
    const char mark[2] = {strchr(path, '?') != NULL ? '&' : '?', '\0'};

    TRY(http_escape(path, size, mark, "?&"));
    TRY(http_escape(path, size, name, ""));
    TRY(http_escape(path, size, "=", "="));
    return http_escape(path, size, value, "");
}
