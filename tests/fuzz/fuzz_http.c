/* The bytes of a connection: frame.c, as the relay uses it, and after it the guard. Where pieces end must not matter;
 * what is passed on holds no byte that two readers could take for different things; and both agree on how long a body
 * is. */

#include "api/frame.h"
#include "api/guard.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define HEAD_SIZE (FRAME_HEAD_MAX + FRAME_LINE_MAX)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
    if (!condition) {
        abort();
    }
}

/* Byte by byte; how much was passed. */
static size_t in_pieces(const char *data, size_t size, struct frame *frame)
{
    size_t at = 0;
    while (at < size && frame_feed(frame, data + at, 1) == 1) {
        at++;
    }
    return at;
}

/* The text of a header section that was passed: CRLF alone ends lines, no control byte, no folded line. */
static void check_head(const char *head, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)head[i];
        require(c >= 0x20 || c == '\t' || c == '\r' || c == '\n');
        require(c != 0x7f);
        require(c != '\n' || (i > 0 && head[i - 1] == '\r'));
        require(c != '\r' || (i + 1 < size && head[i + 1] == '\n'));
        require(i == 0 || head[i - 1] != '\n' || (c != ' ' && c != '\t'));
    }
}

/* Cut the head in place and ask the guard. */
static void check_guard(char *head, size_t size, const struct frame *frame, int64_t length)
{
    static const struct guard_hosts hosts = {.listen = "127.0.0.1"};
    struct guard_request request = {0};
    struct guard_verdict verdict;

    head += strspn(head, "\r\n");
    char *line = strstr(head, "\r\n");
    char *uri = strchr(head, ' ');
    char *version = uri != NULL ? strchr(uri + 1, ' ') : NULL;
    require(line != NULL && version != NULL && version < line);
    *line = *uri = *version = '\0';
    request.method = head;
    request.uri = uri + 1;
    request.version = version + 1;
    for (line += 2; strncmp(line, "\r\n", 2) != 0;) {
        char *end = strstr(line, "\r\n"), *colon = strchr(line, ':');
        require(end != NULL && colon != NULL && colon < end && request.header_count < GUARD_HEADERS_MAX);
        char *value = colon + 1 + strspn(colon + 1, " \t"), *last = end;
        while (last > value && (last[-1] == ' ' || last[-1] == '\t')) {
            last--;
        }
        value = value < last ? value : last;
        *colon = *last = '\0';
        request.headers[request.header_count++] =
            (struct guard_header){line, value, (size_t)(colon - line), (size_t)(last - value)};
        line = end + 2;
    }
    if (guard_check(&request, &hosts, &verdict) == 0) {
        require(verdict.length == (frame->chunked ? -1 : length));
    } else {
        require(verdict.detail != NULL && verdict.framing);
    }
    (void)size;
}

/* One request; the bytes that were passed. */
static size_t take(const char *data, size_t size)
{
    static char head[HEAD_SIZE + 1];
    struct frame frame = {0}, pieces = {0}, part = {0};
    size_t passed = frame_feed(&frame, data, size);

    require(passed <= size && in_pieces(data, size, &pieces) == passed && pieces.state == frame.state);
    require(frame.state != FRAME_REFUSED || (frame.status >= 400 && frame.detail != NULL));
    size_t end = 0;
    while (end < passed && part.state != FRAME_BODY && part.state != FRAME_SIZE_FIRST && part.state != FRAME_DONE) {
        require(frame_feed(&part, data + end, 1) == 1);
        end++;
    }
    bool complete = part.state == FRAME_BODY || part.state == FRAME_SIZE_FIRST || part.state == FRAME_DONE;
    if (complete && end > 0) {
        require(end < sizeof(head));
        memcpy(head, data, end);
        head[end] = '\0';
        check_head(head, end);
        check_guard(head, end, &part, part.left);
    }
    return frame.state == FRAME_DONE ? passed : size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t at = 0;
    while (at < size) {
        at += take((const char *)data + at, size - at);
    }
    return 0;
}
