/* The objects of the API, member by member: keys and projects. objects.c says more. */

#include "api/schema_rows.h"

/* --- keys */

static const char *const key_scope_names[] = {"read", "write", "admin", NULL};
#define KEY_MEMBERS                                                                                                    \
    ID(id, "key"), CONST(object, "api_key"), MEMBER(name, STRING), MEMBER(project, STRING),                            \
        MEMBER(scope, ENUM, .choices = key_scope_names), MEMBER(created_at, TIME), MEMBER(expires_at, TIME, NULLABLE), \
        MEMBER(last_used_at, TIME, NULLABLE, HELP("To the minute.")), MEMBER(revoked_at, TIME, NULLABLE)
static const struct schema_row api_key_rows[] = {KEY_MEMBERS, END};
const struct schema schema_api_key = {.name = "ApiKey", .help = "A key, without its text.", .rows = api_key_rows};
static const struct schema_row new_api_key_rows[] = {
    KEY_MEMBERS, MEMBER(key, STRING, HELP("What its holder sends: Authorization: Bearer KEY. Shown only once.")), END};
const struct schema schema_new_api_key = {
    .name = "NewApiKey", .help = "A key that was just made.", .rows = new_api_key_rows};
PAGE(schema_api_key_list, "ApiKeyList", schema_api_key, "key");

/* --- projects */

#define LIMIT_MEMBERS(help_)                                                                                      \
    MEMBER(max_queued_jobs, INT, NULLABLE,                                                                        \
           HELP("Jobs that may wait: for calibration, in the queue, or paused. " help_)),                         \
        MEMBER(max_running_jobs, INT, NULLABLE, HELP("Jobs that may run at once.")),                              \
        MEMBER(max_stored_bytes, INT, NULLABLE,                                                                   \
               HELP("Of files, uploaded models and artifacts, with what is uploaded and what jobs will store.")), \
        MEMBER(max_upload_bytes, INT, NULLABLE, HELP("Of uploads that are not complete."))
static const struct schema_row effective_rows[] = {LIMIT_MEMBERS("Null: no limit."), END};
static const struct schema schema_effective = {
    .name = "EffectiveQuota", .help = "A quota with the daemon's defaults in it.", .rows = effective_rows};
static const struct schema_row usage_rows[] = {
    MEMBER(queued_jobs, INT),
    MEMBER(running_jobs, INT),
    MEMBER(stored_bytes, INT, HELP("The same bytes count once in a project.")),
    MEMBER(upload_bytes, INT, HELP("Of uploads that are not complete, by their lengths.")),
    MEMBER(reserved_bytes, INT, HELP("Of artifacts of jobs that have not ended, as estimated.")),
    END};
static const struct schema schema_usage = {.name = "Usage", .help = "What a project has.", .rows = usage_rows};
static const struct schema_row quota_rows[] = {CONST(object, "project.quota"),
                                               MEMBER(project, STRING),
                                               LIMIT_MEMBERS("Null: the daemon's default."),
                                               MEMBER(updated_at, TIME, NULLABLE, HELP("When it was set last.")),
                                               OBJECT(effective, schema_effective),
                                               OBJECT(usage, schema_usage),
                                               END};
const struct schema schema_quota = {.name = "Quota", .help = "What a project may have.", .rows = quota_rows};
static const struct schema_row quota_list_rows[] = {
    CONST(object, "list"),
    LIST(data, schema_quota),
    MEMBER(first_id, STRING, NULLABLE, HELP("The name of a project, as the next.")),
    MEMBER(last_id, STRING, NULLABLE),
    MEMBER(has_more, BOOL),
    END};
const struct schema schema_quota_list = {.name = "QuotaList", .rows = quota_list_rows};
