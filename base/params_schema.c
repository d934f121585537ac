/* Option rows shown: as the values of a filled struct, and as JSON Schema (draft 2020-12). */

#include "base/params.h"

#include "base/ids.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *value_json(const struct params_row *row, const char *at)
{
    int64_t integer;
    double number;
    int choice;
    json_t *reference;

    switch (row->type) {
    case PARAMS_BOOL:
        return json_boolean(*(const bool *)at);
    case PARAMS_INT:
        memcpy(&integer, at, sizeof(integer));
        return json_integer((json_int_t)integer);
    case PARAMS_NUMBER:
        memcpy(&number, at, sizeof(number));
        return isnan(number) ? json_null() : json_real(number);
    case PARAMS_STRING:
        return params_nullable(row) && at[0] == '\0' ? json_null() : json_string(at);
    case PARAMS_ENUM:
        memcpy(&choice, at, sizeof(choice));
        return json_string(row->choices[choice]);
    case PARAMS_SWITCH:
        memcpy(&choice, at, sizeof(choice));
        return choice == PARAMS_AUTO ? json_null() : json_boolean(choice == PARAMS_ON);
    default:
        memcpy(&reference, at, sizeof(reference));
        return reference != NULL ? json_incref(reference) : json_null();
    }
}

json_t *params_json(const struct params_row *const *tables, const void *values)
{
    json_t *object = json_object();

    for (size_t t = 0; object != NULL && tables[t] != NULL; t++) {
        for (const struct params_row *row = tables[t]; row->name != NULL; row++) {
            json_t *value = value_json(row, (const char *)values + row->offset);
            json_t *fallback = row->quiet ? json_loads(row->fallback, JSON_DECODE_ANY, NULL) : NULL;
            if (fallback != NULL && json_equal(value, fallback)) {
                json_decref(value);
            } else {
                json_object_set_new(object, row->name, value);
            }
            json_decref(fallback);
        }
    }
    return object;
}

static const char *type_name(const struct params_row *row)
{
    static const char *const names[] = {
        [PARAMS_BOOL] = "boolean", [PARAMS_INT] = "integer", [PARAMS_NUMBER] = "number", [PARAMS_STRING] = "string",
        [PARAMS_ENUM] = "string",  [PARAMS_JSON] = NULL,     [PARAMS_STRINGS] = "array", [PARAMS_SWITCH] = "boolean",
    };
    return names[row->type];
}

static void set_choices(json_t *schema, const struct params_row *row)
{
    json_t *list = json_array();

    for (size_t i = 0; row->choices[i] != NULL; i++) {
        json_array_append_new(list, row->type == PARAMS_INT ? json_integer(strtoll(row->choices[i], NULL, 10))
                                                            : json_string(row->choices[i]));
    }
    if (params_nullable(row)) {
        json_array_append_new(list, json_null());
    }
    json_object_set_new(schema, "enum", list);
}

static json_t *bound(const struct params_row *row, double value)
{
    if (row->type != PARAMS_INT) {
        return json_real(value);
    }
    /* 2^63 is a double, but not an int64_t. */
    return json_integer(value >= 0x1p63 ? INT64_MAX : value < -0x1p63 ? INT64_MIN : (json_int_t)value);
}

/* "" stands for no id where there may be none. */
static void set_id(json_t *schema, const struct params_row *row)
{
    char pattern[64];

    (void)snprintf(pattern, sizeof(pattern), row->fallback == NULL ? "^%s_%s$" : "^(%s_%s)?$", row->id, ID_PATTERN);
    if (params_nullable(row)) {
        json_object_set_new(schema, "type", json_pack("[s, s]", "string", "null"));
    } else {
        json_object_set_new(schema, "type", json_string("string"));
    }
    json_object_set_new(schema, "pattern", json_string(pattern));
}

static json_t *typed_schema(const struct params_row *row)
{
    const char *type = type_name(row);

    if (row->parts != NULL) {
        json_t *parts = params_schema(row->parts);
        return params_nullable(row) ? json_pack("{s:[o, {s:s}]}", "anyOf", parts, "type", "null") : parts;
    }
    json_t *schema = json_object();
    if (type != NULL) {
        json_object_set_new(schema, "type",
                            params_nullable(row) ? json_pack("[s, s]", type, "null") : json_string(type));
    }
    return schema;
}

static json_t *row_schema(const struct params_row *row)
{
    json_t *schema = typed_schema(row);

    if (row->type == PARAMS_STRINGS) {
        json_object_set_new(schema, "items", json_pack("{s:s}", "type", "string"));
    }
    if (row->id != NULL) {
        set_id(schema, row);
    } else if (row->type == PARAMS_STRING) {
        if (row->pattern != NULL) {
            json_object_set_new(schema, "pattern", json_string(row->pattern));
        }
        json_object_set_new(schema, "maxLength", json_integer((json_int_t)row->size - 1));
    }
    if (row->choices != NULL) {
        set_choices(schema, row);
    } else if (row->min != 0 || row->max != 0) {
        json_object_set_new(schema, row->exclusive ? "exclusiveMinimum" : "minimum", bound(row, row->min));
        json_object_set_new(schema, row->exclusive ? "exclusiveMaximum" : "maximum", bound(row, row->max));
    }
    if (row->fallback != NULL) {
        json_object_set_new(schema, "default", json_loads(row->fallback, JSON_DECODE_ANY, NULL));
    }
    if (row->help != NULL) {
        json_object_set_new(schema, "description", json_string(row->help));
    }
    if (row->aliases != NULL) {
        json_t *list = json_array();
        for (size_t i = 0; row->aliases[i] != NULL; i++) {
            json_array_append_new(list, json_string(row->aliases[i] + (row->aliases[i][0] == '!')));
        }
        json_object_set_new(schema, "x-aliases", list);
    }
    return schema;
}

json_t *params_schema(const struct params_row *const *tables)
{
    json_t *properties = json_object();
    json_t *required = json_array();

    for (size_t t = 0; tables[t] != NULL; t++) {
        for (const struct params_row *row = tables[t]; row->name != NULL; row++) {
            json_object_set_new(properties, row->name, row_schema(row));
            if (row->fallback == NULL) {
                json_array_append_new(required, json_string(row->name));
            }
        }
    }
    return json_pack("{s:s, s:o, s:o, s:b}", "type", "object", "properties", properties, "required", required,
                     "additionalProperties", 0);
}
