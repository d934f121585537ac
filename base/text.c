/* UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF. */

#include "base/text.h"

#include <stdio.h>
#include <string.h>

/* Bytes of the valid character at text, 0 when there is none. Stops at the NUL, which continues nothing. */
static size_t character_size(const unsigned char *text)
{
    unsigned char first = text[0];

    if (first < 0x80) {
        return 1;
    }
    size_t size = first >= 0xc2 && first <= 0xdf ? 2 : first >= 0xe0 && first <= 0xef ? 3 : 4;
    if (first < 0xc2 || first > 0xf4) {
        return 0;
    }
    unsigned char low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    unsigned char high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    if (text[1] < low || text[1] > high) {
        return 0;
    }
    for (size_t i = 2; i < size; i++) {
        if (text[i] < 0x80 || text[i] > 0xbf) {
            return 0;
        }
    }
    return size;
}

void text_repair(char *text)
{
    for (char *at = text; *at != '\0';) {
        size_t size = character_size((const unsigned char *)at);
        if (size == 0) {
            *at = '?';
            size = 1;
        }
        at += size;
    }
}

void text_pointer(char *out, size_t size, const char *base, const char *member)
{
    (void)snprintf(out, size, "%s/", base);
    size_t used = strlen(out);
    for (; *member != '\0'; member++) {
        const char *escaped = *member == '~' ? "~0" : *member == '/' ? "~1" : NULL;
        size_t length = escaped != NULL ? 2 : 1;
        if (used + length >= size) {
            break;
        }
        memcpy(out + used, escaped != NULL ? escaped : member, length);
        used += length;
    }
    out[used] = '\0';
    text_repair(out);
}
