/* Artifacts as OCI images: the layout as a tar archive, and the documents of it that a client needs to push the image
 * to a registry. Layers are files of the artifact, which have routes of their own. */

#include "api/handlers.h"

#include "api/archive.h"
#include "api/reply.h"
#include "api/stream.h"
#include "base/cleanup.h"

#include <stdio.h>
#include <string.h>

#define LAYOUT "{\"imageLayoutVersion\":\"1.0.0\"}"
#define BLOB_NAME_SIZE (sizeof("blobs/sha256/") + DIGEST_HEX_SIZE)

static const char *blob_name(const char *sha256, char out[BLOB_NAME_SIZE])
{
    (void)snprintf(out, BLOB_NAME_SIZE, "blobs/sha256/%s", sha256);
    return out;
}

static int add_document(struct archive *archive, const struct service_oci_document *document)
{
    char name[BLOB_NAME_SIZE];

    return archive_add_bytes(archive, blob_name(document->sha256, name), document->text, document->size);
}

/* Files of the same bytes are one blob. */
static int add_layer_blobs(struct archive *archive, const json_t *files)
{
    AUTO_JSON json_t *there = json_object();
    char name[BLOB_NAME_SIZE];
    size_t i;
    json_t *file;

    json_array_foreach((json_t *)files, i, file)
    {
        const char *sha256 = json_string_value(json_object_get(file, "sha256"));
        if (json_object_get(there, sha256) != NULL) {
            continue;
        }
        TRY(archive_add_blob(archive, blob_name(sha256, name), sha256,
                             json_integer_value(json_object_get(file, "bytes"))));
        if (json_object_set_new(there, sha256, json_true()) != 0) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a layout");
        }
    }
    return 0;
}

/* What describes the image comes first, so that a reader of the stream knows what follows. */
static int make_layout(const struct service_oci *oci, struct archive **out)
{
    AUTO(archive) struct archive *archive = NULL;

    TRY(archive_new(&archive));
    TRY(archive_add_bytes(archive, "oci-layout", LAYOUT, strlen(LAYOUT)));
    TRY(archive_add_bytes(archive, "index.json", oci->index.text, oci->index.size));
    TRY(add_document(archive, &oci->manifest));
    TRY(add_document(archive, &oci->config));
    TRY(add_layer_blobs(archive, oci->files));
    TRY(archive_end(archive));
    *out = MOVE(archive);
    return 0;
}

int handlers_get_artifact_oci(struct request *request)
{
    AUTO(service_oci) struct service_oci oci = {0};
    struct archive *archive = NULL;
    char name[ID_SIZE + 16];

    TRY(service_artifact_oci(request->context->service, request->who, request->captures[0], &oci));
    TRY(make_layout(&oci, &archive));
    (void)snprintf(name, sizeof(name), "%s.oci.tar", request->captures[0]);
    return stream_archive_take(request, archive, name);
}

static int reply_document(struct request *request, const char *type, struct service_oci_document *document)
{
    TRY(reply_text_take(request, 200, type, MOVE(document->text), document->size));
    return reply_tag(request);
}

int handlers_get_artifact_oci_manifest(struct request *request)
{
    AUTO(service_oci) struct service_oci oci = {0};

    TRY(service_artifact_oci(request->context->service, request->who, request->captures[0], &oci));
    return reply_document(request, SERVICE_OCI_MANIFEST_TYPE, &oci.manifest);
}

int handlers_get_artifact_oci_config(struct request *request)
{
    AUTO(service_oci) struct service_oci oci = {0};

    TRY(service_artifact_oci(request->context->service, request->who, request->captures[0], &oci));
    return reply_document(request, SERVICE_OCI_CONFIG_TYPE, &oci.config);
}
