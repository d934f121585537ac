/* The store: opens a data directory and stands between callers and the two tables (state and blobs).
 *
 * One thread, the storage thread, owns the database connection. A caller fills a call on its own stack, pushes it and
 * waits; the storage thread performs the operation (one transaction), copies the error record into the call and wakes
 * the caller, who restores the record: errors cross threads by value. Since every change goes through this one thread,
 * the order of events a subscriber sees is the order of commits. */

#include "storage/storage.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/queue.h"
#include "storage/blob.h"
#include "storage/metrics.h"
#include "storage/state.h"
#include "storage/store_call.h"
#include "storage/store_dir.h"
#include "storage/store_reserve.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STORE_QUEUE_LENGTH 1024

static const struct state_ops *const state_rows[] = {&state_sqlite, NULL};
static const struct blob_ops *const blob_rows[] = {&blob_fs, NULL};

const struct state_ops *const *state_list(void)
{
    return state_rows;
}

const struct blob_ops *const *blob_list(void)
{
    return blob_rows;
}

struct store {
    char *data_dir;
    int lock_fd;
    const struct state_ops *state_ops;
    struct state *state;
    const struct blob_ops *blob_ops;
    struct blobs *blobs;
    struct queue *calls;
    pthread_t thread;
    struct reserve reserve; /* the storage thread's */
    int64_t quota_defaults[QUOTA_COUNT];
    void (*on_event)(void *data, const char *job_id);
    void *on_event_data;
    void (*on_message)(void *data);
    void *on_message_data;
};

struct call {
    int (*fn)(struct store *store, struct call *call);
    state_op op;
    struct state_args *args;
    bool ends;      /* something ends or goes: on a full disk it may use the reserve */
    int64_t number; /* of whatever fn counts */
    void (*subscriber)(void *data);
    void *subscriber_data;
    int rc;
    struct err_record error;
    sem_t done;
};

/* Nothing of a failed call is left in the database, so that it can be made again as it was. */
static void perform(struct store *store, struct call *call)
{
    bool owner = store->lock_fd >= 0;

    call->rc = call->fn(store, call);
    if (owner && call->rc == ERR_DISK_FULL && call->ends && reserve_release(&store->reserve)) {
        call->rc = call->fn(store, call);
    }
    if (call->rc < 0) {
        err_take(&call->error);
    }
    if (owner) {
        reserve_renew(&store->reserve);
    }
}

static void *storage_thread(void *data)
{
    struct store *store = data;

    for (;;) {
        struct call *call = queue_pop(store->calls, -1);
        if (call == NULL) {
            return NULL;
        }
        perform(store, call);
        if (call->rc >= 0 && call->args != NULL && call->args->announced && store->on_event != NULL) {
            store->on_event(store->on_event_data, call->args->job);
        }
        if (call->rc >= 0 && call->args != NULL && call->args->posted && store->on_message != NULL) {
            store->on_message(store->on_message_data);
        }
        sem_post(&call->done);
    }
}

static int store_dispatch(struct store *store, struct call *call)
{
    sem_init(&call->done, 0, 0);
    if (!queue_push(store->calls, call)) {
        sem_destroy(&call->done);
        return err_raise(ERR_STORAGE_UNAVAILABLE, "the store is closed");
    }
    while (sem_wait(&call->done) != 0) {
        /* EINTR: the call lies on this stack, so there is no way but to wait on. */
    }
    sem_destroy(&call->done);
    if (call->rc < 0) {
        err_restore(&call->error);
    }
    return call->rc;
}

static int perform_op(struct store *store, struct call *call)
{
    double started = clock_monotonic_seconds();
    int rc = call->op(store->state, call->args);
    storage_metrics_observe(store->state_ops, call->op, clock_monotonic_seconds() - started);
    return rc;
}

static int run_op(struct store *store, state_op op, struct state_args args)
{
    struct call call = {.fn = perform_op, .op = op, .args = &args};

    return store_dispatch(store, &call);
}

/* The same of what ends a job or removes something: a full disk does not stop it. */
static int run_ending(struct store *store, state_op op, struct state_args args)
{
    struct call call = {.fn = perform_op, .op = op, .args = &args, .ends = true};

    return store_dispatch(store, &call);
}

const struct state_ops *store_state(const struct store *store)
{
    return store->state_ops;
}

int store_run(struct store *store, state_op op, struct state_args args)
{
    return run_op(store, op, args);
}

int store_run_ending(struct store *store, state_op op, struct state_args args)
{
    return run_ending(store, op, args);
}

static const struct state_ops *find_state(const char *name)
{
    for (const struct state_ops *const *row = state_rows; *row != NULL; row++) {
        if (strcmp((*row)->name, name) == 0) {
            return *row;
        }
    }
    return NULL;
}

static const struct blob_ops *find_blobs(const char *name)
{
    for (const struct blob_ops *const *row = blob_rows; *row != NULL; row++) {
        if (strcmp((*row)->name, name) == 0) {
            return *row;
        }
    }
    return NULL;
}

/* Everything but the thread; the caller releases what is open when this fails. */
static int store_open_parts(const struct store_config *config, struct store *store)
{
    const char *state = config->state != NULL ? config->state : state_rows[0]->name;
    const char *blobs = config->blobs != NULL ? config->blobs : blob_rows[0]->name;

    store->state_ops = find_state(state);
    store->blob_ops = find_blobs(blobs);
    if (store->state_ops == NULL || store->blob_ops == NULL) {
        return err_raise(ERR_CONFIG, "there is no %s store \"%.64s\"", store->state_ops == NULL ? "state" : "blob",
                         store->state_ops == NULL ? state : blobs);
    }
    if (!config->beside) {
        TRY(store_dir_open(config->data_dir, &store->lock_fd));
    }
    store->data_dir = strdup(config->data_dir);
    store->calls = queue_new(STORE_QUEUE_LENGTH);
    if (store->data_dir == NULL || store->calls == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the store");
    }
    if (config->beside) {
        return store->state_ops->open(config->data_dir, true, &store->state);
    }
    TRY(reserve_open(&store->reserve, config->data_dir));
    TRY(store->state_ops->open(config->data_dir, false, &store->state));
    return store->blob_ops->open(config->data_dir, &store->blobs);
}

static void close_parts(struct store *store)
{
    if (store->blobs != NULL) {
        store->blob_ops->close(store->blobs);
    }
    if (store->state != NULL) {
        store->state_ops->close(store->state);
    }
    queue_free(store->calls);
    free(store->data_dir);
    if (store->lock_fd >= 0) {
        close(store->lock_fd);
    }
    free(store);
}

int store_open(const struct store_config *config, struct store **out)
{
    struct store *store = calloc(1, sizeof(*store));

    if (store == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the store");
    }
    store->lock_fd = -1;
    for (int i = 0; i < QUOTA_COUNT; i++) {
        store->quota_defaults[i] = QUOTA_UNSET;
    }
    int rc = store_open_parts(config, store);
    if (rc == 0 && pthread_create(&store->thread, NULL, storage_thread, store) != 0) {
        rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot start the storage thread");
    }
    if (rc != 0) {
        close_parts(store);
        return rc;
    }
    *out = store;
    return 0;
}

void store_close(struct store *store)
{
    if (store == NULL) {
        return;
    }
    queue_close(store->calls);
    pthread_join(store->thread, NULL);
    close_parts(store);
}

static int perform_ready(struct store *store, struct call *call)
{
    TRY(reserve_check(&store->reserve));
    return store->state_ops->ready(store->state, call->args);
}

int store_ready(struct store *store)
{
    struct state_args args = {0};
    struct call call = {.fn = perform_ready, .args = &args};

    return store_dispatch(store, &call);
}

const char *store_data_dir(const struct store *store)
{
    return store->data_dir;
}

void store_metrics(const struct store *store, FILE *out)
{
    storage_metrics_write(store->state_ops, out);
}

void store_on_event(struct store *store, void (*fn)(void *data, const char *job_id), void *data)
{
    store->on_event = fn;
    store->on_event_data = data;
}

static int perform_subscribe(struct store *store, struct call *call)
{
    store->on_message = call->subscriber;
    store->on_message_data = call->subscriber_data;
    return 0;
}

int store_on_message(struct store *store, void (*fn)(void *data), void *data)
{
    struct call call = {.fn = perform_subscribe, .subscriber = fn, .subscriber_data = data};

    return store_dispatch(store, &call);
}

const struct blob_ops *store_blob_ops(struct store *store, struct blobs **blobs)
{
    *blobs = store->blobs;
    return store->blob_ops;
}

int store_object_put(struct store *store, const char *project, const char *kind, const json_t *body)
{
    return run_op(store, store->state_ops->object_put,
                  (struct state_args){.project = project, .kind = kind, .body = body});
}

int store_object_replace(struct store *store, const char *project, const char *kind, const json_t *body)
{
    return run_op(store, store->state_ops->object_replace,
                  (struct state_args){.project = project, .kind = kind, .body = body});
}

int store_object_get(struct store *store, const char *project, const char *kind, const char *id, json_t **body)
{
    return run_op(store, store->state_ops->object_get,
                  (struct state_args){.project = project, .kind = kind, .id = id, .out = body});
}

int store_object_delete(struct store *store, const char *project, const char *kind, const char *id)
{
    return run_ending(store, store->state_ops->object_delete,
                      (struct state_args){.project = project, .kind = kind, .id = id});
}

int store_object_list(struct store *store, const char *kind, const struct page *page, json_t **list)
{
    return run_op(store, store->state_ops->object_list, (struct state_args){.kind = kind, .page = page, .out = list});
}

int store_job_create(struct store *store, const struct job_row *job, const char *event, const json_t *event_data,
                     const struct idempotency_key *idempotency)
{
    return run_op(store, store->state_ops->job_create,
                  (struct state_args){.job_new = job, .event = event, .event_data = event_data, .key = idempotency});
}

int store_job_get(struct store *store, const char *project, const char *id, struct job_row *job)
{
    return run_op(store, store->state_ops->job_get, (struct state_args){.project = project, .id = id, .row = job});
}

int store_job_status(struct store *store, const char *project, const char *id, struct store_status *out)
{
    return run_op(store, store->state_ops->job_status,
                  (struct state_args){.project = project, .id = id, .status = out});
}

int store_job_list(struct store *store, const struct page *page, struct job_list *list)
{
    return run_op(store, store->state_ops->job_list, (struct state_args){.page = page, .jobs = list});
}

int store_job_update(struct store *store, const struct job_update *update, struct job_row *after)
{
    bool ends = (update->set & JOB_SET_STATUS) != 0 && update->artifact == NULL;

    return (ends ? run_ending : run_op)(store, store->state_ops->job_update,
                                        (struct state_args){.update = update, .row = after});
}

int store_job_claim(struct store *store, enum job_status from, enum job_status to, const char *worker,
                    const char *others, struct job_row *job)
{
    return run_ending(
        store, store->state_ops->job_claim,
        (struct state_args){
            .from = from, .to = to, .worker = worker, .others = others, .row = job, .limits = store->quota_defaults});
}

int store_job_delete(struct store *store, const char *id)
{
    return run_ending(store, store->state_ops->job_delete, (struct state_args){.id = id});
}

int store_job_ahead(struct store *store, const char *id, int64_t *ahead)
{
    return run_op(store, store->state_ops->job_ahead,
                  (struct state_args){.id = id, .counts = ahead, .limits = store->quota_defaults});
}

int store_job_counts(struct store *store, const char *project, int64_t counts[STATUS_COUNT])
{
    return run_op(store, store->state_ops->job_counts, (struct state_args){.project = project, .counts = counts});
}

int store_events_list(struct store *store, const char *job, int64_t after, int limit, json_t **events)
{
    return run_op(store, store->state_ops->events_list,
                  (struct state_args){.id = job, .after = after, .limit = limit, .out = events});
}

int store_event_append(struct store *store, const char *job, const char *type, const json_t *data)
{
    return run_op(store, store->state_ops->event_append,
                  (struct state_args){.id = job, .event = type, .event_data = data});
}

int store_block_commit(struct store *store, const struct job_update *update, const json_t *block, const json_t *layers)
{
    return run_op(store, store->state_ops->block_commit,
                  (struct state_args){.update = update, .block = block, .layers = layers});
}

int store_blocks_list(struct store *store, const char *job, json_t **blocks)
{
    return run_op(store, store->state_ops->blocks_list, (struct state_args){.id = job, .out = blocks});
}

int store_layers_list(struct store *store, const char *job, json_t **layers)
{
    return run_op(store, store->state_ops->layers_list, (struct state_args){.id = job, .out = layers});
}

int store_blocks_clear(struct store *store, const char *job, int64_t from)
{
    return run_ending(store, store->state_ops->blocks_clear, (struct state_args){.id = job, .after = from});
}

int store_artifact_delete(struct store *store, const char *project, const char *id)
{
    return run_ending(store, store->state_ops->artifact_delete, (struct state_args){.project = project, .id = id});
}

int store_idempotency_reserve(struct store *store, const struct idempotency_key *key, const char *body_digest,
                              json_t **response)
{
    return run_op(store, store->state_ops->idempotency_reserve,
                  (struct state_args){.key = key, .digest = body_digest, .out = response});
}

int store_idempotency_known(struct store *store, const struct idempotency_key *key, bool *known)
{
    int64_t count = 0;

    TRY(run_op(store, store->state_ops->idempotency_known, (struct state_args){.key = key, .counts = &count}));
    *known = count > 0;
    return 0;
}

int store_idempotency_finish(struct store *store, const struct idempotency_key *key, const json_t *response)
{
    return run_ending(store, store->state_ops->idempotency_finish, (struct state_args){.key = key, .body = response});
}

int store_idempotency_release(struct store *store, const struct idempotency_key *key)
{
    return run_ending(store, store->state_ops->idempotency_release, (struct state_args){.key = key});
}

static int blob_referenced(void *data, const char *sha256)
{
    struct store *store = data;

    return store->state_ops->blob_referenced(store->state, sha256);
}

/* The complete sweep is one call of the storage thread, so that no object can be put between asking and deleting. */
static int perform_collect(struct store *store, struct call *call)
{
    return store->blob_ops->collect(store->blobs, blob_referenced, store, &call->number);
}

int store_collect_garbage(struct store *store, int64_t *removed)
{
    struct call call = {.fn = perform_collect};

    int rc = store_dispatch(store, &call);
    if (rc == 0 && removed != NULL) {
        *removed = call.number;
    }
    return rc;
}

int store_key_create(struct store *store, const struct key_row *key, const char *sha256)
{
    return run_op(store, store->state_ops->key_create, (struct state_args){.key_new = key, .digest = sha256});
}

int store_key_find(struct store *store, const char *sha256, struct key_row *key)
{
    return run_op(store, store->state_ops->key_find, (struct state_args){.digest = sha256, .key_row = key});
}

int store_key_get(struct store *store, const char *id, json_t **key)
{
    return run_op(store, store->state_ops->key_get, (struct state_args){.id = id, .out = key});
}

int store_key_list(struct store *store, const struct page *page, json_t **list)
{
    return run_op(store, store->state_ops->key_list, (struct state_args){.page = page, .out = list});
}

int store_key_revoke(struct store *store, const char *id)
{
    return run_ending(store, store->state_ops->key_revoke, (struct state_args){.id = id});
}

int store_key_count(struct store *store, int64_t *count)
{
    return run_op(store, store->state_ops->key_count, (struct state_args){.counts = count});
}

void store_quota_defaults(struct store *store, const int64_t limits[QUOTA_COUNT])
{
    memcpy(store->quota_defaults, limits, sizeof(store->quota_defaults));
}

int store_quota_get(struct store *store, const char *project, struct quota_row *out)
{
    return run_op(store, store->state_ops->quota_get, (struct state_args){.project = project, .quota = out});
}

int store_quota_set(struct store *store, const char *project, const int64_t limits[QUOTA_COUNT])
{
    return run_ending(store, store->state_ops->quota_set, (struct state_args){.project = project, .limits = limits});
}

int store_project_list(struct store *store, const struct page *page, json_t **list)
{
    return run_op(store, store->state_ops->project_list, (struct state_args){.page = page, .out = list});
}
