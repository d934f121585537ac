/* Pushes to a registry. A blob is uploaded in one piece (POST, then PUT at the location that the answer names), which
 * every registry takes; the location may be of another host, which gets no credentials. */

#include "cli/registry_internal.h"

#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/status.h"

#include <curl/curl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define REGISTRY_PAUSE_MAX 120
#define REGISTRY_ERROR_DEPTH 16
#define BLOB_TYPE "application/octet-stream"

/* --- URLs */

static int copy_url_part(CURLU *url, CURLUPart part, unsigned flags, char *out, size_t size)
{
    char *text = NULL;
    int length = -1;

    if (curl_url_get(url, part, &text, flags) == CURLUE_OK) {
        length = snprintf(out, size, "%s", text);
    }
    curl_free(text);
    return length < 0 || (size_t)length >= size ? STATUS_SERVER : 0;
}

static int split_url(CURLU *url, const char *base, const char *text, char origin[REGISTRY_URL_MAX],
                     char path[HTTP_PATH_MAX])
{
    char scheme[16], host[REGISTRY_URL_MAX / 2], port[16], query[HTTP_PATH_MAX] = "";
    bool known = (base == NULL || curl_url_set(url, CURLUPART_URL, base, 0) == CURLUE_OK) &&
                 curl_url_set(url, CURLUPART_URL, text, 0) == CURLUE_OK &&
                 copy_url_part(url, CURLUPART_SCHEME, 0, scheme, sizeof(scheme)) == 0 &&
                 copy_url_part(url, CURLUPART_HOST, 0, host, sizeof(host)) == 0 &&
                 copy_url_part(url, CURLUPART_PORT, CURLU_DEFAULT_PORT, port, sizeof(port)) == 0 &&
                 copy_url_part(url, CURLUPART_PATH, 0, path, HTTP_PATH_MAX) == 0 &&
                 (strcmp(scheme, "http") == 0 || strcmp(scheme, "https") == 0);

    if (!known) {
        return STATUS_SERVER;
    }
    snprintf(origin, REGISTRY_URL_MAX, "%s://%s:%s", scheme, host, port);
    if (copy_url_part(url, CURLUPART_QUERY, 0, query, sizeof(query)) != 0 || query[0] == '\0') {
        return 0;
    }
    size_t used = strlen(path);
    return snprintf(path + used, HTTP_PATH_MAX - used, "?%s", query) < (int)(HTTP_PATH_MAX - used) ? 0 : STATUS_SERVER;
}

int registry_split_url(const char *base, const char *url, char origin[REGISTRY_URL_MAX], char path[HTTP_PATH_MAX])
{
    CURLU *handle = curl_url();
    int rc = handle != NULL ? split_url(handle, base, url, origin, path) : STATUS_SERVER;

    curl_url_cleanup(handle);
    return rc == 0 ? 0 : status_fail(STATUS_SERVER, "the registry names a URL that cannot be used: %.200s", url);
}

static bool registry_is_plain(const char *origin)
{
    return strncmp(origin, "http://", 7) == 0;
}

static int connect_origin(const struct registry *registry, const char *origin, struct http **out)
{
    static const struct http_hints hints = {
        .away = "is that the name of the registry, and is it running?",
        .untrusted = "--registry-ca-file FILE names the certificate of the issuer",
        .unencrypted = "--plain-http is for a registry that does not use TLS",
    };
    const struct http_options options = {
        .url = origin,
        .ca_file = registry->options.ca_file,
        .hints = &hints,
        .insecure = registry->options.insecure,
        .idle_seconds = registry->options.idle_seconds,
    };

    return http_open(&options, out);
}

/* The host of an origin, which has a port. */
static void origin_host(const char *origin, char out[REGISTRY_URL_MAX])
{
    snprintf(out, REGISTRY_URL_MAX, "%s", strstr(origin, "://") + 3);
    *strrchr(out, ':') = '\0';
}

int registry_connect(const struct registry *registry, const char *origin, bool secret, struct http **out)
{
    char host[REGISTRY_URL_MAX];

    origin_host(origin, host);
    bool exposed = secret && !http_is_loopback(host) && !registry->options.insecure;
    if (registry_is_plain(origin) && (exposed || !registry_is_plain(http_url(registry->http)))) {
        return status_fail(STATUS_SERVER, "%s sends the client to %.200s, which is not encrypted", registry->name,
                           origin);
    }
    return connect_origin(registry, origin, out);
}

/* --- calls */

static void keep_header(char *out, size_t size, const char *value)
{
    snprintf(out, size, "%s", strlen(value) < size ? value : "");
}

static void registry_header(void *context, const char *name, const char *value)
{
    struct registry *registry = context;
    struct registry_headers *headers = &registry->headers;

    if (strcmp(name, "location") == 0) {
        keep_header(headers->location, sizeof(headers->location), value);
    } else if (strcmp(name, "docker-content-digest") == 0) {
        keep_header(headers->digest, sizeof(headers->digest), value);
    } else if (strcmp(name, "www-authenticate") == 0 &&
               (headers->challenge[0] == '\0' || strncasecmp(value, "Bearer ", 7) == 0)) {
        keep_header(headers->challenge, sizeof(headers->challenge), value);
    }
}

/* The call with the registry's headers; extra: one more, or NULL. own: it goes to the registry itself. */
static void complete_call(struct registry *registry, bool own, const char *headers[2], struct http_call *call)
{
    size_t count = 0;

    if (own && registry->authorization != NULL) {
        headers[count++] = registry->authorization;
    }
    headers[count] = NULL;
    call->headers = headers;
    call->header = registry_header;
    call->context = registry;
    registry->headers = (struct registry_headers){0};
    registry->again = false;
    registry->pause = 0;
}

/* A connection that broke may be there again soon. */
static int note_failure(struct registry *registry, int rc)
{
    registry->again = rc == STATUS_UNREACHABLE && registry->reached;
    return rc;
}

static int registry_call(struct registry *registry, const struct http_call *call, struct http_answer *answer)
{
    for (bool first = true;; first = false) {
        struct http_call complete = *call;
        const char *headers[2];
        complete_call(registry, true, headers, &complete);
        int rc = http_call(registry->http, &complete, answer);
        if (rc != 0) {
            return note_failure(registry, rc);
        }
        registry->reached = true;
        bool token = strncasecmp(registry->headers.challenge, "Bearer ", 7) == 0;
        if (answer->status != 401 || (!first && token)) { /* a second password does not exist: that is said below */
            return 0;
        }
        rc = registry_authenticate(registry); /* also of a token that has expired */
        if (rc != 0) {
            return note_failure(registry, rc);
        }
    }
}

/* "code: message" of the first error of an answer, or "". */
static void registry_words(const struct http_answer *answer, char *out, size_t size)
{
    AUTO_JSON json_t *body = NULL;

    out[0] = '\0';
    if (answer->body == NULL || json_parse(answer->body, answer->size, REGISTRY_ERROR_DEPTH, &body) != 0) {
        return;
    }
    const json_t *error = json_array_get(json_object_get(body, "errors"), 0);
    const char *code = json_get_string(error, "code"), *message = json_get_string(error, "message");
    snprintf(out, size, ": %.60s%s%.300s", code != NULL ? code : "", code != NULL && message != NULL ? ", " : "",
             message != NULL ? message : "");
    if (code == NULL && message == NULL) {
        out[0] = '\0';
    }
}

static const char *refusal_hint(long status)
{
    switch (status) {
    case 401:
        return "docker login, or --username NAME --password-stdin with other credentials";
    case 403:
        return "these credentials, or none, are not allowed to push there";
    case 404:
        return "is it a registry, and does the repository exist there? Some make none by themselves";
    case 413:
        return "the registry, or a proxy before it, limits the size of blobs";
    case 429:
        return "the registry limits requests; the same command continues later";
    default:
        return NULL;
    }
}

int registry_refused(struct registry *registry, const char *what, const struct http_answer *answer)
{
    bool busy = answer->status == 429 || answer->status == 408;
    bool refused = answer->status >= 400 && answer->status <= 499;
    const char *hint = refusal_hint(answer->status);
    char words[400];

    registry_words(answer, words, sizeof(words));
    registry->again = busy || answer->status >= 500;
    registry->pause = answer->retry_after;
    int rc = refused
                 ? status_fail(STATUS_REFUSED, "%s refused %s (%ld%s)", registry->name, what, answer->status, words)
                 : status_fail(STATUS_SERVER, "%s failed at %s (%ld%s)", registry->name, what, answer->status, words);
    return hint != NULL ? err_set_hint(rc, "%s", hint) : rc;
}

bool registry_again(const struct registry *registry, int64_t *seconds)
{
    *seconds = registry->pause > 0 ? registry->pause : 0;
    return registry->again && *seconds <= REGISTRY_PAUSE_MAX;
}

/* --- open */

int registry_open(const struct registry_options *options, struct registry **out)
{
    AUTO(registry) struct registry *registry = NULL;
    const struct reference *reference = options->reference;
    const struct credentials *credentials = options->credentials;
    bool local = http_is_loopback(reference->host), secret = credentials->user != NULL || credentials->identity != NULL;
    bool plain = options->plain_http || (local && options->ca_file == NULL);
    char origin[REGISTRY_URL_MAX];

    if (plain && secret && !local && !options->insecure) {
        return err_set_hint(err_raise(ERR_CONFIG, "the password would travel unencrypted"),
                            "push without --plain-http, or add --insecure if the network between is trusted");
    }
    TRY(mem_new(&registry));
    registry->options = *options;
    registry->name = reference->registry;
    snprintf(origin, sizeof(origin), "%s://%s", plain ? "http" : "https", reference->server);
    TRY(connect_origin(registry, origin, &registry->http));
    *out = MOVE(registry);
    return 0;
}

void registry_close(struct registry *registry)
{
    if (registry->http != NULL) {
        http_close(registry->http);
    }
    if (registry->other != NULL) {
        http_close(registry->other);
    }
    if (registry->authorization != NULL) {
        explicit_bzero(registry->authorization, strlen(registry->authorization));
    }
    free(registry->authorization);
    free(registry);
}

/* --- blobs */

static int registry_path(const struct registry *registry, const char *kind, const char *name, char out[HTTP_PATH_MAX])
{
    int size = snprintf(out, HTTP_PATH_MAX, "/v2/%s/%s/%s", registry->options.reference->repository, kind, name);

    return size < HTTP_PATH_MAX ? 0 : err_raise(ERR_CONFIG, "the name of the image is too long");
}

int registry_has_blob(struct registry *registry, const char *sha256, bool *has)
{
    AUTO(http_answer) struct http_answer answer = {0};
    char name[80], path[HTTP_PATH_MAX];

    snprintf(name, sizeof(name), "sha256:%s", sha256);
    TRY(registry_path(registry, "blobs", name, path));
    TRY(registry_call(registry, &(struct http_call){.method = "HEAD", .path = path}, &answer));
    *has = answer.status == 200 || answer.status == 307; /* where its bytes are */
    return *has || answer.status == 404 ? 0 : registry_refused(registry, "the request for a blob", &answer);
}

/* Whether an origin is the registry: also when it does not know of the proxy that speaks TLS for it. */
static bool is_same_origin(const char *origin, const char *here)
{
    char host[REGISTRY_URL_MAX], wanted[REGISTRY_URL_MAX];

    origin_host(origin, host);
    origin_host(here, wanted);
    const char *port = strrchr(origin, ':'), *own = strrchr(here, ':');
    bool upgraded =
        registry_is_plain(origin) && !registry_is_plain(here) && (strcmp(port, ":80") == 0 || strcmp(port, own) == 0);
    return strcasecmp(origin, here) == 0 || (strcasecmp(host, wanted) == 0 && upgraded);
}

/* Where to put an upload that has begun: *to and its path, with the digest. own: the registry itself. */
static int find_location(struct registry *registry, const char *base, const char *sha256, struct http **to, bool *own,
                         char path[HTTP_PATH_MAX])
{
    char origin[REGISTRY_URL_MAX], here[REGISTRY_URL_MAX], ignored[HTTP_PATH_MAX],
        asked[HTTP_PATH_MAX + REGISTRY_URL_MAX];

    snprintf(asked, sizeof(asked), "%s%s", http_url(registry->http), base);
    TRY(registry_split_url(asked, registry->headers.location, origin, path));
    TRY(registry_split_url(NULL, asked, here, ignored));
    size_t used = strlen(path);
    if (snprintf(path + used, HTTP_PATH_MAX - used, "%cdigest=sha256%%3A%s", strchr(path, '?') != NULL ? '&' : '?',
                 sha256) >= (int)(HTTP_PATH_MAX - used)) {
        return status_fail(STATUS_SERVER, "%s names a URL that is too long", registry->name);
    }
    *own = is_same_origin(origin, here);
    if (*own) {
        *to = registry->http;
        return 0;
    }
    if (registry->other != NULL) {
        http_close(registry->other);
        registry->other = NULL;
    }
    TRY(registry_connect(registry, origin, false, &registry->other));
    *to = registry->other;
    return 0;
}

static int begin_upload(struct registry *registry, const char *path)
{
    AUTO(http_answer) struct http_answer answer = {0};

    TRY(registry_call(registry, &(struct http_call){.method = "POST", .path = path}, &answer));
    if (answer.status != 202 || registry->headers.location[0] == '\0') {
        return answer.status >= 400 ? registry_refused(registry, "an upload", &answer)
                                    : status_fail(STATUS_SERVER, "%s began an upload without saying where (%ld)",
                                                  registry->name, answer.status);
    }
    return 0;
}

/* What a registry says it has got. */
static int check_digest(const struct registry *registry, const char *sha256)
{
    const char *digest = registry->headers.digest;

    return digest[0] == '\0' || (strncmp(digest, "sha256:", 7) == 0 && strcmp(digest + 7, sha256) == 0)
               ? 0
               : status_fail(STATUS_MISMATCH, "%s has stored %s instead of sha256:%s", registry->name, digest, sha256);
}

static int end_upload(struct registry *registry, const struct registry_blob *blob, bool own,
                      const struct http_answer *answer)
{
    if (own && answer->status == 401) { /* a token that has expired: the next attempt has another one */
        int rc = registry_authenticate(registry);
        registry->again = rc == 0 || rc == STATUS_UNREACHABLE;
        return rc != 0 ? rc : status_fail(STATUS_REFUSED, "%s refused a blob (401)", registry->name);
    }
    if (answer->status == 400 && strstr(answer->body != NULL ? answer->body : "", "DIGEST_INVALID") != NULL) {
        return status_fail(STATUS_MISMATCH, "%s got other bytes than those of sha256:%s", registry->name, blob->sha256);
    }
    if (answer->status != 201 && answer->status != 204) {
        return registry_refused(registry, "a blob", answer);
    }
    return check_digest(registry, blob->sha256);
}

int registry_put_blob(struct registry *registry, const struct registry_blob *blob)
{
    AUTO(http_answer) struct http_answer answer = {0};
    char begin[HTTP_PATH_MAX], path[HTTP_PATH_MAX];
    const char *headers[2];
    struct http *to = NULL;
    bool own = false;

    TRY(registry_path(registry, "blobs", "uploads/", begin));
    TRY(begin_upload(registry, begin));
    TRY(find_location(registry, begin, blob->sha256, &to, &own, path));
    struct http_call put = {
        .method = "PUT", .path = path, .type = BLOB_TYPE, .body = blob->bytes, .size = (size_t)blob->size};
    complete_call(registry, own, headers, &put);
    int rc = blob->from != NULL ? http_pipe(blob->from, blob->get, blob->got, to, &put, &answer)
                                : http_call(to, &put, &answer);
    if (rc != 0) {
        return note_failure(registry, rc);
    }
    return answer.status == 0 ? 0 : end_upload(registry, blob, own, &answer);
}

int registry_put_manifest(struct registry *registry, const char *type, const char *text, size_t size,
                          const char *sha256)
{
    AUTO(http_answer) struct http_answer answer = {0};
    char path[HTTP_PATH_MAX];

    TRY(registry_path(registry, "manifests", registry->options.reference->tag, path));
    const struct http_call call = {.method = "PUT", .path = path, .type = type, .body = text, .size = size};
    TRY(registry_call(registry, &call, &answer));
    if (answer.status != 201 && answer.status != 200) {
        int rc = registry_refused(registry, "the manifest", &answer);
        return answer.status == 400 || answer.status == 415
                   ? err_set_hint(rc, "does the registry take OCI artifacts (image specification 1.1)?")
                   : rc;
    }
    return check_digest(registry, sha256);
}
