/* Patterns: literals, and regular expressions written for Oniguruma but run by PCRE2, as models/tokenizer_dialect.c
 * translates them.
 *
 * Cost. PCRE2 counts the steps of one starting point only and does not report how many there were. So a search
 * goes by windows of starting points, with few steps for each; where these do not suffice it continues point by point
 * with ever more steps, and what a try used up is subtracted from the text's budget. Whether a text is refused thus
 * depends on nothing but the pattern and the text. There is a limit of CPU time too, for long texts that cost just
 * under the few steps at every point. Start optimizations are off because they scan past the window. */

#include "base/err.h"
#include "models/tokenizer_internal.h"

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
    pcre2_code *code = NULL;

    if (size == 0 || size > PATTERN_MAX) {
        return err_raise(ERR_INVALID_TOKENIZER, "a regular expression has %zu bytes; 1 to %u are taken", size,
                         PATTERN_MAX);
    }
    int rc = tokenizer_translate(pattern, size, &translated);
    rc = rc != 0 ? rc : compile(&translated, &code);
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
