/* "method": "auto": a job that says what it is for becomes a plain job of the best way that fits, before anything else
 * looks at it. What was asked for, and why it became this, stays in its request as "recommendation". */

#include "base/err.h"
#include "formats/runtimes.h"
#include "jobs/recommend.h"
#include "jobs/recommend_rows.h"
#include "quantizers/quantizer.h"

#include <string.h>

#define POINTER "/recommendation"

/* --- names */

void recommend_goal_names(char *out, size_t size)
{
    out[0] = '\0';
    for (const struct goal_row *g = goals; g->name != NULL; g++) {
        size_t used = strlen(out);
        snprintf(out + used, size - used, "%s%s (%s)", used > 0 ? ", " : "", g->name, g->title);
    }
}

void recommend_accelerator_names(char *out, size_t size)
{
    out[0] = '\0';
    for (const struct accelerator_row *a = accelerators; a->name != NULL; a++) {
        size_t used = strlen(out);
        snprintf(out + used, size - used, "%s%s", used > 0 ? ", " : "", a->name);
    }
    size_t used = strlen(out);
    snprintf(out + used, size - used, "; or its numbers as an object");
}

json_t *recommend_job_schema(void)
{
    static const char *const own[] = {"model", "calibration", NULL}; /* which the job has */
    json_t *schema = recommend_schema(), *required = json_object_get(schema, "required");

    for (int i = 0; own[i] != NULL; i++) {
        json_object_del(json_object_get(schema, "properties"), own[i]);
        for (size_t at = json_array_size(required); at > 0; at--) {
            const char *name = json_string_value(json_array_get(required, at - 1));
            if (strcmp(name, own[i]) == 0) {
                json_array_remove(required, at - 1);
            }
        }
    }
    return schema;
}

/* --- what the job states itself */

static const json_t *stated_quantization(const json_t *job)
{
    const json_t *found = json_object_get(job, "quantization");

    return found != NULL ? found : json_object_get(job, "quantization_config");
}

/* A member that is given by another of its names takes the place of the one that the way has. */
static void state_members(const struct quantizer *quantizer, const json_t *stated, json_t *job, const char *name)
{
    json_t *part = json_object_get(job, name), *value;
    const char *member;

    if (part == NULL && json_is_object(stated)) {
        part = json_object();
        json_object_set_new(job, name, part);
    }
    json_object_foreach((json_t *)stated, member, value)
    {
        const struct params_row *row = quantizer != NULL ? params_find(quantizer->params, member) : NULL;
        if (row != NULL) {
            json_object_del(part, row->name);
        }
        json_object_set(part, member, value);
    }
}

void recommend_state(const json_t *stated, json_t *job)
{
    const char *method = json_string_value(json_object_get(job, "method"));

    state_members(quantizer_find(method), stated_quantization(stated), job, "quantization");
    state_members(NULL, json_object_get(stated, "output"), job, "output");
}

static void check_stated(const json_t *request, struct validation_errors *errors)
{
    const json_t *parts[] = {stated_quantization(request), json_object_get(request, "output")};
    static const char *const names[] = {"quantization", "output"};

    for (int i = 0; i < 2; i++) {
        if (parts[i] != NULL && !json_is_null(parts[i]) && !json_is_object(parts[i])) {
            char at[32], text[PARAMS_VALUE_SIZE];
            snprintf(at, sizeof(at), "/%s", names[i]);
            validation_add(errors, ERR_INVALID_PARAMETER, at, "\"%s\" is %s; it must be an object", names[i],
                           params_value_text(parts[i], text));
        }
    }
    const char *mode = json_string_value(json_object_get(request, "mode"));
    if (mode != NULL && strcmp(mode, spec_modes[SPEC_MODEL_FREE]) == 0) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/mode",
                       "\"mode\" is model_free; \"method\": \"auto\" looks at the model's architecture");
        validation_hint(errors, "name a method");
    }
}

/* --- the way */

/* Who names targets and no runtime asks for the first target's. A target that cannot be read is refused with the job.
 */
static void auto_take_target(const json_t *request, json_t *question)
{
    const json_t *targets = json_object_get(json_object_get(request, "output"), "targets");
    const char *name = json_string_value(json_array_get(targets, 0));
    struct format_target target;

    if (name == NULL || json_object_get(question, "runtime") != NULL) {
        return;
    }
    if (runtime_target_parse(name, &target) == 0) {
        json_object_set_new(question, "runtime", json_string(target.runtime->name));
    }
}

/* What to ask: the job's recommendation, with its model and whether it has records. NULL with an error. */
static json_t *auto_question(const json_t *request, struct validation_errors *errors)
{
    const json_t *given = json_object_get(request, "recommendation"), *model = json_object_get(request, "model");
    const json_t *calibration = json_object_get(request, "calibration");
    static const char *const own[] = {"model", "calibration", NULL};
    char names[300];

    check_stated(request, errors);
    if (model == NULL) {
        validation_add(errors, ERR_MISSING_PARAMETER, "/model", "\"model\" is required");
    }
    if (given == NULL || json_is_null(given)) {
        recommend_goal_names(names, sizeof(names));
        validation_add(errors, ERR_MISSING_PARAMETER, POINTER,
                       "\"recommendation\" is required: \"method\": \"auto\" chooses for a goal and an accelerator");
        validation_hint(errors, "{\"goal\": ..., \"accelerator\": ...}, with goal one of %s", names);
    } else if (!json_is_object(given)) {
        char text[PARAMS_VALUE_SIZE];
        validation_add(errors, ERR_INVALID_PARAMETER, POINTER, "\"recommendation\" is %s; it must be an object",
                       params_value_text(given, text));
    }
    for (int i = 0; own[i] != NULL; i++) {
        if (json_object_get(given, own[i]) != NULL) {
            char at[64];
            snprintf(at, sizeof(at), POINTER "/%s", own[i]);
            validation_add(errors, ERR_UNKNOWN_PARAMETER, at, "\"%s\" is a member of the job, not of this", own[i]);
        }
    }
    if (errors->count > 0) {
        return NULL;
    }
    json_t *question = json_copy((json_t *)given);
    bool stream = json_is_true(json_object_get(calibration, "stream"));
    bool records = stream || json_is_string(json_object_get(calibration, "file_id"));
    json_object_set(question, "model", (json_t *)model);
    json_object_set_new(question, "calibration", json_boolean(records));
    auto_take_target(request, question);
    return question;
}

static void refuse_all(const json_t *ways, struct validation_errors *errors)
{
    const char *goal = json_string_value(json_object_get(ways, "goal"));
    double memory = json_number_value(json_object_get(json_object_get(ways, "accelerator"), "memory_bytes"));
    const json_t *way;
    size_t i;

    validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, POINTER "/goal",
                   "none of the ways of \"%s\" can be taken; the next errors say why", goal);
    validation_hint(errors, "another goal, runtime or accelerator, a smaller batch, or a method by its name");
    json_array_foreach(json_object_get(ways, "choices"), i, way)
    {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, POINTER "/accelerator",
                       "%s: weights of %.4g GB, with keys and values of %.4g GB, do not fit in nine tenths of %.4g GB",
                       json_string_value(json_object_get(way, "name")),
                       json_number_value(json_object_get(way, "weights_bytes")) / 1e9,
                       json_number_value(json_object_get(way, "kv_cache_bytes")) / 1e9, memory / 1e9);
    }
    json_array_foreach(json_object_get(ways, "left_out"), i, way)
    {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, POINTER, "%s: %s",
                       json_string_value(json_object_get(way, "name")),
                       json_string_value(json_object_get(way, "reason")));
    }
}

/* The request as a plain job, and what it was. */
static void take_way(const json_t *ways, const json_t *way, json_t *request)
{
    static const char *const asked[] = {"goal", "runtime", "batch", "prompt_tokens", "output_tokens", NULL};
    static const char *const told[] = {"reason", "caution", NULL};
    const json_t *job = json_object_get(way, "job");
    json_t *kept = json_object();

    for (int i = 0; asked[i] != NULL; i++) {
        json_object_set(kept, asked[i], json_object_get(ways, asked[i]));
    }
    json_object_set(kept, "accelerator", json_object_get(json_object_get(request, "recommendation"), "accelerator"));
    json_object_set(kept, "choice", json_object_get(way, "name"));
    for (int i = 0; told[i] != NULL; i++) {
        json_object_set(kept, told[i], json_object_get(way, told[i]));
    }
    json_object_set_new(request, "recommendation", kept);
    json_object_set(request, "method", json_object_get(job, "method"));
    json_object_del(request, "quantization_config");
    if (json_object_get(job, "quantization") != NULL) {
        json_object_set(request, "quantization", json_object_get(job, "quantization"));
    }
    json_object_set(request, "output", json_object_get(job, "output"));
}

static int auto_resolve(struct service *service, const struct principal *who, json_t *request,
                        struct validation_errors *errors)
{
    AUTO_JSON json_t *question = auto_question(request, errors);
    AUTO_JSON json_t *ways = NULL;
    const char *device = json_string_value(json_object_get(json_object_get(request, "resources"), "device"));
    struct gpu_info info;

    TRY(validation_raise(errors));
    bool known = supervisor_device_of(service, device != NULL ? device : "auto", &info) == 0; /* else refused later */
    const struct recommend_ask ask = {
        .body = question, .pointer = POINTER, .stated = request, .device = known ? &info : NULL};
    TRY(recommend_ways(service, who, &ask, errors, &ways));
    const json_t *way = json_array_get(json_object_get(ways, "choices"), 0); /* what fits comes first */
    if (!json_is_true(json_object_get(way, "fits"))) {
        refuse_all(ways, errors);
        return validation_raise(errors);
    }
    take_way(ways, way, request);
    return 0;
}

int recommend_resolve(struct service *service, const struct principal *who, json_t *request,
                      struct validation_errors *errors)
{
    const char *method = json_string_value(json_object_get(request, "method"));
    const json_t *given = json_object_get(request, "recommendation");

    if (method != NULL && strcmp(method, "auto") == 0) {
        return auto_resolve(service, who, request, errors);
    }
    if (given != NULL && !json_is_null(given)) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, POINTER,
                       "\"recommendation\" is what \"method\": \"auto\" chooses by; the job names its method");
        validation_hint(errors, "leave out one of the two");
    }
    return validation_raise(errors);
}
