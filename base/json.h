#pragma once
/* JSON input with a budget: depth and the memory of its tree are measured before the parser begins, duplicate keys are
 * refused. (jansson recurses on depth, so 4 KiB of '[' would exhaust a small stack; and it makes a hundred bytes of
 * one.)
 */

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#define JSON_MEMORY_MAX ((size_t)16 << 20) /* of json_parse */

struct json_budget {
    int depth;
    size_t memory; /* bytes of the tree: an upper bound */
    size_t flags;  /* jansson's, of decoding */
};

/* Parse text into a new reference. ERR_INVALID_JSON with line and column in the message, or what exceeds the budget.
 */
int json_parse_within(const char *text, size_t size, const struct json_budget *budget, json_t **out);
/* The same within JSON_MEMORY_MAX; any value, names once each. */
int json_parse(const char *text, size_t size, int max_depth, json_t **out);
/* Integer member in [min, max]: 1 found, 0 absent or null, negative raised (wrong type, out of range). */
int json_get_int(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *out);
int json_get_number(const json_t *object, const char *key, double *out);
int json_get_bool(const json_t *object, const char *key, _Bool *out);
/* Borrowed string member, NULL if absent or not a string. */
const char *json_get_string(const json_t *object, const char *key);
/* A JSON merge patch (RFC 7396) applied: objects member by member, null removes a member, anything else takes the place
 * of what is there. target may be NULL; neither is changed. New reference; NULL: no memory. */
json_t *json_merge_patch(const json_t *target, const json_t *patch);
