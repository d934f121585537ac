/* Messages of the Model Context Protocol: JSON -> message, and the arguments of a tool -> path, query and body of its
 * route. What is taken has the members that the rest relies on, and no argument adds a parameter to the query or a part
 * to the path. */

#include "api/mcp.h"
#include "base/json.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_arguments(const struct route *route, const json_t *arguments)
{
    struct mcp_arguments read;
    struct validation_errors errors = {0};

    if (mcp_arguments_read(route, arguments, &read, &errors) == 0) {
        size_t parameters = 0;
        for (const char *at = read.query; at != NULL && *at != '\0';
             at = strchr(at, '&') != NULL ? strchr(at, '&') + 1 : "") {
            parameters++;
        }
        if (parameters > json_object_size(arguments) ||
            (read.captures[0] != NULL && strchr(read.captures[0], '/') != NULL) ||
            (route->body == ROUTE_BODY_JSON) != json_is_object(read.body)) {
            abort();
        }
    }
    mcp_arguments_deinit(&read);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *body = NULL;
    struct mcp_message message;
    struct validation_errors errors = {0};

    if (json_parse((const char *)data, size, 32, &body) != 0) {
        return 0;
    }
    if (mcp_read(body, &message, &errors) == 0) {
        if (errors.count > 0 || (message.id != NULL && !json_is_string(message.id) && !json_is_integer(message.id)) ||
            (message.params != NULL && !json_is_object(message.params))) {
            abort();
        }
        const json_t *arguments = json_object_get(message.params, "arguments");
        const struct route *route = mcp_tool(json_string_value(json_object_get(message.params, "name")));
        if (route != NULL && (arguments == NULL || json_is_object(arguments))) {
            check_arguments(route, arguments);
        }
    } else if (errors.count == 0) {
        abort();
    }
    json_decref(body);
    return 0;
}
