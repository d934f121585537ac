/* The Model Context Protocol. */

#include "api/handlers.h"

#include "api/mcp.h"

int handlers_call_mcp(struct request *request)
{
    return mcp_handle(request);
}
