/* A tool call runs the handler of its row in the place of the request that called it, with the same principal. What the
 * handler answers, or the problem document of its failure, is the tool's result. */

#include "api/mcp.h"

#include "api/auth.h"
#include "api/openapi.h"
#include "api/reply.h"
#include "base/cleanup.h"
#include "base/mem.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RPC_METHOD_NOT_FOUND (-32601)
#define RPC_INVALID_PARAMS (-32602)
#define VERSION_HEADER "MCP-Protocol-Version"

/* Newest first. Versions before 2025-06-18 need batches. */
static const char *const versions[] = {"2025-11-25", "2025-06-18", NULL};

static const struct tool {
    const char *name, *operation, *help;
    bool reads; /* stores nothing, although its route is not a GET */
} tools[] = {
    {"list_models", "list_models", .help = NULL},
    {"list_methods", "list_methods", .help = NULL},
    {"recommend", "create_recommendation",
     "Say how to quantize a model for a goal, an accelerator and a load: ways, the best first, with reasons, memory, "
     "bounds of speed, and each as a job for submit_job.",
     .reads = true},
    {"submit_job", "create_job", .help = "Create a quantization job. Ask job_status until its status is final."},
    {"job_status", "get_job",
     .help = "Get a job: its status, progress, errors, and result.artifact_id once it succeeded."},
    {"report", "get_job_report", .help = NULL},
    {"artifact_url", "get_artifact", .help = "Get the URLs, sizes and digests of an artifact's files."},
};
#define TOOL_COUNT (sizeof(tools) / sizeof(tools[0]))

static const struct route *route_of(const struct tool *tool)
{
    const struct route *row = routes_table;
    while (strcmp(row->operation, tool->operation) != 0) {
        row++;
    }
    return row;
}

static const struct tool *find_tool(const char *name)
{
    for (size_t i = 0; name != NULL && i < TOOL_COUNT; i++) {
        if (strcmp(tools[i].name, name) == 0) {
            return &tools[i];
        }
    }
    return NULL;
}

const struct route *mcp_tool(const char *name)
{
    const struct tool *tool = find_tool(name);
    return tool != NULL ? route_of(tool) : NULL;
}

/* --- messages */

int mcp_read(const json_t *body, struct mcp_message *out, struct validation_errors *errors)
{
    const json_t *version = json_object_get(body, "jsonrpc"), *method = json_object_get(body, "method");
    const json_t *id = json_object_get(body, "id"), *params = json_object_get(body, "params");
    bool response = json_object_get(body, "result") != NULL || json_object_get(body, "error") != NULL;

    if (!json_is_string(version) || strcmp(json_string_value(version), "2.0") != 0) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/jsonrpc", "jsonrpc must be \"2.0\"");
    }
    if (!json_is_string(method) && !(method == NULL && response)) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/method", "method must be a string");
    }
    if (id != NULL && !json_is_string(id) && !json_is_integer(id)) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/id", "id must be a string or an integer");
    }
    if (params != NULL && !json_is_object(params)) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/params", "params must be an object");
    }
    TRY(validation_raise(errors));
    *out = (struct mcp_message){.method = json_string_value(method), .id = id, .params = params};
    return 0;
}

static json_t *result_take(const struct mcp_message *message, json_t *result)
{
    return json_pack("{s:s, s:O, s:o}", "jsonrpc", "2.0", "id", message->id, "result", result);
}

static json_t *error_of(const struct mcp_message *message, int code, const char *text, const char *name)
{
    return json_pack("{s:s, s:O, s:{s:i, s:s+}}", "jsonrpc", "2.0", "id", message->id, "error", "code", code, "message",
                     text, name);
}

/* --- arguments */

/* The place of a name among the arguments of the path, or -1. */
static int capture_index(const struct route *route, const char *name)
{
    int index = 0;
    for (const char *at = strchr(route->path, '{'); at != NULL; at = strchr(at + 1, '{')) {
        size_t size = strcspn(at + 1, "*}");
        if (strlen(name) == size && strncmp(at + 1, name, size) == 0) {
            return index;
        }
        index++;
    }
    return -1;
}

/* Every byte as an escape, so that no value can end a parameter. */
static void put_escaped(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        fprintf(out, "%%%02X", (unsigned char)*text);
    }
}

static void put_parameter(FILE *out, const char *name, const json_t *value, struct validation_errors *errors)
{
    char number[24];
    const char *text = json_string_value(value);

    if (json_is_integer(value)) {
        (void)snprintf(number, sizeof(number), "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        text = number;
    } else if (json_is_boolean(value)) {
        text = json_is_true(value) ? "true" : "false";
    }
    if (text == NULL) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/arguments", "%.64s must be a string, a number or a boolean",
                       name);
        return;
    }
    fputs(ftell(out) > 0 ? "&" : "", out);
    put_escaped(out, name);
    fputc('=', out);
    put_escaped(out, text);
}

static int take_captures(const struct route *route, const json_t *arguments, struct mcp_arguments *out,
                         struct validation_errors *errors)
{
    int index = 0;
    for (const char *at = strchr(route->path, '{'); at != NULL; at = strchr(at + 1, '{')) {
        const struct route_argument *argument = routes_argument(at + 1, strcspn(at + 1, "*}"));
        const char *text = json_string_value(json_object_get(arguments, argument->name));
        if (text == NULL || argument->kind == NULL || !id_valid(text, argument->kind)) {
            validation_add(errors, text == NULL ? ERR_MISSING_PARAMETER : ERR_INVALID_PARAMETER, "/arguments",
                           "%s must be an id that begins with %s_", argument->name,
                           argument->kind != NULL ? argument->kind : "");
            return 0;
        }
        TRY(mem_strdup(&out->captures[index], text));
        index++;
    }
    return 0;
}

int mcp_arguments_read(const struct route *route, const json_t *arguments, struct mcp_arguments *out,
                       struct validation_errors *errors)
{
    size_t size = 0;
    const char *name;
    json_t *value;

    *out = (struct mcp_arguments){.query = NULL};
    TRY(take_captures(route, arguments, out, errors));
    if (route->body == ROUTE_BODY_JSON) {
        out->body = arguments != NULL ? json_deep_copy(arguments) : json_object();
        return out->body != NULL ? validation_raise(errors)
                                 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the arguments of a tool");
    }
    FILE *query = open_memstream(&out->query, &size);
    if (query == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the arguments of a tool");
    }
    json_object_foreach((json_t *)arguments, name, value)
    {
        if (capture_index(route, name) < 0) {
            put_parameter(query, name, value, errors);
        }
    }
    if (fclose(query) != 0) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the arguments of a tool");
    }
    return validation_raise(errors);
}

void mcp_arguments_deinit(struct mcp_arguments *arguments)
{
    for (int i = 0; i < REQUEST_CAPTURES; i++) {
        free(arguments->captures[i]);
    }
    free(arguments->query);
    json_decref(arguments->body);
    *arguments = (struct mcp_arguments){.query = NULL};
}

/* A tool that names its object takes no other parameters: those of such routes are ways to wait, which a call cannot.
 */
static const struct query_row *query_of(const struct route *route)
{
    return strchr(route->path, '{') == NULL ? route->query : NULL;
}

/* --- the list of tools */

/* Deep copy whose references point into $defs, where what they name is put. */
static json_t *localized(const json_t *value, const json_t *components, json_t *definitions)
{
    static const char prefix[] = "#/components/schemas/";
    const char *name;
    size_t i;
    json_t *item;

    if (json_is_array(value)) {
        json_t *copy = json_array();
        json_array_foreach((json_t *)value, i, item)
        {
            json_array_append_new(copy, localized(item, components, definitions));
        }
        return copy;
    }
    if (!json_is_object(value)) {
        return json_deep_copy(value);
    }
    json_t *copy = json_object();
    json_object_foreach((json_t *)value, name, item)
    {
        const char *target = json_string_value(item);
        if (strcmp(name, "discriminator") == 0) {
            continue; /* OpenAPI's: its references are not JSON Schema */
        }
        if (strcmp(name, "$ref") != 0 || target == NULL || strncmp(target, prefix, strlen(prefix)) != 0) {
            json_object_set_new(copy, name, localized(item, components, definitions));
            continue;
        }
        const char *type = target + strlen(prefix);
        json_object_set_new(copy, name, json_sprintf("#/$defs/%s", type));
        if (json_object_get(definitions, type) == NULL) {
            json_object_set_new(definitions, type, json_true()); /* it may refer to itself */
            json_object_set_new(definitions, type,
                                localized(json_object_get(components, type), components, definitions));
        }
    }
    return copy;
}

static json_t *schema_of_body(const struct route *route)
{
    AUTO_JSON json_t *components = json_object();
    json_t *definitions = json_object();

    service_schemas(components);
    schema_add(route->request, components);
    json_t *schema = localized(json_object_get(components, route->request->name), components, definitions);
    json_object_set_new(schema, "type", json_string("object"));
    json_object_set_new(schema, "$defs", definitions);
    return schema;
}

static json_t *schema_of_parameters(const struct route *route)
{
    json_t *properties = json_object(), *required = json_array();

    for (const char *at = strchr(route->path, '{'); at != NULL; at = strchr(at + 1, '{')) {
        const struct route_argument *argument = routes_argument(at + 1, strcspn(at + 1, "*}"));
        json_t *schema = argument->kind != NULL ? schema_of_id(argument->kind) : json_pack("{s:s}", "type", "string");
        json_object_set_new(schema, "description", json_string(argument->help));
        json_object_set_new(properties, argument->name, schema);
        json_array_append_new(required, json_string(argument->name));
    }
    for (const struct query_row *row = query_of(route); row != NULL && row->name != NULL; row++) {
        json_t *schema = openapi_parameter_schema(row);
        json_object_set_new(schema, "description", json_string(row->help));
        json_object_set_new(properties, row->name, schema);
        if (row->required) {
            json_array_append_new(required, json_string(row->name));
        }
    }
    return json_pack("{s:s, s:o, s:o, s:b}", "type", "object", "properties", properties, "required", required,
                     "additionalProperties", 0);
}

static json_t *list_tools(void)
{
    json_t *list = json_array();

    for (size_t i = 0; i < TOOL_COUNT; i++) {
        const struct route *route = route_of(&tools[i]);
        bool reads = tools[i].reads || strcmp(route->method, "GET") == 0;
        json_t *schema = route->body == ROUTE_BODY_JSON ? schema_of_body(route) : schema_of_parameters(route);
        json_array_append_new(list, json_pack("{s:s, s:s, s:o, s:{s:b, s:b}}", "name", tools[i].name, "description",
                                              tools[i].help != NULL ? tools[i].help : route->summary, "inputSchema",
                                              schema, "annotations", "readOnlyHint", (int)reads, "destructiveHint", 0));
    }
    return json_pack("{s:o}", "tools", list);
}

/* --- calls */

/* {"artifact_id","files":[{"path","url","bytes","sha256"}]} of a manifest. */
static json_t *urls_of(const json_t *manifest, const char *scheme, const char *host)
{
    const char *id = json_string_value(json_object_get(manifest, "id"));
    json_t *files = json_array(), *file;
    size_t i;

    json_array_foreach(json_object_get(manifest, "files"), i, file)
    {
        AUTO_FREE char *escaped = NULL;
        size_t size = 0;
        const char *path = json_string_value(json_object_get(file, "path"));
        FILE *out = open_memstream(&escaped, &size);
        for (; out != NULL && *path != '\0'; path++) {
            bool plain = strchr("/-._~", *path) != NULL || (*path >= '0' && *path <= '9') ||
                         ((*path | 32) >= 'a' && (*path | 32) <= 'z');
            fprintf(out, plain ? "%c" : "%%%02X", (unsigned char)*path);
        }
        if (out != NULL && fclose(out) == 0) {
            json_array_append_new(
                files, json_pack("{s:O, s:o, s:O, s:O}", "path", json_object_get(file, "path"), "url",
                                 json_sprintf("%s://%s/v1/artifacts/%s/files/%s", scheme, host, id, escaped), "bytes",
                                 json_object_get(file, "bytes"), "sha256", json_object_get(file, "sha256")));
        }
    }
    return json_pack("{s:s, s:o}", "artifact_id", id, "files", files);
}

/* What the tool was about: the object that it names, or the one that was made. */
static void note_object(struct request *request, const char *named)
{
    const char *object = named != NULL ? named : reply_location(&request->reply);
    (void)snprintf(request->call.object, sizeof(request->call.object), "%s", object != NULL ? object : "");
}

static int run_handler(struct request *request, const json_t *arguments)
{
    struct mcp_arguments read;
    const struct route *route = request->route;
    struct validation_errors *errors = &request->scratch->errors;

    if ((route->flags & ROUTE_NEW_WORK) != 0 && atomic_load(&request->context->draining)) {
        return err_raise(ERR_DRAINING, "the daemon is shutting down and accepts no new work");
    }
    TRY(auth_check(request)); /* the endpoint has the least scope of its tools */
    int rc = mcp_arguments_read(route, arguments, &read, errors);
    rc = rc == 0 ? query_parse(query_of(route), read.query, &request->scratch->query, errors) : rc;
    if (rc == 0) {
        memcpy(request->captures, read.captures, sizeof(read.captures));
        request->json = read.body;
        rc = route->handle(request);
        memset(request->captures, 0, sizeof(request->captures));
    }
    note_object(request, read.captures[0]);
    mcp_arguments_deinit(&read);
    return rc;
}

/* The tool's result: its handler's answer as JSON and as text. */
static json_t *call(struct request *request, const struct tool *tool, const json_t *arguments)
{
    const struct route *outer = request->route;
    json_t *message = request->json;
    const char *scheme = request_scheme(request);
    AUTO_FREE char *host = strdup(request_header(request, "Host") != NULL ? request_header(request, "Host") : "");

    request->route = mcp_tool(tool->name);
    request->json = NULL;
    request->nested = true;
    int rc = run_handler(request, arguments);
    if (rc != 0) {
        reply_problem(request, rc < 0 ? rc : err_raise(ERR_INTERNAL, "a tool that waits"), 0);
    }
    request->call.route = request->route;
    request->call.status = request->reply.status;
    bool failed = request->reply.status >= 400;
    json_t *answer = json_loadb(request->reply.body, request->reply.size, 0, NULL);
    if (!failed && strcmp(tool->name, "artifact_url") == 0) {
        json_t *urls = urls_of(answer, scheme, host != NULL ? host : "");
        json_decref(answer);
        answer = urls;
    }
    reply_clear(&request->reply);
    memset(&request->scratch->errors, 0, sizeof(request->scratch->errors));
    request->nested = false;
    request->json = message;
    request->route = outer;
    AUTO_FREE char *text = answer != NULL ? json_dumps(answer, JSON_COMPACT) : NULL;
    return json_pack("{s:[{s:s, s:s?}], s:o, s:b}", "content", "type", "text", "text", text, "structuredContent",
                     answer, "isError", (int)failed);
}

static json_t *call_tool(struct request *request, const struct mcp_message *message)
{
    const char *name = json_string_value(json_object_get(message->params, "name"));
    const json_t *arguments = json_object_get(message->params, "arguments");
    const struct tool *tool = find_tool(name);

    if (tool == NULL) {
        return error_of(message, RPC_INVALID_PARAMS,
                        "there is no such tool; tools/list names them: ", name != NULL ? name : "");
    }
    if (arguments != NULL && !json_is_object(arguments)) {
        return error_of(message, RPC_INVALID_PARAMS, "arguments must be an object for ", name);
    }
    return result_take(message, call(request, tool, arguments));
}

static bool knows_version(const char *version)
{
    for (size_t i = 0; version != NULL && versions[i] != NULL; i++) {
        if (strcmp(versions[i], version) == 0) {
            return true;
        }
    }
    return false;
}

static json_t *initialize(const struct mcp_message *message)
{
    const char *asked = json_string_value(json_object_get(message->params, "protocolVersion"));

    return json_pack("{s:s, s:{s:{s:b}}, s:{s:s, s:s, s:s}, s:s}", "protocolVersion",
                     knows_version(asked) ? asked : versions[0], "capabilities", "tools", "listChanged", 0,
                     "serverInfo", "name", "quantd", "title", "quantd", "version", QUANTD_VERSION, "instructions",
                     "quantd quantizes language models. Find a model (list_models) and a method (list_methods), submit "
                     "a job, ask for its status, then read its report and the URLs of its artifact.");
}

int mcp_handle(struct request *request)
{
    struct mcp_message message;
    const char *version = request_header(request, VERSION_HEADER);
    json_t *answer;

    if (version != NULL && !knows_version(version)) {
        validation_add(&request->scratch->errors, ERR_INVALID_PARAMETER, VERSION_HEADER,
                       "version \"%.32s\" is not supported; %s and %s are", version, versions[0], versions[1]);
    }
    TRY(mcp_read(request->json, &message, &request->scratch->errors));
    if (message.method == NULL || message.id == NULL) {
        return reply_empty(request, 202);
    }
    if (strcmp(message.method, "initialize") == 0) {
        answer = result_take(&message, initialize(&message));
    } else if (strcmp(message.method, "ping") == 0) {
        answer = result_take(&message, json_object());
    } else if (strcmp(message.method, "tools/list") == 0) {
        answer = result_take(&message, list_tools());
    } else if (strcmp(message.method, "tools/call") == 0) {
        answer = call_tool(request, &message);
    } else {
        answer = error_of(&message, RPC_METHOD_NOT_FOUND, "there is no such method: ", message.method);
    }
    return reply_json_take(request, 200, answer);
}
