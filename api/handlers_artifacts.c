/* Published artifacts and their files. A file is found by its exact name in the manifest, never on a file system, so no
 * path can lead elsewhere. */

#include "api/handlers.h"

#include "api/archive.h"
#include "api/handlers_objects.h"
#include "api/reply.h"
#include "api/stream.h"
#include "base/cleanup.h"
#include "base/model_signature.h"

#include <stdio.h>
#include <string.h>

int handlers_list_artifacts(struct request *request)
{
    return handlers_object_list(request, "art");
}

int handlers_get_artifact(struct request *request)
{
    return handlers_object_get(request, "art");
}

int handlers_delete_artifact(struct request *request)
{
    return handlers_object_delete(request, service_artifact_delete);
}

static const char *file_digest(const json_t *artifact, const char *path)
{
    size_t index;
    json_t *file;
    json_array_foreach(json_object_get(artifact, "files"), index, file)
    {
        const char *name = json_string_value(json_object_get(file, "path"));
        if (name != NULL && strcmp(name, path) == 0) {
            return json_string_value(json_object_get(file, "sha256"));
        }
    }
    return NULL;
}

static const char *content_type(const char *path)
{
    const char *dot = strrchr(path, '.');
    if (dot != NULL && strcmp(dot, ".json") == 0) {
        return "application/json";
    }
    return "application/octet-stream";
}

int handlers_get_artifact_file(struct request *request)
{
    const char *path = request->captures[1];
    AUTO_JSON json_t *artifact = NULL;
    TRY(service_object_get(request->context->service, request->who, "art", request->captures[0], &artifact));
    const char *sha256 = file_digest(artifact, path);
    const char *slash = strrchr(path, '/');
    return sha256 != NULL ? stream_blob(request, sha256, content_type(path), slash != NULL ? slash + 1 : path,
                                        strcmp(path, MODEL_SIGNATURE_FILE) != 0)
                          : err_raise(ERR_NOT_FOUND, "the artifact has no file of this name");
}

/* The files in the manifest's order, which is that of their names. */
static int make_archive(const json_t *artifact, struct archive **out)
{
    AUTO(archive) struct archive *archive = NULL;
    size_t index;
    json_t *file;

    TRY(archive_new(&archive));
    json_array_foreach(json_object_get(artifact, "files"), index, file)
    {
        const char *path = json_string_value(json_object_get(file, "path"));
        const char *sha256 = json_string_value(json_object_get(file, "sha256"));
        if (path == NULL || sha256 == NULL) {
            return err_raise(ERR_INTERNAL, "a file of the artifact has no path or digest");
        }
        TRY(archive_add_blob(archive, path, sha256, json_integer_value(json_object_get(file, "bytes"))));
    }
    TRY(archive_end(archive));
    *out = MOVE(archive);
    return 0;
}

int handlers_get_artifact_archive(struct request *request)
{
    AUTO_JSON json_t *artifact = NULL;
    struct archive *archive = NULL;
    char name[ID_SIZE + 8];

    TRY(service_object_get(request->context->service, request->who, "art", request->captures[0], &artifact));
    TRY(make_archive(artifact, &archive));
    (void)snprintf(name, sizeof(name), "%s.tar", request->captures[0]);
    return stream_archive_take(request, archive, name);
}

int handlers_get_artifact_signature(struct request *request)
{
    char sha256[DIGEST_HEX_SIZE];

    TRY(service_artifact_signature(request->context->service, request->who, request->captures[0], sha256));
    return stream_blob(request, sha256, MODEL_SIGNATURE_TYPE, MODEL_SIGNATURE_FILE, false);
}

int handlers_sign_artifact(struct request *request)
{
    json_t *artifact = NULL;

    TRY(service_artifact_sign(request->context->service, request->who, request->captures[0], &artifact));
    return reply_json_take(request, 200, artifact);
}

int handlers_verify_artifact(struct request *request)
{
    json_t *answer = NULL;

    TRY(service_artifact_verify(request->context->service, request->who, request->captures[0], &answer));
    return reply_json_take(request, 200, answer);
}
