#pragma once
/* The Model Context Protocol over one route: JSON-RPC 2.0 messages, and tools that are rows of the table of routes. */

#include "api/routes.h"

/* One message. Borrowed from its JSON. */
struct mcp_message {
    const char *method; /* NULL: a response, which needs no answer */
    const json_t *id;   /* NULL: a notification, which gets none */
    const json_t *params;
};

/* Read a message; adds an error for each member that is not as JSON-RPC has it, and raises the first. */
int mcp_read(const json_t *body, struct mcp_message *out, struct validation_errors *errors);

/* What a tool's arguments are for its route: parts of the path, the query, and the JSON body. */
struct mcp_arguments {
    char *captures[REQUEST_CAPTURES];
    char *query; /* NULL: none */
    json_t *body;
};

/* arguments: an object, or NULL for none. Errors name a member of the arguments. mcp_arguments_deinit is due in any
 * case. */
int mcp_arguments_read(const struct route *route, const json_t *arguments, struct mcp_arguments *out,
                       struct validation_errors *errors);
void mcp_arguments_deinit(struct mcp_arguments *arguments);

/* The row of a tool; NULL: there is none of this name. */
const struct route *mcp_tool(const char *name);

/* POST /mcp: set the reply to request->json. Worker. */
int mcp_handle(struct request *request);
