/* Published artifacts and their files. A file is found by its exact name in the manifest, never on a file system, so no
 * path can lead elsewhere. */

#include "api/handlers.h"

#include "api/handlers_objects.h"
#include "api/reply.h"
#include "api/stream.h"
#include "base/cleanup.h"

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
    return sha256 != NULL ? stream_blob(request, sha256, content_type(path), slash != NULL ? slash + 1 : path)
                          : err_raise(ERR_NOT_FOUND, "the artifact has no file of this name");
}
