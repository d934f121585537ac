#pragma once
/* What the SQLite files share: the connection, cached statements, binding by letter, transactions. Storage thread only.
 */

#include "storage/state.h"

#include <sqlite3.h>

#define SQLITE_STATEMENTS 96

struct state {
    sqlite3 *db;
    sqlite3_stmt *statements[SQLITE_STATEMENTS]; /* by their SQL; the oldest gives way */
    int next;
};

/* Raise what SQLite just answered: FULL and ENOSPC as ERR_DISK_FULL, BUSY as ERR_STORAGE_UNAVAILABLE, CONSTRAINT as
 * ERR_JOB_STATE_CONFLICT, the rest as ERR_STORAGE. */
int sqlite_raise(struct state *state, int answer, const char *what);
/* Bind and step to the first row. types has one letter for each ?: t = const char * (NULL binds NULL), i = int64_t,
 * j = const json_t * (dumped; NULL binds NULL). 1: *row stands on a row, sqlite_done it; 0: there was none. */
int sqlite_first(struct state *state, sqlite3_stmt **row, const char *sql, const char *types, ...);
/* The next row of a statement, as sqlite_first. When it answers 0 or less the statement is done. */
int sqlite_next(struct state *state, sqlite3_stmt *row);
void sqlite_done(sqlite3_stmt *row);
/* Bind and run to the end, rows ignored. *changes (may be NULL) = rows changed. */
int sqlite_run(struct state *state, int64_t *changes, const char *sql, const char *types, ...);
/* SQL text without results or parameters, several statements at once. */
int sqlite_script(struct state *state, const char *sql);

int sqlite_begin(struct state *state);
/* rc as it is: 0 commits (and may fail), negative rolls back and keeps the error. */
int sqlite_end(struct state *state, int rc);

/* One statement whose text and values are put together from parts: for patches and filtered lists. */
#define SQLITE_QUERY_TEXT 4096
#define SQLITE_QUERY_VALUES 96
struct sqlite_query {
    char text[SQLITE_QUERY_TEXT];
    size_t length;
    struct {
        char type; /* as in types above; r = double */
        const void *pointer;
        int64_t number;
        double real;
    } values[SQLITE_QUERY_VALUES];
    int count;
    bool overflow;
};
void sqlite_query_add(struct sqlite_query *query, const char *fixed_text);
void sqlite_query_text(struct sqlite_query *query, const char *value);
void sqlite_query_int(struct sqlite_query *query, int64_t value);
void sqlite_query_real(struct sqlite_query *query, double value);
void sqlite_query_json(struct sqlite_query *query, const json_t *value);
int sqlite_query_first(struct state *state, const struct sqlite_query *query, sqlite3_stmt **row);
int sqlite_query_run(struct state *state, const struct sqlite_query *query, int64_t *changes);

/* Column as a new JSON reference: null when NULL. sqlite_column_json parses; ERR_STORAGE when the text is damaged. */
json_t *sqlite_column_text_json(sqlite3_stmt *row, int column);
json_t *sqlite_column_int_json(sqlite3_stmt *row, int column);
int sqlite_column_json(sqlite3_stmt *row, int column, json_t **out);
/* The first column, for rows that hold one JSON value. */
int sqlite_first_json(sqlite3_stmt *row, json_t **out);
/* Append a new reference to an array, or raise. Takes value. */
int sqlite_append_take(json_t *array, json_t *value);

/* migrations.c: bring the schema to the newest version. ERR_CONFIG when it is newer than this build. */
int migrations_apply(struct state *state);
/* ERR_CONFIG unless the schema is the newest. */
int migrations_check(struct state *state);
/* No further than schema number `newest`: for tests of what older builds left. */
int migrations_apply_to(struct state *state, int64_t newest);

/* sqlite_objects.c */
int sqlite_object_put(struct state *state, struct state_args *args);
int sqlite_object_replace(struct state *state, struct state_args *args);
int sqlite_object_get(struct state *state, struct state_args *args);
int sqlite_object_delete(struct state *state, struct state_args *args);
int sqlite_blob_referenced(struct state *state, const char *sha256);
/* Insert or replace with its blob references, inside the caller's transaction. */
int sqlite_object_store(struct state *state, const char *project, const char *kind, const json_t *body);

/* sqlite_jobs.c */
int sqlite_job_create(struct state *state, struct state_args *args);
int sqlite_job_get(struct state *state, struct state_args *args);
int sqlite_job_status(struct state *state, struct state_args *args);
int sqlite_job_update(struct state *state, struct state_args *args);
int sqlite_job_claim(struct state *state, struct state_args *args);
int sqlite_job_delete(struct state *state, struct state_args *args);
int sqlite_job_ahead(struct state *state, struct state_args *args);
int sqlite_job_counts(struct state *state, struct state_args *args);
/* The row of a job of the project; NULL = of any. */
int sqlite_job_select(struct state *state, const char *project, const char *id, struct job_row *job);
/* Raise ERR_NOT_FOUND: there is no job of this id. */
int sqlite_job_missing(const char *id);
/* The columns of an update where the job is as it expects, inside the caller's transaction. */
int sqlite_job_set(struct state *state, const struct job_update *update);

/* sqlite_job_columns.c */
/* "id, project, ..." and "?, ?, ...": what sqlite_job_read reads and sqlite_job_bind binds. */
const char *sqlite_job_columns(void);
const char *sqlite_job_marks(void);
int sqlite_job_read(sqlite3_stmt *row, struct job_row *out);
void sqlite_job_bind(struct sqlite_query *query, const struct job_row *job);
/* ", status = ?, ..." of the columns that `set` names. */
void sqlite_job_assign(struct sqlite_query *query, unsigned set, const struct job_row *job);
/* ERR_STORAGE when this build does not know it. */
int sqlite_column_status(sqlite3_stmt *row, int column, enum job_status *status);

/* sqlite_events.c */
int sqlite_events_list(struct state *state, struct state_args *args);
int sqlite_event_append(struct state *state, struct state_args *args);
int sqlite_block_commit(struct state *state, struct state_args *args);
int sqlite_blocks_list(struct state *state, struct state_args *args);
int sqlite_layers_list(struct state *state, struct state_args *args);
int sqlite_blocks_clear(struct state *state, struct state_args *args);
int sqlite_artifact_delete(struct state *state, struct state_args *args);
/* Next event of a job, inside the caller's transaction; args remembers it for the subscriber. */
int sqlite_event_add(struct state *state, struct state_args *args, const char *job, const char *type,
                     const json_t *data);

/* sqlite_list.c */
int sqlite_job_list(struct state *state, struct state_args *args);
int sqlite_object_list(struct state *state, struct state_args *args);

int sqlite_key_list(struct state *state, struct state_args *args);
int sqlite_webhook_list(struct state *state, struct state_args *args);
int sqlite_delivery_list(struct state *state, struct state_args *args);

/* sqlite_webhooks.c */
extern const char sqlite_webhook_body[]; /* an expression: the webhook as clients see it */
int sqlite_webhook_create(struct state *state, struct state_args *args);
int sqlite_webhook_get(struct state *state, struct state_args *args);
int sqlite_webhook_change(struct state *state, struct state_args *args);
int sqlite_webhook_delete(struct state *state, struct state_args *args);
/* Raise ERR_NOT_FOUND. */
int sqlite_webhook_missing(const char *id);
/* What waits for it fails, but for a message that was asked for; inside the caller's transaction. */
int sqlite_webhook_stop(struct state *state, const char *id, int64_t now);

/* sqlite_deliveries.c */
extern const char sqlite_delivery_body[]; /* an expression: the message as clients see it, without its body */
int sqlite_delivery_create(struct state *state, struct state_args *args);
int sqlite_delivery_get(struct state *state, struct state_args *args);
int sqlite_delivery_due(struct state *state, struct state_args *args);
int sqlite_delivery_end(struct state *state, struct state_args *args);
int sqlite_delivery_sweep(struct state *state, struct state_args *args);
/* A message for each webhook that wants what args->update tells, inside the caller's transaction. */
int sqlite_delivery_announce(struct state *state, struct state_args *args);

/* sqlite_keys.c */
extern const char sqlite_key_body[]; /* an expression: the key as clients see it */
int sqlite_key_create(struct state *state, struct state_args *args);
int sqlite_key_find(struct state *state, struct state_args *args);
int sqlite_key_get(struct state *state, struct state_args *args);
int sqlite_key_revoke(struct state *state, struct state_args *args);
int sqlite_key_count(struct state *state, struct state_args *args);

/* sqlite_quotas.c */
int sqlite_quota_get(struct state *state, struct state_args *args);
int sqlite_quota_set(struct state *state, struct state_args *args);
int sqlite_project_list(struct state *state, struct state_args *args);

/* sqlite_idempotency.c */
int sqlite_idempotency_reserve(struct state *state, struct state_args *args);
/* Inside the transaction that made the object: the key answers {"id"} from now on. */
int sqlite_idempotency_made(struct state *state, const struct idempotency_key *key, const char *id);
int sqlite_idempotency_known(struct state *state, struct state_args *args);
int sqlite_idempotency_finish(struct state *state, struct state_args *args);
int sqlite_idempotency_release(struct state *state, struct state_args *args);
