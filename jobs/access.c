/* What a principal may see. Lists, jobs and objects are filtered by the store, which knows the project of each row; a
 * job's own rows (events, modules) are its job's, so the job is looked at first. */

#include "jobs/access.h"

#include "base/err.h"
#include "jobs/view.h"
#include "storage/storage.h"

#include <string.h>

const struct principal principal_local = {.project = "default", .name = "local"};

int access_object(struct store *store, const struct principal *who, const char *kind, const char *id)
{
    json_t *body = NULL;

    TRY(store_object_get(store, who->project, kind, id, &body));
    json_decref(body);
    return 0;
}

int engine_ready(struct engine *engine)
{
    return store_ready(engine_store(engine));
}

int engine_object_get(struct engine *engine, const struct principal *who, const char *kind, const char *id,
                      json_t **body)
{
    return store_object_get(engine_store(engine), who->project, kind, id, body);
}

int engine_object_list(struct engine *engine, const struct principal *who, const char *kind, const struct page *page,
                       json_t **list)
{
    struct page own = *page;

    own.project = who->project;
    return store_object_list(engine_store(engine), kind, &own, list);
}

int engine_job_list(struct engine *engine, const struct principal *who, const struct page *page, json_t **list)
{
    struct page own = *page;
    AUTO(job_list) struct job_list found = {.rows = NULL};

    own.project = who->project;
    TRY(store_job_list(engine_store(engine), &own, &found));
    json_t *view = view_jobs(&found);
    if (view == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of jobs");
    }
    *list = view;
    return 0;
}

int engine_job_check(struct engine *engine, const struct principal *who, const char *id)
{
    struct store_status found;

    return store_job_status(engine_store(engine), who->project, id, &found);
}

int engine_job_events(struct engine *engine, const struct principal *who, const char *id, int64_t after, int limit,
                      json_t **events, bool *last)
{
    struct store_status found;

    TRY(store_job_status(engine_store(engine), who->project, id, &found));
    TRY(store_events_list(engine_store(engine), id, after, limit, events));
    if (last != NULL) {
        *last = job_status_is_final(found.status) && found.seq - (int64_t)json_array_size(*events) <= after;
    }
    return 0;
}

int engine_job_layers(struct engine *engine, const struct principal *who, const char *id, json_t **rows)
{
    TRY(engine_job_check(engine, who, id));
    return store_layers_list(engine_store(engine), id, rows);
}

int engine_file_open(struct engine *engine, struct blob_writer **out)
{
    return blob_writer_new(engine_store(engine), out);
}

int engine_file_write(struct blob_writer *writer, const void *data, size_t size)
{
    return blob_writer_write(writer, data, size);
}

int engine_file_commit_take(struct blob_writer *writer, char sha256[DIGEST_HEX_SIZE], int64_t *size)
{
    return blob_writer_commit_take(writer, sha256, size);
}

void engine_file_abort(struct blob_writer *writer)
{
    blob_writer_abort(writer);
}

int engine_file_create(struct engine *engine, const struct principal *who, const json_t *file)
{
    return store_object_put(engine_store(engine), who->project, "file", file);
}

void engine_file_let_go(struct engine *engine, const char *sha256)
{
    blob_let_go(engine_store(engine), sha256);
}

int engine_blob_open(struct engine *engine, const char *sha256, struct blob_reader **out, int64_t *size)
{
    return blob_reader_open(engine_store(engine), sha256, out, size);
}

int engine_blob_read(struct blob_reader *reader, int64_t offset, void *buffer, size_t size)
{
    return blob_reader_read(reader, offset, buffer, size);
}

void engine_blob_close(struct blob_reader *reader)
{
    blob_reader_close(reader);
}

int engine_idempotency_reserve(struct engine *engine, const struct idempotency_key *key, const char *digest,
                               json_t **response)
{
    return store_idempotency_reserve(engine_store(engine), key, digest, response);
}

int engine_idempotency_finish(struct engine *engine, const struct idempotency_key *key, const json_t *response)
{
    return store_idempotency_finish(engine_store(engine), key, response);
}

int engine_idempotency_release(struct engine *engine, const struct idempotency_key *key)
{
    return store_idempotency_release(engine_store(engine), key);
}
