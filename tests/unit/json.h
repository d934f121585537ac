#pragma once
/* JSON as tests write and compare it. */

#include "tests/unit/unit.h"

#include <jansson.h>
#include <string.h>

/* JSON from text, with ' for ". */
static inline json_t *json_of(const char *text)
{
    char *copy = strdup(text);
    json_error_t error;
    for (char *at = copy; *at != '\0'; at++) {
        *at = *at == '\'' ? '"' : *at;
    }
    json_t *value = json_loads(copy, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &error);
    ck_assert_msg(value != NULL, "%s: %s", copy, error.text);
    free(copy);
    return value;
}

/* value equals JSON text with ' for ". */
static inline void assert_json(const json_t *value, const char *text)
{
    json_t *expected = json_of(text);
    if (!json_equal(value, expected)) {
        char *got = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
        ck_abort_msg("%s is not %s", got, text);
    }
    json_decref(expected);
}

/* The same; takes value. */
static inline void assert_json_take(json_t *value, const char *text)
{
    assert_json(value, text);
    json_decref(value);
}

static inline const char *text_at(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    return text != NULL ? text : "";
}

static inline int64_t int_at(const json_t *object, const char *name)
{
    return json_integer_value(json_object_get(object, name));
}
