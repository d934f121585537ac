/* The signature of an artifact is one of its files (MODEL_SIGNATURE_FILE): whoever downloads, copies or pushes the
 * artifact has it too, and it is kept, hashed and deleted with the others. It signs the digests that the list of files
 * has, so nothing is read again. The member "signature" of the artifact says by which key. */

#include "jobs/signature.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/model_signature.h"
#include "jobs/quota.h"
#include "jobs/service.h"

#include <string.h>

#define HOW_TO_CONFIGURE "start the daemon with --signing-key FILE, a private key on the curve P-256 in PEM"

static int refuse_unsigned(void)
{
    int rc = err_raise(ERR_NO_SIGNING_KEY, "the daemon has no signing key");

    return err_set_hint(rc, HOW_TO_CONFIGURE);
}

int signature_wanted(const struct service *service, enum params_switch sign, bool *wanted)
{
    bool has_key = service->signing_key != NULL;

    if (sign == PARAMS_ON && !has_key) {
        int rc = err_raise(ERR_NO_SIGNING_KEY, "\"sign\" is true, and the daemon has no signing key");
        (void)err_set_param(rc, "/output/sign");
        return err_set_hint(rc, HOW_TO_CONFIGURE ", or leave \"sign\" out");
    }
    *wanted = sign == PARAMS_ON || (sign == PARAMS_AUTO && has_key);
    return 0;
}

json_t *signature_key_json(const struct service *service)
{
    const struct signing_key *key = service->signing_key;

    return key == NULL ? json_null()
                       : json_pack("{s:s, s:s, s:s}", "algorithm", signing_key_algorithm(key), "hint",
                                   signing_key_hint(key), "public_key", signing_key_public(key));
}

/* --- signing */

static json_t *signature_member(const struct signing_key *key)
{
    return json_pack("{s:s, s:s, s:s, s:I}", "path", MODEL_SIGNATURE_FILE, "algorithm", signing_key_algorithm(key),
                     "key_hint", signing_key_hint(key), "signed_at", (json_int_t)clock_unix_seconds());
}

/* The entry of the signature, and its index; NULL: there is none. */
static json_t *find_signature(const json_t *files, size_t *index)
{
    for (size_t i = 0; i < json_array_size(files); i++) {
        json_t *file = json_array_get(files, i);
        const char *path = json_get_string(file, "path");
        if (path != NULL && strcmp(path, MODEL_SIGNATURE_FILE) == 0) {
            *index = i;
            return file;
        }
    }
    return NULL;
}

/* In the order of paths, in place of an earlier one. */
static int list_signature(json_t *files, size_t size, const char *sha256)
{
    json_t *entry =
        json_pack("{s:s, s:I, s:s}", "path", MODEL_SIGNATURE_FILE, "bytes", (json_int_t)size, "sha256", sha256);
    size_t at = 0;

    if (find_signature(files, &at) != NULL) {
        (void)json_array_remove(files, at);
    }
    for (at = 0; at < json_array_size(files); at++) {
        const char *path = json_get_string(json_array_get(files, at), "path");
        if (path != NULL && strcmp(path, MODEL_SIGNATURE_FILE) > 0) {
            break;
        }
    }
    return json_array_insert_new(files, at, entry) == 0
               ? 0
               : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a signature");
}

int signature_add_file(const struct service *service, const char *id, const char *directory, json_t *files,
                       json_t **member)
{
    AUTO_FREE char *bundle = NULL;
    char path[SERVICE_PATH_MAX], sha256[DIGEST_HEX_SIZE];
    size_t size = 0;

    TRY(model_signature_make(service->signing_key, id, files, &bundle, &size));
    TRY(fs_path(path, sizeof(path), "%s/" MODEL_SIGNATURE_FILE, directory));
    TRY(fs_write_atomic(path, bundle, size));
    digest_bytes(bundle, size, sha256);
    TRY(list_signature(files, size, sha256));
    *member = signature_member(service->signing_key);
    return *member != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a signature");
}

/* The bundle becomes a blob, which is held. */
static int store_bundle(struct service *service, const char *bundle, size_t size, char sha256[DIGEST_HEX_SIZE])
{
    struct blob_writer *writer = NULL;
    int64_t written = 0;

    TRY(blob_writer_new(service->store, &writer));
    int rc = blob_writer_write(writer, bundle, size);
    if (rc != 0) {
        blob_writer_abort(writer);
        return rc;
    }
    return blob_writer_commit_take(writer, sha256, &written);
}

static int64_t bytes_of(const json_t *files)
{
    int64_t bytes = 0;
    size_t i;
    json_t *file;

    json_array_foreach((json_t *)files, i, file)
    {
        bytes += json_integer_value(json_object_get(file, "bytes"));
    }
    return bytes;
}

static int describe_signed(const struct service *service, json_t *artifact, size_t size, const char *sha256)
{
    json_t *files = json_object_get(artifact, "files");

    TRY(list_signature(files, size, sha256));
    return json_object_set_new(artifact, "bytes", json_integer(bytes_of(files))) == 0 &&
                   json_object_set_new(artifact, "signature", signature_member(service->signing_key)) == 0
               ? 0
               : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a signature");
}

int service_artifact_signature(struct service *service, const struct principal *who, const char *id,
                               char sha256[DIGEST_HEX_SIZE])
{
    AUTO_JSON json_t *artifact = NULL;
    size_t index = 0;

    TRY(store_object_get(service->store, who->project, "art", id, &artifact));
    const json_t *file = json_is_object(json_object_get(artifact, "signature"))
                             ? find_signature(json_object_get(artifact, "files"), &index)
                             : NULL;
    const char *digest = json_get_string(file, "sha256");
    if (digest == NULL) {
        int rc = err_raise(ERR_NOT_FOUND, "the artifact is not signed");
        return err_set_hint(rc, service->signing_key != NULL ? "POST to this path signs it" : HOW_TO_CONFIGURE);
    }
    (void)snprintf(sha256, DIGEST_HEX_SIZE, "%s", digest);
    return 0;
}

/* --- checking */

static int read_bundle_blob(struct service *service, const char *sha256, char **out, size_t *size)
{
    AUTO(blob_reader) struct blob_reader *reader = NULL;
    AUTO_FREE char *bundle = NULL;
    int64_t bytes = 0;

    TRY(blob_reader_open(service->store, sha256, &reader, &bytes));
    if (bytes > (int64_t)MODEL_SIGNATURE_MAX) {
        return err_raise(ERR_DIGEST_MISMATCH, "the file of the signature is too long");
    }
    TRY(mem_buffer(&bundle, (size_t)bytes + 1));
    TRY(blob_reader_read(reader, 0, bundle, (size_t)bytes));
    *out = MOVE(bundle);
    *size = (size_t)bytes;
    return 0;
}

/* *state: "valid", or "other_key" where the daemon cannot tell. */
static int judge(struct service *service, const json_t *files, const json_t *found, const char **state)
{
    AUTO(model_signature) struct model_signature signature = {.hint = ""};
    AUTO_FREE char *bundle = NULL;
    size_t size = 0, index = 0;

    const char *sha256 = json_get_string(find_signature(files, &index), "sha256");
    if (sha256 == NULL) {
        return err_raise(ERR_NOT_FOUND, "the artifact has no file of its signature");
    }
    TRY(read_bundle_blob(service, sha256, &bundle, &size));
    TRY(model_signature_read(bundle, size, &signature));
    if (service->signing_key == NULL || !model_signature_names(&signature, service->signing_key)) {
        *state = "other_key";
        return 0;
    }
    TRY(model_signature_verify(&signature, service->signing_key));
    *state = "valid";
    return model_signature_compare(&signature, found);
}

int signature_check(struct service *service, const json_t *artifact, const json_t *found, json_t **answer)
{
    const json_t *member = json_object_get(artifact, "signature");
    const char *state = "invalid";

    if (!json_is_object(member)) {
        *answer = json_null();
        return 0;
    }
    int rc = judge(service, json_object_get(artifact, "files"), found, &state);
    if (rc != 0 && rc != ERR_DIGEST_MISMATCH && rc != ERR_NOT_FOUND) {
        return rc;
    }
    const char *detail = NULL;
    if (rc != 0) {
        state = "invalid";
        detail = rc == ERR_NOT_FOUND ? "the file of the signature is missing" : err_last()->message;
    } else if (strcmp(state, "valid") != 0) {
        detail = service->signing_key == NULL ? "the daemon has no signing key: check it with quantctl verify"
                                              : "another key has signed it: check it with quantctl verify";
    }
    *answer = json_pack("{s:s, s:s, s:s?}", "state", state, "key_hint", json_get_string(member, "key_hint"), "detail",
                        detail);
    return *answer != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a verification");
}

/* --- both */

/* The digests that the artifact's list of files has. */
static json_t *listed_digests(const json_t *files)
{
    json_t *digests = json_object();
    size_t i;
    json_t *file;

    json_array_foreach((json_t *)files, i, file)
    {
        const char *path = json_get_string(file, "path");
        if (path != NULL && strcmp(path, MODEL_SIGNATURE_FILE) != 0) {
            json_object_set(digests, path, json_object_get(file, "sha256"));
        }
    }
    return digests;
}

/* Whether it has a signature of the daemon's key that is sound: another request has made it, or this one before. */
static bool is_signed(struct service *service, const json_t *artifact)
{
    const json_t *files = json_object_get(artifact, "files");
    AUTO_JSON json_t *listed = listed_digests(files);
    const char *state = "";

    return json_is_object(json_object_get(artifact, "signature")) && judge(service, files, listed, &state) == 0 &&
           strcmp(state, "valid") == 0;
}

int service_artifact_sign(struct service *service, const struct principal *who, const char *id, json_t **artifact)
{
    AUTO_JSON json_t *found = NULL;
    AUTO_FREE char *bundle = NULL;
    char sha256[DIGEST_HEX_SIZE];
    size_t size = 0;

    TRY(store_object_get(service->store, who->project, "art", id, &found));
    if (service->signing_key == NULL) {
        return refuse_unsigned();
    }
    if (is_signed(service, found)) {
        *artifact = MOVE(found);
        return 0;
    }
    TRY(model_signature_make(service->signing_key, id, json_object_get(found, "files"), &bundle, &size));
    TRY(quota_admit_file(service, who, (int64_t)size));
    TRY(store_bundle(service, bundle, size, sha256));
    int rc = describe_signed(service, found, size, sha256);
    rc = rc == 0 ? store_object_replace(service->store, who->project, "art", found) : rc;
    blob_let_go(service->store, sha256);
    if (rc == 0) {
        *artifact = MOVE(found);
    }
    return rc;
}
