#pragma once
/* The table of a database's functions. Within storage only.
 *
 * Every operation runs on the storage thread, is one transaction, and takes its arguments by name in one struct, so
 * that dispatching from the caller's thread is one function for all of them. What an argument means is said in
 * storage.h.
 */

#include "storage/storage.h"

struct state; /* an open database; the implementation's own */

struct state_args {
    const char *project, *kind, *id, *worker, *others, *event;
    enum job_status from, to;
    int64_t after; /* of events; of blocks, the first one meant */
    int limit;
    const struct page *page;
    const struct job_row *job_new;
    const struct job_update *update;
    const json_t *body, *block, *layers, *event_data;
    const struct idempotency_key *key;
    const char *digest;
    json_t **out;
    struct job_row *row; /* out; NULL: not wanted */
    struct job_list *jobs;
    int64_t *counts;
    const int64_t *limits;   /* QUOTA_COUNT of them: a project's, or the defaults */
    struct quota_row *quota; /* out */
    const struct key_row *key_new;
    struct key_row *key_row; /* out */
    const struct webhook_row *webhook;
    unsigned set; /* WEBHOOK_SET_... */
    const struct delivery_attempt *attempt;
    struct delivery_list *deliveries; /* out */
    struct store_status *status;
    /* Out: an event was added to this job; also where the operation chose the job. */
    bool announced;
    char job[ID_SIZE];
    bool posted; /* out: there is a new message to a webhook */
};

typedef int (*state_op)(struct state *state, struct state_args *args);

/* Every operation. Their names are also those of the metric quantd_storage_duration_seconds. */
/* clang-format off */
#define STATE_OPERATIONS(EACH) \
    EACH(ready) EACH(object_put) EACH(object_replace) EACH(object_get) EACH(object_delete) EACH(object_list) EACH(job_create) \
    EACH(job_get) EACH(job_status) EACH(job_list) EACH(job_update) EACH(job_claim) EACH(job_delete) EACH(job_ahead) \
    EACH(job_counts) EACH(events_list) EACH(event_append) EACH(block_commit) EACH(blocks_list) EACH(layers_list) \
    EACH(blocks_clear) EACH(artifact_delete) EACH(idempotency_reserve) EACH(idempotency_known) EACH(idempotency_finish) \
    EACH(idempotency_release) EACH(key_create) EACH(key_find) EACH(key_get) EACH(key_list) EACH(key_revoke) \
    EACH(key_count) EACH(quota_get) EACH(quota_set) EACH(project_list) \
    EACH(webhook_create) EACH(webhook_get) EACH(webhook_list) EACH(webhook_change) \
    EACH(webhook_delete) EACH(delivery_create) EACH(delivery_get) EACH(delivery_list) EACH(delivery_due) \
    EACH(delivery_end) EACH(delivery_sweep)
/* clang-format on */

#define STATE_MEMBER(name) state_op name;
struct state_ops {
    const char *name;
    int (*open)(const char *data_dir, bool beside, struct state **out);
    void (*close)(struct state *state);
    /* 1 when an object refers to the blob, 0 when none does. */
    int (*blob_referenced)(struct state *state, const char *sha256);
    STATE_OPERATIONS(STATE_MEMBER)
};
#undef STATE_MEMBER

extern const struct state_ops state_sqlite;

/* store.c: the rows, NULL-terminated; the first is the default. */
const struct state_ops *const *state_list(void);
