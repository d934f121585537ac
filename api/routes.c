/* Every route of the API, in the order of the documentation, and the matcher.
 *
 * Matching is a walk: the table is short and hostile paths cannot make it slow. Fixed segments are compared as they
 * stand, captured ones are decoded once; the guard has already refused escapes that could change the structure. */

#include "api/routes.h"

#include "api/guard.h"
#include "api/handlers.h"
#include "api/header.h"
#include "base/err.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JSON_MAX ((int64_t)1 << 20)
#define FILE_MAX ((int64_t)64 << 30)

static const char *const accepts_json[] = {"application/json", NULL};
static const char *const event_types[] = {"application/json", "text/event-stream", "application/x-ndjson", NULL};
static const char *const layer_types[] = {"application/json", "text/csv", "application/x-ndjson", NULL};
static const char *const accepts_records[] = {"application/x-ndjson", "application/jsonl", NULL};
static const char *const accepts_file[] = {"application/octet-stream", "application/x-ndjson", "application/jsonl",
                                           NULL};

static const char *const purposes[] = {"calibration", "evaluation", NULL};
static const char *const statuses[] = {
    "awaiting_calibration", "queued", "running", "cancelling", "succeeded", "failed", "cancelled", NULL};

static const struct query_row page_query[] = {QUERY_PAGE_ROWS, {0}};

static const struct query_row file_list_query[] = {
    QUERY_PAGE_ROWS,
    {"purpose", QUERY_ENUM, 0, 0, purposes, "Only files of this purpose."},
    {0},
};

static const struct query_row file_create_query[] = {
    {"purpose", QUERY_ENUM, 0, 0, purposes, "What the file is for; required."},
    {"name", QUERY_STRING, 0, 0, NULL, "A name to know it by."},
    {0},
};

static const struct query_row job_list_query[] = {
    QUERY_PAGE_ROWS,
    {"status", QUERY_ENUM, 0, 0, statuses, "Only jobs in this status."},
    {"method", QUERY_STRING, 0, 0, NULL, "Only jobs of this method."},
    {"model_id", QUERY_STRING, 0, 0, NULL, "Only jobs on this model."},
    {"metadata", QUERY_METADATA, 0, 0, NULL, "Only jobs whose metadata has this value: metadata[key]=value."},
    {"created_after", QUERY_INT, 0, INT64_MAX, NULL, "Only jobs created after this Unix second."},
    {0},
};

static const struct query_row calibration_query[] = {
    {"offset", QUERY_INT, 0, INT64_MAX, NULL, "Records accepted so far; a wrong one is refused."},
    {"complete", QUERY_FLAG, 0, 0, NULL, "This is the last upload: queue the job."},
    {0},
};

static const struct query_row event_query[] = {
    {"after", QUERY_INT, 0, INT64_MAX, NULL, "Events after this sequence number."},
    {"limit", QUERY_INT, 1, 100, NULL, "Events a page of the JSON list; 20 when not given."},
    {0},
};

static const struct query_row layer_query[] = {
    {"sort", QUERY_STRING, 0, 0, NULL, "A column; -column sorts in falling order. Report order when not given."},
    {"module", QUERY_STRING, 0, 0, NULL, "Only the row of this module."},
    {0},
};

static const struct query_row artifact_list_query[] = {
    QUERY_PAGE_ROWS,
    {"job_id", QUERY_STRING, 0, 0, NULL, "Only what this job made."},
    {0},
};

#define GET_AS(path_, handler, produces_, query_, flags_, summary_)                                                 \
    {                                                                                                               \
        .method = "GET", .path = path_, .handle = handler, .produces = produces_, .query = query_, .flags = flags_, \
        .summary = summary_                                                                                         \
    }
#define GET(path_, handler, query_, flags_, summary_) GET_AS(path_, handler, accepts_json, query_, flags_, summary_)
#define DELETE(path_, handler, summary_)                                          \
    {                                                                             \
        .method = "DELETE", .path = path_, .handle = handler, .summary = summary_ \
    }
#define POST_JSON(path_, handler, flags_, summary_)                                                        \
    {                                                                                                      \
        .method = "POST", .path = path_, .handle = handler, .body = ROUTE_BODY_JSON, .body_max = JSON_MAX, \
        .accepts = accepts_json, .produces = accepts_json, .flags = flags_, .summary = summary_            \
    }
#define POST_SINK(path_, sink_, accepts_, query_, flags_, summary_)                                    \
    {                                                                                                  \
        .method = "POST", .path = path_, .body = ROUTE_BODY_SINK, .body_max = FILE_MAX, .sink = sink_, \
        .accepts = accepts_, .produces = accepts_json, .query = query_,                                \
        .flags = ROUTE_NEW_WORK | ROUTE_STREAMS | (flags_), .summary = summary_                        \
    }

const struct route routes_table[] = {
    GET_AS("/livez", handlers_live, NULL, NULL, ROUTE_INLINE, "The event loop ticks."),
    GET_AS("/readyz", handlers_ready, NULL, NULL, 0, "The store answers, the disk has room, no shutdown is under way."),
    GET("/openapi.json", handlers_openapi, NULL, 0, "This description of the API."),
    GET("/v1/system", handlers_system, NULL, 0, "Version, build, devices, limits, formats."),
    GET("/v1/methods", handlers_methods, NULL, 0, "Every method with the JSON Schema of its parameters."),
    GET("/v1/methods/{name}", handlers_method, NULL, 0, "One method."),

    POST_JSON("/v1/models", handlers_model_create, ROUTE_IDEMPOTENT | ROUTE_NEW_WORK | ROUTE_ADMITS,
              "Register a checkpoint."),
    GET("/v1/models", handlers_model_list, page_query, 0, "Registered checkpoints."),
    GET("/v1/models/{id}", handlers_model_get, NULL, 0, "One checkpoint: architecture, layers, bytes, digest."),
    DELETE("/v1/models/{id}", handlers_model_delete, "Forget a checkpoint; its files stay."),

    POST_SINK("/v1/files", &handlers_file_sink, accepts_file, file_create_query, 0,
              "Store a data set from the raw body."),
    GET("/v1/files", handlers_file_list, file_list_query, 0, "Stored data sets."),
    GET("/v1/files/{id}", handlers_file_get, NULL, 0, "One data set's description."),
    GET_AS("/v1/files/{id}/content", handlers_file_content, NULL, NULL, ROUTE_STREAMS, "A data set's bytes; ranges."),
    DELETE("/v1/files/{id}", handlers_file_delete, "Delete a data set that no open job needs."),

    POST_JSON("/v1/quantization/jobs", handlers_job_create, ROUTE_IDEMPOTENT | ROUTE_NEW_WORK | ROUTE_ADMITS,
              "Create a job."),
    GET("/v1/quantization/jobs", handlers_job_list, job_list_query, 0, "Jobs, newest first."),
    GET("/v1/quantization/jobs/{id}", handlers_job_get, NULL, 0, "One job; Prefer: wait=N holds until it changes."),
    DELETE("/v1/quantization/jobs/{id}", handlers_job_delete, "Delete a job that has ended."),
    POST_SINK("/v1/quantization/jobs/{id}/calibration", &handlers_calibration_sink, accepts_records, calibration_query,
              ROUTE_HEAVY, "Stream calibration records into a job."),
    {.method = "POST",
     .path = "/v1/quantization/jobs/{id}/cancel",
     .handle = handlers_job_cancel,
     .body = ROUTE_BODY_MAYBE,
     .body_max = JSON_MAX,
     .accepts = accepts_json,
     .produces = accepts_json,
     .summary = "Cancel a job."},
    GET_AS("/v1/quantization/jobs/{id}/events", handlers_job_events, event_types, event_query, 0,
           "Events as a list, server-sent events or NDJSON, by Accept."),
    GET_AS("/v1/quantization/jobs/{id}/layers", handlers_job_layers, layer_types, layer_query, 0,
           "Report rows as JSON, CSV or NDJSON, by Accept."),
    GET("/v1/quantization/jobs/{id}/report", handlers_job_report, NULL, 0, "The whole report."),

    GET("/v1/artifacts", handlers_artifact_list, artifact_list_query, 0, "Published artifacts."),
    GET("/v1/artifacts/{id}", handlers_artifact_get, NULL, 0, "One artifact's manifest."),
    DELETE("/v1/artifacts/{id}", handlers_artifact_delete, "Delete an artifact."),
    GET_AS("/v1/artifacts/{id}/files/{path*}", handlers_artifact_file, NULL, NULL, ROUTE_STREAMS,
           "A file's bytes; ranges."),
    {0},
};

static void drop_captures(char *captures[REQUEST_CAPTURES])
{
    for (int i = 0; i < REQUEST_CAPTURES; i++) {
        free(captures[i]);
        captures[i] = NULL;
    }
}

static char *decode(const char *text, size_t size)
{
    char *plain = malloc(size + 1);
    if (plain != NULL && !header_percent_decode(text, size, false, plain, size + 1)) {
        free(plain);
        return NULL;
    }
    return plain;
}

/* Does the raw path fit the pattern? Captures are filled on the way and dropped on a mismatch. */
static bool match_path(const char *pattern, const char *path, char *captures[REQUEST_CAPTURES])
{
    int count = 0;
    while (*pattern == '/' && *path == '/') {
        size_t name = strcspn(++pattern, "/"), segment = strcspn(++path, "/");
        bool rest = name > 2 && pattern[name - 2] == '*';
        if (pattern[0] == '{') {
            segment = rest ? strlen(path) : segment;
            captures[count] = segment > 0 ? decode(path, segment) : NULL;
            if (captures[count++] == NULL) {
                break;
            }
        } else if (name != segment || memcmp(pattern, path, name) != 0) {
            break;
        }
        pattern += name;
        path += segment;
        if (*pattern == '\0' && *path == '\0') {
            return true;
        }
    }
    drop_captures(captures);
    return false;
}

int routes_match(const char *method, const char *path, const struct route **route, char *captures[REQUEST_CAPTURES],
                 char **allow)
{
    char methods[64] = "";
    bool head = strcmp(method, "HEAD") == 0;
    for (const struct route *row = routes_table; row->method != NULL; row++) {
        if (!match_path(row->path, path, captures)) {
            continue;
        }
        if (strcmp(row->method, head ? "GET" : method) == 0) {
            *route = row;
            return 0;
        }
        drop_captures(captures);
        size_t used = strlen(methods);
        snprintf(methods + used, sizeof(methods) - used, "%s%s%s", used > 0 ? ", " : "", row->method,
                 strcmp(row->method, "GET") == 0 ? ", HEAD" : "");
    }
    if (methods[0] == '\0') {
        return err_raise(ERR_NOT_FOUND, "there is no such path");
    }
    *allow = strdup(methods);
    return err_raise(ERR_METHOD_NOT_ALLOWED, "this path takes %s", methods);
}
