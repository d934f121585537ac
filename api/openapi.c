/* OpenAPI 3.1, generated from the table that also routes and validates, so that the document matches the server.
 *
 * The schemas of methods' parameters are at /v1/methods, generated from the parameter tables; they are not repeated
 * here. */

#include "api/openapi.h"

#include "api/routes.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

/* A maximum of INT64_MAX means unbounded, and JavaScript could not represent it. */
static json_t *int_schema(const struct query_row *row)
{
    json_t *schema = json_pack("{s:s, s:I}", "type", "integer", "minimum", (json_int_t)row->min);
    if (row->max != INT64_MAX) {
        json_object_set_new(schema, "maximum", json_integer(row->max));
    }
    return schema;
}

static json_t *query_schema(const struct query_row *row)
{
    json_t *choices;
    switch (row->type) {
    case QUERY_INT:
        return int_schema(row);
    case QUERY_FLAG:
        return json_pack("{s:[s,s,s,s]}", "enum", "1", "true", "0", "false");
    case QUERY_ENUM:
        choices = json_array();
        for (size_t i = 0; row->choices[i] != NULL; i++) {
            json_array_append_new(choices, json_string(row->choices[i]));
        }
        return json_pack("{s:s, s:o}", "type", "string", "enum", choices);
    case QUERY_CURSOR:
        return json_pack("{s:s, s:i}", "type", "string", "maxLength", ID_SIZE - 1);
    case QUERY_METADATA:
        return json_pack("{s:s, s:{s:s}, s:i}", "type", "object", "additionalProperties", "type", "string",
                         "maxProperties", 1);
    case QUERY_STRING:
        break;
    }
    return json_pack("{s:s, s:i, s:i}", "type", "string", "minLength", 1, "maxLength", 255);
}

static void add_query(json_t *parameters, const struct query_row *rows)
{
    for (const struct query_row *row = rows; row != NULL && row->name != NULL; row++) {
        json_t *parameter = json_pack("{s:s, s:s, s:s, s:o}", "name", row->name, "in", "query", "description",
                                      row->help, "schema", query_schema(row));
        if (row->type == QUERY_METADATA) {
            json_object_set_new(parameter, "style", json_string("deepObject"));
        }
        json_array_append_new(parameters, parameter);
    }
}

/* "{path*}" is written "{path}": OpenAPI has no notation for the rest of a path. Each capture becomes a parameter. */
static void add_captures(json_t *parameters, const char *pattern, char *path, size_t capacity)
{
    size_t used = 0;
    for (const char *at = pattern; *at != '\0' && used + 1 < capacity; at++) {
        if (*at == '{') {
            size_t size = strcspn(at + 1, "*}");
            json_array_append_new(parameters, json_pack("{s:s%, s:s, s:b, s:{s:s}}", "name", at + 1, size, "in", "path",
                                                        "required", 1, "schema", "type", "string"));
        }
        if (*at != '*') {
            path[used++] = *at;
        }
    }
    path[used] = '\0';
}

static void add_headers(json_t *parameters, const struct route *route)
{
    if ((route->flags & ROUTE_IDEMPOTENT) != 0) {
        json_array_append_new(parameters,
                              json_pack("{s:s, s:s, s:s, s:{s:s, s:i, s:i}}", "name", "Idempotency-Key", "in", "header",
                                        "description",
                                        "A repeated request with the same key and body gets the response of the first.",
                                        "schema", "type", "string", "minLength", 1, "maxLength", 255));
    }
}

static json_t *body_of(const struct route *route)
{
    json_t *content = json_object();
    for (size_t i = 0; route->accepts[i] != NULL; i++) {
        bool json = strcmp(route->accepts[i], "application/json") == 0;
        json_object_set_new(content, route->accepts[i],
                            json ? json_pack("{s:{s:s}}", "schema", "type", "object") : json_object());
    }
    return json_pack("{s:o, s:b}", "content", content, "required", route->body != ROUTE_BODY_MAYBE);
}

static json_t *operation_of(const struct route *route, char *path, size_t capacity)
{
    json_t *parameters = json_array();
    add_captures(parameters, route->path, path, capacity);
    add_query(parameters, route->query);
    add_headers(parameters, route);
    json_t *operation = json_pack("{s:s, s:o, s:{s:{s:s}, s:{s:s, s:{s:{s:{s:s}}}}}}", "summary", route->summary,
                                  "parameters", parameters, "responses", "2XX", "description", "Success.", "default",
                                  "description", "A problem document.", "content", "application/problem+json", "schema",
                                  "$ref", "#/components/schemas/Problem");
    if (operation != NULL && route->body != ROUTE_BODY_NONE) {
        json_object_set_new(operation, "requestBody", body_of(route));
    }
    return operation;
}

static json_t *problem_schema(void)
{
    return json_pack("{s:s, s:[s,s,s,s,s], s:{s:{s:s}, s:{s:s}, s:{s:s}, s:{s:s}, s:{s:s}, s:{s:s}, s:{s:[s,s]}, "
                     "s:{s:[s,s]}, s:{s:s}, s:{s:s}, s:{s:s}}}",
                     "type", "object", "required", "type", "title", "status", "code", "request_id", "properties",
                     "type", "type", "string", "title", "type", "string", "status", "type", "integer", "detail", "type",
                     "string", "instance", "type", "string", "code", "type", "string", "param", "type", "string",
                     "null", "hint", "type", "string", "null", "request_id", "type", "string", "retryable", "type",
                     "boolean", "errors", "type", "array");
}

json_t *openapi_document(void)
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
    return json_pack("{s:s, s:{s:s, s:s}, s:o, s:{s:{s:o}}}", "openapi", "3.1.0", "info", "title", "quantd", "version",
                     QUANTD_VERSION, "paths", paths, "components", "schemas", "Problem", problem_schema());
}
