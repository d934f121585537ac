/* Regular expressions of Oniguruma, as tokenizer.json has them, in the dialect of PCRE2.
 *
 * The two dialects agree on nearly all that tokenizers use; what differs is translated, and what cannot be is refused
 * by name, so a pattern never silently means something else:
 *
 * - \s \S is White_Space there, PCRE2 adds U+180E: becomes \p{White_Space}.
 * - \w \W is Alphabetic, M, Nd, Pc there (outside sets also the superscripts and fractions of Latin-1), PCRE2 has L, N,
 *   _: spelled out. \b \B follow it: lookarounds.
 * - \p{Han} is the script there, the script extensions in PCRE2: \p{sc:Han}.
 * - ^ $ match at every line there: PCRE2_MULTILINE.
 * - \uHHHH becomes \x{HHHH}, {,n} becomes {0,n}.
 * - [a&&[^b]], the one intersection of sets that tokenizers use, becomes a lookahead before the set: (?:(?=[^b])[a]).
 * - Refused: other sets inside sets and intersections, the m flag (which is PCRE2's s), + or ? after an interval
 *   (there neither possessive nor lazy), verbs, every escape that one of the two does not know or reads otherwise
 *   (\h \R \K \G ...). */

#include "base/err.h"
#include "models/tokenizer_internal.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define SET_WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define WORD SET_WORD "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"

struct translation {
    const char *at, *end;
    struct tokenizer_text *out;
    bool in_set;
    bool set_start; /* nothing of the set was read but [ or [^ */
    int rc;         /* sticky */
};

static void translate_emit(struct translation *t, const char *text, size_t size)
{
    if (t->rc == 0) {
        t->rc = tokenizer_text_append(t->out, text, size);
    }
}

static void emit_string(struct translation *t, const char *text)
{
    translate_emit(t, text, strlen(text));
}

static void translate_refuse(struct translation *t, const char *what)
{
    if (t->rc == 0) {
        t->rc = err_raise(ERR_INVALID_TOKENIZER, "a regular expression uses %s, which is not supported", what);
    }
}

static void refuse_escape(struct translation *t, char letter)
{
    char what[] = "the escape \\?";
    what[sizeof(what) - 2] = isprint((unsigned char)letter) ? letter : '?';
    translate_refuse(t, what);
}

/* \xHH below 0x80, \x{...} and \uHHHH; t->at is at the letter. */
static void translate_code(struct translation *t, char letter)
{
    const char *digits = t->at + 1;
    size_t left = (size_t)(t->end - digits), count = 0;
    bool braced = letter == 'x' && left > 0 && digits[0] == '{';

    digits += braced ? 1 : 0;
    left -= braced ? 1 : 0;
    while (count < left && count < (braced ? 6u : letter == 'u' ? 4u : 2u) && isxdigit((unsigned char)digits[count])) {
        count++;
    }
    bool complete = letter == 'u' ? count == 4 : count > 0;
    if (!complete || (braced && (count == left || digits[count] != '}')) ||
        (letter == 'x' && !braced && count == 2 && digits[0] > '7')) {
        refuse_escape(t, letter);
        return;
    }
    emit_string(t, "\\x{");
    translate_emit(t, digits, count);
    emit_string(t, "}");
    t->at = digits + count + (braced ? 1 : 0);
}

/* Whether PCRE2 knows a script of this name. */
static bool is_script(const char *name, size_t size)
{
    char probe[64];
    int error;
    PCRE2_SIZE at;
    int length = snprintf(probe, sizeof(probe), "\\p{sc:%.*s}", (int)(size < 32 ? size : 32), name);
    pcre2_code *code =
        size < 32 ? pcre2_compile((PCRE2_SPTR)probe, (PCRE2_SIZE)length, PCRE2_UTF, &error, &at, NULL) : NULL;
    bool known = code != NULL;
    pcre2_code_free(code);
    return known;
}

/* \p{..} and \P{..}, with ^ for not; t->at is at the letter. */
static void translate_property(struct translation *t)
{
    size_t left = (size_t)(t->end - t->at);
    const char *close = left > 1 && t->at[1] == '{' ? memchr(t->at, '}', left) : NULL;
    if (close == NULL) {
        translate_refuse(t, "a property without braces");
        return;
    }
    const char *name = t->at + 2;
    bool negated = *t->at == 'P';
    if (*name == '^') {
        negated = !negated;
        name++;
    }
    emit_string(t, negated ? "\\P{" : "\\p{");
    emit_string(t, is_script(name, (size_t)(close - name)) ? "sc:" : "");
    translate_emit(t, name, (size_t)(close + 1 - name));
    t->at = close + 1;
}

/* One escape; t->at is after the backslash. */
static void translate_escape(struct translation *t)
{
    if (t->at == t->end) {
        translate_refuse(t, "a trailing backslash");
        return;
    }
    char letter = *t->at;
    switch (letter) {
    case 's':
        emit_string(t, "\\p{White_Space}");
        break;
    case 'S':
        emit_string(t, "\\P{White_Space}");
        break;
    case 'w':
        emit_string(t, t->in_set ? SET_WORD : "[" WORD "]");
        break;
    case 'W':
        if (t->in_set) {
            translate_refuse(t, "\\W in a set");
        }
        emit_string(t, "[^" WORD "]");
        break;
    case 'b':
        emit_string(t, t->in_set ? "\\x{8}" : "(?:(?<=[" WORD "])(?![" WORD "])|(?<![" WORD "])(?=[" WORD "]))");
        break;
    case 'B':
        emit_string(t, "(?:(?<=[" WORD "])(?=[" WORD "])|(?<![" WORD "])(?![" WORD "]))");
        break;
    case 'p':
    case 'P':
        translate_property(t);
        return;
    case 'x':
    case 'u':
        translate_code(t, letter);
        return;
    default:
        if (isalnum((unsigned char)letter) && strchr("nrtfaedDAzZ123456789", letter) == NULL) {
            refuse_escape(t, letter);
        }
        emit_string(t, "\\");
        translate_emit(t, t->at, 1);
        break;
    }
    t->at++;
}

/* {n}, {n,}, {,n}, {n,m}; t->at is after the brace. Anything else is a literal brace in both dialects. */
static void translate_interval(struct translation *t)
{
    const char *p = t->at;
    while (p < t->end && isdigit((unsigned char)*p)) {
        p++;
    }
    bool low = p > t->at, high = false;
    if (p < t->end && *p == ',') {
        const char *second = ++p;
        while (p < t->end && isdigit((unsigned char)*p)) {
            p++;
        }
        high = p > second;
    }
    if ((!low && !high) || p == t->end || *p != '}') {
        emit_string(t, "\\{");
        return;
    }
    p++;
    emit_string(t, low ? "{" : "{0");
    translate_emit(t, t->at, (size_t)(p - t->at));
    t->at = p;
    if (p < t->end && (*p == '+' || *p == '?')) {
        translate_refuse(t, "+ or ? after an interval");
    }
}

/* What follows "("; groups are the same in both but for the flags and verbs. */
static void translate_group(struct translation *t)
{
    size_t left = (size_t)(t->end - t->at);
    if (left > 0 && t->at[0] == '*') {
        translate_refuse(t, "a verb");
    }
    if (left < 2 || t->at[0] != '?') {
        return;
    }
    for (const char *p = t->at + 1; p < t->end && (isalpha((unsigned char)*p) || *p == '-'); p++) {
        if (strchr("ix-", *p) == NULL) {
            translate_refuse(t, "a group flag other than i and x");
        }
    }
    if (strchr(":=!><i-x#", t->at[1]) == NULL) {
        translate_refuse(t, "an unusual group");
    }
}

static void translate_in_set(struct translation *t, char c)
{
    bool start = t->set_start;
    t->set_start = false;
    if (c == ']' && !start) {
        t->in_set = false;
    } else if (c == '[' || (c == ']' && start)) {
        translate_refuse(t, "a set in a set");
    } else if (c == '&' && t->at < t->end && *t->at == '&') {
        translate_refuse(t, "an intersection of sets");
    }
    translate_emit(t, &c, 1);
}

static void translate(struct translation *t);

/* The first of the characters in `stop` that no backslash precedes, in [at, end), or end. */
static const char *find_plain(const char *at, const char *end, const char *stop)
{
    for (; at < end && strchr(stop, *at) == NULL; at++) {
        at += *at == '\\' && end - at > 1 ? 1 : 0;
    }
    return at < end ? at : end;
}

static void translate_part(struct translation *t, const char *begin, const char *end)
{
    struct translation part = {.at = begin, .end = end, .out = t->out, .rc = t->rc};
    translate(&part);
    t->rc = part.rc;
}

/* [a&&[b]] and [a&&[^b]], a not negated and no sets in either; t->at is after the bracket. False where it is something
 * else. */
static bool translate_intersection(struct translation *t)
{
    const char *open = t->at - 1, *both = find_plain(t->at, t->end, "[]&");

    while (both < t->end && *both == '&' && (t->end - both < 2 || both[1] != '&')) {
        both = find_plain(both + 1, t->end, "[]&"); /* one & is a character */
    }
    if (both == t->at || *t->at == '^' || t->end - both < 5 || memcmp(both, "&&[", 3) != 0) {
        return false;
    }
    const char *inner = both + 2, *first = inner + (inner[1] == '^' ? 2 : 1);
    const char *close = find_plain(first, t->end, "[]&");
    if (close == first || t->end - close < 2 || close[0] != ']' || close[1] != ']') {
        return false;
    }
    emit_string(t, "(?:(?=");
    translate_part(t, inner, close + 1);
    emit_string(t, ")");
    translate_part(t, open, both);
    emit_string(t, "])");
    t->at = close + 2;
    return true;
}

static void translate(struct translation *t)
{
    while (t->at < t->end && t->rc == 0) {
        char c = *t->at++;
        if (c == '\\') {
            translate_escape(t);
            t->set_start = false;
        } else if (t->in_set) {
            translate_in_set(t, c);
        } else if (c == '[') {
            if (translate_intersection(t)) {
                continue;
            }
            t->in_set = t->set_start = true;
            translate_emit(t, &c, 1);
            if (t->at < t->end && *t->at == '^') {
                translate_emit(t, t->at++, 1);
            }
        } else if (c == '{') {
            translate_interval(t);
        } else {
            translate_emit(t, &c, 1);
            if (c == '(') {
                translate_group(t);
            }
        }
    }
}

int tokenizer_translate(const char *pattern, size_t size, struct tokenizer_text *out)
{
    struct translation t = {.at = pattern, .end = pattern + size, .out = out};

    translate(&t);
    return t.rc;
}
