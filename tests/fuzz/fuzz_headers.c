/* Header values that are read: the first byte picks the reader, the rest is the value. */

#include "api/auth.h"
#include "api/guard.h"
#include "api/header.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define PREFER_MAX 60

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
    if (!condition) {
        abort();
    }
}

static void range(const char *value, int64_t size)
{
    int64_t first = 0, last = 0;
    if (header_range_parse(value, size, &first, &last) == HEADER_RANGE_ONE) {
        require(first >= 0 && first <= last && last < size);
    }
}

static void tags(const char *value)
{
    bool strong = header_etag_matches(value, "\"abc\"", false);
    require(!strong || header_etag_matches(value, "\"abc\"", true)); /* weak comparison takes all that strong does */
    require(!strong || strstr(value, "\"abc\"") != NULL || strchr(value, '*') != NULL);
}

static void escapes(const char *value, size_t size)
{
    char *plain = malloc(size + 1); /* exact, so that a sanitizer sees one byte too many */
    require(plain != NULL);
    if (header_percent_decode(value, size, (size & 1) != 0, plain, size + 1)) {
        require(strlen(plain) <= size);
    }
    free(plain);
}

static void host(const char *value)
{
    static const char *const allowed[] = {"proxy.example", NULL};
    static const struct guard_hosts hosts = {.any_address = true, .listen = "0.0.0.0", .allowed = allowed};
    bool malformed = false;
    bool fine = guard_host_allowed(&hosts, value, &malformed);
    require(!fine || !malformed);
    require(!fine || strpbrk(value, " \t/@?#,") == NULL);
}

static void bearer(const char *value)
{
    const char *key = NULL;
    if (bearer_parse(value, &key) == BEARER_KEY) {
        require(key >= value && strlen(key) >= KEY_TEXT_LENGTH && key_text_valid(key, KEY_TEXT_LENGTH));
    }
}

static void read_value(unsigned char which, const char *value, size_t size)
{
    static const char *const offers[] = {"application/json", "text/csv", "text/event-stream", NULL};
    int64_t number = 0;

    switch (which % 9) {
    case 0:
        range(value, 1000);
        break;
    case 1:
        range(value, 0);
        range(value, INT64_MAX);
        break;
    case 2:
        tags(value);
        break;
    case 3:
        number = header_prefer_wait(value, PREFER_MAX);
        require(number >= 0 && number <= PREFER_MAX);
        break;
    case 4:
        require(header_negotiate(value, offers) < 3);
        require(!header_accepts_coding(value, "gzip") || strpbrk(value, "gG*") != NULL);
        break;
    case 5:
        (void)header_media_type_is(value, "application/json");
        break;
    case 6:
        escapes(value, size);
        break;
    case 7:
        host(value);
        break;
    default:
        bearer(value);
        require(!header_parse_u63(value, size, &number) || number >= 0);
        (void)header_is_token(value, size);
        (void)header_is_value(value, size);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    char *value = malloc(size); /* without the first byte, with a NUL */
    require(value != NULL);
    memcpy(value, data + 1, size - 1);
    value[size - 1] = '\0';
    read_value(data[0], value, size - 1);
    free(value);
    return 0;
}
