/* Options to members of the body, in the order of POST /v1/quantization/jobs. */

#include "cli/jobrequest.h"

#include "base/err.h"
#include "base/json.h"
#include "cli/jobfile.h"
#include "cli/members.h"
#include "cli/models.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

bool jobrequest_is_local(const struct jobrequest *options)
{
    return options->calibration != NULL && strncmp(options->calibration, "file_", 5) != 0;
}

static int set_methods(json_t *body, const struct option_texts *methods)
{
    if (methods->count == 1) {
        return members_text(body, "method", methods->items[0]);
    }
    if (methods->count > 1) {
        json_t *list = json_array();
        for (size_t i = 0; i < methods->count; i++) {
            (void)json_array_append_new(list, json_string(methods->items[i]));
        }
        (void)json_object_set_new(body, "method", list);
    }
    return 0;
}

/* What a job is for says enough: a method need not be named. */
static int set_goal(json_t *body, const struct jobgoal *goal)
{
    if (!jobgoal_given(goal)) {
        return 0;
    }
    if (json_object_get(body, "method") == NULL) {
        TRY(members_text(body, "method", "auto"));
    }
    return jobgoal_members(goal, members_object(body, "recommendation"));
}

static void jobrequest_targets(json_t *body, const struct jobrequest *options)
{
    json_t *list = json_array();

    for (size_t i = 0; i < options->targets.count; i++) {
        (void)json_array_append_new(list, json_string(options->targets.items[i]));
    }
    if (options->targets.count > 0) {
        (void)json_object_set(members_object(body, "output"), "targets", list);
    }
    if (options->devices != OPTION_UNSET) {
        members_int(members_object(body, "output"), "tensor_parallel_size", options->devices);
    }
    json_decref(list);
}

static int set_calibration(json_t *body, const struct jobrequest *options)
{
    const char *file = options->calibration;

    if (file != NULL && strncmp(file, "file_", 5) == 0) {
        TRY(members_text(members_object(body, "calibration"), "file_id", file));
    } else if (file != NULL) {
        (void)json_object_set_new(members_object(body, "calibration"), "stream", json_true());
    }
    if (options->samples != OPTION_UNSET || options->length != OPTION_UNSET) {
        members_int(members_object(body, "calibration"), "num_samples", options->samples);
        members_int(members_object(body, "calibration"), "sequence_length", options->length);
    }
    if (options->evaluation != NULL && strncmp(options->evaluation, "file_", 5) == 0) {
        return members_text(members_object(body, "evaluation"), "file_id", options->evaluation);
    }
    if (options->evaluation != NULL) {
        json_t *fraction = jobfile_scalar(options->evaluation, strlen(options->evaluation));
        if (!json_is_number(fraction)) {
            json_decref(fraction);
            return err_raise(ERR_CONFIG, "--evaluation: \"%.80s\" is neither file_... nor a fraction such as 0.1",
                             options->evaluation);
        }
        (void)json_object_set_new(members_object(body, "evaluation"), "hold_back", fraction);
    }
    return 0;
}

/* The average number of bits that a mixture may have. */
static int set_budget(json_t *body, const char *text)
{
    char *end = NULL;
    double bits = strtod(text, &end);

    if (end == text || *end != '\0' || !isfinite(bits)) {
        return err_raise(ERR_CONFIG, "--bits-per-weight is \"%.40s\"; it must be a number, such as 3.5", text);
    }
    json_t *mixed = members_object(members_object(body, "quantization"), "mixed_precision");
    (void)json_object_set_new(mixed, "bits_per_weight", json_real(bits));
    return 0;
}

/* Options that may be given several times, in the order in which they take effect. */
static int set_lists(json_t *body, const struct jobrequest *options)
{
    for (size_t i = 0; i < options->set.count; i++) {
        TRY(members_set(body, options->set.items[i]));
    }
    for (size_t i = 0; i < options->gate.count; i++) {
        TRY(members_gate(body, options->gate.items[i]));
    }
    for (size_t i = 0; i < options->ladder.count; i++) {
        TRY(members_rung(body, options->ladder.items[i]));
    }
    for (size_t i = 0; i < options->metadata.count; i++) {
        TRY(members_metadata(body, options->metadata.items[i]));
    }
    return 0;
}

int jobrequest_body(const struct jobrequest *options, json_t **out)
{
    AUTO_JSON json_t *body = NULL;

    if (options->file != NULL) {
        TRY(jobfile_read(options->file, &body));
    } else {
        body = json_object();
    }
    TRY(members_text(body, "name", options->name));
    TRY(members_text(body, "model", options->model));
    TRY(members_text(body, "webhook_id", options->webhook));
    TRY(options->model_free ? members_text(body, "mode", "model_free") : 0);
    TRY(set_methods(body, &options->methods));
    TRY(set_goal(body, &options->goal));
    if (options->bits != OPTION_UNSET || options->group_size != OPTION_UNSET) {
        members_int(members_object(body, "quantization"), "bits", options->bits);
        members_int(members_object(body, "quantization"), "group_size", options->group_size);
    }
    TRY(options->budget != NULL ? set_budget(body, options->budget) : 0);
    TRY(options->format != NULL ? members_text(members_object(body, "output"), "format", options->format) : 0);
    jobrequest_targets(body, options);
    TRY(options->device != NULL ? members_text(members_object(body, "resources"), "device", options->device) : 0);
    TRY(set_calibration(body, options));
    TRY(set_lists(body, options));
    members_int(body, "seed", options->seed);
    members_int(body, "priority", options->priority);
    members_int(body, "max_attempts", options->attempts);
    members_int(body, "timeout_seconds", options->timeout);
    *out = MOVE(body);
    return 0;
}

int jobrequest_model(struct cli *cli, json_t *body)
{
    const char *model = json_get_string(body, "model");
    AUTO_JSON json_t *id = NULL;

    if (model == NULL) {
        return json_object_get(body, "model") != NULL
                   ? 0
                   : err_set_hint(err_raise(ERR_CONFIG, "the job has no model"), "--model, or model: in the job file");
    }
    if (strncmp(model, "mdl_", 4) == 0) {
        return 0;
    }
    if (strncasecmp(model, "file:", 5) == 0) {
        id = json_pack("{s:s}", "uri", model);
        (void)json_object_set(body, "model", id);
        return 0;
    }
    TRY(models_find(cli, model, &id));
    (void)json_object_set(body, "model", id);
    return 0;
}
