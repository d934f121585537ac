/* What a principal may see. Lists, jobs and objects are filtered by the store, which knows the project of each row; a
 * job's own rows (events, modules) are its job's, so the job is looked at first. */

#include "jobs/service_access.h"

#include "base/err.h"
#include "base/mem.h"
#include "jobs/keys.h"
#include "jobs/rows.h"
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

int service_ready(struct service *service)
{
    return store_ready(service_store(service));
}

int service_object_get(struct service *service, const struct principal *who, const char *kind, const char *id,
                       json_t **body)
{
    return store_object_get(service_store(service), who->project, kind, id, body);
}

int service_object_list(struct service *service, const struct principal *who, const char *kind, const struct page *page,
                        json_t **list)
{
    struct page own = *page;

    own.project = who->project;
    return store_object_list(service_store(service), kind, &own, list);
}

int service_job_check(struct service *service, const struct principal *who, const char *id)
{
    struct store_status found;

    return store_job_status(service_store(service), who->project, id, &found);
}

int service_job_events(struct service *service, const struct principal *who, const char *id, int64_t after, int limit,
                       json_t **events, bool *last)
{
    struct store_status found;

    TRY(store_job_status(service_store(service), who->project, id, &found));
    TRY(store_events_list(service_store(service), id, after, limit, events));
    if (last != NULL) {
        *last = job_status_is_final(found.status) && found.seq - (int64_t)json_array_size(*events) <= after;
    }
    return 0;
}

int service_job_layers(struct service *service, const struct principal *who, const char *id, json_t **rows)
{
    TRY(service_job_check(service, who, id));
    TRY(store_layers_list(service_store(service), id, rows));
    rows_complete(*rows);
    return 0;
}

int service_file_open(struct service *service, struct blob_writer **out)
{
    return blob_writer_new(service_store(service), out);
}

int service_file_write(struct blob_writer *writer, const void *data, size_t size)
{
    return blob_writer_write(writer, data, size);
}

int service_file_commit_take(struct blob_writer *writer, char sha256[DIGEST_HEX_SIZE], int64_t *size)
{
    return blob_writer_commit_take(writer, sha256, size);
}

void service_file_abort(struct blob_writer *writer)
{
    blob_writer_abort(writer);
}

void service_file_let_go(struct service *service, const char *sha256)
{
    blob_let_go(service_store(service), sha256);
}

int service_blob_open(struct service *service, const char *sha256, struct blob_reader **out, int64_t *size)
{
    return blob_reader_open(service_store(service), sha256, out, size);
}

int service_blob_read(struct blob_reader *reader, int64_t offset, void *buffer, size_t size)
{
    return blob_reader_read(reader, offset, buffer, size);
}

void service_blob_close(struct blob_reader *reader)
{
    blob_reader_close(reader);
}

int service_idempotency_reserve(struct service *service, const struct idempotency_key *key, const char *digest,
                                json_t **response)
{
    return store_idempotency_reserve(service_store(service), key, digest, response);
}

int service_idempotency_known(struct service *service, const struct idempotency_key *key, bool *known)
{
    return store_idempotency_known(service_store(service), key, known);
}

int service_idempotency_finish(struct service *service, const struct idempotency_key *key, const json_t *response)
{
    return store_idempotency_finish(service_store(service), key, response);
}

int service_idempotency_release(struct service *service, const struct idempotency_key *key)
{
    return store_idempotency_release(service_store(service), key);
}

int service_key_authenticate(struct service *service, const char sha256[DIGEST_HEX_SIZE], struct key_grant *grant)
{
    return key_authenticate(service_store(service), sha256, grant);
}

int service_key_create(struct service *service, const json_t *body, struct validation_errors *errors, char **text,
                       json_t **key)
{
    struct key_request request = {.scope = KEY_SCOPE_READ};
    char made[KEY_TEXT_SIZE];

    TRY(key_request_parse(body, &request, errors));
    TRY(key_create(service_store(service), &request, made, key));
    int rc = mem_strdup(text, made);
    explicit_bzero(made, sizeof(made));
    return rc;
}

int service_key_get(struct service *service, const char *id, json_t **key)
{
    return store_key_get(service_store(service), id, key);
}

int service_key_list(struct service *service, const struct page *page, json_t **list)
{
    return store_key_list(service_store(service), page, list);
}

int service_key_revoke(struct service *service, const char *id)
{
    return store_key_revoke(service_store(service), id);
}
