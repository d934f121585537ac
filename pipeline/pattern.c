/* Module patterns. Regular expressions are run by PCRE2's interpreter with a callout before each item, which counts and
 * stops: its own match limit counts less evenly and does not say how much was used. */

#include "pipeline/pattern.h"

#include "base/err.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fnmatch.h>
#include <jansson.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#define MATCH_LIMIT 100000u /* also bounds parts without a callout */
#define MATCH_DEPTH 2000u
#define MATCH_HEAP_KIB 1024u
#define CALL_STEPS 8       /* a call of the matcher before its first item, and later look-ups of the answer */
#define COMPILED_BYTES 64u /* of compiled code cost about a step */
#define TOO_COSTLY (-1)

struct pattern {
    char *text;
    pcre2_code *regex; /* NULL: a glob */
    int uses;          /* how often the request has it */
    uint64_t *hits;    /* a bit for each module; NULL: not bound */
    size_t hit_count;
    size_t costly_module; /* module, with TOO_COSTLY */
    enum patterns_verdict verdict;
};

struct patterns {
    struct pattern *list;
    size_t count;
    size_t uses;
    json_t *index; /* text -> place in list */
    char (*modules)[PATTERN_MODULE_SIZE];
    json_t *module_index; /* path -> place in modules */
    int64_t steps_left;
};

static bool is_regex(const char *text)
{
    return strncmp(text, "re:", 3) == 0;
}

static int pattern_compile(const char *text, pcre2_code **out)
{
    PCRE2_UCHAR reason[128];
    PCRE2_SIZE at;
    int error;

    if (text[0] == '\0') {
        return err_raise(ERR_INVALID_PARAMETER, "an empty pattern names no module");
    }
    if (strlen(text) > PATTERN_BYTES_MAX) {
        return err_raise(ERR_INVALID_PARAMETER, "has %zu bytes; a pattern has at most %u", strlen(text),
                         PATTERN_BYTES_MAX);
    }
    *out = NULL;
    if (!is_regex(text)) {
        return 0;
    }
    *out = pcre2_compile((PCRE2_SPTR)text + 3, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED | PCRE2_AUTO_CALLOUT, &error, &at,
                         NULL);
    if (*out == NULL) {
        (void)pcre2_get_error_message(error, reason, sizeof(reason));
        return err_raise(ERR_INVALID_PARAMETER, "\"%.100s\" is not a regular expression: %s at character %zu", text,
                         (const char *)reason, (size_t)at + 1);
    }
    return 0;
}

static int count_step(pcre2_callout_block *block, void *left)
{
    (void)block;
    return --*(int64_t *)left < 0 ? PCRE2_ERROR_CALLOUT : 0;
}

/* 1, 0 or TOO_COSTLY; takes from *left, which ends below 0 with TOO_COSTLY. */
static int match_regex(const pcre2_code *regex, const char *module, int64_t *left)
{
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(regex, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    int found = PCRE2_ERROR_NOMEMORY;

    if (data != NULL && context != NULL) {
        (void)pcre2_set_match_limit(context, MATCH_LIMIT);
        (void)pcre2_set_depth_limit(context, MATCH_DEPTH);
        (void)pcre2_set_heap_limit(context, MATCH_HEAP_KIB);
        (void)pcre2_set_callout(context, count_step, left);
        found = pcre2_match(regex, (PCRE2_SPTR)module, PCRE2_ZERO_TERMINATED, 0, 0, data, context);
    }
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
    if (found < 0 && found != PCRE2_ERROR_NOMATCH) {
        *left = *left < 0 ? *left : -1;
    }
    return found >= 0 ? 1 : found == PCRE2_ERROR_NOMATCH ? 0 : TOO_COSTLY;
}

/* Length of the glob's item at p: a set, an escaped character, a character. */
static size_t item_length(const char *p)
{
    if (p[0] == '\\' && p[1] != '\0') {
        return 2;
    }
    if (p[0] != '[') {
        return 1;
    }
    size_t at = p[1] == '!' || p[1] == '^' ? 2 : 1;
    do {
        const char *class_end = p[at] == '[' && p[at + 1] == ':' ? strstr(p + at + 2, ":]") : NULL;
        if (p[at] == '\0') {
            return 1; /* a bracket like any other */
        }
        at = class_end != NULL ? (size_t)(class_end + 2 - p) : at + 1;
    } while (p[at] != ']');
    return at + 1;
}

static bool item_matches(const char *item, size_t length, char c)
{
    char glob[PATTERN_BYTES_MAX + 1];
    const char text[2] = {c, '\0'};

    if (length == 1) {
        return item[0] == '?' || item[0] == c;
    }
    memcpy(glob, item, length);
    glob[length] = '\0';
    return fnmatch(glob, text, 0) == 0;
}

/* fnmatch without its recursion: only the last * is retried, so the work is at most pattern times path. */
static int match_glob(const char *glob, const char *module, int64_t *left)
{
    const char *star = NULL, *from = NULL;

    while (*module != '\0') {
        size_t length = item_length(glob);
        if (--*left < 0) {
            return TOO_COSTLY;
        }
        if (*glob == '*') {
            star = ++glob;
            from = module;
        } else if (*glob != '\0' && item_matches(glob, length, *module)) {
            glob += length;
            module++;
        } else if (star != NULL) {
            glob = star;
            module = ++from;
        } else {
            return 0;
        }
    }
    while (*glob == '*') {
        glob++;
    }
    return *glob == '\0';
}

static bool is_end_of(const char *text, const char *module)
{
    size_t m = strlen(module), p = strlen(text);
    return p > 0 && p < m && strcmp(module + m - p, text) == 0 && module[m - p - 1] == '.';
}

static int pattern_try(const char *text, const pcre2_code *regex, const char *module, int64_t *left)
{
    *left -= CALL_STEPS;
    if (regex != NULL) {
        return match_regex(regex, module, left);
    }
    return is_end_of(text, module) ? 1 : match_glob(text, module, left);
}

int patterns_new(struct patterns **out)
{
    struct patterns *patterns = calloc(1, sizeof(*patterns));

    if (patterns != NULL) {
        patterns->list = calloc(PATTERNS_MAX, sizeof(*patterns->list));
        patterns->index = json_object();
    }
    if (patterns == NULL || patterns->list == NULL || patterns->index == NULL) {
        patterns_free(patterns);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for patterns");
    }
    *out = patterns;
    return 0;
}

static void unbind(struct patterns *patterns)
{
    for (size_t i = 0; i < patterns->count; i++) {
        free(patterns->list[i].hits);
        patterns->list[i].hits = NULL;
        patterns->list[i].hit_count = 0;
        patterns->list[i].verdict = PATTERN_UNDECIDED;
    }
    json_decref(patterns->module_index);
    free(patterns->modules);
    patterns->module_index = NULL;
    patterns->modules = NULL;
}

void patterns_free(struct patterns *patterns)
{
    if (patterns == NULL) {
        return;
    }
    unbind(patterns);
    for (size_t i = 0; i < patterns->count; i++) {
        pcre2_code_free(patterns->list[i].regex);
        free(patterns->list[i].text);
    }
    json_decref(patterns->index);
    free(patterns->list);
    free(patterns);
}

static struct pattern *pattern_find(const struct patterns *patterns, const char *text)
{
    const json_t *place = patterns != NULL ? json_object_get(patterns->index, text) : NULL;
    return place != NULL ? &patterns->list[json_integer_value(place)] : NULL;
}

int patterns_add(struct patterns *patterns, const char *text)
{
    pcre2_code *regex = NULL;

    struct pattern *known = pattern_find(patterns, text);

    if (patterns->uses == PATTERNS_MAX) {
        return err_raise(ERR_INVALID_PARAMETER,
                         "one pattern too many: a request has at most %u; combine several into one", PATTERNS_MAX);
    }
    if (known != NULL) {
        known->uses++;
        patterns->uses++;
        return 0;
    }
    int rc = pattern_compile(text, &regex);
    if (rc != 0) {
        return rc;
    }
    struct pattern added = {.text = strdup(text), .regex = regex, .uses = 1, .verdict = PATTERN_UNDECIDED};
    if (added.text == NULL ||
        json_object_set_new_nocheck(patterns->index, text, json_integer((json_int_t)patterns->count)) != 0) {
        free(added.text);
        pcre2_code_free(regex);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for patterns");
    }
    patterns->list[patterns->count++] = added;
    patterns->uses++;
    return 0;
}

static void pattern_match_all(struct patterns *patterns, struct pattern *pattern, size_t count)
{
    size_t compiled = 0;

    if (pattern->regex != NULL) {
        (void)pcre2_pattern_info(pattern->regex, PCRE2_INFO_SIZE, &compiled);
    }
    patterns->steps_left -= (int64_t)(compiled / COMPILED_BYTES);
    for (size_t i = 0; i < count; i++) {
        if (patterns->steps_left <= 0) {
            pattern->verdict = PATTERN_UNDECIDED;
            return;
        }
        int64_t left = PATTERN_STEPS_MAX;
        int found = pattern_try(pattern->text, pattern->regex, patterns->modules[i], &left);
        patterns->steps_left -= (PATTERN_STEPS_MAX - left) * pattern->uses;
        if (found == TOO_COSTLY) {
            pattern->verdict = PATTERN_TOO_COSTLY;
            pattern->costly_module = i;
            return;
        }
        if (found == 1) {
            pattern->hits[i / 64] |= UINT64_C(1) << (i % 64);
            pattern->hit_count++;
        }
    }
    pattern->verdict = pattern->hit_count > 0 ? PATTERN_HITS : PATTERN_MISSES;
}

static int copy_modules(struct patterns *patterns, char (*modules)[PATTERN_MODULE_SIZE], size_t count)
{
    patterns->modules = calloc(count + 1, sizeof(*patterns->modules));
    patterns->module_index = json_object();
    bool ok = patterns->modules != NULL && patterns->module_index != NULL;

    for (size_t i = 0; ok && i < count; i++) {
        memcpy(patterns->modules[i], modules[i], PATTERN_MODULE_SIZE);
        patterns->modules[i][PATTERN_MODULE_SIZE - 1] = '\0';
        ok =
            json_object_set_new_nocheck(patterns->module_index, patterns->modules[i], json_integer((json_int_t)i)) == 0;
    }
    return ok ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %zu modules", count);
}

int patterns_bind(struct patterns *patterns, char (*modules)[PATTERN_MODULE_SIZE], size_t count)
{
    unbind(patterns);
    patterns->steps_left = PATTERNS_STEPS_MAX;
    int rc = copy_modules(patterns, modules, count);
    for (size_t k = 0; rc == 0 && k < patterns->count; k++) {
        struct pattern *pattern = &patterns->list[k];
        pattern->hits = calloc(count / 64 + 1, sizeof(*pattern->hits));
        if (pattern->hits == NULL) {
            rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for patterns");
        } else {
            pattern_match_all(patterns, pattern, count);
        }
    }
    if (rc != 0) {
        unbind(patterns);
    }
    return rc;
}

enum patterns_verdict patterns_verdict(const struct patterns *patterns, const char *text, const char **module)
{
    const struct pattern *pattern = pattern_find(patterns, text);

    *module = NULL;
    if (pattern != NULL && pattern->verdict == PATTERN_TOO_COSTLY) {
        *module = patterns->modules[pattern->costly_module];
    }
    return pattern != NULL ? pattern->verdict : PATTERN_UNDECIDED;
}

int patterns_check(const struct patterns *patterns)
{
    for (size_t i = 0; i < patterns->count; i++) {
        const struct pattern *pattern = &patterns->list[i];
        if (pattern->verdict == PATTERN_TOO_COSTLY || pattern->verdict == PATTERN_UNDECIDED) {
            return err_raise(ERR_INVALID_PARAMETER, "\"%.100s\" needs too many steps on the modules of this model",
                             pattern->text);
        }
    }
    return 0;
}

bool patterns_match(const struct patterns *patterns, const char *text, const char *module)
{
    const struct pattern *pattern = pattern_find(patterns, text);
    int64_t left = PATTERN_STEPS_MAX;

    if (pattern == NULL) {
        return pattern_match(text, module) == 1;
    }
    const json_t *place = pattern->hits != NULL ? json_object_get(patterns->module_index, module) : NULL;
    if (place == NULL) {
        return pattern_try(text, pattern->regex, module, &left) == 1;
    }
    size_t i = (size_t)json_integer_value(place);
    return (pattern->hits[i / 64] >> (i % 64) & 1) != 0;
}

int pattern_match(const char *text, const char *module)
{
    pcre2_code *regex = NULL;
    int64_t left = PATTERN_STEPS_MAX;

    int rc = pattern_compile(text, &regex);
    if (rc != 0) {
        return rc;
    }
    int found = pattern_try(text, regex, module, &left);
    pcre2_code_free(regex);
    return found != TOO_COSTLY ? found
                               : err_raise(ERR_INVALID_PARAMETER, "\"%.100s\" needs more than %d steps on %.100s", text,
                                           PATTERN_STEPS_MAX, module);
}
