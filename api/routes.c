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
#include "base/model_signature.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JSON_MAX ((int64_t)1 << 20)
#define FILE_MAX ((int64_t)64 << 30)

static const char *const json_types[] = {"application/json", NULL};
static const char *const byte_types[] = {"application/octet-stream", "application/json", NULL};
static const char *const page_types[] = {"text/html", NULL};
static const char *const asset_types[] = {"text/javascript", "text/css", "text/html", "image/svg+xml", NULL};
static const char *const text_types[] = {"text/plain", NULL};
static const char *const signature_types[] = {MODEL_SIGNATURE_TYPE, NULL};
static const char *const tar_types[] = {"application/x-tar", NULL};
static const char *const manifest_types[] = {SERVICE_OCI_MANIFEST_TYPE, NULL};
static const char *const config_types[] = {SERVICE_OCI_CONFIG_TYPE, NULL};
static const char *const event_types[] = {"application/json", "text/event-stream", "application/x-ndjson", NULL};
static const char *const layer_types[] = {"application/json", "text/csv", "application/x-ndjson", NULL};
static const char *const record_types[] = {"application/x-ndjson", "application/jsonl", "application/octet-stream",
                                           NULL};
static const char *const piece_types[] = {"application/partial-upload", "application/octet-stream", NULL};
static const char *const file_types[] = {"application/octet-stream", "application/x-ndjson", "application/jsonl", NULL};

static const char *const purposes[] = {"calibration", "evaluation", "model", NULL};
static const char *const booleans[] = {"?0", "?1", NULL}; /* of structured fields (RFC 9651) */
static const char *const waits[] = {"change", "terminal", NULL};

/* --- parameters of queries */

static const struct query_row model_list_query[] = {QUERY_PAGE_ROWS("mdl"), QUERY_END};

static const struct query_row file_list_query[] = {
    QUERY_PAGE_ROWS("file"),
    QUERY_ROW("purpose", ENUM, "Only files with this purpose.", .choices = purposes),
    QUERY_END,
};

static const struct query_row file_create_query[] = {
    QUERY_ROW("purpose", ENUM, "Purpose of the file: calibration, evaluation, or model.", .choices = purposes,
              .required = true),
    QUERY_ROW("name", STRING, "Name of the file, for display."),
    QUERY_END,
};

static const struct query_row upload_list_query[] = {QUERY_PAGE_ROWS("upl"), QUERY_END};

static const struct query_row job_list_query[] = {
    QUERY_PAGE_ROWS("job"),
    QUERY_ROW("status", ENUM, "Only jobs with this status.", .choices = schema_job_statuses),
    QUERY_ROW("method", STRING, "Only jobs with this quantization method."),
    QUERY_ROW("model_id", ID, "Only jobs for this model.", .kind = "mdl"),
    QUERY_ROW("metadata", METADATA, "Only jobs with this metadata value: metadata[key]=value."),
    QUERY_ROW("created_after", INT, "Only jobs created after this Unix time, in seconds.", .min = 0, .max = INT64_MAX),
    QUERY_END,
};

static const struct query_row job_query[] = {
    QUERY_ROW("wait_for", ENUM,
              "Hold the request until the job changes, or has ended (terminal): as long as Prefer says, or 60 seconds.",
              .choices = waits),
    QUERY_END,
};

static const struct query_row compare_query[] = {
    QUERY_ROW("jobs", STRING, "2 to 8 ids of jobs, separated by commas.", .required = true),
    QUERY_END,
};

static const struct query_row calibration_query[] = {
    QUERY_ROW("offset", INT, "Number of records accepted so far; a different number is refused.", .min = 0,
              .max = INT64_MAX),
    QUERY_ROW("complete", FLAG, "Whether this is the last upload, after which the job is queued."),
    QUERY_END,
};

static const struct query_row event_query[] = {
    QUERY_ROW("after", INT, "Only events after this sequence number.", .min = 0, .max = INT64_MAX),
    QUERY_ROW("limit", INT, "Maximum number of events in a page of the JSON list; 20 by default.", .min = 1,
              .max = 100),
    QUERY_END,
};

static const struct query_row layer_query[] = {
    QUERY_ROW("sort", COLUMN, "Column to sort by, or -column for descending order. In report order by default.",
              .columns = service_layer_columns),
    QUERY_ROW("module", STRING, "Only the row of this module."),
    QUERY_END,
};

static const struct query_row artifact_list_query[] = {
    QUERY_PAGE_ROWS("art"),
    QUERY_ROW("job_id", ID, "Only artifacts of this job.", .kind = "job"),
    QUERY_END,
};

static const struct query_row project_list_query[] = {
    QUERY_ROW("limit", INT, "Maximum number of projects in the page; 20 by default.", .min = 1, .max = 100),
    QUERY_ROW("after", CURSOR, "Projects whose names follow this one.", .kind = NULL),
    QUERY_ROW("before", CURSOR, "Projects whose names precede this one.", .kind = NULL),
    QUERY_END,
};

static const struct query_row key_list_query[] = {QUERY_PAGE_ROWS("key"), QUERY_END};

static const struct query_row webhook_list_query[] = {QUERY_PAGE_ROWS("wh"), QUERY_END};

static const struct query_row delivery_list_query[] = {
    QUERY_PAGE_ROWS("msg"),
    QUERY_ROW("status", ENUM, "Only deliveries with this status.", .choices = schema_delivery_statuses),
    QUERY_ROW("job_id", ID, "Only deliveries about this job.", .kind = "job"),
    QUERY_END,
};

/* --- headers */

static const struct query_row every_headers[] = {
    QUERY_ROW("X-Request-Id", STRING, "The request's id in the answer and the log; made up when it is absent."),
    QUERY_ROW("traceparent", STRING, "The caller's trace (W3C Trace Context): in the log, and kept with a job."),
    QUERY_ROW("tracestate", STRING, "More of that trace; ignored without traceparent."),
    QUERY_END,
};
static const struct query_row idempotent_headers[] = {
    QUERY_ROW("Idempotency-Key", VISIBLE,
              "A repeated request with the same key and body gets the response of the first."),
    QUERY_END,
};
static const struct query_row object_headers[] = {
    QUERY_ROW("If-None-Match", STRING, "Answer 304 while the object has this entity tag."),
    QUERY_END,
};
static const struct query_row byte_headers[] = {
    QUERY_ROW("Range", STRING, "One range of bytes: bytes=FIRST-LAST."),
    QUERY_ROW("If-Range", STRING, "Ignore Range when the file has another entity tag."),
    QUERY_ROW("If-Match", STRING, "Answer 412 when the file has another entity tag."),
    QUERY_ROW("If-None-Match", STRING, "Answer 304 when the file has this entity tag."),
    QUERY_END,
};
static const struct query_row file_create_headers[] = {
    QUERY_ROW("Content-Digest", STRING, "sha-256=:BASE64: of the body, which is checked (RFC 9530)."),
    QUERY_END,
};
static const struct query_row upload_create_headers[] = {
    QUERY_ROW("Upload-Length", INT, "Number of bytes of the file.", .min = 0, .max = INT64_MAX, .required = true),
    QUERY_ROW("Upload-Complete", ENUM, "?0: the bytes follow by PATCH.", .choices = booleans),
    QUERY_END,
};
static const struct query_row upload_headers[] = {
    QUERY_ROW("Upload-Offset", INT, "Where the piece begins: the offset that HEAD gives.", .min = 0, .max = INT64_MAX,
              .required = true),
    QUERY_ROW("Upload-Complete", ENUM, "?1 with the last piece, ?0 with others.", .choices = booleans,
              .required = true),
    QUERY_ROW("Content-Digest", STRING,
              "sha-256=:BASE64: of the piece, which then counts only if it matches (RFC 9530)."),
    QUERY_END,
};
static const struct query_row job_headers[] = {
    QUERY_ROW("Prefer", STRING, "wait=N: answer when the job changes, after N seconds (at most 60) at the latest."),
    QUERY_END,
};
static const struct query_row mcp_headers[] = {
    QUERY_ROW("MCP-Protocol-Version", STRING, "2025-11-25 or 2025-06-18."),
    QUERY_END,
};
static const struct query_row dashboard_headers[] = {
    QUERY_ROW("Accept-Encoding", STRING, "gzip: the file is sent compressed."),
    QUERY_END,
};
static const struct query_row event_headers[] = {
    QUERY_ROW("Last-Event-ID", EVENT, "Only events after this one; in place of the parameter after."),
    QUERY_END,
};

/* --- the rows */

#define OBJECT(object_) OBJECT_AS(object_, json_types)
#define OBJECT_AS(object_, types_) .reply = ROUTE_REPLY_OBJECT, .answer = (object_), .produces = (types_)
#define VALUE(object_) VALUE_AS(object_, json_types)
#define VALUE_AS(object_, types_) .reply = ROUTE_REPLY_VALUE, .answer = (object_), .produces = (types_)
#define CREATED(object_) .reply = ROUTE_REPLY_CREATED, .answer = (object_), .produces = json_types
#define ACCEPTED(object_) .reply = ROUTE_REPLY_ACCEPTED, .answer = (object_), .produces = json_types
#define MESSAGE(object_) .reply = ROUTE_REPLY_MESSAGE, .answer = (object_), .produces = json_types
#define APPENDED(object_) .reply = ROUTE_REPLY_APPENDED, .answer = (object_), .produces = json_types
#define DELETED .reply = ROUTE_REPLY_DELETED
#define BYTES BYTES_AS(byte_types)
#define BYTES_AS(types_) .reply = ROUTE_REPLY_BYTES, .produces = (types_), .flags = ROUTE_STREAMS | ROUTE_ANY_ACCEPT
#define MADE_BYTES \
    .reply = ROUTE_REPLY_BYTES, .produces = tar_types, .flags = ROUTE_STREAMS | ROUTE_ANY_ACCEPT | ROUTE_MADE
#define JSON_BODY(object_) .body = ROUTE_BODY_JSON, .body_max = JSON_MAX, .accepts = json_types, .request = (object_)
#define JSON_BODY_OPTIONAL(object_) \
    .body = ROUTE_BODY_MAYBE, .body_max = JSON_MAX, .accepts = json_types, .request = (object_)
#define RECORDS(types_) .body = ROUTE_BODY_SINK, .body_max = FILE_MAX, .accepts = (types_)
#define ERRORS(...)         \
    .errors = (const int[]) \
    {                       \
        __VA_ARGS__, 0      \
    }

#define ROW(method_, path_, operation_, tag_, scope_, summary_, ...)                        \
    .method = #method_, .path = (path_), .operation = #operation_, .tag = ROUTE_TAG_##tag_, \
    .scope = ROUTE_SCOPE_##scope_, .summary = (summary_), __VA_ARGS__
#define ROUTE(method_, path_, operation_, ...) \
    {ROW(method_, path_, operation_, __VA_ARGS__), .handle = handlers_##operation_},
#define UPLOAD(method_, path_, operation_, ...) \
    {ROW(method_, path_, operation_, __VA_ARGS__), .sink = &handlers_##operation_##_sink},

const struct route routes_table[] = {
#include "api/route_rows.def"
    {0},
};

static const struct route_argument route_arguments[] = {
    {"model_id", "mdl", NULL, "Id of a model."},
    {"file_id", "file", NULL, "Id of a file."},
    {"upload_id", "upl", NULL, "Id of an upload."},
    {"job_id", "job", NULL, "Id of a job."},
    {"artifact_id", "art", NULL, "Id of an artifact."},
    {"key_id", "key", NULL, "Id of an API key."},
    {"project", NULL, QUERY_NAME_PATTERN, "Name of a project."},
    {"webhook_id", "wh", NULL, "Id of a webhook."},
    {"delivery_id", "msg", NULL, "Id of a delivery: the header webhook-id."},
    {"name", NULL, "^[a-z0-9_]{1,31}$", "Name of a method."},
    {"asset", NULL, "^[a-z0-9_./-]{1,64}$", "Name of a file of the dashboard."},
    {"path", NULL, "^[^\\\\%\\x00-\\x1f\\x7f]{1,256}$", "Name of a file of the artifact, as its manifest has it."},
};

const char *routes_scope_name(enum route_scope scope)
{
    static const char *const names[] = {[ROUTE_SCOPE_NONE] = "none",
                                        [ROUTE_SCOPE_READ] = "read",
                                        [ROUTE_SCOPE_WRITE] = "write",
                                        [ROUTE_SCOPE_ADMIN] = "admin"};
    return names[scope];
}

const struct route_argument *routes_argument(const char *name, size_t size)
{
    for (size_t i = 0; i < sizeof(route_arguments) / sizeof(route_arguments[0]); i++) {
        const struct route_argument *argument = &route_arguments[i];
        if (strncmp(argument->name, name, size) == 0 && argument->name[size] == '\0') {
            return argument;
        }
    }
    return NULL;
}

static void each_row(const struct query_row *rows, void (*each)(void *data, const struct query_row *header), void *data)
{
    for (; rows != NULL && rows->name != NULL; rows++) {
        each(data, rows);
    }
}

void routes_each_header(const struct route *route, void (*each)(void *data, const struct query_row *header), void *data)
{
    each_row(every_headers, each, data);
    each_row((route->flags & ROUTE_IDEMPOTENT) != 0 ? idempotent_headers : NULL, each, data);
    each_row(route->reply == ROUTE_REPLY_OBJECT  ? object_headers
             : route->reply == ROUTE_REPLY_BYTES ? byte_headers
                                                 : NULL,
             each, data);
    each_row(route->headers, each, data);
}

/* Errors that follow from what a row is; 0 at the end. The first are those of any request. */
static const int every_errors[] = {ERR_BAD_REQUEST,
                                   ERR_UNKNOWN_PARAMETER,
                                   ERR_INVALID_PARAMETER,
                                   ERR_FORBIDDEN_HOST,
                                   ERR_REQUEST_TIMEOUT,
                                   ERR_INTERNAL,
                                   ERR_HOST_OUT_OF_MEMORY,
                                   ERR_DRAINING,
                                   ERR_QUEUE_FULL,
                                   ERR_NO_DESCRIPTORS,
                                   ERR_STORAGE,
                                   ERR_STORAGE_UNAVAILABLE,
                                   0};
static const int key_errors[] = {ERR_INVALID_API_KEY, ERR_INSUFFICIENT_SCOPE, ERR_RATE_LIMITED, 0};
static const int argument_errors[] = {ERR_NOT_FOUND, 0};
static const int offer_errors[] = {ERR_NOT_ACCEPTABLE, 0};
static const int body_errors[] = {ERR_LENGTH_REQUIRED, ERR_PAYLOAD_TOO_LARGE, ERR_UNSUPPORTED_MEDIA_TYPE, 0};
static const int json_errors[] = {ERR_INVALID_JSON, ERR_MISSING_PARAMETER, 0};
static const int write_errors[] = {ERR_DISK_FULL, 0};
static const int idempotent_errors[] = {ERR_IDEMPOTENCY_IN_PROGRESS, ERR_IDEMPOTENCY_KEY_REUSED, 0};
static const int byte_errors[] = {ERR_PRECONDITION_FAILED, ERR_RANGE_NOT_SATISFIABLE, 0};

static void each_code(bool applies, const int *codes, void (*each)(void *data, int code), void *data)
{
    for (; applies && codes != NULL && *codes != 0; codes++) {
        each(data, *codes);
    }
}

void routes_each_error(const struct route *route, void (*each)(void *data, int code), void *data)
{
    bool json = route->body == ROUTE_BODY_JSON || route->body == ROUTE_BODY_MAYBE;
    each_code(true, every_errors, each, data);
    each_code(route->scope != ROUTE_SCOPE_NONE, key_errors, each, data);
    each_code(strchr(route->path, '{') != NULL, argument_errors, each, data);
    each_code(route->produces != NULL && (route->flags & ROUTE_ANY_ACCEPT) == 0, offer_errors, each, data);
    each_code(route->body != ROUTE_BODY_NONE, body_errors, each, data);
    each_code(json, json_errors, each, data);
    each_code(strcmp(route->method, "GET") != 0, write_errors, each, data);
    each_code((route->flags & ROUTE_IDEMPOTENT) != 0, idempotent_errors, each, data);
    each_code(route->reply == ROUTE_REPLY_BYTES, byte_errors, each, data);
    each_code(true, route->errors, each, data);
}

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

/* Whether each captured argument can be what its name says. */
static bool arguments_fit(const char *pattern, char *const captures[REQUEST_CAPTURES])
{
    int count = 0;
    for (const char *at = strchr(pattern, '{'); at != NULL; at = strchr(at + 1, '{')) {
        const struct route_argument *argument = routes_argument(at + 1, strcspn(at + 1, "*}"));
        if (argument->kind != NULL && !id_valid(captures[count], argument->kind)) {
            return false;
        }
        count++;
    }
    return true;
}

/* A row of GET answers HEAD, where no row does. */
static bool has_method(const struct route *row, const char *method)
{
    return strcmp(row->method, method) == 0 || (strcmp(method, "HEAD") == 0 && strcmp(row->method, "GET") == 0);
}

int routes_match(const char *method, const char *path, const struct route **route, char *captures[REQUEST_CAPTURES],
                 char **allow)
{
    char methods[64] = "";
    for (const struct route *row = routes_table; row->method != NULL; row++) {
        if (!match_path(row->path, path, captures)) {
            continue;
        }
        bool fits = has_method(row, method) && arguments_fit(row->path, captures);
        if (fits) {
            *route = row;
            return 0;
        }
        drop_captures(captures);
        if (has_method(row, method)) {
            return err_raise(ERR_NOT_FOUND, "there is no object with this id");
        }
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
