/* Module patterns: what they match, and what a hostile one costs. */

#include "base/err.h"
#include "pipeline/pattern.h"
#include "tests/unit/unit.h"

#include <fnmatch.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define MODULES 200

static char modules[MODULES][PATTERN_MODULE_SIZE];

static struct patterns *new_patterns(void)
{
    struct patterns *patterns;

    for (int i = 0; i < MODULES; i++) {
        snprintf(modules[i], sizeof(modules[i]), "model.layers.%d.self_attn.q_proj", i);
    }
    ck_assert_rc_ok(patterns_new(&patterns));
    return patterns;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

START_TEST(globs_match_as_fnmatch_does)
{
    static const char *const globs[] = {
        "*",       "**",          "a*",    "*a",     "a?c", "a\\*c", "[ab]*",         "[!a]*",  "[a-c]?", "[",  "[]a]b",
        "*[0-9]*", "[[:digit:]]", "*.*.c", "a*b*c*", "",    "a\\",   "[[:alpha:]x]*", "x[^.]*", "[a",     "a[]"};
    static const char *const texts[] = {"",  "a", "abc", "a*c", "b.b.c",  "xaybzc", "]b",
                                        "7", "[", "a[]", "x.y", "aXbYcZ", "[a"};

    for (size_t g = 0; g < sizeof(globs) / sizeof(globs[0]); g++) {
        for (size_t t = 0; t < sizeof(texts) / sizeof(texts[0]); t++) {
            bool expected = fnmatch(globs[g], texts[t], 0) == 0;
            if (globs[g][0] == '\0' || texts[t][0] == '\0') {
                continue; /* no module is called so */
            }
            ck_assert_msg((pattern_match(globs[g], texts[t]) == 1) == expected, "%s on \"%s\"", globs[g], texts[t]);
        }
    }
}
END_TEST

START_TEST(refused_with_a_reason)
{
    struct patterns *patterns = new_patterns();
    char text[PATTERN_BYTES_MAX + 2];

    ck_assert_int_eq(patterns_add(patterns, ""), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(patterns_add(patterns, "re:(("), ERR_INVALID_PARAMETER);
    ck_assert_msg(strstr(err_last()->message, "re:((") != NULL, "%s", err_last()->message);
    memset(text, 'a', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    ck_assert_int_eq(patterns_add(patterns, text), ERR_INVALID_PARAMETER);
    text[sizeof(text) - 2] = '\0';
    ck_assert_rc_ok(patterns_add(patterns, text));
    for (unsigned i = 1; i < PATTERNS_MAX; i++) {
        snprintf(text, sizeof(text), "re:.*%u", i);
        ck_assert_rc_ok(patterns_add(patterns, text));
    }
    ck_assert_int_eq(patterns_add(patterns, "one more"), ERR_INVALID_PARAMETER);
    patterns_free(patterns);
}
END_TEST

START_TEST(bound_answers_are_the_direct_ones)
{
    static const char *const texts[] = {"re:.*[02468]\\.self",
                                        "*.17.*",
                                        "q_proj",
                                        "model.layers.3.self_attn.q_proj",
                                        "lm_head",
                                        "re:model\\.layers\\.1[0-9]{2}\\."};
    struct patterns *patterns = new_patterns();
    const char *module;

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        ck_assert_rc_ok(patterns_add(patterns, texts[i]));
    }
    ck_assert(patterns_match(patterns, "*.17.*", modules[17])); /* before they are bound */
    ck_assert_rc_ok(patterns_bind(patterns, modules, MODULES));
    ck_assert_rc_ok(patterns_check(patterns));
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        for (int m = 0; m < MODULES; m++) {
            ck_assert_int_eq(patterns_match(patterns, texts[i], modules[m]), pattern_match(texts[i], modules[m]));
        }
    }
    ck_assert_int_eq(patterns_verdict(patterns, "q_proj", &module), PATTERN_HITS);
    ck_assert_int_eq(patterns_verdict(patterns, "lm_head", &module), PATTERN_MISSES);
    ck_assert(patterns_match(patterns, "lm_head", "lm_head")); /* a module that is not bound */
    ck_assert(patterns_match(patterns, "re:x[0-9]", "x1"));    /* a pattern that was not added */
    ck_assert(!patterns_match(patterns, "re:((", "model"));
    patterns_free(patterns);
}
END_TEST

/* Each of these takes time that is exponential in the path's length, or a high power of it, when nobody counts. */
START_TEST(a_hostile_pattern_gives_up)
{
    static const char *const texts[] = {"re:(([a-z0-9._]+)+)+[!?]", "re:(.*)(.*)(.*)(.*)(.*)\\1\\2\\3[!?]",
                                        "re:(?:.*.*.*.*.*.*.*)[!?]", "re:(?=(.+|[^!])+[!?])", "re:(?:(?R)|.)*[!?]"};

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct patterns *patterns = new_patterns();
        const char *module;
        double begun = seconds();
        ck_assert_rc_ok(patterns_add(patterns, texts[i]));
        ck_assert_rc_ok(patterns_bind(patterns, modules, MODULES));
        ck_assert_msg(patterns_verdict(patterns, texts[i], &module) == PATTERN_TOO_COSTLY, "%s", texts[i]);
        ck_assert_str_eq(module, modules[0]);
        ck_assert_int_eq(patterns_check(patterns), ERR_INVALID_PARAMETER);
        ck_assert_int_eq(pattern_match(texts[i], modules[0]), ERR_INVALID_PARAMETER);
        ck_assert_double_lt(seconds() - begun, 1);
        patterns_free(patterns);
    }
}
END_TEST

/* A thousand of them are as much as the request may take, and the verdicts are the same each time. */
START_TEST(all_patterns_share_one_budget)
{
    struct patterns *patterns = new_patterns();
    int undecided[2] = {0};
    const char *module;
    char text[64];

    for (int round = 0; round < 2; round++) {
        double begun = seconds();
        for (unsigned i = 0; round == 0 && i < PATTERNS_MAX; i++) {
            snprintf(text, sizeof(text), "re:(([a-z0-9._]+)+)+[!?]{1,%u}", i + 1);
            ck_assert_rc_ok(patterns_add(patterns, text));
        }
        ck_assert_rc_ok(patterns_bind(patterns, modules, MODULES));
        for (unsigned i = 0; i < PATTERNS_MAX; i++) {
            snprintf(text, sizeof(text), "re:(([a-z0-9._]+)+)+[!?]{1,%u}", i + 1);
            undecided[round] += patterns_verdict(patterns, text, &module) == PATTERN_UNDECIDED;
        }
        ck_assert_double_lt(seconds() - begun, 2); /* 0.06 s without sanitizers */
    }
    ck_assert_int_gt(undecided[0], (int)PATTERNS_MAX / 2);
    ck_assert_int_eq(undecided[0], undecided[1]);
    patterns_free(patterns);
}
END_TEST

/* What a real recipe may want: one regular expression for each of a large model's blocks. */
START_TEST(many_plain_patterns_fit)
{
    struct patterns *patterns = new_patterns();
    char text[128];

    for (unsigned i = 0; i < 128; i++) {
        snprintf(text, sizeof(text), "re:.*layers\\.%u\\..*q_proj$", i);
        ck_assert_rc_ok(patterns_add(patterns, text));
    }
    ck_assert_rc_ok(patterns_bind(patterns, modules, MODULES));
    ck_assert_rc_ok(patterns_check(patterns));
    patterns_free(patterns);
}
END_TEST

START_TEST(a_glob_of_stars_is_cheap)
{
    char glob[PATTERN_BYTES_MAX + 1], text[PATTERN_MODULE_SIZE];
    double begun = seconds();

    for (size_t i = 0; i + 2 < sizeof(glob); i += 2) {
        memcpy(glob + i, "*a", 3);
    }
    memset(text, 'a', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    for (int i = 0; i < 1000; i++) {
        ck_assert_int_eq(pattern_match(glob, text), 0);
    }
    memcpy(glob, "*[a][a][a][a][a][a][a]b", 24);
    ck_assert_int_eq(pattern_match(glob, text), 0);
    ck_assert_double_lt(seconds() - begun, 2);
}
END_TEST

UNIT_MAIN("jobs/pattern", globs_match_as_fnmatch_does, refused_with_a_reason, bound_answers_are_the_direct_ones,
          a_hostile_pattern_gives_up, all_patterns_share_one_budget, many_plain_patterns_fit, a_glob_of_stars_is_cheap)
