/* Module patterns. Regular expressions run under a match limit: a hostile one costs a refusal, not a thread. */

#include "jobs/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fnmatch.h>
#include <pcre2.h>
#include <string.h>

#define MATCH_LIMIT 100000

static pcre2_code *compile(const char *pattern)
{
    int code;
    PCRE2_SIZE offset;
    return pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED, &code, &offset, NULL);
}

static bool matches_regex(const char *pattern, const char *module)
{
    pcre2_code *regex = compile(pattern);
    if (regex == NULL) {
        return false;
    }
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(regex, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    int found = -1;
    if (data != NULL && context != NULL) {
        pcre2_set_match_limit(context, MATCH_LIMIT);
        found = pcre2_match(regex, (PCRE2_SPTR)module, PCRE2_ZERO_TERMINATED, 0, 0, data, context);
    }
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
    pcre2_code_free(regex);
    return found >= 0;
}

bool pattern_matches(const char *pattern, const char *module)
{
    if (strncmp(pattern, "re:", 3) == 0) {
        return matches_regex(pattern + 3, module);
    }
    if (fnmatch(pattern, module, 0) == 0) {
        return true;
    }
    size_t m = strlen(module), p = strlen(pattern);
    return p > 0 && p < m && strcmp(module + m - p, pattern) == 0 && module[m - p - 1] == '.';
}

bool pattern_valid(const char *pattern)
{
    if (strncmp(pattern, "re:", 3) != 0) {
        return pattern[0] != '\0';
    }
    pcre2_code *regex = compile(pattern + 3);
    pcre2_code_free(regex);
    return regex != NULL;
}
