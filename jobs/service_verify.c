/* An artifact's files, hashed again, and its signature: what a disk or a hand changed is found before it is loaded. */

#include "jobs/jobs.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "base/model_signature.h"
#include "jobs/signature.h"

#define VERIFY_PIECE ((size_t)1 << 20)

struct verification {
    struct service *service;
    char *piece;
    json_t *found; /* digests of what is there, by path */
    int64_t bytes;
    bool intact;
};

static int hash_blob(struct verification *verification, struct blob_reader *reader, int64_t size,
                     char sha256[DIGEST_HEX_SIZE])
{
    AUTO(digest) struct digest *digest = digest_new();

    if (digest == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a digest");
    }
    for (int64_t done = 0; done < size;) {
        size_t part = size - done < (int64_t)VERIFY_PIECE ? (size_t)(size - done) : VERIFY_PIECE;
        if (service_draining(verification->service)) {
            return err_raise(ERR_DRAINING, "the daemon is shutting down");
        }
        TRY(service_blob_read(reader, done, verification->piece, part));
        digest_update(digest, verification->piece, part);
        done += (int64_t)part;
    }
    digest_finish(MOVE(digest), sha256);
    verification->bytes += size;
    return 0;
}

/* *actual_bytes is -1 when there is no file. */
static int hash_file(struct verification *verification, const char *expected, int64_t *actual_bytes,
                     char sha256[DIGEST_HEX_SIZE])
{
    struct blob_reader *reader;

    *actual_bytes = -1;
    int rc = service_blob_open(verification->service, expected, &reader, actual_bytes);
    if (rc == ERR_NOT_FOUND) {
        return 0;
    }
    TRY(rc);
    rc = hash_blob(verification, reader, *actual_bytes, sha256);
    service_blob_close(reader);
    return rc;
}

static int verify_file(struct verification *verification, const json_t *file, json_t *list)
{
    const char *path = json_string_value(json_object_get(file, "path"));
    const char *expected = json_string_value(json_object_get(file, "sha256"));
    int64_t bytes = json_integer_value(json_object_get(file, "bytes")), actual_bytes;
    char sha256[DIGEST_HEX_SIZE] = "";

    if (path == NULL || expected == NULL) {
        return err_raise(ERR_INTERNAL, "a file of the artifact has no path or digest");
    }
    int rc = hash_file(verification, expected, &actual_bytes, sha256);
    if (rc != 0) {
        return err_pass(rc, "hash %s", path);
    }
    bool found = actual_bytes >= 0;
    if (found && strcmp(path, MODEL_SIGNATURE_FILE) != 0) {
        json_object_set_new(verification->found, path, json_string(sha256));
    }
    bool intact = found && actual_bytes == bytes && strcmp(sha256, expected) == 0;
    verification->intact = verification->intact && intact;
    json_t *row = json_pack("{s:s, s:s, s:I, s:s, s:o, s:s?}", "path", path, "state",
                            intact  ? "intact"
                            : found ? "changed"
                                    : "missing",
                            "bytes", (json_int_t)bytes, "sha256", expected, "actual_bytes",
                            found ? json_integer(actual_bytes) : json_null(), "actual_sha256", found ? sha256 : NULL);
    return json_array_append_new(list, row) == 0 ? 0
                                                 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a verification");
}

int service_artifact_verify(struct service *service, const struct principal *who, const char *id, json_t **answer)
{
    AUTO_JSON json_t *artifact = NULL;
    AUTO_JSON json_t *list = json_array();
    AUTO_JSON json_t *found = json_object();
    AUTO_FREE char *piece = NULL;
    json_t *signature = NULL;
    size_t i;
    json_t *file;

    TRY(service_object_get(service, who, "art", id, &artifact));
    TRY(mem_buffer(&piece, VERIFY_PIECE));
    struct verification verification = {.service = service, .piece = piece, .found = found, .intact = true};
    json_array_foreach(json_object_get(artifact, "files"), i, file)
    {
        TRY(verify_file(&verification, file, list));
    }
    TRY(signature_check(service, artifact, found, &signature));
    *answer = json_pack("{s:s, s:s, s:b, s:I, s:O, s:o}", "object", "artifact.verification", "artifact_id", id,
                        "intact", (int)verification.intact, "bytes", (json_int_t)verification.bytes, "files", list,
                        "signature", signature);
    return *answer != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a verification");
}
