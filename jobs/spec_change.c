/* Changes of a request that was accepted: by PATCH, and by a retry. */

#include "jobs/spec.h"

#include "base/err.h"

#include <string.h>

#define ROW(type_, member, fallback_, ...)                                                         \
    {                                                                                              \
        .name = #member, .type = (type_), .offset = offsetof(struct spec_change, member),          \
        .size = sizeof(((struct spec_change *)NULL)->member), .fallback = (fallback_), __VA_ARGS__ \
    }

static const struct params_row change_rows[] = {
    ROW(PARAMS_STRING, name, "\"\"", .help = "A name for people; need not be unique."),
    ROW(PARAMS_INT, priority, "0", .min = -100, .max = 100, .help = "Higher runs first."),
    ROW(PARAMS_JSON, metadata, "null",
        .help = "Up to 16 string members of the client's own, in place of those that are there."),
    {.name = NULL},
};
static const struct params_row *const change_tables[] = {change_rows, NULL};

int spec_change_parse(const json_t *body, struct validation_errors *errors, struct spec_change *out)
{
    struct spec_change change = {.metadata = NULL};

    if (!json_is_object(body)) {
        char text[PARAMS_VALUE_SIZE];
        validation_add(errors, ERR_INVALID_PARAMETER, "", "the body is %s; it must be an object",
                       params_value_text(body, text));
        return validation_raise(errors);
    }
    if (params_parse(change_tables, body, "", &change, errors) != 0) {
        return validation_raise(errors);
    }
    spec_check_metadata(change.metadata, errors);
    if (errors->count > 0) {
        spec_change_deinit(&change);
        return validation_raise(errors);
    }
    change.sets_name = json_object_get(body, "name") != NULL;
    change.sets_priority = json_object_get(body, "priority") != NULL;
    change.sets_metadata = json_object_get(body, "metadata") != NULL;
    *out = change;
    return 0;
}

void spec_change_deinit(struct spec_change *change)
{
    params_release(change_tables, change);
    *change = (struct spec_change){.metadata = NULL};
}

void spec_change_apply(const struct spec_change *change, json_t *request)
{
    if (change->sets_name) {
        json_object_set_new(request, "name", json_string(change->name));
    }
    if (change->sets_priority) {
        json_object_set_new(request, "priority", json_integer(change->priority));
    }
    if (change->sets_metadata) {
        json_object_set_new(request, "metadata",
                            change->metadata != NULL ? json_incref(change->metadata) : json_null());
    }
}

json_t *spec_change_schema(void)
{
    return params_schema(change_tables);
}

/* --- retry */

/* Members that a retry may have; those of an object replace its members one by one. */
static const struct retry_member {
    const char *name;
    bool object;
} retry_members[] = {
    {"quantization", true}, {"output", true},        {"evaluation", true},
    {"resources", true},    {"max_attempts", false}, {"timeout_seconds", false},
};

#define RETRY_MEMBERS (sizeof(retry_members) / sizeof(retry_members[0]))

static const struct retry_member *retry_find(const char *name)
{
    for (size_t i = 0; i < RETRY_MEMBERS; i++) {
        if (strcmp(retry_members[i].name, name) == 0) {
            return &retry_members[i];
        }
    }
    return NULL;
}

/* A member that is given by another of its names takes the place of the one that the request has. */
static void drop_named(const struct recipe *recipe, const char *given, json_t *parameters)
{
    for (int i = 0; i < recipe->count; i++) {
        const struct params_row *row = params_find(recipe->stages[i].quantizer->params, given);
        if (row != NULL) {
            json_object_del(parameters, row->name);
        }
    }
}

static void retry_merge(const struct recipe *recipe, const struct retry_member *member, const json_t *value,
                        json_t *request)
{
    json_t *part = json_object_get(request, member->name);
    bool parameters = strcmp(member->name, "quantization") == 0;
    const char *name;
    json_t *item;

    if (!member->object || !json_is_object(value) || !json_is_object(part)) {
        json_object_set(request, member->name, (json_t *)value);
        return;
    }
    json_object_foreach((json_t *)value, name, item)
    {
        if (parameters) {
            drop_named(recipe, name, part);
        }
        json_object_set(part, name, item);
    }
}

/* Of the evaluation its gate alone: what was measured stays what it was. */
static void check_retry_evaluation(const json_t *value, struct validation_errors *errors)
{
    const char *name;
    json_t *unused;

    if (!json_is_object(value)) {
        char text[PARAMS_VALUE_SIZE];
        validation_add(errors, ERR_INVALID_PARAMETER, "/evaluation",
                       "\"evaluation\" is %s; it must be an object with \"gate\"", params_value_text(value, text));
    }
    json_object_foreach((json_t *)value, name, unused)
    {
        if (strcmp(name, "gate") != 0) {
            char pointer[160];
            (void)snprintf(pointer, sizeof(pointer), "/evaluation/%.120s", name);
            validation_add(errors, ERR_UNKNOWN_PARAMETER, pointer,
                           "\"%.80s\" is not a member that a retry can change; of \"evaluation\" it is \"gate\"", name);
        }
    }
}

int spec_retry(const json_t *request, const json_t *body, struct validation_errors *errors, json_t **merged)
{
    AUTO(job_spec) struct job_spec spec = {.metadata = NULL};
    AUTO_JSON json_t *result = json_deep_copy(request);
    const char *name;
    json_t *value;

    if (result == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a retry");
    }
    if (body != NULL && !json_is_object(body)) {
        char text[PARAMS_VALUE_SIZE];
        validation_add(errors, ERR_INVALID_PARAMETER, "", "the body is %s; it must be an object",
                       params_value_text(body, text));
        return validation_raise(errors);
    }
    TRY(spec_parse(request, errors, &spec));
    json_object_foreach((json_t *)body, name, value)
    {
        const struct retry_member *member = retry_find(name);
        if (member == NULL) {
            char pointer[160];
            (void)snprintf(pointer, sizeof(pointer), "/%.150s", name);
            validation_add(errors, ERR_UNKNOWN_PARAMETER, pointer, "\"%.80s\" is not a member that a retry can change",
                           name);
            validation_hint(errors,
                            "quantization, output, evaluation.gate, resources, max_attempts and timeout_seconds can be "
                            "changed; "
                            "create a new job for others");
        } else {
            if (strcmp(name, "evaluation") == 0) {
                check_retry_evaluation(value, errors);
            }
            retry_merge(&spec.recipe, member, value, result);
        }
    }
    TRY(validation_raise(errors));
    *merged = MOVE(result);
    return 0;
}
