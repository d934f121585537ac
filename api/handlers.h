#pragma once
/* The handlers of the route table, by operation. Each runs on a worker unless its row has ROUTE_INLINE. It sets
 * request->reply and returns 0, or returns a raised code, or REQUEST_WAIT. The arguments of the path are
 * request->captures, and well-formed. */

#include "api/request.h"

#define ROUTE(method, path, operation, ...) int handlers_##operation(struct request *request);
#define UPLOAD(method, path, operation, ...) extern const struct request_sink handlers_##operation##_sink;
#include "api/route_rows.def"
#undef ROUTE
#undef UPLOAD
