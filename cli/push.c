/* Pushes. The image's manifest is quantd's, and this side checks what it names: every layer is a file of the artifact,
 * and its bytes are hashed on their way; the last of them leave only if the digest is right, so that a registry never
 * completes a blob that is not. */

#include "cli/push.h"

#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/objects.h"
#include "cli/progress.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define PUSH_ATTEMPTS 6
#define PUSH_JSON_DEPTH 16
#define PUSH_DOCUMENT_MAX ((size_t)64 << 20)

struct push {
    struct cli *cli;
    const char *artifact;
    const struct manifest *files;
    struct registry *registry;
    struct progress progress;
    json_t *blobs; /* what is reported */
};

/* A layer on its way. */
struct layer {
    struct push *push;
    const struct manifest_file *file;
    struct digest *digest;
    int64_t received;
};

static void layer_deinit(struct layer *layer)
{
    if (layer->digest != NULL) {
        digest_free(layer->digest);
    }
}
CLEANUP_DEINIT(layer, struct layer, layer_deinit)

/* --- the documents */

/* A document of the image, as the server has it; digest: hex. */
static int get_document(struct push *push, const char *name, struct http_answer *answer, char sha256[DIGEST_HEX_SIZE])
{
    char path[CLIENT_PATH_MAX];

    TRY(objects_path(path, sizeof(path), &objects_artifacts, push->artifact));
    TRY(http_escape(path, sizeof(path), "/oci/", "/"));
    TRY(http_escape(path, sizeof(path), name, ""));
    TRY(client_patient(push->cli, &(struct http_call){.method = "GET", .path = path}, answer));
    if (answer->status != 200) {
        return client_refused(push->cli, answer);
    }
    if (answer->body == NULL || answer->size > PUSH_DOCUMENT_MAX) {
        return status_fail(STATUS_SERVER, "the image's %s is empty or too long", name);
    }
    digest_bytes(answer->body, answer->size, sha256);
    return 0;
}

/* The digest of a descriptor, in hex; NULL when it is not a SHA-256. */
static const char *descriptor_digest(const json_t *descriptor)
{
    const char *digest = json_get_string(descriptor, "digest");

    return digest != NULL && strncmp(digest, "sha256:", 7) == 0 && strlen(digest + 7) == DIGEST_HEX_SIZE - 1 &&
                   strspn(digest + 7, "0123456789abcdef") == DIGEST_HEX_SIZE - 1
               ? digest + 7
               : NULL;
}

/* The file of the artifact that a layer is. */
static int find_layer(const struct push *push, const json_t *layer, const struct manifest_file **out)
{
    const char *digest = descriptor_digest(layer);
    int64_t bytes = 0;

    if (digest == NULL || json_get_int(layer, "size", 0, INT64_MAX / 2, &bytes) != 1) {
        return status_fail(STATUS_SERVER, "a layer of the image's manifest has no digest or size");
    }
    for (size_t i = 0; i < push->files->count; i++) {
        const struct manifest_file *file = &push->files->files[i];
        if (strcmp(file->sha256, digest) == 0 && file->bytes == bytes) {
            *out = file;
            return 0;
        }
    }
    return status_fail(STATUS_MISMATCH, "the image's manifest names sha256:%s, which is not a file of the artifact",
                       digest);
}

/* --- one blob */

static int take_layer(void *context, const char *data, size_t size)
{
    struct layer *layer = context;
    char sha256[DIGEST_HEX_SIZE];

    if ((int64_t)size > layer->file->bytes - layer->received) {
        return status_fail(STATUS_SERVER, "%.300s: the server sends more than was asked for", layer->file->path);
    }
    digest_update(layer->digest, data, size);
    layer->received += (int64_t)size;
    layer->push->progress.bytes += (int64_t)size;
    progress_show(&layer->push->progress, false);
    if (layer->received < layer->file->bytes) {
        return 0;
    }
    digest_finish(MOVE(layer->digest), sha256);
    return strcmp(sha256, layer->file->sha256) == 0
               ? 0
               : status_fail(STATUS_MISMATCH, "%.300s: the server's bytes have the SHA-256 %s, the manifest %s",
                             layer->file->path, sha256, layer->file->sha256);
}

/* *again: it may succeed the next time, after *seconds. */
static int send_layer(struct push *push, const struct manifest_file *file, bool *again, int64_t *seconds)
{
    AUTO(http_answer) struct http_answer got = {0};
    AUTO(layer) struct layer layer = {.push = push, .file = file, .digest = digest_new()};
    char path[CLIENT_PATH_MAX], match[128];

    if (layer.digest == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a digest");
    }
    TRY(objects_path(path, sizeof(path), &objects_artifacts, push->artifact));
    TRY(http_escape(path, sizeof(path), "/files/", "/"));
    TRY(http_escape(path, sizeof(path), file->path, "/"));
    snprintf(match, sizeof(match), "If-Match: \"%s\"", file->sha256);
    const char *const headers[] = {match, NULL};
    const struct http_call get = {
        .method = "GET", .path = path, .headers = headers, .take = take_layer, .context = &layer};
    const struct registry_blob blob = {
        .sha256 = file->sha256, .size = file->bytes, .bytes = "", .from = push->cli->http, .get = &get, .got = &got};
    const struct registry_blob empty = {.sha256 = file->sha256, .bytes = ""};
    int rc = registry_put_blob(push->registry, file->bytes > 0 ? &blob : &empty);
    *again = rc != 0 && registry_again(push->registry, seconds);
    if (rc == 0 && got.status != 0 && (got.status < 200 || got.status > 299)) {
        *again = client_busy(&got);
        *seconds = got.retry_after;
        rc = got.status == 412 ? status_fail(STATUS_MISMATCH,
                                             "%.300s: the server has other content than its manifest says", file->path)
             : *again ? status_fail(STATUS_UNREACHABLE, "%s is busy (%ld)", http_url(push->cli->http), got.status)
                      : client_refused(push->cli, &got);
    }
    push->progress.bytes -= rc != 0 ? layer.received : 0;
    return rc;
}

/* Wait before the next attempt, and say why there is one. */
static void wait_again(const struct push *push, int attempt, int64_t seconds)
{
    struct err_record record;
    const struct timespec pause = {.tv_sec = seconds > 0 ? seconds : 1LL << (attempt - 1)};

    err_take(&record);
    if (!push->cli->quiet) {
        fputs(push->progress.hidden ? "" : "\n", stderr);
        safe_printf(stderr, "%s; again in %lld s\n", record.message, (long long)pause.tv_sec);
    }
    (void)nanosleep(&pause, NULL);
}

/* Whether a blob is there, asked until there is an answer. */
static int ask_for_blob(struct push *push, const char *sha256, bool *has)
{
    int rc = registry_has_blob(push->registry, sha256, has);
    int64_t seconds;

    for (int attempt = 1; rc != 0 && attempt < PUSH_ATTEMPTS && registry_again(push->registry, &seconds); attempt++) {
        wait_again(push, attempt, seconds);
        rc = registry_has_blob(push->registry, sha256, has);
    }
    return rc;
}

static int push_layer(struct push *push, const struct manifest_file *file)
{
    bool again = false, has = false;
    int64_t seconds = 0;
    int rc = send_layer(push, file, &again, &seconds);

    for (int attempt = 1; rc != 0 && again && attempt < PUSH_ATTEMPTS; attempt++) {
        wait_again(push, attempt, seconds);
        TRY(ask_for_blob(push, file->sha256, &has)); /* only the answer may be lost */
        rc = has ? 0 : send_layer(push, file, &again, &seconds);
    }
    return rc;
}

/* A small document, with the manifest as the last of them. */
static int push_document(struct push *push, const char *type, const struct http_answer *text, const char *sha256)
{
    const struct registry_blob blob = {.sha256 = sha256, .size = (int64_t)text->size, .bytes = text->body};
    int64_t seconds;

    for (int attempt = 1;; attempt++) {
        int rc = type != NULL ? registry_put_manifest(push->registry, type, text->body, text->size, sha256)
                              : registry_put_blob(push->registry, &blob);
        if (rc == 0 || attempt == PUSH_ATTEMPTS || !registry_again(push->registry, &seconds)) {
            return rc;
        }
        wait_again(push, attempt, seconds);
    }
}

/* --- all of them */

static int report_blob(struct push *push, const char *sha256, int64_t bytes, const char *path, bool uploaded)
{
    json_t *row = json_pack("{s:o, s:I, s:s?, s:b}", "digest", json_sprintf("sha256:%s", sha256), "bytes",
                            (json_int_t)bytes, "path", path, "uploaded", (int)uploaded);

    return json_array_append_new(push->blobs, row) == 0 ? 0
                                                        : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a report");
}

/* The layers that the registry lacks, each once. missing: as many as there are layers. */
static int find_missing(struct push *push, const json_t *layers, const struct manifest_file **missing, size_t *count)
{
    AUTO_JSON json_t *seen = json_object();
    const json_t *layer;
    size_t i;

    json_array_foreach(layers, i, layer)
    {
        const struct manifest_file *file = NULL;
        bool has = false;
        TRY(find_layer(push, layer, &file));
        if (json_object_get(seen, file->sha256) != NULL) {
            continue;
        }
        if (json_object_set_new(seen, file->sha256, json_true()) != 0) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of layers");
        }
        TRY(ask_for_blob(push, file->sha256, &has));
        TRY(report_blob(push, file->sha256, file->bytes, file->path, !has));
        if (!has) {
            missing[(*count)++] = file;
        }
    }
    return 0;
}

static int push_layers(struct push *push, const json_t *layers)
{
    AUTO_FREE const struct manifest_file **missing = NULL;
    size_t count = 0;

    TRY(mem_array(&missing, json_array_size(layers) + 1));
    TRY(find_missing(push, layers, missing, &count));
    progress_init(&push->progress, push->cli->quiet);
    for (size_t i = 0; i < count; i++) {
        push->progress.total += missing[i]->bytes;
    }
    for (size_t i = 0; i < count; i++) {
        TRY(push_layer(push, missing[i]));
    }
    if (count > 0) {
        progress_show(&push->progress, true);
    }
    return 0;
}

static int push_config(struct push *push, const json_t *descriptor)
{
    AUTO(http_answer) struct http_answer config = {0};
    char sha256[DIGEST_HEX_SIZE];
    bool has = false;

    TRY(get_document(push, "config", &config, sha256));
    const char *wanted = descriptor_digest(descriptor);
    if (wanted == NULL || strcmp(wanted, sha256) != 0) {
        return status_fail(STATUS_MISMATCH, "the image's configuration is not the one that its manifest names");
    }
    TRY(ask_for_blob(push, sha256, &has));
    TRY(report_blob(push, sha256, (int64_t)config.size, NULL, !has));
    return has ? 0 : push_document(push, NULL, &config, sha256);
}

static int push_image(struct push *push, struct pushed *out)
{
    AUTO(http_answer) struct http_answer text = {0};
    AUTO_JSON json_t *image = NULL;

    TRY(get_document(push, "manifest", &text, out->sha256));
    if (json_parse(text.body, text.size, PUSH_JSON_DEPTH, &image) != 0 ||
        !json_is_array(json_object_get(image, "layers")) || json_get_string(image, "mediaType") == NULL) {
        return status_fail(STATUS_SERVER, "the image's manifest is not one");
    }
    TRY(push_layers(push, json_object_get(image, "layers")));
    TRY(push_config(push, json_object_get(image, "config")));
    return push_document(push, json_get_string(image, "mediaType"), &text, out->sha256);
}

int push_artifact(struct cli *cli, const char *artifact, const struct manifest *files, struct registry *registry,
                  struct pushed *out)
{
    AUTO_JSON json_t *blobs = json_array();
    struct push push = {.cli = cli, .artifact = artifact, .files = files, .registry = registry, .blobs = blobs};

    progress_init(&push.progress, cli->quiet);
    TRY(push_image(&push, out));
    out->blobs = json_incref(blobs);
    return 0;
}
