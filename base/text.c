/* UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF. */

#include "base/text.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define NAME_MAX_FOLDED 48

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

/* Letters and digits in lower case; returns their number. Longer names are cut: they are similar to none. */
static int fold(const char *name, char out[NAME_MAX_FOLDED])
{
    int n = 0;

    for (; *name != '\0' && n < NAME_MAX_FOLDED; name++) {
        if (isalnum((unsigned char)*name)) {
            out[n++] = (char)tolower((unsigned char)*name);
        }
    }
    return n;
}

bool text_same_name(const char *a, const char *b)
{
    char x[NAME_MAX_FOLDED], y[NAME_MAX_FOLDED];
    int n = fold(a, x), m = fold(b, y);

    return n == m && n > 0 && n < NAME_MAX_FOLDED && memcmp(x, y, (size_t)n) == 0;
}

/* Insertions, deletions, substitutions and swaps of neighbours that lead from x to y. */
static int distance(const char *x, int n, const char *y, int m)
{
    int rows[3][NAME_MAX_FOLDED + 1]; /* of the table: two before, before, this */

    for (int j = 0; j <= m; j++) {
        rows[0][j] = j;
    }
    for (int i = 1; i <= n; i++) {
        int *this = rows[i % 3];
        const int *before = rows[(i + 2) % 3], *earlier = rows[(i + 1) % 3];
        this[0] = i;
        for (int j = 1; j <= m; j++) {
            int min = before[j - 1] + (x[i - 1] != y[j - 1]);
            min = before[j] + 1 < min ? before[j] + 1 : min;
            min = this[j - 1] + 1 < min ? this[j - 1] + 1 : min;
            if (i > 1 && j > 1 && x[i - 1] == y[j - 2] && x[i - 2] == y[j - 1] && earlier[j - 2] + 1 < min) {
                min = earlier[j - 2] + 1;
            }
            this[j] = min;
        }
    }
    return rows[n % 3][m];
}

void text_guess_offer_as(struct text_guess *guess, const char *spelling, const char *name)
{
    char x[NAME_MAX_FOLDED], y[NAME_MAX_FOLDED];
    int n = fold(guess->word, x), m = fold(spelling, y);

    if (n == 0 || m == 0 || n == NAME_MAX_FOLDED || m == NAME_MAX_FOLDED) {
        return;
    }
    int shorter = n < m ? n : m, limit = (n > m ? n : m) / 3;
    int away = distance(x, n, y, m);
    bool begins = shorter >= 3 && memcmp(x, y, (size_t)shorter) == 0; /* "group" of "group_size" */
    if (begins && away > limit) {
        away = limit > 0 ? limit : 1;
        limit = away;
    }
    if (away <= limit && (guess->name == NULL || away < guess->distance)) {
        guess->name = name;
        guess->distance = away;
    }
}

void text_guess_offer(struct text_guess *guess, const char *name)
{
    text_guess_offer_as(guess, name, name);
}

bool text_is_lfs_pointer(const char *text, size_t size)
{
    static const char first[] = "version https://git-lfs.github.com/";

    return size >= sizeof(first) - 1 && memcmp(text, first, sizeof(first) - 1) == 0;
}

int text_hex_value(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    char lower = (char)(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}
