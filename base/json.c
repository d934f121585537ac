/* The guard before the parser: brackets outside strings are counted in one pass. */

#include "base/json.h"

#include "base/err.h"

#include <math.h>
#include <stdbool.h>

static int deepest(const char *text, size_t size)
{
    int depth = 0;
    int most = 0;
    bool in_string = false;

    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\') {
                i++;
            } else if (c == '"') {
                in_string = false;
            }
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            depth++;
            most = depth > most ? depth : most;
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
    return most;
}

int json_parse(const char *text, size_t size, int max_depth, json_t **out)
{
    json_error_t error;

    if (deepest(text, size) > max_depth) {
        return err_raise(ERR_INVALID_JSON, "nested deeper than %d levels", max_depth);
    }
    json_t *value = json_loadb(text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (value == NULL) {
        return err_raise(ERR_INVALID_JSON, "line %d column %d: %s", error.line, error.column, error.text);
    }
    *out = value;
    return 0;
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
