#pragma once
/* JSON input with a budget: depth is scanned before the parser recurses, duplicate keys are refused.
 * (jansson recurses on depth; 4 KiB of '[' would exhaust a small stack.) */

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

/* Parse text into a new reference. ERR_INVALID_JSON with line and column in the message. */
int json_parse(const char *text, size_t size, int max_depth, json_t **out);
/* Integer member in [min, max]: 1 found, 0 absent or null, negative raised (wrong type, out of range). */
int json_get_int(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *out);
int json_get_number(const json_t *object, const char *key, double *out);
int json_get_bool(const json_t *object, const char *key, _Bool *out);
/* Borrowed string member, NULL if absent or not a string. */
const char *json_get_string(const json_t *object, const char *key);
