/* Tables of members as JSON Schema (draft 2020-12). Objects stay open: inside /v1 members may be added. */

#include "api/schema.h"

#include "base/ids.h"

#include <stdio.h>
#include <string.h>

json_t *schema_of_id(const char *prefix)
{
    char pattern[64];
    (void)snprintf(pattern, sizeof(pattern), "^%s_" ID_PATTERN "$", prefix);
    return json_pack("{s:s, s:s}", "type", "string", "pattern", pattern);
}

json_t *schema_ref(const struct schema *schema)
{
    char target[96];
    if (schema == NULL || schema->name == NULL) {
        return json_object();
    }
    (void)snprintf(target, sizeof(target), "#/components/schemas/%s", schema->name);
    return json_pack("{s:s}", "$ref", target);
}

static json_t *name_list(const char *const *names)
{
    json_t *list = json_array();
    for (size_t i = 0; names[i] != NULL; i++) {
        json_array_append_new(list, json_string(names[i]));
    }
    return list;
}

/* Of the value when it is not null. */
static json_t *schema_value(const struct schema_row *row)
{
    switch (row->type) {
    case SCHEMA_ANY:
        break;
    case SCHEMA_STRING:
        return json_pack("{s:s}", "type", "string");
    case SCHEMA_INT:
        return json_pack("{s:s, s:i}", "type", "integer", "minimum", 0);
    case SCHEMA_INTEGER:
        return json_pack("{s:s}", "type", "integer");
    case SCHEMA_NUMBER:
        return json_pack("{s:s}", "type", "number");
    case SCHEMA_BOOL:
        return json_pack("{s:s}", "type", "boolean");
    case SCHEMA_ID:
        return schema_of_id(row->text);
    case SCHEMA_TIME:
        return json_pack("{s:s, s:i}", "type", "integer", "minimum", 0);
    case SCHEMA_DIGEST:
        return json_pack("{s:s, s:s}", "type", "string", "pattern", "^[0-9a-f]{64}$");
    case SCHEMA_CONST:
        return json_pack("{s:s, s:s}", "type", "string", "const", row->text);
    case SCHEMA_ENUM:
        return json_pack("{s:s, s:o}", "type", "string", "enum", name_list(row->choices));
    case SCHEMA_STRINGS:
        return json_pack("{s:s, s:{s:s}}", "type", "array", "items", "type", "string");
    case SCHEMA_INTS:
        return json_pack("{s:s, s:{s:s}}", "type", "array", "items", "type", "integer");
    case SCHEMA_TEXTS:
        return json_pack("{s:s, s:{s:s}}", "type", "object", "additionalProperties", "type", "string");
    case SCHEMA_COUNTS:
        return json_pack("{s:s, s:{s:s}}", "type", "object", "additionalProperties", "type", "integer");
    case SCHEMA_OBJECT:
        return row->of != NULL ? schema_ref(row->of) : json_pack("{s:s}", "type", "object");
    case SCHEMA_LIST:
        return json_pack("{s:s, s:o}", "type", "array", "items", schema_ref(row->of));
    }
    return json_object();
}

/* Null is another type of a plain value, and an alternative to a reference or to named values. */
static json_t *or_null(json_t *schema)
{
    json_t *type = json_object_get(schema, "type");
    if (type != NULL && json_object_get(schema, "enum") == NULL) {
        json_object_set_new(schema, "type", json_pack("[O, s]", type, "null"));
        return schema;
    }
    return json_pack("{s:[o, {s:s}]}", "anyOf", schema, "type", "null");
}

static json_t *schema_member(const struct schema_row *row)
{
    json_t *schema = schema_value(row);
    if (row->nullable) {
        schema = or_null(schema);
    }
    if (row->help != NULL) {
        json_object_set_new(schema, "description", json_string(row->help));
    }
    return schema;
}

void schema_add(const struct schema *schema, json_t *components)
{
    if (schema != NULL && schema->tables != NULL) {
        json_object_set_new(components, schema->name, params_schema(schema->tables));
        return;
    }
    if (schema == NULL || schema->rows == NULL || json_object_get(components, schema->name) != NULL) {
        return;
    }
    json_t *properties = json_object(), *required = json_array();
    json_object_set_new(components, schema->name,
                        json_pack("{s:s, s:s*, s:o, s:o}", "type", "object", "description", schema->help, "properties",
                                  properties, "required", required));
    for (const struct schema_row *row = schema->rows; row->name != NULL; row++) {
        json_object_set_new(properties, row->name, schema_member(row));
        if (!row->optional) {
            json_array_append_new(required, json_string(row->name));
        }
        schema_add(row->of, components);
    }
}
