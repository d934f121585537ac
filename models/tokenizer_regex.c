/* Patterns: literals, and regular expressions written for Oniguruma but run by PCRE2.
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
 * - Refused: sets inside sets, && in sets, the m flag (which is PCRE2's s), + or ? after an interval (there neither
 *   possessive nor lazy), verbs, every escape that one of the two does not know or reads otherwise (\h \R \K \G ...).
 *
 * Cost. PCRE2 counts the steps of one starting point only and does not report how many there were. So a search
 * goes by windows of starting points, with few steps for each; where these do not suffice it continues point by point
 * with ever more steps, and what a try used up is subtracted from the text's budget. Whether a text is refused thus
 * depends on nothing but the pattern and the text. There is a limit of CPU time too, for long texts that cost just
 * under the few steps at every point. Start optimizations are off because they scan past the window. */

#include "base/err.h"
#include "models/tokenizer_internal.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATTERN_MAX 16384u
#define WINDOW 64u
#define STEPS_FEW 512u         /* of one starting point; words of real text need fewer */
#define STEPS_MOST (64u << 20) /* likewise, however large the text */
#define STEPS_TEXT (1u << 20)  /* beyond the few: of a text, */
#define STEPS_BYTE 64          /* and of each of its bytes */
#define TEXT_NANOSECONDS 1000000000LL
#define BYTE_NANOSECONDS 4000 /* 250 KB a second: a tenth of what sanitized builds do with ordinary patterns */
#define LOOK_NANOSECONDS 8000000
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

static int compile(const struct tokenizer_text *pattern, pcre2_code **out)
{
    int error;
    PCRE2_SIZE at;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)pattern->data, pattern->size,
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C |
                                         PCRE2_USE_OFFSET_LIMIT | PCRE2_NO_START_OPTIMIZE,
                                     &error, &at, NULL);
    if (code == NULL) {
        PCRE2_UCHAR message[128];
        (void)pcre2_get_error_message(error, message, sizeof(message));
        return err_raise(ERR_INVALID_TOKENIZER, "a regular expression is wrong at %zu: %s", (size_t)at,
                         (const char *)message);
    }
    /* Without JIT the same code is interpreted. */
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    *out = code;
    return 0;
}

int tokenizer_pattern_regex(const char *pattern, size_t size, struct tokenizer_pattern *out)
{
    struct tokenizer_text translated = {0};
    struct translation t = {.at = pattern, .end = pattern + size, .out = &translated};
    pcre2_code *code = NULL;

    if (size == 0 || size > PATTERN_MAX) {
        return err_raise(ERR_INVALID_TOKENIZER, "a regular expression has %zu bytes; 1 to %u are taken", size,
                         PATTERN_MAX);
    }
    translate(&t);
    int rc = t.rc != 0 ? t.rc : compile(&translated, &code);
    free(translated.data);
    if (rc != 0) {
        return err_pass(rc, "pattern %.200s", pattern);
    }
    char *source = strndup(pattern, size);
    if (source == NULL) {
        pcre2_code_free(code);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a pattern");
    }
    *out = (struct tokenizer_pattern){.regex = code, .source = source};
    return 0;
}

int tokenizer_pattern_literal(const char *text, size_t size, struct tokenizer_pattern *out)
{
    if (size == 0) {
        return err_raise(ERR_INVALID_TOKENIZER, "an empty string to search for is not supported");
    }
    char *copy = malloc(size);
    if (copy == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a pattern");
    }
    memcpy(copy, text, size);
    *out = (struct tokenizer_pattern){.literal = copy, .literal_size = size};
    return 0;
}

void tokenizer_pattern_deinit(struct tokenizer_pattern *pattern)
{
    free(pattern->literal);
    free(pattern->source);
    pcre2_code_free(pattern->regex);
    *pattern = (struct tokenizer_pattern){0};
}

static int64_t clock_nanoseconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void tokenizer_budget_begin(struct tokenizer_scratch *scratch, size_t size)
{
    scratch->budget = (struct tokenizer_budget){
        .steps = STEPS_TEXT + STEPS_BYTE * (int64_t)size,
        .end = clock_nanoseconds(CLOCK_THREAD_CPUTIME_ID) + TEXT_NANOSECONDS + BYTE_NANOSECONDS * (int64_t)size,
        .looked = scratch->budget.looked, /* many short texts are looked at as a long one is */
    };
}

static int give_up(struct tokenizer_scratch *scratch, const char *what)
{
    scratch->budget.used_up = true;
    return err_raise(ERR_INVALID_PARAMETER, "the tokenizer's patterns give up on this text: %s", what);
}

/* Between matches: the clocks are read when enough time went by, which a cheap one measures. */
static int check_time(struct tokenizer_scratch *scratch)
{
    int64_t now = clock_nanoseconds(CLOCK_MONOTONIC_COARSE);

    if (now - scratch->budget.looked < LOOK_NANOSECONDS) {
        return 0;
    }
    scratch->budget.looked = now;
    if (clock_nanoseconds(CLOCK_THREAD_CPUTIME_ID) > scratch->budget.end) {
        return give_up(scratch, "they need more time than a text of its size is given");
    }
    return scratch->watch != NULL ? scratch->watch(scratch->watch_data) : 0;
}

/* One call of PCRE2: a match that starts in [from, last], as its result code. */
static int match(const pcre2_code *code, struct tokenizer_scratch *scratch, const char *text, size_t size, size_t from,
                 size_t last, uint32_t steps)
{
    pcre2_match_context *context = scratch->match_context;

    (void)pcre2_set_offset_limit(context, last);
    (void)pcre2_set_match_limit(context, steps);
    int rc = pcre2_match(code, (PCRE2_SPTR)text, size, from, PCRE2_NO_UTF_CHECK, scratch->match_data, context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
        rc = pcre2_match(code, (PCRE2_SPTR)text, size, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scratch->match_data,
                         context);
    }
    return rc;
}

/* What a result code means: 1 found, 0 none, negative raised. */
static int outcome(struct tokenizer_scratch *scratch, int rc)
{
    PCRE2_UCHAR message[128];
    int late = check_time(scratch);

    if (late != 0 || rc >= 0 || rc == PCRE2_ERROR_NOMATCH) {
        return late != 0 ? late : rc >= 0;
    }
    (void)pcre2_get_error_message(rc, message, sizeof(message));
    return give_up(scratch, (const char *)message);
}

static size_t next_point(const char *text, size_t size, size_t at)
{
    do {
        at++;
    } while (at < size && ((unsigned char)text[at] & 0xc0) == 0x80);
    return at;
}

/* A window in which the few steps did not suffice: one starting point at a time, from few steps on. */
static int search_points(const pcre2_code *code, struct tokenizer_scratch *scratch, const char *text, size_t size,
                         size_t from, size_t last)
{
    for (size_t at = from; at <= last; at = next_point(text, size, at)) {
        uint32_t steps = STEPS_FEW;
        int rc = match(code, scratch, text, size, at, at, steps);
        while (rc == PCRE2_ERROR_MATCHLIMIT && steps < STEPS_MOST) {
            scratch->budget.steps -= steps;
            if (scratch->budget.steps <= 0) {
                break;
            }
            steps *= 4;
            rc = check_time(scratch);
            if (rc != 0) {
                return rc;
            }
            rc = match(code, scratch, text, size, at, at, steps);
        }
        rc = outcome(scratch, rc);
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

/* The first match that starts at from or later: 1, 0 or negative. */
static int regex_search(const pcre2_code *code, struct tokenizer_scratch *scratch, const char *text, size_t size,
                        size_t from, size_t *start, size_t *end)
{
    for (size_t at = from; at <= size;) {
        size_t last = size - at > WINDOW ? at + WINDOW : size;
        int rc = match(code, scratch, text, size, at, last, STEPS_FEW);
        rc = rc == PCRE2_ERROR_MATCHLIMIT ? search_points(code, scratch, text, size, at, last) : outcome(scratch, rc);
        if (rc > 0) {
            const PCRE2_SIZE *found = pcre2_get_ovector_pointer(scratch->match_data);
            *start = found[0];
            *end = found[1] < found[0] ? found[0] : found[1];
        }
        if (rc != 0) {
            return rc;
        }
        at = next_point(text, size, last);
    }
    return 0;
}

int tokenizer_pattern_next(const struct tokenizer_pattern *pattern, struct tokenizer_scratch *scratch, const char *text,
                           size_t size, struct tokenizer_cursor *cursor, size_t *start, size_t *end)
{
    if (pattern->literal != NULL) {
        const char *found = memmem(text + cursor->at, size - cursor->at, pattern->literal, pattern->literal_size);
        if (found == NULL) {
            return 0;
        }
        *start = (size_t)(found - text);
        *end = *start + pattern->literal_size;
        cursor->at = *end;
        return 1;
    }
    while (cursor->at <= size) {
        size_t found_start = 0, found_end = 0;
        int rc = regex_search(pattern->regex, scratch, text, size, cursor->at, &found_start, &found_end);
        if (rc <= 0) {
            return rc;
        }
        /* An empty match right after the last one is not a match: move on by one character. */
        if (found_start == found_end && cursor->matched && cursor->last_end == found_end) {
            cursor->at += cursor->at < size ? tokenizer_utf8_size(text[cursor->at]) : 1;
            continue;
        }
        cursor->at = cursor->last_end = found_end;
        cursor->matched = true;
        *start = found_start;
        *end = found_end;
        return 1;
    }
    return 0;
}
