/* OpenAPI 3.1, generated from the table that also routes and validates, so that the document matches the server. */

#include "api/openapi.h"

#include "api/routes.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/text.h"

#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *help;
} tags[] = {
    [ROUTE_TAG_SERVICE] = {"service", "The daemon, its methods and formats."},
    [ROUTE_TAG_MODELS] = {"models", "Registered checkpoints."},
    [ROUTE_TAG_FILES] = {"files", "Stored data sets and files of checkpoints, and how they get here."},
    [ROUTE_TAG_JOBS] = {"jobs", "Quantization jobs, their events and reports."},
    [ROUTE_TAG_ARTIFACTS] = {"artifacts", "Published results."},
    [ROUTE_TAG_KEYS] = {"keys", "API keys."},
    [ROUTE_TAG_PROJECTS] = {"projects", "Projects and their quotas."},
    [ROUTE_TAG_WEBHOOKS] = {"webhooks", "Who is told when jobs end."},
};

#define TEXT_PATTERN "^[^\\x00-\\x1f\\x7f]+$" /* no control characters */

/* --- parameters */

/* A maximum of INT64_MAX means unbounded, and JavaScript could not represent it. */
static json_t *int_schema(const struct query_row *row)
{
    json_t *schema = json_pack("{s:s, s:I}", "type", "integer", "minimum", (json_int_t)row->min);
    if (row->max != INT64_MAX) {
        json_object_set_new(schema, "maximum", json_integer(row->max));
    }
    return schema;
}

/* Each name, and each with a minus. */
static json_t *column_names(const char *const *columns)
{
    json_t *list = json_array();
    for (; *columns != NULL; columns++) {
        json_array_append_new(list, json_string(*columns));
        json_array_append_new(list, json_sprintf("-%s", *columns));
    }
    return list;
}

json_t *openapi_parameter_schema(const struct query_row *row)
{
    json_t *choices;
    switch (row->type) {
    case QUERY_INT:
        return int_schema(row);
    case QUERY_FLAG:
        return json_pack("{s:s, s:[s,s,s,s]}", "type", "string", "enum", "1", "true", "0", "false");
    case QUERY_ENUM:
        choices = json_array();
        for (size_t i = 0; row->choices[i] != NULL; i++) {
            json_array_append_new(choices, json_string(row->choices[i]));
        }
        return json_pack("{s:s, s:o}", "type", "string", "enum", choices);
    case QUERY_ID:
    case QUERY_CURSOR:
        return row->kind != NULL ? schema_of_id(row->kind)
                                 : json_pack("{s:s, s:s}", "type", "string", "pattern", QUERY_NAME_PATTERN);
    case QUERY_METADATA:
        return json_pack("{s:s, s:{s:s, s:i, s:i}, s:{s:i, s:i}, s:i}", "type", "object", "additionalProperties",
                         "type", "string", "minLength", 1, "maxLength", 255, "propertyNames", "minLength", 1,
                         "maxLength", 63, "maxProperties", 1);
    case QUERY_COLUMN:
        return json_pack("{s:s, s:o}", "type", "string", "enum", column_names(row->columns()));
    case QUERY_VISIBLE:
        return json_pack("{s:s, s:s}", "type", "string", "pattern", "^[!-~]{1,255}$");
    case QUERY_EVENT:
        return json_pack("{s:s, s:s}", "type", "string", "pattern", "^[0-9]{0,18}$");
    case QUERY_STRING:
        break;
    }
    return json_pack("{s:s, s:s, s:i, s:i}", "type", "string", "pattern", TEXT_PATTERN, "minLength", 1, "maxLength",
                     255);
}

static void add_parameter(json_t *parameters, const struct query_row *row, const char *where)
{
    json_t *schema = strcmp(where, "header") == 0 && row->type == QUERY_STRING ? json_pack("{s:s}", "type", "string")
                                                                               : openapi_parameter_schema(row);
    json_t *parameter = json_pack("{s:s, s:s, s:s, s:b, s:o}", "name", row->name, "in", where, "description", row->help,
                                  "required", (int)row->required, "schema", schema);
    if (row->type == QUERY_METADATA) {
        json_object_set_new(parameter, "style", json_string("deepObject"));
        json_object_set_new(parameter, "explode", json_true());
    }
    json_array_append_new(parameters, parameter);
}

static void add_header_parameter(void *data, const struct query_row *row)
{
    add_parameter(data, row, "header");
}

/* "{path*}" is written "{path}": OpenAPI has no notation for the rest of a path. Each argument becomes a parameter. */
static void add_arguments(json_t *parameters, const char *pattern, char *path, size_t capacity)
{
    size_t used = 0;
    for (const char *at = pattern; *at != '\0' && used + 1 < capacity; at++) {
        if (*at == '{') {
            const struct route_argument *argument = routes_argument(at + 1, strcspn(at + 1, "*}"));
            json_t *schema = argument->kind != NULL ? schema_of_id(argument->kind)
                                                    : json_pack("{s:s, s:s*, s:i}", "type", "string", "pattern",
                                                                argument->pattern, "minLength", 1);
            json_array_append_new(parameters,
                                  json_pack("{s:s, s:s, s:s, s:b, s:o}", "name", argument->name, "in", "path",
                                            "description", argument->help, "required", 1, "schema", schema));
        }
        if (*at != '*') {
            path[used++] = *at;
        }
    }
    path[used] = '\0';
}

/* --- bodies */

static json_t *media_schema(const char *type, const struct schema *schema)
{
    if (strcmp(type, "application/json") == 0) {
        return schema_ref(schema);
    }
    if (strlen(type) > 5 && strcmp(type + strlen(type) - 5, "+json") == 0) { /* of a format that others describe */
        return json_pack("{s:s}", "type", "object");
    }
    bool binary = strcmp(type, "application/octet-stream") == 0 || strcmp(type, "application/x-tar") == 0;
    return binary ? json_pack("{s:s, s:s}", "type", "string", "format", "binary")
                  : json_pack("{s:s}", "type", "string");
}

static json_t *content_of(const char *const *types, const struct schema *schema)
{
    json_t *content = json_object();
    for (; types != NULL && *types != NULL; types++) {
        json_object_set_new(content, *types, json_pack("{s:o}", "schema", media_schema(*types, schema)));
    }
    return content;
}

static json_t *body_of(const struct route *route)
{
    return json_pack("{s:o, s:b}", "content", content_of(route->accepts, route->request), "required",
                     route->body != ROUTE_BODY_MAYBE);
}

/* --- replies */

static json_t *header_refs(const char *const *names)
{
    json_t *headers = json_pack("{s:{s:s}}", "X-Request-Id", "$ref", "#/components/headers/X-Request-Id");
    for (; *names != NULL; names++) {
        char target[64];
        (void)snprintf(target, sizeof(target), "#/components/headers/%s", *names);
        json_object_set_new(headers, *names, json_pack("{s:s}", "$ref", target));
    }
    return headers;
}

static void add_reply(json_t *responses, int status, const char *what, const char *const *headers, json_t *content)
{
    char key[8];
    (void)snprintf(key, sizeof(key), "%d", status);
    json_t *response = json_pack("{s:s, s:o}", "description", what, "headers", header_refs(headers));
    if (content != NULL) {
        json_object_set_new(response, "content", content);
    }
    json_object_set_new(responses, key, response);
}

/* The argument of `path` after `prefix` and a slash, with its size; NULL where nothing follows. */
static const char *argument_below(const char *path, const char *prefix, size_t *size)
{
    size_t length = strlen(prefix);
    if (strncmp(path, prefix, length) != 0 || strncmp(path + length, "/{", 2) != 0) {
        return NULL;
    }
    *size = strcspn(path + length + 2, "*}");
    return path + length + 2;
}

/* What can be done with a new object: the operations whose path begins with its own. */
static json_t *links_of(const struct route *route)
{
    json_t *links = json_object();
    for (const struct route *row = routes_table; row->method != NULL; row++) {
        size_t size;
        const char *argument = argument_below(row->path, route->path, &size);
        if (argument == NULL) {
            continue;
        }
        json_t *parameters = json_pack("{s%:s}", argument, size, "$response.body#/id");
        json_object_set_new(links, row->operation,
                            json_pack("{s:s, s:o}", "operationId", row->operation, "parameters", parameters));
    }
    return links;
}

static void add_success_replies(json_t *responses, const struct route *route)
{
    static const char *const none[] = {NULL}, *const created[] = {"Location", NULL}, *const tagged[] = {"ETag", NULL};
    static const char *const appended[] = {"Upload-Offset", "Upload-Complete", NULL};
    static const char *const ended[] = {"Location", "Upload-Offset", "Upload-Complete", NULL};
    static const char *const bytes[] = {"Repr-Digest", "ETag", "Accept-Ranges", NULL};
    static const char *const part[] = {"Repr-Digest", "ETag", "Accept-Ranges", "Content-Range", NULL};
    int made; /* on the way: the first is not known */
    json_t *content = route->produces != NULL ? content_of(route->produces, route->answer) : NULL;
    switch (route->reply) {
    case ROUTE_REPLY_VALUE:
        add_reply(responses, 200, "Success.", none, content);
        break;
    case ROUTE_REPLY_OBJECT:
        add_reply(responses, 200, "Success.", route->produces[1] == NULL ? tagged : none, content);
        add_reply(responses, 304, "The object still has the entity tag of If-None-Match.", tagged, NULL);
        break;
    case ROUTE_REPLY_CREATED:
        add_reply(responses, 201, "Created.", created, content);
        json_object_set_new(json_object_get(responses, "201"), "links", links_of(route));
        break;
    case ROUTE_REPLY_ACCEPTED:
        add_reply(responses, 202, "Accepted.", none, content);
        break;
    case ROUTE_REPLY_MESSAGE:
        add_reply(responses, 200, "The answer to a request.", none, content);
        add_reply(responses, 202, "A notification or a response was taken.", none, NULL);
        break;
    case ROUTE_REPLY_APPENDED:
        add_reply(responses, 201, "The last piece; the file.", ended, content);
        add_reply(responses, 204, "The piece is stored.", appended, NULL);
        break;
    case ROUTE_REPLY_DELETED:
        add_reply(responses, 204, "Deleted.", none, NULL);
        break;
    case ROUTE_REPLY_BYTES:
        made = (route->flags & ROUTE_MADE) != 0;
        add_reply(responses, 200, "The file.", bytes + made, content);
        add_reply(responses, 206, "A part of the file.", part + made, json_deep_copy(content));
        add_reply(responses, 304, "The file still has the entity tag of If-None-Match.", tagged, NULL);
        break;
    }
}

static void add_problem(json_t *responses, int status, const char *text)
{
    char key[8], described[1024];
    (void)snprintf(key, sizeof(key), "%d", status);
    json_t *response = json_object_get(responses, key);
    const char *before = json_string_value(json_object_get(response, "description"));
    if (before == NULL) {
        json_object_set_new(responses, key,
                            json_pack("{s:s, s:{s:{s:s}}, s:{s:{s:o}}}", "description", text, "headers", "X-Request-Id",
                                      "$ref", "#/components/headers/X-Request-Id", "content",
                                      "application/problem+json", "schema", schema_ref(&schema_problem)));
    } else if (strstr(before, text) == NULL) {
        (void)snprintf(described, sizeof(described), "%s %s", before, text);
        json_object_set_new(response, "description", json_string(described));
    }
}

static void add_code(void *data, int code)
{
    char text[256];
    (void)snprintf(text, sizeof(text), "%s: %s", err_api_code(code), err_sentence(code));
    add_problem(data, err_http_status(code), text);
}

/* Nothing where the operation does not have the status. */
static void add_reply_header(json_t *responses, const char *status, const char *name)
{
    char target[64];
    (void)snprintf(target, sizeof(target), "#/components/headers/%s", name);
    json_object_set_new(json_object_get(json_object_get(responses, status), "headers"), name,
                        json_pack("{s:s}", "$ref", target));
}

static json_t *responses_of(const struct route *route)
{
    static const int framing[] = {414, 417, 431, 505}; /* of ERR_BAD_REQUEST, where they are more specific */
    json_t *responses = json_object();
    add_success_replies(responses, route);
    routes_each_error(route, add_code, responses);
    for (size_t i = 0; i < sizeof(framing) / sizeof(framing[0]); i++) {
        add_problem(responses, framing[i], "bad_request: The request is not well-formed HTTP, or too large.");
    }
    add_reply_header(responses, "503", "Retry-After");
    add_reply_header(responses, "429", "Retry-After");
    add_reply_header(responses, "401", "WWW-Authenticate");
    return responses;
}

/* --- the document */

static json_t *operation_of(const struct route *route, char *path, size_t capacity)
{
    json_t *parameters = json_array();
    add_arguments(parameters, route->path, path, capacity);
    for (const struct query_row *row = route->query; row != NULL && row->name != NULL; row++) {
        add_parameter(parameters, row, "query");
    }
    routes_each_header(route, add_header_parameter, parameters);
    json_t *operation =
        json_pack("{s:s, s:s, s:[s], s:s, s:o, s:o}", "operationId", route->operation, "summary", route->summary,
                  "tags", tags[route->tag].name, "x-scope", routes_scope_name(route->scope), "parameters", parameters,
                  "responses", responses_of(route));
    if (operation != NULL && route->scope == ROUTE_SCOPE_NONE) { /* the document's requirement is not this one's */
        json_object_set_new(operation, "security", json_array());
    }
    if (operation != NULL && route->body != ROUTE_BODY_NONE) {
        json_object_set_new(operation, "requestBody", body_of(route));
    }
    return operation;
}

static json_t *paths_of_table(void)
{
    json_t *paths = json_object();
    for (const struct route *route = routes_table; route->method != NULL; route++) {
        char path[128], method[16] = "";
        json_t *operation = operation_of(route, path, sizeof(path));
        for (size_t i = 0; route->method[i] != '\0' && i + 1 < sizeof(method); i++) {
            method[i] = (char)tolower((unsigned char)route->method[i]);
        }
        json_t *item = json_object_get(paths, path);
        if (item == NULL) {
            item = json_object();
            json_object_set_new(paths, path, item);
        }
        json_object_set_new(item, method, operation);
    }
    return paths;
}

static json_t *headers_of_replies(void)
{
    static const struct {
        const char *name, *type, *help;
        bool required;
    } rows[] = {
        {"X-Request-Id", "string", "The request's id, as in the log.", true},
        {"Location", "string", "Path of the new object.", true},
        {"ETag", "string", "Entity tag: changes whenever the body does.", true},
        {"Repr-Digest", "string", "sha-256=:BASE64: of the complete file (RFC 9530).", true},
        {"Accept-Ranges", "string", "bytes", true},
        {"Content-Range", "string", "Which bytes these are.", true},
        {"Upload-Offset", "integer", "Bytes of the upload that are stored.", true},
        {"Upload-Complete", "string", "?1: the upload is complete; ?0: more can follow.", true},
        {"WWW-Authenticate", "string", "Bearer, and why the key was not accepted.", true},
        {"Retry-After", "integer", "Seconds to wait before the next try.", false},
    };
    json_t *headers = json_object();
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        json_object_set_new(headers, rows[i].name,
                            json_pack("{s:s, s:b, s:{s:s}}", "description", rows[i].help, "required",
                                      (int)rows[i].required, "schema", "type", rows[i].type));
    }
    return headers;
}

static json_t *schemas_of_table(void)
{
    json_t *components = json_object();
    service_schemas(components);
    for (const struct route *route = routes_table; route->method != NULL; route++) {
        schema_add(route->request, components);
        schema_add(route->answer, components);
    }
    schema_add(&schema_event, components);
    schema_add(&schema_progress_event, components);
    schema_add(&schema_problem, components);
    schema_add(&schema_webhook_message, components);
    return components;
}

/* What receivers are sent, one operation for each type of message: those that a webhook may be limited to. */
static json_t *webhooks_of(const json_t *components)
{
    static const struct query_row headers[] = {
        QUERY_ROW("webhook-id", STRING, "The same with each attempt.", .required = true),
        QUERY_ROW("webhook-timestamp", STRING, "Unix seconds of the attempt.", .required = true),
        QUERY_ROW("webhook-signature", STRING, "v1,BASE64 of HMAC-SHA256 over id.timestamp.body; several, with blanks.",
                  .required = true),
        QUERY_ROW("traceparent", STRING, "The trace of the job."),
        QUERY_ROW("tracestate", STRING, "More of that trace."),
        QUERY_END,
    };
    json_t *webhooks = json_object(), *parameters = json_array(), *type;
    const json_t *request = json_object_get(components, "WebhookRequest");
    const json_t *events = json_object_get(json_object_get(request, "properties"), "events");
    size_t i;

    for (const struct query_row *row = headers; row->name != NULL; row++) {
        add_parameter(parameters, row, "header");
    }
    json_array_foreach(json_object_get(json_object_get(events, "items"), "enum"), i, type)
    {
        const char *name = json_string_value(type);
        json_object_set_new(
            webhooks, name,
            json_pack("{s:{s:s, s:[s], s:[], s:O, s:{s:{s:{s:o}}, s:b}, s:{s:{s:s}, s:{s:s}, s:{s:s}}}}", "post",
                      "summary", "A job got this status.", "tags", tags[ROUTE_TAG_WEBHOOKS].name, "security",
                      "parameters", parameters, "requestBody", "content", "application/json", "schema",
                      schema_ref(&schema_webhook_message), "required", 1, "responses", "2XX", "description",
                      "The message is delivered.", "410", "description", "The webhook is disabled.", "default",
                      "description", "The message is sent again later."));
    }
    json_decref(parameters);
    return webhooks;
}

static json_t *compose_document(void)
{
    json_t *list = json_array(), *schemas = schemas_of_table();
    for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
        json_array_append_new(list, json_pack("{s:s, s:s}", "name", tags[i].name, "description", tags[i].help));
    }
    return json_pack(
        "{s:s, s:{s:s, s:s, s:s, s:{s:s, s:s}}, s:[{s:[]}, {}], s:o, s:o, s:o, s:{s:o, s:o, s:{s:{s:s, s:s}}}}",
        "openapi", "3.1.0", "info", "title", "quantd", "version", QUANTD_VERSION, "description",
        "Quantizes language models. x-scope of an operation is what a key must be allowed to do.", "license", "name",
        "Apache-2.0", "identifier", "Apache-2.0", "security", "key", "tags", list, "paths", paths_of_table(),
        "webhooks", webhooks_of(schemas), "components", "headers", headers_of_replies(), "schemas", schemas,
        "securitySchemes", "key", "type", "http", "scheme", "bearer");
}

/* It never changes, and is large: it is composed once, and its text is kept. NULL when out of memory. */
static const char *document_text(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static char *kept;

    pthread_mutex_lock(&lock);
    if (kept == NULL) {
        AUTO_JSON json_t *document = compose_document();
        AUTO_FREE char *text = json_dumps(document, JSON_COMPACT);
        if (text == NULL || asprintf(&kept, "%s\n", text) < 0) {
            kept = NULL;
        }
    }
    const char *shared = kept;
    pthread_mutex_unlock(&lock);
    return shared;
}

int openapi_text(char **text)
{
    const char *document = document_text();

    return document != NULL ? mem_strdup(text, document)
                            : err_raise(ERR_HOST_OUT_OF_MEMORY, "not enough memory for the description of the API");
}
