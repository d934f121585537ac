/* Quotas of projects: read, set, and asked at admission.
 *
 * What is used is counted by the store, in the commits that change it. Whatever adds to it is checked and stored under
 * `admission`, so that two requests cannot both take what is left. Bytes are claimed in advance: an upload's by its
 * length, an artifact's by the estimate of its job. So an upload that was begun and a job that was accepted are never
 * refused for their bytes at the end. */

#include "jobs/quota.h"

#include "base/err.h"
#include "base/params.h"
#include "jobs/keys.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define QUOTA_JOBS_MAX ((int64_t)1000000)
#define QUOTA_BYTES_MAX ((int64_t)1 << 60)

static const struct {
    const char *name, *use;
    int64_t max;
} quotas[QUOTA_COUNT] = {
    [QUOTA_QUEUED_JOBS] = {"max_queued_jobs", "queued_jobs", QUOTA_JOBS_MAX},
    [QUOTA_RUNNING_JOBS] = {"max_running_jobs", "running_jobs", QUOTA_JOBS_MAX},
    [QUOTA_STORED_BYTES] = {"max_stored_bytes", "stored_bytes", QUOTA_BYTES_MAX},
    [QUOTA_UPLOAD_BYTES] = {"max_upload_bytes", "upload_bytes", QUOTA_BYTES_MAX},
};

/* --- what there is */

void quota_open(struct service *service, const struct project_limits *limits)
{
    const int64_t given[QUOTA_COUNT] = {
        [QUOTA_QUEUED_JOBS] = limits->queued_jobs,
        [QUOTA_RUNNING_JOBS] = limits->running_jobs,
        [QUOTA_STORED_BYTES] = limits->stored_bytes,
        [QUOTA_UPLOAD_BYTES] = limits->upload_bytes,
    };

    for (int i = 0; i < QUOTA_COUNT; i++) {
        service->quota_defaults[i] = given[i] > 0 ? given[i] : QUOTA_UNSET;
    }
    store_quota_defaults(service->store, service->quota_defaults);
}

int quota_read(struct service *service, const char *project, struct quota_state *out)
{
    TRY(store_quota_get(service->store, project, &out->row));
    for (int i = 0; i < QUOTA_COUNT; i++) {
        int64_t own = out->row.limits[i], limit = own != QUOTA_UNSET ? own : service->quota_defaults[i];
        out->allowed[i] = limit != QUOTA_UNSET ? limit : INT64_MAX;
    }
    return 0;
}

/* --- admission */

/* Stored, and claimed by what is not complete yet. */
static int64_t bytes_taken(const struct quota_state *state)
{
    return state->row.used[QUOTA_STORED_BYTES] + state->row.used[QUOTA_UPLOAD_BYTES] + state->row.reserved_bytes;
}

static int64_t bytes_left(const struct quota_state *state)
{
    int64_t allowed = state->allowed[QUOTA_STORED_BYTES], taken = bytes_taken(state);

    return allowed == INT64_MAX ? INT64_MAX : allowed > taken ? allowed - taken : 0;
}

static int check_stored(const struct quota_state *state, int64_t bytes)
{
    if (bytes <= bytes_left(state)) {
        return 0;
    }
    int rc = err_raise(ERR_QUOTA_EXCEEDED,
                       "%" PRId64 " more bytes would exceed the project's quota (max_stored_bytes) of %" PRId64
                       ": %" PRId64 " are stored, %" PRId64 " belong to unfinished uploads and %" PRId64
                       " to artifacts of jobs that have not ended",
                       bytes, state->allowed[QUOTA_STORED_BYTES], state->row.used[QUOTA_STORED_BYTES],
                       state->row.used[QUOTA_UPLOAD_BYTES], state->row.reserved_bytes);
    return err_set_hint(rc, "delete files, models, artifacts or uploads, or ask an administrator for a larger quota");
}

int quota_admit_job(struct service *service, const struct principal *who, int64_t artifact_bytes)
{
    struct quota_state state;

    TRY(quota_read(service, who->project, &state));
    if (state.row.used[QUOTA_QUEUED_JOBS] >= state.allowed[QUOTA_QUEUED_JOBS]) {
        int rc = err_raise(ERR_QUOTA_EXCEEDED,
                           "%" PRId64 " jobs of this project wait; its quota (max_queued_jobs) is %" PRId64,
                           state.row.used[QUOTA_QUEUED_JOBS], state.allowed[QUOTA_QUEUED_JOBS]);
        return err_set_hint(rc, "wait until one has started, or cancel one");
    }
    return artifact_bytes > 0 ? check_stored(&state, artifact_bytes) : 0;
}

int quota_admit_file(struct service *service, const struct principal *who, int64_t bytes)
{
    struct quota_state state;

    TRY(quota_read(service, who->project, &state));
    return check_stored(&state, bytes);
}

int quota_admit_upload(struct service *service, const struct principal *who, int64_t bytes)
{
    struct quota_state state;

    TRY(quota_read(service, who->project, &state));
    int64_t used = state.row.used[QUOTA_UPLOAD_BYTES], allowed = state.allowed[QUOTA_UPLOAD_BYTES];
    if (allowed != INT64_MAX && bytes > (allowed > used ? allowed - used : 0)) {
        int rc = err_raise(ERR_QUOTA_EXCEEDED,
                           "%" PRId64 " more bytes would exceed the project's quota (max_upload_bytes) of %" PRId64
                           ": its unfinished uploads have %" PRId64,
                           bytes, allowed, used);
        return err_set_hint(rc, "complete or delete uploads (GET /v1/uploads lists them)");
    }
    return check_stored(&state, bytes);
}

int service_room(struct service *service, const struct principal *who, int64_t bytes, int64_t *room)
{
    struct quota_state state;

    TRY(quota_read(service, who->project, &state));
    *room = bytes_left(&state);
    return bytes >= 0 ? check_stored(&state, bytes) : 0;
}

/* --- the queue */

bool quota_holds(const struct quota_state *state)
{
    return state->row.used[QUOTA_RUNNING_JOBS] >= state->allowed[QUOTA_RUNNING_JOBS];
}

bool quota_forbids(const struct quota_state *state)
{
    return state->allowed[QUOTA_RUNNING_JOBS] == 0;
}

void quota_explain(const struct quota_state *state, json_t *job)
{
    const char *status = json_string_value(json_object_get(job, "status"));

    if (status != NULL && strcmp(status, job_status_name(STATUS_QUEUED)) == 0 && quota_holds(state)) {
        json_object_set_new(job, "status_reason",
                            json_sprintf("the project runs %" PRId64 " jobs; its quota (max_running_jobs) is %" PRId64,
                                         state->row.used[QUOTA_RUNNING_JOBS], state->allowed[QUOTA_RUNNING_JOBS]));
    }
}

/* --- as administrators see and set them */

static json_t *limit_json(int64_t value, int64_t none)
{
    return value != none ? json_integer(value) : json_null();
}

static json_t *quota_json(const char *project, const struct quota_state *state)
{
    json_t *object = json_pack("{s:s, s:s, s:o}", "object", "project.quota", "project", project, "updated_at",
                               limit_json(state->row.updated_at, 0));
    json_t *effective = json_object(), *usage = json_object();

    for (int i = 0; i < QUOTA_COUNT; i++) {
        json_object_set_new(object, quotas[i].name, limit_json(state->row.limits[i], QUOTA_UNSET));
        json_object_set_new(effective, quotas[i].name, limit_json(state->allowed[i], INT64_MAX));
        json_object_set_new(usage, quotas[i].use, json_integer(state->row.used[i]));
    }
    json_object_set_new(usage, "reserved_bytes", json_integer(state->row.reserved_bytes));
    if (json_object_set_new(object, "effective", effective) != 0 || json_object_set_new(object, "usage", usage) != 0) {
        json_decref(object);
        return NULL;
    }
    return object;
}

/* Read through the connection of a struct, so that the rows describe it. */
struct quota_request {
    json_t *limits[QUOTA_COUNT];
};

#define LIMIT_ROW(which_, name_, help_)                                                                         \
    {                                                                                                           \
        .name = (name_), .type = PARAMS_JSON, .offset = offsetof(struct quota_request, limits[QUOTA_##which_]), \
        .size = sizeof(json_t *), .fallback = "null", .help = (help_)                                           \
    }

static const struct params_row quota_rows[] = {
    LIMIT_ROW(QUEUED_JOBS, "max_queued_jobs", "Jobs that wait: for calibration, in the queue, or paused."),
    LIMIT_ROW(RUNNING_JOBS, "max_running_jobs", "Jobs that run at once; others stay in the queue."),
    LIMIT_ROW(STORED_BYTES, "max_stored_bytes", "Bytes of files, uploaded models and artifacts."),
    LIMIT_ROW(UPLOAD_BYTES, "max_upload_bytes", "Bytes of uploads that are not complete."),
    {.name = NULL},
};
static const struct params_row *const quota_tables[] = {quota_rows, NULL};

json_t *quota_schema(void)
{
    json_t *schema = params_schema(quota_tables), *properties = json_object_get(schema, "properties");

    for (int i = 0; i < QUOTA_COUNT; i++) {
        json_t *member = json_object_get(properties, quotas[i].name);
        json_object_set_new(member, "type", json_pack("[s, s]", "integer", "null"));
        json_object_set_new(member, "minimum", json_integer(0));
        json_object_set_new(member, "maximum", json_integer(quotas[i].max));
    }
    return schema;
}

static void read_limit(int which, const json_t *value, int64_t *out, struct validation_errors *errors)
{
    char text[PARAMS_VALUE_SIZE], pointer[64];
    json_int_t number = json_integer_value(value);

    if (value == NULL || json_is_null(value)) {
        *out = QUOTA_UNSET;
    } else if (json_is_integer(value) && number >= 0 && number <= quotas[which].max) {
        *out = number;
    } else {
        (void)snprintf(pointer, sizeof(pointer), "/%s", quotas[which].name);
        validation_add(errors, ERR_INVALID_PARAMETER, pointer,
                       "\"%s\" is %s; it must be an integer from 0 (none allowed) to %" PRId64
                       ", or null (the daemon's default)",
                       quotas[which].name, params_value_text(value, text), quotas[which].max);
    }
}

static int read_request(const json_t *body, int64_t limits[QUOTA_COUNT], struct validation_errors *errors)
{
    struct quota_request request = {.limits = {NULL}};

    if (params_parse(quota_tables, body, "", &request, errors) != 0) {
        return validation_raise(errors);
    }
    for (int i = 0; i < QUOTA_COUNT; i++) {
        read_limit(i, request.limits[i], &limits[i], errors);
    }
    params_release(quota_tables, &request);
    return validation_raise(errors);
}

static int quota_check_name(const char *project)
{
    return key_project_valid(project)
               ? 0
               : err_raise(ERR_INVALID_PARAMETER,
                           "the name of the project is \"%.80s\"; it must be 1 to 64 of a-z, 0-9, _ and -", project);
}

static int quota_show(struct service *service, const char *project, json_t **quota)
{
    struct quota_state state;

    TRY(quota_read(service, project, &state));
    *quota = quota_json(project, &state);
    return *quota != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a quota");
}

int service_quota_get(struct service *service, const char *project, json_t **quota)
{
    TRY(quota_check_name(project));
    return quota_show(service, project, quota);
}

int service_quota_set(struct service *service, const char *project, const json_t *body,
                      struct validation_errors *errors, json_t **quota)
{
    int64_t limits[QUOTA_COUNT];

    TRY(quota_check_name(project));
    TRY(read_request(body, limits, errors));
    pthread_mutex_lock(&service->admission);
    int rc = store_quota_set(service->store, project, limits);
    pthread_mutex_unlock(&service->admission);
    TRY(rc);
    supervisor_wake(service); /* jobs that were passed over may run now */
    return quota_show(service, project, quota);
}

int service_project_list(struct service *service, const struct page *page, json_t **list)
{
    AUTO_JSON json_t *found = NULL;
    json_t *data, *row;
    size_t i;

    TRY(store_project_list(service->store, page, &found));
    data = json_object_get(found, "data");
    json_array_foreach(data, i, row)
    {
        json_t *quota;
        TRY(quota_show(service, json_string_value(json_object_get(row, "id")), &quota));
        if (json_array_set_new(data, i, quota) != 0) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of projects");
        }
    }
    *list = MOVE(found);
    return 0;
}
