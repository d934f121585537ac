/* Every route of the API, in the order of the documentation, and the matcher.
 *
 * Matching is a linear search: the table is short, and hostile paths cannot make it slow. Fixed segments are compared
 * undecoded, captured ones are decoded once; the guard has already refused escapes that could change the structure. */

#include "api/routes.h"

#include "api/guard.h"
#include "api/handlers.h"
#include "api/header.h"
#include "base/cleanup.h"
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
    {"purpose", QUERY_ENUM, 0, 0, purposes, "Only files with this purpose."},
    {0},
};

static const struct query_row file_create_query[] = {
    {"purpose", QUERY_ENUM, 0, 0, purposes, "Purpose of the file; required."},
    {"name", QUERY_STRING, 0, 0, NULL, "Name of the file, for display."},
    {0},
};

static const struct query_row job_list_query[] = {
    QUERY_PAGE_ROWS,
    {"status", QUERY_ENUM, 0, 0, statuses, "Only jobs with this status."},
    {"method", QUERY_STRING, 0, 0, NULL, "Only jobs with this quantization method."},
    {"model_id", QUERY_STRING, 0, 0, NULL, "Only jobs for this model."},
    {"metadata", QUERY_METADATA, 0, 0, NULL, "Only jobs with this metadata value: metadata[key]=value."},
    {"created_after", QUERY_INT, 0, INT64_MAX, NULL, "Only jobs created after this Unix time, in seconds."},
    {0},
};

static const struct query_row calibration_query[] = {
    {"offset", QUERY_INT, 0, INT64_MAX, NULL, "Number of records accepted so far; a different number is refused."},
    {"complete", QUERY_FLAG, 0, 0, NULL, "Whether this is the last upload, after which the job is queued."},
    {0},
};

static const struct query_row event_query[] = {
    {"after", QUERY_INT, 0, INT64_MAX, NULL, "Only events after this sequence number."},
    {"limit", QUERY_INT, 1, 100, NULL, "Maximum number of events in a page of the JSON list; 20 by default."},
    {0},
};

static const struct query_row layer_query[] = {
    {"sort", QUERY_STRING, 0, 0, NULL,
     "Column to sort by, or -column for descending order. In report order by default."},
    {"module", QUERY_STRING, 0, 0, NULL, "Only the row of this module."},
    {0},
};

static const struct query_row artifact_list_query[] = {
    QUERY_PAGE_ROWS,
    {"job_id", QUERY_STRING, 0, 0, NULL, "Only artifacts of this job."},
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
    GET_AS("/livez", handlers_live, NULL, NULL, ROUTE_INLINE, "Liveness: the event loop is running."),
    GET_AS("/readyz", handlers_ready, NULL, NULL, 0,
           "Readiness: the store responds, the disk has free space, and no shutdown is in progress."),
    GET("/openapi.json", handlers_openapi, NULL, 0, "This OpenAPI document."),
    GET("/v1/system", handlers_system, NULL, 0, "Version, build, devices, limits and artifact formats."),
    GET("/v1/methods", handlers_methods, NULL, 0,
        "List the quantization methods, with the JSON Schema of their parameters."),
    GET("/v1/methods/{name}", handlers_method, NULL, 0, "Get one quantization method."),

    POST_JSON("/v1/models", handlers_model_create, ROUTE_IDEMPOTENT | ROUTE_NEW_WORK | ROUTE_ADMITS,
              "Register a checkpoint."),
    GET("/v1/models", handlers_model_list, page_query, 0, "List the registered checkpoints."),
    GET("/v1/models/{id}", handlers_model_get, NULL, 0,
        "Get a checkpoint: architecture, number of layers, size and digest."),
    DELETE("/v1/models/{id}", handlers_model_delete, "Unregister a checkpoint; its files are not deleted."),

    POST_SINK("/v1/files", &handlers_file_sink, accepts_file, file_create_query, 0,
              "Store the request body as a data set."),
    GET("/v1/files", handlers_file_list, file_list_query, 0, "List the stored data sets."),
    GET("/v1/files/{id}", handlers_file_get, NULL, 0, "Get the description of a data set."),
    GET_AS("/v1/files/{id}/content", handlers_file_content, NULL, NULL, ROUTE_STREAMS,
           "Download a data set; supports range requests."),
    DELETE("/v1/files/{id}", handlers_file_delete, "Delete a data set that no unfinished job uses."),

    POST_JSON("/v1/quantization/jobs", handlers_job_create, ROUTE_IDEMPOTENT | ROUTE_NEW_WORK | ROUTE_ADMITS,
              "Create a quantization job."),
    GET("/v1/quantization/jobs", handlers_job_list, job_list_query, 0, "List jobs, newest first."),
    GET("/v1/quantization/jobs/{id}", handlers_job_get, NULL, 0,
        "Get a job; with Prefer: wait=N, wait up to N seconds for it to change."),
    DELETE("/v1/quantization/jobs/{id}", handlers_job_delete, "Delete a job that has ended."),
    POST_SINK("/v1/quantization/jobs/{id}/calibration", &handlers_calibration_sink, accepts_records, calibration_query,
              ROUTE_HEAVY, "Upload calibration records to a job."),
    {.method = "POST",
     .path = "/v1/quantization/jobs/{id}/cancel",
     .handle = handlers_job_cancel,
     .body = ROUTE_BODY_MAYBE,
     .body_max = JSON_MAX,
     .accepts = accepts_json,
     .produces = accepts_json,
     .summary = "Cancel a job."},
    GET_AS("/v1/quantization/jobs/{id}/events", handlers_job_events, event_types, event_query, 0,
           "Get the events of a job, as a JSON list, server-sent events or NDJSON depending on Accept."),
    GET_AS("/v1/quantization/jobs/{id}/layers", handlers_job_layers, layer_types, layer_query, 0,
           "Get the report's rows per module, as JSON, CSV or NDJSON depending on Accept."),
    GET("/v1/quantization/jobs/{id}/report", handlers_job_report, NULL, 0, "Get the complete report of a job."),

    GET("/v1/artifacts", handlers_artifact_list, artifact_list_query, 0, "List the published artifacts."),
    GET("/v1/artifacts/{id}", handlers_artifact_get, NULL, 0, "Get the manifest of an artifact."),
    DELETE("/v1/artifacts/{id}", handlers_artifact_delete, "Delete an artifact."),
    GET_AS("/v1/artifacts/{id}/files/{path*}", handlers_artifact_file, NULL, NULL, ROUTE_STREAMS,
           "Download a file of an artifact; supports range requests."),
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
    AUTO_FREE char *plain = malloc(size + 1);
    return plain != NULL && header_percent_decode(text, size, false, plain, size + 1) ? MOVE(plain) : NULL;
}

/* Whether the undecoded path matches the pattern. Captures are filled in, and freed again on a mismatch. */
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
        return err_raise(ERR_NOT_FOUND, "this path does not exist; GET /openapi.json lists the paths");
    }
    *allow = strdup(methods);
    return err_raise(ERR_METHOD_NOT_ALLOWED, "this path allows %s", methods);
}
