/* Module patterns: the first line is a module's path, each other line a pattern -> patterns_add, patterns_bind. Bound
 * and direct answers agree, and a second binding says the same. */

#include "pipeline/pattern.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MODULES 8
#define LINES_MAX 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void name_modules(char (*modules)[PATTERN_MODULE_SIZE], const char *first)
{
    for (size_t i = 0; i < MODULES; i++) {
        size_t length = strnlen(first, PATTERN_MODULE_SIZE - 2);
        memcpy(modules[i], first, length);
        modules[i][length] = (char)('0' + i);
        modules[i][length + 1] = '\0';
    }
}

static void judge(struct patterns *patterns, char (*modules)[PATTERN_MODULE_SIZE], char *const *lines, size_t count)
{
    enum patterns_verdict before[LINES_MAX];
    const char *module;

    for (int round = 0; round < 2; round++) {
        if (patterns_bind(patterns, modules, MODULES) != 0) {
            abort();
        }
        for (size_t i = 0; i < count; i++) {
            enum patterns_verdict verdict = patterns_verdict(patterns, lines[i], &module);
            if ((module != NULL) != (verdict == PATTERN_TOO_COSTLY) || (round == 1 && verdict != before[i])) {
                abort();
            }
            before[i] = verdict;
        }
    }
    for (size_t i = 0; i < count; i++) {
        for (size_t m = 0; m < MODULES && (before[i] == PATTERN_HITS || before[i] == PATTERN_MISSES); m++) {
            if (patterns_match(patterns, lines[i], modules[m]) != (pattern_match(lines[i], modules[m]) == 1)) {
                abort();
            }
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char modules[MODULES][PATTERN_MODULE_SIZE], *lines[LINES_MAX];
    struct patterns *patterns;
    size_t count = 0;

    char *text = calloc(1, size + 1);
    if (text == NULL || patterns_new(&patterns) != 0) {
        abort();
    }
    memcpy(text, data, size);
    char *rest = text;
    name_modules(modules, strsep(&rest, "\n"));
    while (rest != NULL && count < LINES_MAX) {
        char *line = strsep(&rest, "\n");
        if (patterns_add(patterns, line) == 0) {
            lines[count++] = line;
        }
    }
    judge(patterns, modules, lines, count);
    patterns_free(patterns);
    free(text);
    return 0;
}
