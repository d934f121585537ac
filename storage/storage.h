#pragma once
/* Durable data: state (jobs, events, layer rows, objects) and blobs (bytes by SHA-256).
 *
 * Both are reached through small tables (struct state_ops, struct blob_ops): SQLite and the local disk are one row
 * each, and PostgreSQL and S3 become others. store_* functions may be called from any thread but the loop thread: each
 * is dispatched to the storage thread, which alone owns the database connection, and waits for the committed answer.
 *
 * A job travels as a struct whose members are its columns (job_row.h), objects and events as JSON objects. A function
 * that returns json_t ** gives a new reference.
 * Every change of a job is one transaction with its event; a 0 means it survives power loss (synchronous=FULL). */

#include "base/digest.h"
#include "base/ids.h"
#include "base/page.h"
#include "storage/job_row.h"
#include "storage/webhook_row.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct store;

struct store_config {
    const char *data_dir; /* absolute; made if absent */
    const char *state;    /* row of the state registry: "sqlite" */
    const char *blobs;    /* row of the blob registry: "fs" */
    bool beside;          /* a daemon may have the directory: no lock, and its requests in progress are left alone. For
                             API keys only; ERR_CONFIG when the database is of another schema */
};

/* Lock data_dir (OFD lock on data_dir/lock; ERR_CONFIG "another daemon holds ..." at once if taken), open both stores,
 * migrate, start the storage thread. data_dir layout: lock, reserve, quantd.db, blobs/sha256/ab/..., jobs/<id>/, tmp/
 * (emptied).
 */
int store_open(const struct store_config *config, struct store **out);
void store_close(struct store *store);
/* 0 when the database answers and the disk has space for new work in addition to the reserve; else the reason raised.
 * On a full disk (ERR_DISK_FULL) deletions and moves of jobs still work: they may use the reserve. */
int store_ready(struct store *store);
const char *store_data_dir(const struct store *store);
/* How long operations of the database took, in the text of base/metrics.h. */
void store_metrics(const struct store *store, FILE *out);
/* Called on the storage thread after each commit that added an event to a job. One subscriber; set before use. */
void store_on_event(struct store *store, void (*fn)(void *data, const char *job_id), void *data);

/* --- objects: models, files, artifacts. kind is the id prefix: "mdl", "file", "art". body has at least id and
 * created_at. */
/* Insert or replace. */
int store_object_put(struct store *store, const char *project, const char *kind, const json_t *body);
/* Replace one that is there: ERR_NOT_FOUND when it was deleted meanwhile. */
int store_object_replace(struct store *store, const char *project, const char *kind, const json_t *body);
/* Both: project NULL = of any; one of another project is ERR_NOT_FOUND. */
int store_object_get(struct store *store, const char *project, const char *kind, const char *id, json_t **body);
int store_object_delete(struct store *store, const char *project, const char *kind, const char *id);

/* {"object":"list","data":[...],"first_id","last_id","has_more"}; keyset pages (no OFFSET). A cursor
 * may name an object that is gone; ERR_INVALID_CURSOR when it is not an id of this kind. */
int store_object_list(struct store *store, const char *kind, const struct page *page, json_t **list);

/* --- jobs (job_row.h). A row that a function gives is the caller's to release (job_row_deinit, job_list_deinit). */
/* job: status and project are set; seq and texts are not read. idempotency (may be NULL): a reserved Idempotency-Key,
 * which from the same commit on answers {"id": the job's}. */
int store_job_create(struct store *store, const struct job_row *job, const char *event, const json_t *event_data,
                     const struct idempotency_key *idempotency);
/* The next two: project NULL = of any; one of another project is ERR_NOT_FOUND. */
int store_job_get(struct store *store, const char *project, const char *id, struct job_row *job);
/* Where a job is, without reading all of its columns. */
struct store_status {
    enum job_status status;
    int64_t fence, seq;
};
int store_job_status(struct store *store, const char *project, const char *id, struct store_status *out);
/* A cursor may name a job that is gone; ERR_INVALID_CURSOR when it is not the id of a job. */
int store_job_list(struct store *store, const struct page *page, struct job_list *list);
/* ERR_JOB_STATE_CONFLICT when the job is not as the update expects it, ERR_NOT_FOUND when there is no job. *after (may
 * be NULL) is the row after the change. */
int store_job_update(struct store *store, const struct job_update *update, struct job_row *after);
/* The oldest job of status `from` of the highest priority, of a project that runs fewer jobs than its quota, gets
 * status `to`, attempt+1, fence+1, started_at if it has none, no status_reason, and column worker, with a "status"
 * event {"status","from","attempt","fence","worker"}. A job whose resources.device names a device is taken by the
 * worker of that name alone; one that names none of the workers, by the one that knows the `others`, a JSON list of
 * their names (NULL: by none). ERR_NOT_FOUND when none waits. */
int store_job_claim(struct store *store, enum job_status from, enum job_status to, const char *worker,
                    const char *others, struct job_row *job);
/* How many queued jobs are claimed before this one; those of projects that may run none are not. */
int store_job_ahead(struct store *store, const char *id, int64_t *ahead);
/* Terminal jobs only (caller checks); events, layers and blocks go with it. */
int store_job_delete(struct store *store, const char *id);
/* How many jobs the project (NULL: all of them) has of each status. */
int store_job_counts(struct store *store, const char *project, int64_t counts[STATUS_COUNT]);

/* --- events of a job: [{"object":"event","seq","type","created_at","traceparent","data"}...], seq > after, ascending.
 * seq counts from 1 without gaps. limit <= 0 = all; an unknown job has none. */
int store_events_list(struct store *store, const char *job, int64_t after, int limit, json_t **events);
int store_event_append(struct store *store, const char *job, const char *type, const json_t *data);

/* --- finished blocks: one transaction of block row, its layer rows, and the update of their job with its event. block
 * = {"index","file","sha256","chains":{...}}; layers = array of report rows ("index" and the report's other columns;
 * kept as JSON, listed in insertion order). A block that is there already is ERR_JOB_STATE_CONFLICT. With "again":true
 * in `block` its row, which must be there (ERR_NOT_FOUND), is merged with it instead (RFC 7396), and layers is empty.
 */
int store_block_commit(struct store *store, const struct job_update *update, const json_t *block, const json_t *layers);
int store_blocks_list(struct store *store, const char *job, json_t **blocks); /* by index */
int store_layers_list(struct store *store, const char *job, json_t **layers);
/* Drop the blocks from number `from` on with their layers: they cannot be used, or the job starts over. */
int store_blocks_clear(struct store *store, const char *job, int64_t from);

/* --- artifacts are published by the update of their job. */
/* Delete an artifact. Its job, if it is still there, says so from the same commit on: result.artifact_id is null,
 * result.artifact_deleted_at the time, with an event "artifact" {"artifact_id","deleted_at"}. */
int store_artifact_delete(struct store *store, const char *project, const char *id);

/* --- Idempotency-Key: scope = route. Reserve: 0 = new, go on; 1 = *response holds the first answer,
 * {"digest","status","body","location"}; ERR_IDEMPOTENCY_IN_PROGRESS; ERR_IDEMPOTENCY_KEY_REUSED. Kept 24 h. */
int store_idempotency_reserve(struct store *store, const struct idempotency_key *key, const char *body_digest,
                              json_t **response);
/* Whether the key is reserved, or has an answer. */
int store_idempotency_known(struct store *store, const struct idempotency_key *key, bool *known);
int store_idempotency_finish(struct store *store, const struct idempotency_key *key, const json_t *response);
int store_idempotency_release(struct store *store, const struct idempotency_key *key); /* the request failed */

/* --- API keys. Only the SHA-256 of a key's text is stored. */
#define KEY_NAME_SIZE 121
#define KEY_SCOPE_SIZE 8
struct key_row {
    char id[ID_SIZE];
    char project[PROJECT_SIZE];
    char name[KEY_NAME_SIZE];
    char scope[KEY_SCOPE_SIZE];                 /* "read", "write" or "admin" */
    int64_t created_at, expires_at, revoked_at; /* 0 = never */
};
int store_key_create(struct store *store, const struct key_row *key, const char *sha256);
/* The key of this digest, also when it has expired or was revoked; ERR_NOT_FOUND. Notes its use, to the minute, where
 * that can be stored. */
int store_key_find(struct store *store, const char *sha256, struct key_row *key);
/* As clients see it; ERR_NOT_FOUND. */
int store_key_get(struct store *store, const char *id, json_t **key);
/* As store_object_list; page->project NULL = of all projects. */
int store_key_list(struct store *store, const struct page *page, json_t **list);
/* From the same commit on nobody gets in with it. Once more: 0, and the first time stays. ERR_NOT_FOUND. */
int store_key_revoke(struct store *store, const char *id);
/* How many keys are neither revoked nor expired. */
int store_key_count(struct store *store, int64_t *count);

/* --- quotas: what a project may have, and what it has. Counters are kept by the commits that change them. */
enum quota { QUOTA_QUEUED_JOBS, QUOTA_RUNNING_JOBS, QUOTA_STORED_BYTES, QUOTA_UPLOAD_BYTES, QUOTA_COUNT };
#define QUOTA_UNSET ((int64_t)-1) /* of a project: the default; of a default: no limit */
struct quota_row {
    int64_t limits[QUOTA_COUNT]; /* the project's own */
    int64_t updated_at;          /* 0: none was ever set */
    /* Jobs that wait (for calibration, in the queue or paused) and that run; bytes of blobs that its objects refer to,
     * each blob once; bytes of uploads that are not complete, as they were announced. */
    int64_t used[QUOTA_COUNT];
    int64_t reserved_bytes; /* of the artifacts of jobs that have not ended, as they were estimated */
    int64_t disk_bytes;     /* that jobs of all projects that have not ended have still to write, likewise */
};
/* Of projects that set none. Before use; without it there are no limits. */
void store_quota_defaults(struct store *store, const int64_t limits[QUOTA_COUNT]);
/* Of any project, also one that has nothing. */
int store_quota_get(struct store *store, const char *project, struct quota_row *out);
int store_quota_set(struct store *store, const char *project, const int64_t limits[QUOTA_COUNT]);
/* Names of projects that have a key, a quota, a job or bytes, or had one: as store_object_list, with names in place of
 * objects. */
int store_project_list(struct store *store, const struct page *page, json_t **list);

/* --- webhooks. Their secrets are in no object that is given out. A move of a job (job_update.message) makes a message
 * for each webhook of the project that wants it, in its own transaction. */
/* At most `max` of a project: ERR_QUOTA_EXCEEDED. */
int store_webhook_create(struct store *store, const struct webhook_row *webhook, int64_t max);
/* As clients see it. project as for objects. */
int store_webhook_get(struct store *store, const char *project, const char *id, json_t **webhook);
int store_webhook_list(struct store *store, const struct page *page, json_t **list);
/* Its parts that `set` names. *after: as clients see it. ERR_NOT_FOUND. */
int store_webhook_change(struct store *store, const struct webhook_row *webhook, unsigned set, json_t **after);
/* What waits for it, and what it got, goes with it. */
int store_webhook_delete(struct store *store, const char *project, const char *id);

/* A message of no job, which is tried once. */
int store_delivery_create(struct store *store, const char *webhook, const char *id, const char *type,
                          const json_t *body);
/* As clients see them: of a webhook that the caller has looked up (page->webhook). */
int store_delivery_get(struct store *store, const char *webhook, const char *id, json_t **delivery);
int store_delivery_list(struct store *store, const struct page *page, json_t **list);
/* Messages that are due at `now`: the oldest of each webhook, up to per_webhook, and `limit` of all. Projects take
 * turns; in each, those of webhooks without a failure (`again`) come first. */
int store_delivery_due(struct store *store, int64_t now, int per_webhook, int limit, struct delivery_list *list);
/* ERR_NOT_FOUND: it is not pending any more. */
int store_delivery_end(struct store *store, const struct delivery_attempt *attempt);
/* Delete up to `limit` messages that are not pending and were made before `cutoff`. */
int store_delivery_sweep(struct store *store, int64_t cutoff, int limit, int64_t *removed);
/* Called on the storage thread after each commit that made a message. One subscriber; NULL: none, and no call is in
 * progress any more. */
int store_on_message(struct store *store, void (*fn)(void *data), void *data);

/* --- blobs: written once, found by SHA-256. Callable from any thread but the loop; not dispatched. */
struct blob_writer;
int blob_writer_new(struct store *store, struct blob_writer **out); /* temp file in the store */
int blob_writer_write(struct blob_writer *writer, const void *data, size_t size);
/* fsync, rename into place, fsync directory; already there = fine. Frees writer. The blob is held: garbage collection
 * spares it until blob_let_go, which is due once its object is stored, or will not be. */
int blob_writer_commit_take(struct blob_writer *writer, char sha256[DIGEST_HEX_SIZE], int64_t *size);
void blob_writer_abort(struct blob_writer *writer);
/* Move an existing file on the store's own filesystem in as a blob (hash unless known_sha256 given; fsync, rename).
 * Held as above. */
int blob_adopt(struct store *store, const char *path, const char *known_sha256, char sha256[DIGEST_HEX_SIZE],
               int64_t *size);
void blob_let_go(struct store *store, const char *sha256);
/* Give a blob a name as a file, for what reads files only: a symbolic link at `relative`, a path below the data
 * directory whose folder is there. It does not keep the blob: an object must refer to it. */
int blob_link(struct store *store, const char *sha256, const char *relative);
struct blob_reader;
int blob_reader_open(struct store *store, const char *sha256, struct blob_reader **out,
                     int64_t *size);                                                         /* ERR_NOT_FOUND */
int blob_reader_read(struct blob_reader *reader, int64_t offset, void *buffer, size_t size); /* exactly size */
void blob_reader_close(struct blob_reader *reader);
CLEANUP_FREE(blob_reader, struct blob_reader, blob_reader_close)
/* Delete blobs that no object refers to (files[].sha256 / sha256 in bodies) and that nobody holds. */
int store_collect_garbage(struct store *store, int64_t *removed);
