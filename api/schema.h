#pragma once
/* What objects of the API look like: tables of members, which the OpenAPI document shows as JSON Schema. */

#include "base/params.h"

#include <jansson.h>
#include <stdbool.h>

enum schema_type {
    SCHEMA_ANY,
    SCHEMA_STRING,
    SCHEMA_INT,     /* of at least 0 */
    SCHEMA_INTEGER, /* of either sign */
    SCHEMA_NUMBER,
    SCHEMA_BOOL,
    SCHEMA_ID,      /* with the prefix text */
    SCHEMA_TIME,    /* Unix seconds */
    SCHEMA_DIGEST,  /* SHA-256, 64 hexadecimal digits */
    SCHEMA_CONST,   /* exactly text */
    SCHEMA_ENUM,    /* one of choices */
    SCHEMA_STRINGS, /* an array of strings */
    SCHEMA_INTS,    /* an array of integers */
    SCHEMA_TEXTS,   /* an object whose members are strings */
    SCHEMA_COUNTS,  /* an object whose members are integers */
    SCHEMA_OBJECT,  /* of, or any object when that is NULL */
    SCHEMA_LIST,    /* an array of them */
};

struct schema;
struct schema_row {
    const char *name; /* NULL ends a table */
    enum schema_type type;
    const char *text;
    const struct schema *of;
    const char *const *choices;
    const char *help;
    bool nullable, optional;
};

struct schema {
    const char *name; /* in the document's components; NULL: any JSON value */
    const char *help;
    const struct schema_row *rows;          /* NULL: by tables, or the service knows it (service_schemas) */
    const struct params_row *const *tables; /* of a request: the option rows that read it, or NULL */
};

/* {"$ref": ...}, or {} for any value. New references. */
json_t *schema_ref(const struct schema *schema);
/* Add the schema under its name, and those that it refers to, unless they are there. */
void schema_add(const struct schema *schema, json_t *components);
/* Pattern of an id with that prefix, as a JSON Schema of a string. */
json_t *schema_of_id(const char *prefix);

/* --- objects.c */
extern const char *const schema_job_statuses[]; /* NULL ends them */
extern const struct schema schema_any;
extern const struct schema schema_health, schema_system, schema_method, schema_method_list, schema_architecture_list;
extern const struct schema schema_model_request, schema_model, schema_model_list;
extern const struct schema schema_file, schema_file_list, schema_upload, schema_upload_list;
extern const struct schema schema_job_request, schema_job, schema_job_list, schema_job_change, schema_cancel_request,
    schema_pause_request, schema_retry_request, schema_comparison, schema_calibration;
extern const struct schema schema_event, schema_progress_event, schema_event_list, schema_layer, schema_layer_list,
    schema_report;
extern const struct schema schema_artifact, schema_artifact_list, schema_verification;
extern const struct schema schema_mcp_message, schema_mcp_answer;
extern const struct schema schema_api_key_request, schema_api_key, schema_new_api_key, schema_api_key_list;
extern const struct schema schema_quota_request, schema_quota, schema_quota_list;
extern const struct schema schema_webhook_request, schema_webhook_change;
extern const struct schema schema_problem;
extern const struct schema schema_warning;
/* --- objects_report.c */
extern const struct schema schema_anatomy, schema_suggestion, schema_tuning;

/* --- objects_estimate.c */
extern const struct schema schema_gate, schema_job_gate, schema_generation;
extern const struct schema schema_chosen, schema_estimate, schema_recommendation_request, schema_recommendation;
/* --- objects_runtimes.c */
extern const struct schema schema_runtime_list, schema_job_target;
/* --- objects_webhooks.c */
extern const char *const schema_delivery_statuses[]; /* NULL ends them */
extern const struct schema schema_webhook, schema_new_webhook, schema_webhook_list;
extern const struct schema schema_delivery, schema_delivery_list, schema_webhook_message;
