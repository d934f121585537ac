/* Requests by the template of their route, never by their path: what a client makes up does not become a label. */

#include "api/counters.h"

#include "base/metrics.h"

#include <string.h>

#define STATUS_MIN 100
#define STATUS_MAX 599
#define STATUSES (STATUS_MAX - STATUS_MIN + 1)

/* The rows, and one place more for requests without a row. */
enum {
#define ROUTE(method, path, operation, ...) COUNTER_##operation,
#define UPLOAD(method, path, operation, ...) COUNTER_##operation,
#include "api/route_rows.def"
#undef ROUTE
#undef UPLOAD
    COUNTER_NO_ROUTE,
    COUNTERS,
};

/* Of a request without a row; of one with a row these are the row's own method and HEAD. */
static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"};
#define METHODS (sizeof(methods) / sizeof(methods[0]))

static const struct metrics_bounds duration_bounds = {
    13, {0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 300, 3600}};
static metrics_counter requests[COUNTERS][METHODS][STATUSES];
static struct metrics_histogram durations[COUNTERS];
static metrics_counter handshakes[2]; /* failed, complete */

static size_t counters_method(const char *method)
{
    size_t index = 0;
    while (index < METHODS - 1 && (method == NULL || strcmp(methods[index], method) != 0)) {
        index++;
    }
    return index;
}

void counters_request(const struct route *route, const char *method, int status, double seconds)
{
    size_t row = route != NULL ? (size_t)(route - routes_table) : COUNTER_NO_ROUTE;
    if (status >= STATUS_MIN && status <= STATUS_MAX) {
        atomic_fetch_add_explicit(&requests[row][counters_method(method)][status - STATUS_MIN], 1,
                                  memory_order_relaxed);
    }
    metrics_observe(&durations[row], &duration_bounds, seconds);
}

void counters_handshake(bool complete)
{
    atomic_fetch_add_explicit(&handshakes[complete], 1, memory_order_relaxed);
}

static const char *path_of(size_t row)
{
    return row == COUNTER_NO_ROUTE ? "none" : routes_table[row].path;
}

static void write_row(FILE *out, size_t row)
{
    for (size_t method = 0; method < METHODS; method++) {
        for (int status = 0; status < STATUSES; status++) {
            uint64_t count = atomic_load_explicit(&requests[row][method][status], memory_order_relaxed);
            if (count > 0) {
                const char code[] = {(char)('0' + (status + STATUS_MIN) / 100), (char)('0' + status / 10 % 10),
                                     (char)('0' + status % 10), '\0'};
                const struct metrics_label labels[] = {
                    {"route", path_of(row)}, {"method", methods[method]}, {"code", code}, {NULL, NULL}};
                metrics_count(out, "quantd_http_requests_total", labels, count);
            }
        }
    }
}

void counters_write(FILE *out)
{
    metrics_family(out, "quantd_http_requests_total", "counter",
                   "Requests that ended, by the template of their route (none: there is no such route).");
    for (size_t row = 0; row < COUNTERS; row++) {
        write_row(out, row);
    }
    metrics_family(out, "quantd_http_request_duration_seconds", "histogram",
                   "Time from the first line of a request to the last byte of its answer, waits and streams included.");
    for (size_t row = 0; row < COUNTERS; row++) {
        const char *method = row == COUNTER_NO_ROUTE ? "none" : routes_table[row].method;
        const struct metrics_label labels[] = {{"route", path_of(row)}, {"method", method}, {NULL, NULL}};
        metrics_distribution(out, "quantd_http_request_duration_seconds", labels, &duration_bounds, &durations[row]);
    }
    metrics_family(out, "quantd_tls_handshakes_total", "counter",
                   "TLS handshakes that ended, without those whose client just left.");
    for (size_t complete = 0; complete < 2; complete++) {
        const struct metrics_label labels[] = {{"outcome", complete == 1 ? "complete" : "failed"}, {NULL, NULL}};
        metrics_count(out, "quantd_tls_handshakes_total", labels,
                      atomic_load_explicit(&handshakes[complete], memory_order_relaxed));
    }
}
