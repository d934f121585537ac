#pragma once
/* What requests do, counted for monitoring since the start of the process. Any thread. */

#include "api/routes.h"

#include <stdio.h>

/* A request has ended. route: NULL when it has none; method: NULL when it had no request line; status 0: none was sent.
 */
void counters_request(const struct route *route, const char *method, int status, double seconds);
/* In the text of base/metrics.h. */
void counters_write(FILE *out);
