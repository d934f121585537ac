/* The JSON Schema of requests and reports, from the tables that read and write them. */

#include "jobs/service.h"

#include "base/cleanup.h"
#include "jobs/keys.h"
#include "jobs/recommend.h"
#include "jobs/rows.h"
#include "jobs/webhooks.h"
#include "pipeline/kv_cache.h"
#include "pipeline/mixture.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define NAME_SIZE 64

static json_t *ref(const char *name)
{
    char target[NAME_SIZE + 32];
    (void)snprintf(target, sizeof(target), "#/components/schemas/%s", name);
    return json_pack("{s:s}", "$ref", target);
}

static json_t *ref_or_null(const char *name)
{
    return json_pack("{s:[o, {s:s}]}", "anyOf", ref(name), "type", "null");
}

/* prefix, then "llm_int8" as "LlmInt8", then suffix. */
static void schema_name(const char *prefix, const char *words, const char *suffix, char out[NAME_SIZE])
{
    char camel[NAME_SIZE];
    size_t used = 0;
    bool first = true;
    for (; *words != '\0' && used + 1 < sizeof(camel); words++) {
        if (*words == '_') {
            first = true;
        } else {
            camel[used++] = (char)(first ? toupper((unsigned char)*words) : *words);
            first = false;
        }
    }
    camel[used] = '\0';
    (void)snprintf(out, NAME_SIZE, "%.16s%.30s%.16s", prefix, camel, suffix);
}

/* Set a member's schema, and keep what its row says of it. */
static void schemas_set_member(json_t *schema, const char *member, json_t *value)
{
    json_t *properties = json_object_get(schema, "properties");
    json_object_update_missing(value, json_object_get(properties, member));
    json_object_set_new(properties, member, value);
}

static void schemas_add_layer(json_t *components)
{
    static const char *const types[] = {[REPORT_INT] = "integer",
                                        [REPORT_REAL] = "number",
                                        [REPORT_TEXT] = "string",
                                        [REPORT_FLAG] = "boolean",
                                        [REPORT_COUNT] = "integer"};
    json_t *properties = json_object(), *required = json_array();
    for (const struct report_column *column = report_columns; column->name != NULL; column++) {
        const char *type = types[column->type];
        json_object_set_new(
            properties, column->name,
            json_pack("{s:o}", "type",
                      column->type == REPORT_INT ? json_string(type) : json_pack("[s, s]", type, "null")));
        json_array_append_new(required, json_string(column->name));
    }
    json_object_set_new(components, "Layer",
                        json_pack("{s:s, s:s, s:o, s:o}", "type", "object", "description",
                                  "A row of a report: one linear.", "properties", properties, "required", required));
}

/* The parts of a request that are objects become schemas of their own, so that clients can name them. */
static void name_parts(json_t *components, json_t *schema)
{
    json_t *properties = json_object_get(schema, "properties"), *property;
    const char *member;
    void *next;
    json_object_foreach_safe(properties, next, member, property)
    {
        json_t *part = json_array_get(json_object_get(property, "anyOf"), 0);
        if (part == NULL) {
            continue;
        }
        char name[NAME_SIZE];
        schema_name("JobRequest", member, "", name);
        json_object_set(components, name, part);
        json_object_del(property, "anyOf");
        schemas_set_member(schema, member, ref_or_null(name));
    }
}

static json_t *override_schema(void)
{
    json_t *match = json_pack("{s:s, s:i, s:s}", "type", "string", "minLength", 1, "description",
                              "Modules, as in modules_to_not_convert.");
    json_t *skip = json_pack("{s:s, s:s}", "type", "boolean", "description", "Leave them in float.");
    json_t *method = json_pack("{s:s, s:s}", "type", "string", "description", "Another method, which solves them.");
    return json_pack("{s:s, s:s, s:{s:o, s:o, s:o}, s:[s]}", "type", "object", "description",
                     "Other parameters for the modules that match, beside these members; the last match wins.",
                     "properties", "match", match, "skip", skip, "method", method, "required", "match");
}

/* The parameters of one method: its rows, and the members that have members of their own. */
static json_t *parameters_of(const struct quantizer *quantizer)
{
    json_t *schema = spec_quantization_schema(quantizer);
    schemas_set_member(schema, "kv_cache", ref_or_null("KvCache"));
    schemas_set_member(schema, "mixed_precision", ref_or_null("MixedPrecision"));
    schemas_set_member(schema, "overrides",
                       json_pack("{s:[s, s], s:o}", "type", "array", "null", "items", ref("Override")));
    return schema;
}

static json_t *metadata_schema(void)
{
    return json_pack("{s:[s, s], s:{s:s, s:i}, s:{s:i}, s:i}", "type", "object", "null", "additionalProperties", "type",
                     "string", "maxLength", 512, "propertyNames", "maxLength", 64, "maxProperties", 16);
}

static json_t *change_schema(void)
{
    json_t *schema = spec_change_schema();

    schemas_set_member(schema, "metadata", metadata_schema());
    return schema;
}

static json_t *recommendation_request_schema(void)
{
    json_t *schema = recommend_schema();
    json_t *id = json_pack("{s:s, s:s}", "type", "string", "pattern", "^mdl_" ID_PATTERN "$");

    schemas_set_member(schema, "model", json_pack("{s:[o, o]}", "anyOf", id, ref("ModelRequest")));
    return schema;
}

/* A model is named by its id, or registered by the job. */
static void allow_registration(json_t *request)
{
    json_t *model = json_object_get(json_object_get(request, "properties"), "model");
    json_t *named =
        json_pack("{s:O, s:O}", "type", json_object_get(model, "type"), "pattern", json_object_get(model, "pattern"));

    json_object_del(model, "type");
    json_object_del(model, "pattern");
    schemas_set_member(request, "model", json_pack("{s:[o, o]}", "anyOf", named, ref("ModelRequest")));
}

/* A job that says what it is for in place of how. */
static json_t *auto_schema(json_t *components, const json_t *common)
{
    json_t *request = json_deep_copy(common);

    json_object_set_new(components, "JobRequestRecommendation", recommend_job_schema());
    schemas_set_member(request, "method", json_pack("{s:s, s:s}", "type", "string", "const", "auto"));
    schemas_set_member(request, "quantization", json_pack("{s:[s, s]}", "type", "object", "null"));
    schemas_set_member(request, "recommendation", ref("JobRequestRecommendation"));
    json_array_append_new(json_object_get(request, "required"), json_string("recommendation"));
    return request;
}

static void add_job_request(json_t *components)
{
    json_t *alternatives = json_array(), *mapping = json_object(), *methods = json_array();
    AUTO_JSON json_t *common = spec_schema();
    char name[NAME_SIZE], parameters[NAME_SIZE];

    schemas_set_member(common, "metadata", metadata_schema());
    name_parts(components, common);
    allow_registration(common);
    json_t *chosen = auto_schema(components, common);
    json_object_del(json_object_get(common, "properties"), "recommendation");
    for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
        json_array_append_new(methods, json_string((*q)->name));
        if (quantizer_follows(*q)) { /* in lists alone */
            continue;
        }
        json_t *request = json_deep_copy(common);
        schema_name("", (*q)->name, "Parameters", parameters);
        schema_name("JobRequest", (*q)->name, "", name);
        json_object_set_new(components, parameters, parameters_of(*q));
        schemas_set_member(request, "method", json_pack("{s:s, s:s}", "type", "string", "const", (*q)->name));
        schemas_set_member(request, "quantization", ref_or_null(parameters));
        json_object_set_new(components, name, request);
        json_t *alternative = ref(name);
        json_array_append_new(alternatives, alternative);
        json_object_set_new(mapping, (*q)->name, json_incref(json_object_get(alternative, "$ref")));
    }
    json_t *list = json_deep_copy(common);
    schemas_set_member(list, "method",
                       json_pack("{s:s, s:{s:s, s:o}, s:i, s:i}", "type", "array", "items", "type", "string", "enum",
                                 methods, "minItems", 1, "maxItems", RECIPE_STAGES_MAX));
    schemas_set_member(list, "quantization", json_pack("{s:[s, s]}", "type", "object", "null"));
    json_object_set_new(components, "JobRequestList", list);
    json_array_append_new(alternatives, ref("JobRequestList"));
    json_object_set_new(components, "JobRequestAuto", chosen);
    json_array_append_new(alternatives, ref("JobRequestAuto"));
    json_object_set_new(mapping, "auto", json_string("#/components/schemas/JobRequestAuto"));
    json_object_set_new(components, "JobRequest",
                        json_pack("{s:s, s:o, s:{s:s, s:o}}", "description",
                                  "A job. Its method decides which parameters \"quantization\" has; a list of methods "
                                  "has those of all of them.",
                                  "oneOf", alternatives, "discriminator", "propertyName", "method", "mapping",
                                  mapping));
}

void service_schemas(json_t *components)
{
    json_object_set_new(components, "ModelRequest", service_model_schema());
    json_object_set_new(components, "JobChange", change_schema());
    json_object_set_new(components, "RecommendationRequest", recommendation_request_schema());
    json_object_set_new(components, "ApiKeyRequest", key_request_schema());
    json_object_set_new(components, "QuotaRequest", quota_schema());
    json_object_set_new(components, "WebhookRequest", webhook_create_schema());
    json_object_set_new(components, "WebhookChange", webhook_change_schema());
    json_object_set_new(components, "KvCache", kv_cache_schema());
    json_object_set_new(components, "MixedPrecision", mixture_schema());
    json_object_set_new(components, "Override", override_schema());
    schemas_add_layer(components);
    add_job_request(components);
}
