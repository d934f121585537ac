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
#define COMPARE_MIN 2
#define COMPARE_MAX 8

int handlers_create_job(struct request *request)
{
    json_t *job = NULL;
    int rc = service_job_create(request->context->service, request->who, request->json, &request->trace,
                                request_idempotency_key(request), &request->scratch->errors, &job);
    return rc < 0 ? rc : reply_created_take(request, "/v1/quantization/jobs", job);
}

int handlers_create_estimate(struct request *request)
{
    json_t *estimate = NULL;
    TRY(service_estimate(request->context->service, request->who, request->json, &request->scratch->errors, &estimate));
    return reply_json_take(request, 200, estimate);
}

int handlers_create_recommendation(struct request *request)
{
    json_t *recommendation = NULL;
    TRY(service_recommend(request->context->service, request->who, request->json, &request->scratch->errors,
                          &recommendation));
    return reply_json_take(request, 200, recommendation);
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

/* Of a cancellation and a pause. The first acts within seconds either way. */
struct mode {
    int mode;
};
#define MODE_NOW 1 /* of the names below */
static const char *const modes[] = {"layer", "now", NULL};
static const struct params_row mode_rows[] = {
    {.name = "mode",
     .type = PARAMS_ENUM,
     .offset = offsetof(struct mode, mode),
     .size = sizeof(int),
     .fallback = "\"layer\"",
     .choices = modes,
     .help = "now: drop what the job is at; layer: finish the open block first. A cancellation acts within seconds "
             "either way."},
    {.name = NULL},
};
static const struct params_row *const mode_tables[] = {mode_rows, NULL};
const struct schema schema_cancel_request = {.name = "CancelRequest", .tables = mode_tables};
const struct schema schema_pause_request = {.name = "PauseRequest", .tables = mode_tables};

int handlers_cancel_job(struct request *request)
{
    json_t *job = NULL;
    struct mode mode = {0};
    TRY(params_parse(mode_tables, request->json, "", &mode, &request->scratch->errors));
    TRY(service_job_cancel(request->context->service, request->who, request->captures[0], &job));
    return reply_json_take(request, 202, job);
}

int handlers_pause_job(struct request *request)
{
    json_t *job = NULL;
    struct mode mode = {0};
    TRY(params_parse(mode_tables, request->json, "", &mode, &request->scratch->errors));
    TRY(service_job_pause(request->context->service, request->who, request->captures[0], mode.mode == MODE_NOW, &job));
    return reply_json_take(request, 202, job);
}

int handlers_resume_job(struct request *request)
{
    json_t *job = NULL;
    TRY(service_job_resume(request->context->service, request->who, request->captures[0], &job));
    return reply_json_take(request, 202, job);
}

int handlers_retry_job(struct request *request)
{
    json_t *job = NULL;
    TRY(service_job_retry(request->context->service, request->who, request->captures[0], request->json,
                          &request->scratch->errors, &job));
    return reply_json_take(request, 202, job);
}

int handlers_update_job(struct request *request)
{
    json_t *job = NULL;
    TRY(service_job_change(request->context->service, request->who, request->captures[0], request->json,
                           &request->scratch->errors, &job));
    return reply_json_take(request, 200, job);
}

/* "a,b,c" as ids; -1 when one is none, is there twice, or there are too many. */
static int split_ids(const char *text, char ids[COMPARE_MAX][ID_SIZE])
{
    int count = 0;
    for (const char *at = text; at != NULL; at = strchr(at, ',')) {
        at += *at == ',';
        size_t size = strcspn(at, ",");
        if (count == COMPARE_MAX || size >= ID_SIZE) {
            return -1;
        }
        (void)snprintf(ids[count], ID_SIZE, "%.*s", (int)size, at);
        for (int i = 0; i < count; i++) {
            if (strcmp(ids[i], ids[count]) == 0) {
                return -1;
            }
        }
        if (!id_valid(ids[count++], "job")) {
            return -1;
        }
    }
    return count;
}

int handlers_compare_jobs(struct request *request)
{
    char ids[COMPARE_MAX][ID_SIZE];
    json_t *comparison = NULL;
    int count = split_ids(query_text(&request->scratch->query, "jobs"), ids);
    if (count < COMPARE_MIN) {
        validation_add(&request->scratch->errors, ERR_INVALID_PARAMETER, "?jobs",
                       "\"jobs\" must be %d to %d different ids of jobs (job_...), separated by commas", COMPARE_MIN,
                       COMPARE_MAX);
        return validation_raise(&request->scratch->errors);
    }
    const char *list[COMPARE_MAX];
    for (int i = 0; i < count; i++) {
        list[i] = ids[i];
    }
    TRY(service_jobs_compare(request->context->service, request->who, list, count, &comparison));
    return reply_object_take(request, comparison);
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
