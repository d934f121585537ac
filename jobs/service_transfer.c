/* Resumable uploads: a file that arrives in pieces, over as many connections and lives of the daemon as that takes.
 *
 * The bytes are a file below <data_dir>/uploads until the last one is there; then the file becomes a blob, and a file
 * object refers to it. How many bytes count is in the upload's object, which is written after they were synced. What
 * lies beyond them is cut off by the next piece, so a piece that broke off never leaves bytes that nobody vouches for.
 *
 * The end takes several commits, each of which can be the last one before a crash, so each can be repeated: the object
 * names the digest (which keeps the blob), the file becomes a blob, the file object is made under the id that the
 * upload has had since its creation, and the upload is complete. */

#include "jobs/service.h"

#include "jobs/quota.h"
#include "jobs/service_access.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TRANSFER_SYNC_BYTES ((int64_t)64 << 20) /* so much of one piece can be lost by a crash */

struct service_transfer {
    struct service *service;
    struct service_transfer *next; /* under service->uploads_lock */
    char *project;
    char id[ID_SIZE];
    char path[SERVICE_PATH_MAX];
    json_t *object;
    struct digest *digest; /* of the piece; NULL: it is not checked */
    int fd;                /* -1: the bytes are a blob already, or about to be */
    bool refused;          /* the piece does not count */
    int64_t length;        /* of the complete file */
    int64_t start;         /* of this piece */
    int64_t size, durable; /* written; of these, recorded in the object */
};

static const char *transfer_text(const json_t *object, const char *name)
{
    return json_string_value(json_object_get(object, name));
}

static int transfer_path(const struct service *service, const char *id, char out[SERVICE_PATH_MAX])
{
    return fs_path(out, SERVICE_PATH_MAX, "%s/uploads%s%s", store_data_dir(service->store), id[0] != '\0' ? "/" : "",
                   id);
}

/* --- creation */

static int check_space(const struct service *service, int64_t length)
{
    int64_t space = fs_free_bytes(store_data_dir(service->store));

    if (space < 0 || length <= space) {
        return 0;
    }
    int rc = err_raise(ERR_DISK_FULL, "the upload has %lld bytes and the disk has %lld free", (long long)length,
                       (long long)space);
    return err_set_hint(rc, "delete files, artifacts or models that are not needed any longer");
}

static int make_file(const char *path)
{
    AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0) {
        return err_raise_errno(errno, "cannot create %s", path);
    }
    return fs_sync_parent(path);
}

int service_transfer_create(struct service *service, const struct principal *who, const char *purpose, const char *name,
                            int64_t length, json_t **object)
{
    char id[ID_SIZE], file[ID_SIZE], path[SERVICE_PATH_MAX];

    TRY(store_ready(service->store));
    TRY(check_space(service, length));
    id_new("upl", id);
    id_new("file", file);
    AUTO_JSON json_t *made =
        json_pack("{s:s, s:s, s:s, s:s?, s:s, s:I, s:I, s:s, s:n, s:I}", "id", id, "object", "upload", "purpose",
                  purpose, "name", name, "status", "in_progress", "bytes", (json_int_t)length, "offset", (json_int_t)0,
                  "file_id", file, "sha256", "created_at", (json_int_t)clock_unix_seconds());
    if (made == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an upload");
    }
    TRY(transfer_path(service, "", path));
    TRY(fs_make_dirs(path));
    TRY(transfer_path(service, id, path));
    TRY(make_file(path));
    pthread_mutex_lock(&service->admission);
    int rc = quota_admit_upload(service, who, length);
    rc = rc == 0 ? store_object_put(service->store, who->project, "upl", made) : rc;
    pthread_mutex_unlock(&service->admission);
    if (rc != 0) {
        (void)unlink(path);
        return rc;
    }
    *object = MOVE(made);
    return 0;
}

/* --- one piece */

/* One at a time per upload. */
static int register_transfer(struct service_transfer *transfer)
{
    struct service *service = transfer->service;
    bool taken = false;

    pthread_mutex_lock(&service->uploads_lock);
    for (struct service_transfer *other = service->transfers; other != NULL; other = other->next) {
        taken = taken || strcmp(other->id, transfer->id) == 0;
    }
    if (!taken) {
        transfer->next = service->transfers;
        service->transfers = transfer;
    }
    pthread_mutex_unlock(&service->uploads_lock);
    return taken ? err_raise(ERR_UPLOAD_BUSY, "another request sends a piece of this upload, or deletes it") : 0;
}

static void unregister_transfer(struct service_transfer *transfer)
{
    struct service *service = transfer->service;

    pthread_mutex_lock(&service->uploads_lock);
    for (struct service_transfer **at = &service->transfers; *at != NULL; at = &(*at)->next) {
        if (*at == transfer) {
            *at = transfer->next;
            break;
        }
    }
    pthread_mutex_unlock(&service->uploads_lock);
}

static void transfer_free(struct service_transfer *transfer)
{
    if (transfer->fd >= 0) {
        close(transfer->fd);
    }
    digest_free(transfer->digest);
    json_decref(transfer->object);
    free(transfer->project);
    free(transfer);
}

CLEANUP_FREE(transfer, struct service_transfer, transfer_free)

/* Not registered yet. project NULL: of any. */
static int transfer_new(struct service *service, const char *project, const char *id, struct service_transfer **out)
{
    AUTO(transfer) struct service_transfer *transfer = NULL;

    TRY(mem_new(&transfer));
    transfer->service = service;
    transfer->fd = -1;
    snprintf(transfer->id, sizeof(transfer->id), "%s", id);
    if (project != NULL) {
        TRY(mem_strdup(&transfer->project, project));
    }
    TRY(transfer_path(service, id, transfer->path));
    *out = MOVE(transfer);
    return 0;
}

static bool is_complete(const struct service_transfer *transfer)
{
    const char *status = transfer_text(transfer->object, "status");
    return status != NULL && strcmp(status, "completed") == 0;
}

/* The recorded bytes, and none beyond them. */
static int transfer_open_file(struct service_transfer *transfer)
{
    if (transfer_text(transfer->object, "sha256") != NULL || is_complete(transfer)) {
        return 0;
    }
    transfer->fd = open(transfer->path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (transfer->fd < 0) {
        return err_raise_errno(errno, "cannot open %s", transfer->path);
    }
    return ftruncate(transfer->fd, transfer->durable) != 0 ? err_raise_errno(errno, "cannot cut %s", transfer->path)
                                                           : 0;
}

static int refuse_size(const struct service_transfer *transfer, int64_t more)
{
    int rc = err_raise(ERR_PAYLOAD_TOO_LARGE, "%lld bytes from offset %lld on exceed the %lld bytes of Upload-Length",
                       (long long)more, (long long)transfer->size, (long long)transfer->length);
    return err_set_hint(rc, "send at most %lld bytes", (long long)(transfer->length - transfer->size));
}

static int open_transfer(struct service_transfer *transfer, int64_t offset, int64_t announced)
{
    TRY(store_object_get(transfer->service->store, transfer->project, "upl", transfer->id, &transfer->object));
    transfer->length = json_integer_value(json_object_get(transfer->object, "bytes"));
    transfer->durable = json_integer_value(json_object_get(transfer->object, "offset"));
    transfer->start = transfer->size = transfer->durable;
    if (offset != transfer->durable) {
        int rc = err_raise(ERR_OFFSET_MISMATCH, "\"Upload-Offset\" is %lld; the upload has %lld of %lld bytes",
                           (long long)offset, (long long)transfer->durable, (long long)transfer->length);
        return err_set_param(rc, "Upload-Offset");
    }
    if (announced > transfer->length - transfer->size) {
        return refuse_size(transfer, announced);
    }
    return transfer_open_file(transfer);
}

int service_transfer_open(struct service *service, const struct principal *who, const char *id,
                          const struct service_piece *piece, struct service_transfer **out)
{
    AUTO(transfer) struct service_transfer *transfer = NULL;

    TRY(transfer_new(service, who->project, id, &transfer));
    if (piece->checked && (transfer->digest = digest_new()) == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a digest");
    }
    TRY(access_object(service->store, who, "upl", id)); /* before another project's request could be noticed */
    TRY(register_transfer(transfer));
    int rc = open_transfer(transfer, piece->offset, piece->announced);
    if (rc != 0) {
        unregister_transfer(transfer);
        return rc;
    }
    *out = MOVE(transfer);
    return 0;
}

/* What was written is on disk, and counts. */
static int record(struct service_transfer *transfer)
{
    if (transfer->size == transfer->durable) {
        return 0;
    }
    TRY(fs_sync(transfer->fd));
    if (json_object_set_new(transfer->object, "offset", json_integer(transfer->size)) != 0) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an upload's offset");
    }
    TRY(store_object_put(transfer->service->store, transfer->project, "upl", transfer->object));
    transfer->durable = transfer->size;
    return 0;
}

int service_transfer_feed(struct service_transfer *transfer, const char *data, size_t size)
{
    if ((int64_t)size > transfer->length - transfer->size) {
        transfer->refused = true;
        return refuse_size(transfer, (int64_t)size);
    }
    if (size == 0) {
        return 0;
    }
    TRY(fs_pwrite_full(transfer->fd, data, size, transfer->size));
    transfer->size += (int64_t)size;
    if (transfer->digest != NULL) {
        digest_update(transfer->digest, data, size);
        return 0; /* none of it counts before the digest was compared */
    }
    return transfer->size - transfer->durable >= TRANSFER_SYNC_BYTES ? record(transfer) : 0;
}

void service_transfer_digest(struct service_transfer *transfer, char sha256[DIGEST_HEX_SIZE])
{
    digest_finish(transfer->digest, sha256);
    transfer->digest = NULL;
}

/* Keep what arrived; of a piece that is refused or was to be checked, nothing. */
static int settle(struct service_transfer *transfer)
{
    if (!transfer->refused && transfer->digest == NULL) {
        return record(transfer);
    }
    transfer->size = transfer->start;
    return record(transfer); /* the file is cut when it is opened again */
}

void service_transfer_abort(struct service_transfer *transfer)
{
    struct err_record earlier;

    err_take(&earlier);
    if (settle(transfer) != 0) {
        log_err(LOG_WARN, "bytes of an upload not recorded", NULL);
    }
    err_restore(&earlier);
    unregister_transfer(transfer);
    transfer_free(transfer);
}

void service_transfer_refuse(struct service_transfer *transfer)
{
    transfer->refused = true;
    service_transfer_abort(transfer);
}

/* --- the end */

static int put(struct service_transfer *transfer, const char *status, const char *sha256)
{
    AUTO_JSON json_t *change = json_pack("{s:s, s:s?}", "status", status, "sha256", sha256);

    if (change == NULL || json_object_update(transfer->object, change) != 0) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an upload");
    }
    return store_object_put(transfer->service->store, transfer->project, "upl", transfer->object);
}

/* The digest of all of it; from then on the object keeps the blob. */
static int name_digest(struct service_transfer *transfer, char sha256[DIGEST_HEX_SIZE])
{
    const char *known = transfer_text(transfer->object, "sha256");

    if (known != NULL) {
        snprintf(sha256, DIGEST_HEX_SIZE, "%s", known);
        return 0;
    }
    TRY(digest_file(transfer->fd, sha256, NULL));
    return put(transfer, "in_progress", sha256);
}

static int place(struct service_transfer *transfer, const char *sha256, bool *held)
{
    struct blob_reader *reader;
    char stored[DIGEST_HEX_SIZE];

    int rc = blob_adopt(transfer->service->store, transfer->path, sha256, stored, NULL);
    *held = rc == 0;
    if (rc != ERR_NOT_FOUND) {
        return rc;
    }
    TRY(blob_reader_open(transfer->service->store, sha256, &reader, NULL)); /* an earlier end got as far */
    blob_reader_close(reader);
    return 0;
}

static json_t *file_object(const struct service_transfer *transfer, const char *sha256)
{
    return json_pack("{s:s, s:s, s:s, s:s?, s:I, s:s, s:I}", "id", transfer_text(transfer->object, "file_id"), "object",
                     "file", "purpose", transfer_text(transfer->object, "purpose"), "name",
                     transfer_text(transfer->object, "name"), "bytes", (json_int_t)transfer->length, "sha256", sha256,
                     "created_at", (json_int_t)clock_unix_seconds());
}

static int become_file(struct service_transfer *transfer, json_t **out)
{
    struct store *store = transfer->service->store;
    char sha256[DIGEST_HEX_SIZE];
    bool held = false;

    TRY(name_digest(transfer, sha256));
    TRY(place(transfer, sha256, &held));
    AUTO_JSON json_t *file = file_object(transfer, sha256);
    int rc = file != NULL ? store_object_put(store, transfer->project, "file", file)
                          : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a file object");
    rc = rc == 0 ? put(transfer, "completed", NULL) : rc;
    if (held) {
        blob_let_go(store, sha256);
    }
    TRY(rc);
    *out = MOVE(file);
    return 0;
}

static int transfer_finish(struct service_transfer *transfer, json_t **file)
{
    if (transfer->size < transfer->length) {
        int rc = err_raise(ERR_INVALID_PARAMETER, "\"Upload-Complete\" is ?1; the upload has %lld of %lld bytes",
                           (long long)transfer->size, (long long)transfer->length);
        return err_set_param(rc, "Upload-Complete");
    }
    if (is_complete(transfer)) { /* the answer to the end was lost */
        return store_object_get(transfer->service->store, transfer->project, "file",
                                transfer_text(transfer->object, "file_id"), file);
    }
    return become_file(transfer, file);
}

int service_transfer_end_take(struct service_transfer *transfer, bool complete, int64_t *offset, json_t **file)
{
    int rc = settle(transfer);

    *offset = transfer->durable;
    if (rc == 0 && complete) {
        rc = transfer_finish(transfer, file);
    }
    unregister_transfer(transfer);
    transfer_free(transfer);
    return rc;
}

/* --- deletion */

static int delete_registered(const struct service_transfer *transfer)
{
    TRY(store_object_delete(transfer->service->store, transfer->project, "upl", transfer->id));
    if (unlink(transfer->path) != 0 && errno != ENOENT) {
        log_err(LOG_WARN, "bytes of an upload not removed", NULL);
    }
    return 0;
}

int service_transfer_delete(struct service *service, const struct principal *who, const char *id)
{
    AUTO(transfer) struct service_transfer *transfer = NULL;

    TRY(transfer_new(service, who->project, id, &transfer));
    TRY(access_object(service->store, who, "upl", id));
    TRY(register_transfer(transfer));
    int rc = delete_registered(transfer);
    unregister_transfer(transfer);
    return rc;
}

int service_transfer_expire(struct service *service, const char *id, int64_t cutoff, bool *expired)
{
    AUTO(transfer) struct service_transfer *transfer = NULL;
    struct stat found;

    TRY(transfer_new(service, NULL, id, &transfer));
    if (register_transfer(transfer) != 0) {
        return 0; /* a piece is on its way */
    }
    /* Each piece touches the file. An upload without one has all of its bytes. */
    bool old = stat(transfer->path, &found) == 0 && found.st_mtim.tv_sec < cutoff;
    int rc = old ? delete_registered(transfer) : 0;
    unregister_transfer(transfer);
    *expired = old && rc == 0;
    return rc;
}
