/* An artifact as an OCI image whose media types are those of version 1 of the CNCF ModelPack specification
 * (github.com/modelpack/model-spec: manifest, configuration, annotations).
 *
 * Every file is a layer of its own, neither archived nor compressed (".raw"), so that its blob is the file: its digest
 * is the one that the artifact has, and nothing is stored or hashed a second time. A layer is named twice, by
 * ModelPack's annotation and by the title of OCI's, which tools that know no models read. All of it follows from the
 * artifact object, which changes only when it is signed: the same artifact is always the same bytes, also when its
 * model is not there any more. */

#include "jobs/oci.h"

#include "base/err.h"
#include "base/mem.h"
#include "formats/format.h"
#include "models/arch.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define OCI_INDEX_TYPE "application/vnd.oci.image.index.v1+json"
#define OCI_TAG "latest"
#define MODEL_ARTIFACT_TYPE "application/vnd.cncf.model.manifest.v1+json"
#define MODEL_WEIGHT_TYPE "application/vnd.cncf.model.weight.v1.raw"
#define MODEL_WEIGHT_CONFIG_TYPE "application/vnd.cncf.model.weight.config.v1.raw"
#define MODEL_DOC_TYPE "application/vnd.cncf.model.doc.v1.raw"
#define MODEL_CODE_TYPE "application/vnd.cncf.model.code.v1.raw"
#define TIME_SIZE sizeof("YYYYYYYY-MM-DDTHH:MM:SSZ")
#define REFERENCE_SIZE (sizeof("sha256:") + DIGEST_HEX_SIZE)

static const char *oci_reference(const char *sha256, char out[REFERENCE_SIZE])
{
    (void)snprintf(out, REFERENCE_SIZE, "sha256:%s", sha256);
    return out;
}

static int oci_no_memory(void)
{
    return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the documents of an image");
}

/* --- what the artifact knows */

static bool oci_ends_with(const char *path, const char *ending)
{
    size_t length = strlen(path), size = strlen(ending);

    return length >= size && strcasecmp(path + length - size, ending) == 0;
}

static const char *layer_type(const char *path)
{
    static const char *const documents[] = {"README", "LICENSE", "LICENCE", "NOTICE", "COPYING"};
    const char *slash = strrchr(path, '/'), *name = slash != NULL ? slash + 1 : path;

    if (format_holds_tensors(path)) {
        return MODEL_WEIGHT_TYPE;
    }
    if (oci_ends_with(path, ".py")) {
        return MODEL_CODE_TYPE;
    }
    for (size_t i = 0; i < sizeof(documents) / sizeof(documents[0]); i++) {
        if (strncasecmp(name, documents[i], strlen(documents[i])) == 0) {
            return MODEL_DOC_TYPE;
        }
    }
    return oci_ends_with(path, ".md") ? MODEL_DOC_TYPE : MODEL_WEIGHT_CONFIG_TYPE;
}

/* "1.2B": a count with one digit after the point, and the letter of its order of magnitude. */
static json_t *count_json(int64_t count)
{
    static const char letters[] = "KMBTQ";
    double value = (double)count / 1000;
    size_t order = 0;

    if (count <= 0) {
        return NULL;
    }
    for (; value >= 999.95 && letters[order + 1] != '\0'; order++) {
        value /= 1000;
    }
    return json_sprintf("%.1f%c", value, letters[order]);
}

/* Of the source's weights, in which runtimes compute. */
static const char *oci_precision(const json_t *artifact)
{
    static const char *const names[][2] = {{"F32", "float32"}, {"F16", "float16"}, {"BF16", "bfloat16"}};
    const char *dtype = json_string_value(json_object_get(artifact, "dtype"));

    for (size_t i = 0; dtype != NULL && i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(dtype, names[i][0]) == 0) {
            return names[i][1];
        }
    }
    return NULL;
}

static const char *oci_family(const json_t *artifact)
{
    const char *name = json_string_value(json_object_get(artifact, "architecture"));

    for (const struct arch *const *row = arch_list(); name != NULL && *row != NULL; row++) {
        if (strcmp((*row)->name, name) == 0) {
            return (*row)->model_type;
        }
    }
    return NULL;
}

static const char *oci_container(const json_t *files)
{
    size_t i;
    json_t *file;

    json_array_foreach((json_t *)files, i, file)
    {
        if (oci_ends_with(json_string_value(json_object_get(file, "path")), ".gguf")) {
            return "gguf";
        }
    }
    return "safetensors";
}

/* RFC 3339. */
static void oci_time(const json_t *artifact, char out[TIME_SIZE])
{
    time_t at = (time_t)json_integer_value(json_object_get(artifact, "created_at"));
    struct tm utc;

    if (gmtime_r(&at, &utc) == NULL || strftime(out, TIME_SIZE, "%Y-%m-%dT%H:%M:%SZ", &utc) == 0) {
        (void)snprintf(out, TIME_SIZE, "1970-01-01T00:00:00Z");
    }
}

/* NULL where it is empty. */
static const char *oci_title(const json_t *artifact)
{
    const char *name = json_string_value(json_object_get(artifact, "name"));

    return name != NULL && name[0] != '\0' ? name : NULL;
}

/* --- documents */

/* The text of a document and its digest. document: taken; NULL: no memory. */
static int write_document(json_t *document, struct service_oci_document *out)
{
    out->text = document != NULL ? json_dumps(document, JSON_COMPACT) : NULL;
    json_decref(document);
    if (out->text == NULL) {
        return oci_no_memory();
    }
    out->size = strlen(out->text);
    digest_bytes(out->text, out->size, out->sha256);
    return 0;
}

static json_t *descriptor(const char *type, const struct service_oci_document *document)
{
    char digest[REFERENCE_SIZE];

    return json_pack("{s:s, s:s, s:I}", "mediaType", type, "digest", oci_reference(document->sha256, digest), "size",
                     (json_int_t)document->size);
}

static int oci_check_file(const json_t *file)
{
    const char *sha256 = json_string_value(json_object_get(file, "sha256"));

    return json_is_string(json_object_get(file, "path")) && sha256 != NULL && strlen(sha256) == DIGEST_HEX_SIZE - 1
               ? 0
               : err_raise(ERR_INTERNAL, "a file of the artifact has no path or digest");
}

static int describe_config(const json_t *artifact, const json_t *files, struct service_oci_document *out)
{
    AUTO_JSON json_t *digests = json_array();
    char digest[REFERENCE_SIZE], created[TIME_SIZE];
    size_t i;
    json_t *file;

    json_array_foreach((json_t *)files, i, file)
    {
        const char *sha256 = json_string_value(json_object_get(file, "sha256"));
        if (json_array_append_new(digests, json_string(oci_reference(sha256, digest))) != 0) {
            return oci_no_memory();
        }
    }
    oci_time(artifact, created);
    return write_document(
        json_pack("{s:{s:s, s:s*, s:s*}, s:{s:s, s:s, s:o*, s:s*, s:s*, s:{s:[s], s:[s]}}, s:{s:s, s:O}}", "descriptor",
                  "createdAt", created, "family", oci_family(artifact), "name", oci_title(artifact), "config",
                  "architecture", "transformer", "format", oci_container(files), "paramSize",
                  count_json(json_integer_value(json_object_get(artifact, "parameters"))), "precision",
                  oci_precision(artifact), "quantization", json_string_value(json_object_get(artifact, "method")),
                  "capabilities", "inputTypes", "text", "outputTypes", "text", "modelfs", "type", "layers", "diffIds",
                  digests),
        out);
}

/* As modctl writes it: the last part of the path, and 0 for a regular file. */
static json_t *file_metadata(const char *path, json_int_t bytes, const char *created)
{
    const char *slash = strrchr(path, '/');

    return json_pack("{s:s, s:i, s:i, s:i, s:I, s:s, s:i}", "name", slash != NULL ? slash + 1 : path, "mode", 0644,
                     "uid", 0, "gid", 0, "size", bytes, "mtime", created, "typeflag", 0);
}

static json_t *describe_layer(const json_t *file, const char *created)
{
    const char *path = json_string_value(json_object_get(file, "path"));
    json_int_t bytes = json_integer_value(json_object_get(file, "bytes"));
    char digest[REFERENCE_SIZE];
    AUTO_JSON json_t *metadata = file_metadata(path, bytes, created);
    AUTO_FREE char *text = metadata != NULL ? json_dumps(metadata, JSON_COMPACT) : NULL;

    if (text == NULL) {
        return NULL;
    }
    return json_pack("{s:s, s:s, s:I, s:{s:s, s:s, s:s}}", "mediaType", layer_type(path), "digest",
                     oci_reference(json_string_value(json_object_get(file, "sha256")), digest), "size", bytes,
                     "annotations", "org.cncf.model.filepath", path, "org.cncf.model.file.metadata+json", text,
                     "org.opencontainers.image.title", path);
}

static int describe_manifest(const json_t *artifact, const json_t *files, const struct service_oci_document *config,
                             struct service_oci_document *out)
{
    AUTO_JSON json_t *layers = json_array();
    char created[TIME_SIZE];
    size_t i;
    json_t *file;

    oci_time(artifact, created);
    json_array_foreach((json_t *)files, i, file)
    {
        if (json_array_append_new(layers, describe_layer(file, created)) != 0) {
            return oci_no_memory();
        }
    }
    return write_document(json_pack("{s:i, s:s, s:s, s:o, s:O, s:{s:s, s:s*}}", "schemaVersion", 2, "mediaType",
                                    SERVICE_OCI_MANIFEST_TYPE, "artifactType", MODEL_ARTIFACT_TYPE, "config",
                                    descriptor(SERVICE_OCI_CONFIG_TYPE, config), "layers", layers, "annotations",
                                    "org.opencontainers.image.created", created, "org.opencontainers.image.title",
                                    oci_title(artifact)),
                          out);
}

static int describe_index(const struct service_oci_document *manifest, struct service_oci_document *out)
{
    json_t *entry = descriptor(SERVICE_OCI_MANIFEST_TYPE, manifest);
    json_t *more = json_pack("{s:s, s:{s:s}}", "artifactType", MODEL_ARTIFACT_TYPE, "annotations",
                             "org.opencontainers.image.ref.name", OCI_TAG);

    if (entry == NULL || more == NULL || json_object_update(entry, more) != 0) {
        json_decref(entry);
        json_decref(more);
        return oci_no_memory();
    }
    json_decref(more);
    return write_document(
        json_pack("{s:i, s:s, s:[o]}", "schemaVersion", 2, "mediaType", OCI_INDEX_TYPE, "manifests", entry), out);
}

int oci_describe(const json_t *artifact, struct service_oci *out)
{
    AUTO(service_oci) struct service_oci made = {0};
    json_t *files = json_object_get(artifact, "files"), *file;
    size_t i;

    json_array_foreach(files, i, file)
    {
        TRY(oci_check_file(file));
    }
    made.files = json_incref(files);
    TRY(describe_config(artifact, files, &made.config));
    TRY(describe_manifest(artifact, files, &made.config, &made.manifest));
    TRY(describe_index(&made.manifest, &made.index));
    *out = made;
    memset(&made, 0, sizeof(made));
    return 0;
}

void service_oci_deinit(struct service_oci *oci)
{
    json_decref(oci->files);
    free(oci->config.text);
    free(oci->manifest.text);
    free(oci->index.text);
    *oci = (struct service_oci){0};
}

int service_artifact_oci(struct service *service, const struct principal *who, const char *id, struct service_oci *out)
{
    AUTO_JSON json_t *artifact = NULL;

    TRY(service_object_get(service, who, "art", id, &artifact));
    return oci_describe(artifact, out);
}
