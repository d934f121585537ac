/* Budgets are checked before parsing: one pass over the text outside strings gives its depth and an upper bound of the
 * memory of its tree. The size of the text is not a bound: of three bytes, "{},", the parser makes an object of 264. */

#include "base/json.h"

#include "base/err.h"

#include <math.h>
#include <stdbool.h>

/* The maximum size of jansson's values on a 64-bit machine, including the allocator's rounding and the growth of the
 * container that holds them; tests/unit/base/test_json.c compares real trees with it. */
#define OBJECT_BYTES 264
#define ARRAY_BYTES 152
#define STRING_BYTES 128 /* a value or a member's name, without its text */
#define SCALAR_BYTES 56

struct measure {
    int depth, deepest;
    size_t bytes;
};

/* From the character after the opening quote to the one after the closing quote, or to the end. */
static size_t measure_string(const char *text, size_t size, size_t at, struct measure *m)
{
    size_t begin = at;

    while (at < size && text[at] != '"') {
        at += text[at] == '\\' ? 2 : 1;
    }
    at = at < size ? at : size;
    m->bytes += STRING_BYTES + (at - begin);
    return at + 1;
}

static bool is_between(char c)
{
    return c == ',' || c == ':' || c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static bool is_structure(char c)
{
    return is_between(c) || c == '"' || c == '[' || c == '{' || c == ']' || c == '}';
}

static struct measure json_measure_text(const char *text, size_t size)
{
    struct measure m = {0};

    for (size_t at = 0; at < size;) {
        char c = text[at++];
        if (c == '"') {
            at = measure_string(text, size, at, &m);
        } else if (c == '[' || c == '{') {
            m.bytes += c == '{' ? OBJECT_BYTES : ARRAY_BYTES;
            m.depth++;
            m.deepest = m.depth > m.deepest ? m.depth : m.deepest;
        } else if (c == ']' || c == '}') {
            m.depth--;
        } else if (!is_between(c)) {
            m.bytes += SCALAR_BYTES;
            while (at < size && !is_structure(text[at])) {
                at++;
            }
        }
    }
    return m;
}

int json_parse_within(const char *text, size_t size, const struct json_budget *budget, json_t **out)
{
    const struct measure m = json_measure_text(text, size);
    json_error_t error;

    if (m.deepest > budget->depth) {
        return err_raise(ERR_INVALID_JSON, "nested deeper than %d levels", budget->depth);
    }
    if (m.bytes > budget->memory) {
        return err_raise(ERR_INVALID_JSON,
                         "the values of these %zu bytes would take about %zu MiB of memory; at most %zu MiB are read",
                         size, (m.bytes >> 20) + 1, budget->memory >> 20);
    }
    json_t *value = json_loadb(text, size, budget->flags, &error);
    if (value == NULL) {
        return err_raise(ERR_INVALID_JSON, "line %d column %d: %s", error.line, error.column, error.text);
    }
    *out = value;
    return 0;
}

int json_parse(const char *text, size_t size, int max_depth, json_t **out)
{
    const struct json_budget budget = {
        .depth = max_depth, .memory = JSON_MEMORY_MAX, .flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY};

    return json_parse_within(text, size, &budget, out);
}

int json_get_int(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *out)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL || json_is_null(value)) {
        return 0;
    }
    if (!json_is_integer(value)) {
        return err_raise(ERR_INVALID_PARAMETER, "%s must be an integer", key);
    }
    int64_t n = json_integer_value(value);
    if (n < min || n > max) {
        return err_raise(ERR_INVALID_PARAMETER, "%s = %lld is not in [%lld, %lld]", key, (long long)n, (long long)min,
                         (long long)max);
    }
    *out = n;
    return 1;
}

int json_get_number(const json_t *object, const char *key, double *out)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL || json_is_null(value)) {
        return 0;
    }
    if (!json_is_number(value) || !isfinite(json_number_value(value))) {
        return err_raise(ERR_INVALID_PARAMETER, "%s must be a number", key);
    }
    *out = json_number_value(value);
    return 1;
}

int json_get_bool(const json_t *object, const char *key, _Bool *out)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL || json_is_null(value)) {
        return 0;
    }
    if (!json_is_boolean(value)) {
        return err_raise(ERR_INVALID_PARAMETER, "%s must be true or false", key);
    }
    *out = json_is_true(value);
    return 1;
}

const char *json_get_string(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

json_t *json_merge_patch(const json_t *target, const json_t *patch)
{
    if (!json_is_object(patch)) {
        return json_deep_copy(patch);
    }
    json_t *merged = json_is_object(target) ? json_copy((json_t *)target) : json_object(), *value;
    const char *name;

    json_object_foreach((json_t *)patch, name, value)
    {
        if (json_is_null(value)) {
            json_object_del(merged, name);
        } else if (json_object_set_new(merged, name, json_merge_patch(json_object_get(merged, name), value)) != 0) {
            json_decref(merged);
            return NULL;
        }
    }
    return merged;
}
