/* HTTP header values (RFC 9110 fields, RFC 7240 Prefer, RFC 3986 escapes).
 *
 * Every function accepts hostile text. None allocates or trusts a length that it did not count, and an invalid value
 * has a defined meaning: absent for optional negotiation (Range, Prefer), refused for identity (tokens, escapes). */

#include "api/header.h"

#include "base/text.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

bool header_is_token(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        bool alnum = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!alnum && (c == 0 || strchr("!#$%&'*+-.^_`|~", c) == NULL)) {
            return false;
        }
    }
    return size > 0;
}

bool header_is_value(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if ((c < 0x20 && c != '\t') || c == 0x7f) {
            return false;
        }
    }
    return true;
}

bool header_parse_u63(const char *text, size_t size, int64_t *out)
{
    int64_t value = 0;
    for (size_t i = 0; i < size; i++) {
        if (text[i] < '0' || text[i] > '9' || __builtin_mul_overflow(value, (int64_t)10, &value) ||
            __builtin_add_overflow(value, (int64_t)(text[i] - '0'), &value)) {
            return false;
        }
    }
    if (size == 0) {
        return false;
    }
    *out = value;
    return true;
}

static const char *skip_blanks(const char *text)
{
    return text + strspn(text, " \t");
}

/* Length without trailing blanks. */
static size_t trimmed(const char *text, size_t size)
{
    while (size > 0 && (text[size - 1] == ' ' || text[size - 1] == '\t')) {
        size--;
    }
    return size;
}

bool header_media_type_is(const char *value, const char *type)
{
    if (value == NULL) {
        return false;
    }
    value = skip_blanks(value);
    size_t size = strcspn(value, ";");
    size_t name = trimmed(value, size);
    if (name != strlen(type) || strncasecmp(value, type, name) != 0) {
        return false;
    }
    for (const char *at = value + size; *at == ';';) {
        at = skip_blanks(at + 1);
        size_t length = strcspn(at, ";");
        if (strncasecmp(at, "charset=", 8) == 0) {
            const char *set = at + 8;
            size_t set_size = trimmed(set, length - 8);
            if (set_size >= 2 && set[0] == '"' && set[set_size - 1] == '"') {
                set++;
                set_size -= 2;
            }
            if (set_size != 5 || strncasecmp(set, "utf-8", 5) != 0) {
                return false;
            }
        }
        at += length;
    }
    return true;
}

/* "q=0.5" among the parameters of one Accept element, in thousandths; 1000 when absent, 0 when malformed. */
static int quality(const char *parameters, const char *end)
{
    for (const char *at = parameters; at < end;) {
        at = skip_blanks(at + 1);
        size_t size = strcspn(at, ";,");
        if (size >= 3 && (at[0] == 'q' || at[0] == 'Q') && at[1] == '=') {
            if ((at[2] != '0' && at[2] != '1') || (size > 3 && at[3] != '.')) {
                return 0;
            }
            int value = (at[2] - '0') * 1000, scale = 100;
            for (size_t i = 4; i < trimmed(at, size) && scale > 0; i++, scale /= 10) {
                if (at[i] < '0' || at[i] > '9') {
                    return 0;
                }
                value += (at[i] - '0') * scale;
            }
            return value > 1000 ? 1000 : value;
        }
        at += size;
    }
    return 1000;
}

/* How specifically an Accept range matches the offer: 3 exactly, 2 by "type/" + star, 1 by any, 0 not at all. */
static int specificity(const char *range, size_t size, const char *offer)
{
    size_t slash = strcspn(offer, "/");
    if (size == 3 && memcmp(range, "*/*", 3) == 0) {
        return 1;
    }
    if (size == slash + 2 && strncasecmp(range, offer, slash + 1) == 0 && range[slash + 1] == '*') {
        return 2;
    }
    return size == strlen(offer) && strncasecmp(range, offer, size) == 0 ? 3 : 0;
}

/* The quality that the most specific matching range gives the offer. */
static int offer_quality(const char *accept, const char *offer)
{
    int best = 0, result = 0;
    for (const char *at = accept; *at != '\0';) {
        at += strspn(at, " \t,");
        size_t size = strcspn(at, ",");
        size_t name = strcspn(at, ";,");
        int match = specificity(at, trimmed(at, name), offer);
        if (match > best) {
            best = match;
            result = quality(at + name, at + size);
        }
        at += size;
    }
    return result;
}

int header_negotiate(const char *accept, const char *const *offers)
{
    if (accept == NULL || *skip_blanks(accept) == '\0') {
        return 0;
    }
    int chosen = -1, best = 0;
    for (int i = 0; offers[i] != NULL; i++) {
        int value = offer_quality(accept, offers[i]);
        if (value > best) {
            best = value;
            chosen = i;
        }
    }
    return chosen;
}

bool header_accepts_coding(const char *value, const char *coding)
{
    int named = -1, any = 0;
    for (const char *at = value != NULL ? value : ""; *at != '\0';) {
        at += strspn(at, " \t,");
        size_t size = strcspn(at, ",");
        size_t span = strcspn(at, ";,");
        size_t name = trimmed(at, span);
        if (name == strlen(coding) && strncasecmp(at, coding, name) == 0) {
            named = quality(at + span, at + size);
        } else if (name == 1 && at[0] == '*') {
            any = quality(at + span, at + size);
        }
        at += size;
    }
    return named >= 0 ? named > 0 : any > 0;
}

bool header_etag_matches(const char *list, const char *etag, bool weak)
{
    if (list == NULL) {
        return false;
    }
    size_t length = strlen(etag);
    for (const char *at = list; *at != '\0';) {
        at += strspn(at, " \t,");
        if (*at == '*') {
            return true;
        }
        bool weak_tag = at[0] == 'W' && at[1] == '/';
        at += weak_tag ? 2 : 0;
        if (*at != '"') {
            return false;
        }
        const char *close = strchr(at + 1, '"');
        if (close == NULL) {
            return false;
        }
        size_t size = (size_t)(close - at) + 1;
        if ((weak || !weak_tag) && size == length && memcmp(at, etag, size) == 0) {
            return true;
        }
        at += size;
    }
    return false;
}

enum header_range header_range_parse(const char *value, int64_t size, int64_t *first, int64_t *last)
{
    if (value == NULL || strncasecmp(value, "bytes=", 6) != 0) {
        return HEADER_RANGE_NONE;
    }
    const char *text = skip_blanks(value + 6);
    size_t length = trimmed(text, strlen(text));
    const char *dash = memchr(text, '-', length);
    if (dash == NULL || memchr(text, ',', length) != NULL) {
        return HEADER_RANGE_NONE;
    }
    size_t left = (size_t)(dash - text), right = length - left - 1;
    int64_t a = 0, b = 0;
    if ((left > 0 && !header_parse_u63(text, left, &a)) || (right > 0 && !header_parse_u63(dash + 1, right, &b)) ||
        (left == 0 && right == 0) || (left > 0 && right > 0 && b < a)) {
        return HEADER_RANGE_NONE;
    }
    if (left == 0) { /* the last b bytes */
        if (b == 0 || size == 0) {
            return HEADER_RANGE_UNSATISFIABLE;
        }
        *first = b < size ? size - b : 0;
        *last = size - 1;
        return HEADER_RANGE_ONE;
    }
    if (a >= size) {
        return HEADER_RANGE_UNSATISFIABLE;
    }
    *first = a;
    *last = right > 0 && b < size ? b : size - 1;
    return HEADER_RANGE_ONE;
}

int64_t header_prefer_wait(const char *value, int64_t max)
{
    if (value == NULL) {
        return 0;
    }
    for (const char *at = value; *at != '\0';) {
        at += strspn(at, " \t,");
        size_t size = strcspn(at, ",;");
        int64_t seconds;
        if (size > 5 && strncasecmp(at, "wait=", 5) == 0 &&
            header_parse_u63(at + 5, trimmed(at + 5, size - 5), &seconds)) {
            return seconds < max ? seconds : max;
        }
        at += strcspn(at, ",");
    }
    return 0;
}

bool header_percent_decode(const char *text, size_t size, bool plus, char *out, size_t capacity)
{
    size_t used = 0;
    for (size_t i = 0; i < size; i++) {
        int c = (unsigned char)text[i];
        if (c == '%') {
            int high = i + 2 < size ? text_hex_value(text[i + 1]) : -1;
            int low = high >= 0 ? text_hex_value(text[i + 2]) : -1;
            if (low < 0) {
                return false;
            }
            c = high * 16 + low;
            i += 2;
        } else if (c == '+' && plus) {
            c = ' ';
        }
        if (c < 0x20 || c == 0x7f || used + 1 >= capacity) {
            return false;
        }
        out[used++] = (char)c;
    }
    if (capacity == 0) {
        return false;
    }
    out[used] = '\0';
    return true;
}
