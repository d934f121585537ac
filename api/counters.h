#pragma once
/* What requests do, counted for monitoring since the start of the process. Any thread. */

#include "api/routes.h"

#include <stdbool.h>
#include <stdio.h>

/* A request has ended. route: NULL when it has none; method: NULL when it had no request line; status 0: none was sent.
 */
void counters_request(const struct route *route, const char *method, int status, double seconds);
/* A TLS handshake has ended; not counted when the client just left. */
void counters_handshake(bool complete);
/* In the text of base/metrics.h. */
void counters_write(FILE *out);
