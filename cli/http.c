/* One transfer of libcurl. A transfer is prepared, performed (here, or by http_many.c together with others) and
 * finished; its callbacks see the struct transfer. */

#include "cli/http_internal.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/mem.h"
#include "cli/status.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define HTTP_CONNECT_SECONDS 15L

/* --- the server */

bool http_is_loopback(const char *host)
{
    unsigned char address[16];
    static const unsigned char six[16] = {[15] = 1};

    if (strcasecmp(host, "localhost") == 0) {
        return true;
    }
    if (inet_pton(AF_INET, host, address) == 1) {
        return address[0] == 127;
    }
    char bare[64];
    size_t size = strlen(host);
    if (size < 3 || size >= sizeof(bare) || host[0] != '[') {
        return false;
    }
    memcpy(bare, host + 1, size - 2);
    bare[size - 2] = '\0';
    return inet_pton(AF_INET6, bare, address) == 1 && memcmp(address, six, sizeof(six)) == 0;
}

static bool has_part(CURLU *url, CURLUPart part)
{
    char *text = NULL;
    bool has = curl_url_get(url, part, &text, 0) == CURLUE_OK && text != NULL && text[0] != '\0';
    curl_free(text);
    return has;
}

static int check_url(const struct http_options *options, CURLU *url, bool *local)
{
    char *scheme = NULL, *host = NULL;

    if (curl_url_set(url, CURLUPART_URL, options->url, 0) != CURLUE_OK ||
        curl_url_get(url, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK ||
        curl_url_get(url, CURLUPART_HOST, &host, 0) != CURLUE_OK) {
        curl_free(scheme);
        return err_raise(ERR_CONFIG, "the server's URL is not one; write http://HOST:PORT or https://HOST");
    }
    bool http = strcmp(scheme, "http") == 0, https = strcmp(scheme, "https") == 0;
    *local = http_is_loopback(host);
    curl_free(scheme);
    curl_free(host);
    if (!http && !https) {
        return err_raise(ERR_CONFIG, "the server's URL must begin with http:// or https://");
    }
    if (has_part(url, CURLUPART_USER) || has_part(url, CURLUPART_PASSWORD) || has_part(url, CURLUPART_QUERY) ||
        has_part(url, CURLUPART_FRAGMENT)) {
        return err_raise(ERR_CONFIG, "the server's URL must not have a user, a query or a fragment");
    }
    if (http && options->key != NULL && !*local && !options->insecure) {
        return err_set_hint(err_raise(ERR_CONFIG, "the API key would travel unencrypted"),
                            "use https://, or --insecure if the network between is trusted");
    }
    return 0;
}

int http_open(const struct http_options *options, struct http **out)
{
    AUTO(http) struct http *http = NULL;
    static bool started;

    if (!started && curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        return err_raise(ERR_INTERNAL, "libcurl cannot be initialized");
    }
    started = true;
    TRY(mem_new(&http));
    CURLU *url = curl_url();
    int rc =
        url != NULL ? check_url(options, url, &http->local) : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a URL");
    curl_url_cleanup(url);
    TRY(rc);
    TRY(mem_strdup(&http->url, options->url));
    for (size_t size = strlen(http->url); size > 0 && http->url[size - 1] == '/'; size--) {
        http->url[size - 1] = '\0';
    }
    if (options->key != NULL) {
        TRY(mem_array(&http->authorization, strlen(options->key) + sizeof("Authorization: Bearer ")));
        (void)sprintf(http->authorization, "Authorization: Bearer %s", options->key);
    }
    if (options->ca_file != NULL) {
        TRY(mem_strdup(&http->ca_file, options->ca_file));
        if (access(http->ca_file, R_OK) != 0) {
            return err_raise(ERR_CONFIG, "%s: the file of certificates cannot be read", http->ca_file);
        }
    }
    http->insecure = options->insecure;
    http->hints = options->hints != NULL ? options->hints : &http_quantd_hints;
    http->idle_seconds = options->idle_seconds;
    *out = MOVE(http);
    return 0;
}

void http_close(struct http *http)
{
    if (http->easy != NULL) {
        curl_easy_cleanup(http->easy);
    }
    free(http->url);
    free(http->authorization);
    free(http->ca_file);
    free(http);
}

const char *http_url(const struct http *http)
{
    return http->url;
}

int http_escape(char *out, size_t size, const char *text, const char *keep)
{
    size_t at = strlen(out);

    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        bool plain = (*c < 0x80 && isalnum(*c)) || strchr("-._~", *c) != NULL || strchr(keep, *c) != NULL;
        int n = snprintf(out + at, size - at, plain ? "%c" : "%%%02X", *c);
        at += (size_t)n;
        if (at >= size) {
            return err_raise(ERR_CONFIG, "the request's path would be longer than %zu bytes", size);
        }
    }
    return 0;
}

/* --- the answer */

void http_answer_deinit(struct http_answer *answer)
{
    free(answer->body);
    memset(answer, 0, sizeof(*answer));
}

static int collect(struct transfer *transfer, const char *data, size_t size)
{
    struct http_answer *answer = &transfer->answer;

    if (size > HTTP_ANSWER_MAX - answer->size) {
        return status_fail(STATUS_SERVER, "the answer is larger than %zu MiB", HTTP_ANSWER_MAX >> 20);
    }
    if (answer->size + size + 1 > transfer->capacity) {
        size_t capacity =
            transfer->capacity * 2 > answer->size + size + 1 ? transfer->capacity * 2 : answer->size + size + 1;
        TRY(mem_resize(&answer->body, capacity));
        transfer->capacity = capacity;
    }
    memcpy(answer->body + answer->size, data, size);
    answer->size += size;
    answer->body[answer->size] = '\0';
    return 0;
}

static size_t on_data(char *data, size_t one, size_t size, void *context)
{
    struct transfer *transfer = context;
    long status = 0;

    transfer->moved_at = clock_monotonic_ms();
    (void)curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
    bool take = transfer->call.take != NULL && status >= 200 && status < 300;
    transfer->answer.status = status;
    int rc = take ? transfer->call.take(transfer->call.context, data, size) : collect(transfer, data, size);
    if (rc == HTTP_PAUSE) {
        transfer->paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    transfer->rc = rc;
    return transfer->rc == 0 ? size * one : 0;
}

static void copy_value(char *out, size_t size, const char *text, size_t length, const char *until)
{
    size_t at = 0;

    for (size_t i = 0; i < length && at + 1 < size && strchr(until, text[i]) == NULL; i++) {
        out[at++] = (char)tolower((unsigned char)text[i]);
    }
    out[at] = '\0';
}

static void read_range(const char *value, struct http_answer *answer)
{
    int64_t first, last, total;

    if (sscanf(value, "bytes %" SCNd64 "-%" SCNd64 "/%" SCNd64, &first, &last, &total) == 3 && first >= 0 &&
        last >= first && total > last) {
        answer->range_first = first;
        answer->range_last = last;
        answer->range_total = total;
    }
}

/* The line "name: value" of size bytes, colon being where it has one. */
static void pass_header(const struct transfer *transfer, const char *data, size_t size, const char *colon)
{
    char name[64], value[HTTP_PATH_MAX];
    const char *text = colon + 1, *end = data + size;

    while (end > text && strchr(" \t\r\n", end[-1]) != NULL) {
        end--;
    }
    while (text < end && (*text == ' ' || *text == '\t')) {
        text++;
    }
    size_t length = (size_t)(end - text);
    if ((size_t)(colon - data) >= sizeof(name) || length >= sizeof(value) || memchr(text, '\0', length) != NULL) {
        return; /* none that anybody asks for is so long */
    }
    copy_value(name, sizeof(name), data, (size_t)(colon - data), "");
    memcpy(value, text, length);
    value[length] = '\0';
    transfer->call.header(transfer->call.context, name, value);
}

static size_t on_header(char *data, size_t one, size_t size, void *context)
{
    struct transfer *transfer = context;
    struct http_answer *answer = &transfer->answer;
    const char *colon = memchr(data, ':', size);
    char value[128];

    transfer->moved_at = clock_monotonic_ms();
    if (size > 5 && strncmp(data, "HTTP/", 5) == 0) { /* the last status line counts: 100 Continue may precede it */
        answer->type[0] = '\0';
        answer->range_first = answer->range_last = answer->range_total = -1;
        answer->retry_after = -1;
    }
    if (colon == NULL) {
        return size * one;
    }
    if (transfer->call.header != NULL) {
        pass_header(transfer, data, size, colon);
    }
    size_t name = (size_t)(colon - data);
    const char *text = colon + 1, *end = data + size;
    while (text < end && (*text == ' ' || *text == '\t')) {
        text++;
    }
    copy_value(value, sizeof(value), text, (size_t)(end - text), "\r\n");
    if (name == 12 && strncasecmp(data, "content-type", name) == 0) {
        copy_value(answer->type, sizeof(answer->type), value, strlen(value), "; ");
    } else if (name == 13 && strncasecmp(data, "content-range", name) == 0) {
        read_range(value, answer);
    } else if (name == 11 && strncasecmp(data, "retry-after", name) == 0) {
        answer->retry_after = isdigit((unsigned char)value[0]) ? strtoll(value, NULL, 10) : -1;
    }
    return size * one;
}

/* --- the request */

static size_t on_read(char *buffer, size_t one, size_t size, void *context)
{
    struct transfer *transfer = context;
    const struct http_call *call = &transfer->call;
    size_t left = call->size - transfer->sent;
    size_t part = left < size * one ? left : size * one;

    if (call->give != NULL && part > 0) {
        int rc = call->give(call->context, buffer, part, &part);
        if (rc != 0) {
            transfer->paused = rc == HTTP_PAUSE;
            transfer->rc = transfer->paused ? 0 : rc;
            return transfer->paused ? CURL_READFUNC_PAUSE : CURL_READFUNC_ABORT;
        }
    } else if (call->file > 0 && part > 0) {
        ssize_t n = pread(call->file, buffer, part, (off_t)(call->offset + (int64_t)transfer->sent));
        if (n <= 0) {
            transfer->rc = status_fail(STATUS_LOCAL, "the file that is sent became shorter or unreadable");
            return CURL_READFUNC_ABORT;
        }
        part = (size_t)n;
    } else if (part > 0) {
        memcpy(buffer, (const char *)call->body + transfer->sent, part);
    }
    transfer->sent += part;
    transfer->moved_at = clock_monotonic_ms();
    if (call->sent != NULL) {
        call->sent(call->context, (int64_t)transfer->sent);
    }
    return part;
}

/* libcurl rewinds when a connection that was kept turns out to be closed. */
static int on_seek(void *context, curl_off_t offset, int origin)
{
    struct transfer *transfer = context;

    bool kept = transfer->call.give == NULL || (uint64_t)offset == transfer->sent;
    if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > transfer->call.size || !kept) {
        return CURL_SEEKFUNC_CANTSEEK;
    }
    transfer->sent = (size_t)offset;
    return CURL_SEEKFUNC_OK;
}

/* About once a second. */
static int on_tick(void *context, curl_off_t all, curl_off_t now, curl_off_t up_all, curl_off_t up_now)
{
    struct transfer *transfer = context;

    if (up_now != transfer->up || transfer->paused) {
        transfer->up = up_now;
        transfer->moved_at = clock_monotonic_ms();
    }
    if (transfer->call.tick != NULL) {
        transfer->call.tick(transfer->call.context);
    }
    int64_t idle = transfer->http->idle_seconds;
    if (clock_monotonic_ms() - transfer->moved_at > idle * 1000) {
        transfer->rc =
            status_fail(STATUS_UNREACHABLE, "%s: nothing arrived for %" PRId64 " seconds", transfer->http->url, idle);
        return 1;
    }
    return 0;
}

static int add_header(struct transfer *transfer, const char *line)
{
    struct curl_slist *list = curl_slist_append(transfer->headers, line);
    if (list == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a header");
    }
    transfer->headers = list;
    return 0;
}

static int http_add_headers(struct transfer *transfer)
{
    const struct http_call *call = &transfer->call;
    char line[256];

    TRY(add_header(transfer, "Expect:"));
    if (call->type != NULL) {
        snprintf(line, sizeof(line), "Content-Type: %s", call->type);
        TRY(add_header(transfer, line));
    }
    if (transfer->http->authorization != NULL) {
        TRY(add_header(transfer, transfer->http->authorization));
    }
    for (size_t i = 0; call->headers != NULL && call->headers[i] != NULL; i++) {
        TRY(add_header(transfer, call->headers[i]));
    }
    return 0;
}

static void set_body(CURL *easy, struct transfer *transfer)
{
    const struct http_call *call = &transfer->call;
    bool post = strcmp(call->method, "POST") == 0;

    if (call->type != NULL) {
        curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)call->size);
        curl_easy_setopt(easy, CURLOPT_READFUNCTION, on_read);
        curl_easy_setopt(easy, CURLOPT_READDATA, transfer);
        curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, on_seek);
        curl_easy_setopt(easy, CURLOPT_SEEKDATA, transfer);
    } else if (post) {
        curl_easy_setopt(easy, CURLOPT_POSTFIELDS, "");
        curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE, 0L);
        (void)add_header(transfer, "Content-Type:"); /* none: there is nothing to name the type of */
    }
    if (strcmp(call->method, "HEAD") == 0) {
        curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
    } else {
        curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, call->method);
    }
}

int http_prepare(struct http *http, const struct http_call *call, CURL *easy, struct transfer *transfer)
{
    char url[HTTP_PATH_MAX];

    *transfer = (struct transfer){.http = http, .easy = easy, .call = *call, .moved_at = clock_monotonic_ms()};
    transfer->answer.range_first = transfer->answer.range_last = transfer->answer.range_total = -1;
    transfer->answer.retry_after = -1;
    if (snprintf(url, sizeof(url), "%s%s", http->url, call->path) >= (int)sizeof(url)) {
        return err_raise(ERR_CONFIG, "the request's URL is longer than %d bytes", HTTP_PATH_MAX);
    }
    curl_easy_reset(easy);
    TRY(http_add_headers(transfer));
    set_body(easy, transfer);
    curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_USERAGENT, "quantctl/" QUANTD_VERSION);
    curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, HTTP_CONNECT_SECONDS);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, transfer->headers);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer);
    curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(easy, CURLOPT_HEADERDATA, transfer);
    curl_easy_setopt(easy, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(easy, CURLOPT_XFERINFOFUNCTION, on_tick);
    curl_easy_setopt(easy, CURLOPT_XFERINFODATA, transfer);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, transfer->error);
    curl_easy_setopt(easy, CURLOPT_PRIVATE, transfer);
    if (http->local) {
        curl_easy_setopt(easy, CURLOPT_NOPROXY, "*");
    }
    if (http->ca_file != NULL) {
        curl_easy_setopt(easy, CURLOPT_CAINFO, http->ca_file);
    }
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, http->insecure ? 0L : 1L);
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, http->insecure ? 0L : 2L);
    return 0;
}

int http_finish(struct transfer *transfer, CURLcode code, struct http_answer *answer)
{
    int rc = 0;

    if (transfer->rc != 0) {
        rc = transfer->rc; /* a callback said why */
    } else if (code != CURLE_OK) {
        rc = http_fault(transfer, code);
    } else {
        (void)curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &transfer->answer.status);
        *answer = transfer->answer;
        transfer->answer.body = NULL;
    }
    curl_slist_free_all(transfer->headers);
    transfer->headers = NULL;
    http_answer_deinit(&transfer->answer);
    return rc;
}

int http_call(struct http *http, const struct http_call *call, struct http_answer *answer)
{
    AUTO_FREE struct transfer *transfer = NULL;

    if (http->easy == NULL) {
        http->easy = curl_easy_init();
    }
    if (http->easy == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a connection");
    }
    TRY(mem_new(&transfer));
    int rc = http_prepare(http, call, http->easy, transfer);
    if (rc != 0) {
        curl_slist_free_all(transfer->headers);
        return rc;
    }
    http_answer_deinit(answer);
    CURLcode code = curl_easy_perform(http->easy);
    rc = http_finish(transfer, code, answer);
    curl_easy_setopt(http->easy, CURLOPT_ERRORBUFFER, NULL);
    return rc;
}
