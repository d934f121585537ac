/* Checks that precede routing.
 *
 * libmicrohttpd 0.9 is lenient where that is dangerous: it uses the first of two Content-Length headers, keeps a
 * connection alive that sent both Content-Length and Transfer-Encoding, and decodes %2F before routing. Anything that
 * makes the end of a request ambiguous is therefore refused here and closes the connection, so that no later byte can
 * be taken for another request.
 *
 * Two checks protect against attacks through browsers: a Host that is not served (DNS rebinding), and a state-changing
 * request whose Origin is another site (cross-site forms). Framing is checked first, because the rest relies on it. */

#include "api/guard.h"

#include "api/header.h"
#include "base/err.h"

#include <arpa/inet.h>
#include <string.h>
#include <strings.h>

static int guard_refuse(struct guard_verdict *verdict, int code, bool framing, const char *detail)
{
    verdict->code = code;
    verdict->framing = framing;
    verdict->detail = detail;
    return code;
}

static int too_large(struct guard_verdict *verdict, int status, const char *detail)
{
    verdict->status = status;
    return guard_refuse(verdict, ERR_BAD_REQUEST, true, detail);
}

/* The last header of that name; *count is the number of them. */
static const struct guard_header *find(const struct guard_request *request, const char *name, int *count)
{
    const struct guard_header *found = NULL;
    *count = 0;
    for (size_t i = 0; i < request->header_count; i++) {
        if (strcasecmp(request->headers[i].name, name) == 0) {
            found = &request->headers[i];
            (*count)++;
        }
    }
    return found;
}

/* The library joins a folded line to the name: "Content-Length:", then " 5", becomes "Content-Length5" without a value.
 * A length that only other parsers see allows request smuggling. No legitimate name starts this way. */
static bool is_folded_framing(const char *name)
{
    static const char *const framing[] = {"Content-Length", "Transfer-Encoding"};
    for (size_t i = 0; i < sizeof(framing) / sizeof(framing[0]); i++) {
        size_t size = strlen(framing[i]);
        if (strncasecmp(name, framing[i], size) == 0 && name[size] != '\0') {
            return true;
        }
    }
    return false;
}

static int check_headers(const struct guard_request *request, struct guard_verdict *verdict)
{
    size_t bytes = 0;
    for (size_t i = 0; i < request->header_count; i++) {
        const struct guard_header *header = &request->headers[i];
        bytes += header->name_size + header->value_size;
        if (strlen(header->name) != header->name_size || !header_is_token(header->name, header->name_size)) {
            return guard_refuse(verdict, ERR_BAD_REQUEST, true, "A header name is not a token.");
        }
        if (is_folded_framing(header->name)) {
            return guard_refuse(verdict, ERR_BAD_REQUEST, true,
                                "A Content-Length or Transfer-Encoding header is folded.");
        }
        if (strlen(header->value) != header->value_size || !header_is_value(header->value, header->value_size)) {
            return guard_refuse(verdict, ERR_BAD_REQUEST, true, "A header value contains a control character.");
        }
    }
    if (request->overflow || bytes > GUARD_HEADER_BYTES) {
        return too_large(verdict, 431, "The header section is too large.");
    }
    return 0;
}

static int check_framing(const struct guard_request *request, struct guard_verdict *verdict)
{
    bool old = strcmp(request->version, "HTTP/1.0") == 0;
    if (!old && strcmp(request->version, "HTTP/1.1") != 0) {
        verdict->status = 505;
        return guard_refuse(verdict, ERR_BAD_REQUEST, true, "Only HTTP/1.0 and HTTP/1.1 are supported.");
    }
    int lengths, encodings;
    const struct guard_header *length = find(request, "Content-Length", &lengths);
    const struct guard_header *encoding = find(request, "Transfer-Encoding", &encodings);
    if (lengths > 1 || encodings > 1 || (lengths > 0 && encodings > 0)) {
        return guard_refuse(verdict, ERR_BAD_REQUEST, true,
                            "Only one Content-Length or Transfer-Encoding header is allowed, and not both.");
    }
    if (encodings == 1) {
        if (old || strcasecmp(encoding->value, "chunked") != 0) {
            return guard_refuse(verdict, ERR_BAD_REQUEST, true,
                                "The only supported transfer coding is chunked, in HTTP/1.1.");
        }
        verdict->length = -1;
    }
    if (lengths == 1 && !header_parse_u63(length->value, length->value_size, &verdict->length)) {
        return guard_refuse(verdict, ERR_BAD_REQUEST, true, "Content-Length is not a number.");
    }
    const char *method = request->method;
    bool body = strcmp(method, "POST") == 0 || strcmp(method, "PUT") == 0 || strcmp(method, "PATCH") == 0;
    verdict->declared = lengths + encodings > 0;
    if (!body && verdict->length != 0) {
        return guard_refuse(verdict, ERR_BAD_REQUEST, true, "This method does not allow a body.");
    }
    int expectations, codings;
    const struct guard_header *expect = find(request, "Expect", &expectations);
    if (expectations > 0 && strcasecmp(expect->value, "100-continue") != 0) {
        verdict->status = 417;
        return guard_refuse(verdict, ERR_BAD_REQUEST, true, "The only supported expectation is 100-continue.");
    }
    verdict->expects = expectations > 0;
    const struct guard_header *coding = find(request, "Content-Encoding", &codings);
    if (codings > 0 && strcasecmp(coding->value, "identity") != 0) {
        return guard_refuse(verdict, ERR_UNSUPPORTED_MEDIA_TYPE, true,
                            "Content-Encoding is not supported; send the body unencoded.");
    }
    return 0;
}

/* Whether an undecoded path segment decodes to text without separators and is neither "." nor "..". */
static bool segment_is_fine(const char *text, size_t size)
{
    char plain[GUARD_SEGMENT_MAX];
    if (!header_percent_decode(text, size, false, plain, sizeof(plain)) || strpbrk(plain, "/\\%") != NULL) {
        return false;
    }
    return strcmp(plain, ".") != 0 && strcmp(plain, "..") != 0;
}

static int check_target(const char *uri, struct guard_verdict *verdict)
{
    size_t size = strlen(uri);
    if (size > GUARD_URI_MAX) {
        return too_large(verdict, 414, "The request target is too long.");
    }
    if (uri[0] != '/') {
        return guard_refuse(verdict, ERR_BAD_REQUEST, true, "The request target is not a path.");
    }
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)uri[i];
        if (c <= 0x20 || c >= 0x7f || strchr("#\\\"<>^`{|}", c) != NULL) {
            return guard_refuse(verdict, ERR_BAD_REQUEST, true,
                                "The request target contains a byte that must be percent-encoded.");
        }
    }
    size_t path = strcspn(uri, "?");
    for (size_t at = 1; at <= path;) {
        size_t length = strcspn(uri + at, "/?");
        if (!segment_is_fine(uri + at, length)) {
            return guard_refuse(verdict, ERR_BAD_REQUEST, true,
                                "The path contains a segment that is not allowed, such as .. or an encoded slash.");
        }
        at += length + 1;
    }
    for (const char *at = uri + path; *at != '\0'; at++) {
        char plain[2];
        if (*at == '%' && !header_percent_decode(at, strnlen(at, 3), false, plain, sizeof(plain))) {
            return guard_refuse(verdict, ERR_BAD_REQUEST, true, "The query contains an invalid percent-encoding.");
        }
    }
    return 0;
}

/* Split host[:port] or [v6][:port] into the bare host. False when it is neither. */
static bool split_host(const char *value, char *host, size_t capacity)
{
    const char *end;
    if (value[0] == '[') {
        end = strchr(value, ']');
        if (end == NULL) {
            return false;
        }
        end++;
    } else {
        end = value + strcspn(value, ":");
    }
    size_t size = (size_t)(end - value);
    int64_t port;
    if (size == 0 || size >= capacity || strcspn(value, " \t,/@?#") < size ||
        (*end != '\0' &&
         (*end != ':' || (end[1] != '\0' && (!header_parse_u63(end + 1, strlen(end + 1), &port) || port > 65535))))) {
        return false;
    }
    bool bracket = value[0] == '[';
    memcpy(host, value + bracket, size - 2 * (size_t)bracket);
    host[size - 2 * (size_t)bracket] = '\0';
    unsigned char address[16];
    return !bracket || inet_pton(AF_INET6, host, address) == 1; /* brackets are for IPv6 only */
}

static bool is_address(const char *host)
{
    unsigned char bytes[16];
    return inet_pton(AF_INET, host, bytes) == 1 || inet_pton(AF_INET6, host, bytes) == 1;
}

bool guard_host_allowed(const struct guard_hosts *hosts, const char *value, bool *malformed)
{
    char host[256];
    *malformed = !split_host(value, host, sizeof(host));
    if (*malformed) {
        return false;
    }
    static const char *const loopback[] = {"localhost", "127.0.0.1", "::1"};
    for (size_t i = 0; i < sizeof(loopback) / sizeof(loopback[0]); i++) {
        if (strcasecmp(host, loopback[i]) == 0) {
            return true;
        }
    }
    if (strcasecmp(host, hosts->listen) == 0 || (hosts->any_address && is_address(host))) {
        return true;
    }
    for (size_t i = 0; hosts->allowed != NULL && hosts->allowed[i] != NULL; i++) {
        if (strcasecmp(host, hosts->allowed[i]) == 0) {
            return true;
        }
    }
    return hosts->names != NULL && hosts->names(hosts->names_data, host);
}

static int check_origin(const struct guard_request *request, const struct guard_hosts *hosts,
                        struct guard_verdict *verdict)
{
    int count;
    bool malformed;
    const struct guard_header *host = find(request, "Host", &count);
    if (count != 1) {
        return guard_refuse(verdict, ERR_BAD_REQUEST, true, "A request needs exactly one Host header.");
    }
    if (!guard_host_allowed(hosts, host->value, &malformed)) {
        return malformed
                   ? guard_refuse(verdict, ERR_BAD_REQUEST, true, "The Host header is not a valid host.")
                   : guard_refuse(verdict, ERR_FORBIDDEN_HOST, true,
                                  "The Host header names a host that this daemon does not serve; see --allowed-host.");
    }
    const struct guard_header *origin = find(request, "Origin", &count);
    bool changes = strcmp(request->method, "GET") != 0 && strcmp(request->method, "HEAD") != 0;
    if (changes && count > 0) {
        const char *authority = strstr(origin->value, "://");
        if (count > 1 || authority == NULL || !guard_host_allowed(hosts, authority + 3, &malformed)) {
            return guard_refuse(verdict, ERR_FORBIDDEN_HOST, true, "The Origin header names another site.");
        }
    }
    return 0;
}

int guard_check(const struct guard_request *request, const struct guard_hosts *hosts, struct guard_verdict *verdict)
{
    *verdict = (struct guard_verdict){0};
    TRY(check_headers(request, verdict));
    TRY(check_framing(request, verdict));
    TRY(check_origin(request, hosts, verdict));
    return check_target(request->uri, verdict);
}
