#pragma once
/* Patterns that name modules: an exact path, a glob (* ? [...]), a path's end ("down_proj", "mlp.down_proj"), or a
 * regular expression after "re:" that matches from the start of the path.
 *
 * Patterns come from strangers, so matching is counted: a step is about one item of a regular expression or one
 * character of a glob that was tried, some 10 ns. A pattern may take PATTERN_STEPS_MAX on one module, and all patterns
 * of a request PATTERNS_STEPS_MAX on all modules. Steps, not seconds: admission and the
 * run decide alike, on any machine. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PATTERN_BYTES_MAX 512u
#define PATTERNS_MAX 512u /* of one request */
#define PATTERN_STEPS_MAX 20000
#define PATTERNS_STEPS_MAX 4000000
#define PATTERN_MODULE_SIZE 128 /* a module's path with its NUL */

/* The patterns of one request, compiled, and after patterns_bind their answers for a model. After that it is read only
 * and may be read by any thread. */
struct patterns;

int patterns_new(struct patterns **out);
void patterns_free(struct patterns *patterns); /* NULL is fine */
/* ERR_INVALID_PARAMETER, with a reason that needs no context, for a pattern that is empty, too long, one too many, or a
 * regular expression that does not compile. */
int patterns_add(struct patterns *patterns, const char *text);
/* Match every pattern against every module; a second call replaces the answers of the first. What costs too much is not
 * an error here, see patterns_verdict. */
int patterns_bind(struct patterns *patterns, char (*modules)[PATTERN_MODULE_SIZE], size_t count);

enum patterns_verdict {
    PATTERN_MISSES,     /* no module that was bound */
    PATTERN_HITS,       /* at least one */
    PATTERN_TOO_COSTLY, /* PATTERN_STEPS_MAX were not enough on one module; *module names it */
    PATTERN_UNDECIDED,  /* the request's PATTERNS_STEPS_MAX were used up before or by this one */
};
enum patterns_verdict patterns_verdict(const struct patterns *patterns, const char *text, const char **module);
/* ERR_INVALID_PARAMETER when some verdict is TOO_COSTLY or UNDECIDED. */
int patterns_check(const struct patterns *patterns);
/* The answer of patterns_bind; a pattern or a module that is not among them is matched now, under the same limit. */
bool patterns_match(const struct patterns *patterns, const char *text, const char *module);

/* One pattern on one module: 1 yes, 0 no, ERR_INVALID_PARAMETER when it does not compile or costs too much. */
int pattern_match(const char *text, const char *module);
