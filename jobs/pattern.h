#pragma once
/* Patterns that name modules: an exact path, a glob (* and ?), a path's end ("down_proj", "mlp.down_proj"), or a
 * regular expression behind "re:" that matches from the start of the path. Any thread. */

#include <stdbool.h>

bool pattern_matches(const char *pattern, const char *module);
/* False for a regular expression that does not compile, or an empty pattern. */
bool pattern_valid(const char *pattern);
