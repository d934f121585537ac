/* Jobs: create, get, wait for, cancel, delete, and their report. */

#include "api/handlers.h"

#include "api/csv.h"
#include "api/handlers_objects.h"
#include "api/header.h"
#include "api/reply.h"
#include "api/schema.h"
#include "base/params.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WAIT_SECONDS_MAX 60
#define JOBS_PATH "/v1/quantization/jobs"

/* What can be done with the job now, and where; null for what cannot. */
static void add_links(json_t *job)
{
    static const struct {
        const char *name, *suffix;
    } parts[] = {{"self", ""},          {"events", "/events"},           {"layers", "/layers"},
                 {"report", "/report"}, {"calibration", "/calibration"}, {"cancel", "/cancel"}};
    if (job == NULL) {
        return;
    }
    const char *id = json_string_value(json_object_get(job, "id"));
    const char *status = json_string_value(json_object_get(job, "status"));
    const char *artifact = json_string_value(json_object_get(json_object_get(job, "result"), "artifact_id"));
    bool waits = status != NULL && strcmp(status, "awaiting_calibration") == 0;
    json_t *links = json_object();
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        bool applies = strcmp(parts[i].name, "cancel") == 0        ? !job_view_ended(job)
                       : strcmp(parts[i].name, "calibration") == 0 ? waits
                                                                   : true;
        json_object_set_new(links, parts[i].name,
                            applies ? json_sprintf(JOBS_PATH "/%s%s", id != NULL ? id : "", parts[i].suffix)
                                    : json_null());
    }
    json_object_set_new(links, "artifact", artifact != NULL ? json_sprintf("/v1/artifacts/%s", artifact) : json_null());
    json_object_set_new(job, "links", links);
}

int handlers_create_job(struct request *request)
{
    json_t *job = NULL;
    int rc = service_job_create(request->context->service, request->who, request->json, &request->trace,
                                request_idempotency_key(request), &request->scratch->errors, &job);
    add_links(job);
    return rc < 0 ? rc : reply_created_take(request, JOBS_PATH, job);
}

int handlers_list_jobs(struct request *request)
{
    struct page page;
    json_t *list = NULL;
    query_page(&request->scratch->query, &page);
    int rc = service_job_list(request->context->service, request->who, &page, &list);
    if (rc < 0) {
        return rc;
    }
    size_t index;
    json_t *job;
    json_array_foreach(json_object_get(list, "data"), index, job)
    {
        add_links(job);
    }
    return reply_object_take(request, list);
}

/* State of a waiting GET between its reads; request->state. */
struct job_wait {
    char etag[80]; /* what the client has seen */
    int64_t deadline_ms;
    int64_t seconds;
    bool preferred; /* by Prefer */
    bool to_end;    /* hold it until then, whatever else changes */
};

static int reply_job_take(struct request *request, json_t *job)
{
    bool over = job_view_ended(job);
    const struct job_wait *wait = request->state;
    int rc = reply_object_take(request, job);
    if (rc == 0 && !over) {
        reply_header(&request->reply, "Retry-After", "2");
    }
    if (rc == 0 && wait != NULL && wait->preferred) {
        reply_header(&request->reply, "Preference-Applied", "wait=%lld", (long long)wait->seconds);
    }
    return rc;
}

/* Whether to answer now instead of waiting further. Fills wait->etag at the first read. */
static bool job_has_news(struct request *request, struct job_wait *wait, const json_t *job)
{
    char etag[80];
    if (job_view_ended(job) || atomic_load(&request->context->draining) || clock_monotonic_ms() >= wait->deadline_ms ||
        !reply_etag(job, etag)) {
        return true;
    }
    if (wait->to_end) {
        return false;
    }
    if (wait->etag[0] == '\0') {
        const char *seen = request_header(request, "If-None-Match");
        if (seen != NULL && !header_etag_matches(seen, etag, true)) {
            return true;
        }
        (void)snprintf(wait->etag, sizeof(wait->etag), "%s", etag);
    }
    return strcmp(wait->etag, etag) != 0;
}

int handlers_get_job(struct request *request)
{
    const char *id = request->captures[0];
    struct job_wait *wait = request->state;
    int64_t seconds = header_prefer_wait(request_header(request, "Prefer"), WAIT_SECONDS_MAX);
    const char *wait_for = query_text(&request->scratch->query, "wait_for");
    if (wait == NULL && (seconds > 0 || wait_for != NULL)) {
        wait = request->state = calloc(1, sizeof(*wait));
        if (wait == NULL) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory to wait for a job");
        }
        wait->preferred = seconds > 0;
        wait->to_end = wait_for != NULL && strcmp(wait_for, "terminal") == 0;
        seconds = seconds > 0 ? seconds : WAIT_SECONDS_MAX;
        wait->seconds = seconds;
        wait->deadline_ms = clock_monotonic_ms() + seconds * 1000;
        notifier_watch(request->context->notifier, &request->waiter, id);
    }
    json_t *job = NULL;
    int rc = service_job_get(request->context->service, request->who, id, &job);
    if (rc < 0) {
        return rc;
    }
    add_links(job);
    if (wait == NULL || job_has_news(request, wait, job)) {
        return reply_job_take(request, job);
    }
    json_decref(job);
    request->waiter.deadline_ms = wait->deadline_ms;
    return REQUEST_WAIT;
}

int handlers_delete_job(struct request *request)
{
    return handlers_object_delete(request, service_job_delete);
}

/* Both modes are accepted: a cancellation always acts within seconds. */
struct cancel {
    int mode;
};
static const char *const cancel_modes[] = {"layer", "now", NULL};
static const struct params_row cancel_rows[] = {
    {.name = "mode",
     .type = PARAMS_ENUM,
     .offset = offsetof(struct cancel, mode),
     .size = sizeof(int),
     .fallback = "\"layer\"",
     .choices = cancel_modes,
     .help = "Both are accepted: a cancellation always acts within seconds."},
    {.name = NULL},
};
static const struct params_row *const cancel_tables[] = {cancel_rows, NULL};
const struct schema schema_cancel_request = {.name = "CancelRequest", .tables = cancel_tables};

int handlers_cancel_job(struct request *request)
{
    json_t *job = NULL;
    struct cancel cancel = {0};
    TRY(params_parse(cancel_tables, request->json, "", &cancel, &request->scratch->errors));
    TRY(service_job_cancel(request->context->service, request->who, request->captures[0], &job));
    add_links(job);
    return reply_json_take(request, 202, job);
}

int handlers_get_job_report(struct request *request)
{
    json_t *report = NULL;
    TRY(service_job_report(request->context->service, request->who, request->captures[0], &report));
    return reply_object_take(request, report);
}

struct layer_order {
    const char *column;
    bool down;
};

/* Numbers by value, text by bytes; a null comes last either way. */
static int compare_layers(const void *left, const void *right, void *data)
{
    const struct layer_order *order = data;
    const json_t *a = json_object_get(*(json_t *const *)left, order->column);
    const json_t *b = json_object_get(*(json_t *const *)right, order->column);
    bool a_null = a == NULL || json_is_null(a), b_null = b == NULL || json_is_null(b);
    if (a_null || b_null) {
        return (int)a_null - (int)b_null;
    }
    int sign;
    if (json_is_string(a) && json_is_string(b)) {
        sign = strcmp(json_string_value(a), json_string_value(b));
    } else {
        double x = json_is_boolean(a) ? json_is_true(a) : json_number_value(a);
        double y = json_is_boolean(b) ? json_is_true(b) : json_number_value(b);
        sign = (x > y) - (x < y);
    }
    return order->down ? -sign : sign;
}

/* A new array of the requested rows, in the requested order. */
static int select_layers(struct request *request, const json_t *all, json_t **out)
{
    const char *sort = query_text(&request->scratch->query, "sort");
    const char *module = query_text(&request->scratch->query, "module");
    struct layer_order order = {sort != NULL && sort[0] == '-' ? sort + 1 : sort, sort != NULL && sort[0] == '-'};
    size_t count = 0;
    json_t **rows = calloc(json_array_size(all) + 1, sizeof(*rows));
    json_t *list = json_array();
    if (rows == NULL || list == NULL) {
        free(rows);
        json_decref(list);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the layers");
    }
    for (size_t i = 0; i < json_array_size(all); i++) {
        json_t *row = json_array_get(all, i);
        const char *name = json_string_value(json_object_get(row, "module"));
        if (module == NULL || (name != NULL && strcmp(name, module) == 0)) {
            rows[count++] = row;
        }
    }
    if (sort != NULL) {
        qsort_r(rows, count, sizeof(*rows), compare_layers, &order);
    }
    for (size_t i = 0; i < count; i++) {
        json_array_append(list, rows[i]);
    }
    free(rows);
    *out = list;
    return 0;
}

/* One line for each row. The caller frees it; NULL when out of memory. */
static char *lines_of(const json_t *rows, size_t *size)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, size);
    if (out == NULL) {
        return NULL;
    }
    bool whole = true;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        whole = json_dumpf(json_array_get(rows, i), out, JSON_COMPACT) == 0 && fputc('\n', out) != EOF && whole;
    }
    if (fclose(out) != 0 || !whole) {
        free(text);
        return NULL;
    }
    return text;
}

enum layer_format { LAYERS_JSON, LAYERS_CSV, LAYERS_NDJSON };

static int reply_layers_take(struct request *request, enum layer_format format, json_t *rows)
{
    if (format == LAYERS_JSON) {
        return reply_object_take(request, json_pack("{s:s, s:o, s:n, s:n, s:b}", "object", "list", "data", rows,
                                                    "first_id", "last_id", "has_more", 0));
    }
    size_t size = 0;
    char *text = format == LAYERS_CSV ? csv_write(service_layer_columns(), rows, &size) : lines_of(rows, &size);
    json_decref(rows);
    const char *type = format == LAYERS_CSV ? "text/csv; charset=utf-8" : "application/x-ndjson";
    return text != NULL ? reply_text_take(request, 200, type, text, size)
                        : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the layers");
}

int handlers_list_job_layers(struct request *request)
{
    AUTO_JSON json_t *all = NULL;
    json_t *rows = NULL;
    TRY(service_job_layers(request->context->service, request->who, request->captures[0], &all));
    int offer = request_offer(request);
    int rc = offer < 0 ? offer : select_layers(request, all, &rows);
    return rc < 0 ? rc : reply_layers_take(request, (enum layer_format)offer, rows);
}
