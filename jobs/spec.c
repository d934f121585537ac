/* Request bodies: option rows for each part, then the cross-field rules that rows cannot say.
 *
 * The same parser reads a client's body and, later, the stored canonical request, so a job runs exactly what was
 * accepted. Unknown members are errors: a typo in group_size must not cost hours. */

#include "jobs/spec.h"

#include "base/err.h"
#include "pipeline/names.h"

#include <stdlib.h>
#include <string.h>

struct top {
    char name[128], webhook_id[ID_SIZE];
    json_t *model, *method, *quantization, *output, *calibration, *evaluation, *resources, *metadata, *recommendation;
    int64_t seed, priority, max_attempts, timeout_seconds, expires_after_seconds;
    int mode;
};

#define ROW(type_, struct_, member, fallback_, ...)                                            \
    {                                                                                          \
        .name = #member, .type = (type_), .offset = offsetof(struct struct_, member),          \
        .size = sizeof(((struct struct_ *)NULL)->member), .fallback = (fallback_), __VA_ARGS__ \
    }

const char *const spec_modes[] = {"auto", "architecture", "model_free", NULL};
static const char *const quantization_names[] = {"quantization_config", NULL};
static const char *const sample_names[] = {"num_calibration_samples", "nsamples", NULL};
static const char *const length_names[] = {"max_seq_length", "seqlen", NULL};

static const struct params_row calibration_rows[] = {
    ROW(PARAMS_STRING, spec_calibration, file_id, "null", .id = "file", .help = "A file of purpose calibration."),
    ROW(PARAMS_BOOL, spec_calibration, stream, "false",
        .help = "Records come through POST /v1/quantization/jobs/{job_id}/calibration."),
    ROW(PARAMS_INT, spec_calibration, num_samples, "128", .min = 0, .max = 1048576, .aliases = sample_names,
        .help = "Sequences to use; 0 = all there are."),
    ROW(PARAMS_INT, spec_calibration, sequence_length, "0", .min = 0, .max = 1048576, .aliases = length_names,
        .help = "Tokens of a sequence; 0 = the smaller of 2048 and the model's positions."),
    ROW(PARAMS_STRING, spec_calibration, text_field, "\"text\"",
        .help = "The member of a record that holds its text; records may have messages or input_ids instead."),
    ROW(PARAMS_BOOL, spec_calibration, add_special_tokens, "true",
        .help = "Put around a text what the tokenizer's template adds (BOS); false for text that has it already."),
    ROW(PARAMS_BOOL, spec_calibration, packing, "true",
        .help = "Lay records end to end and cut; else one window a record, shorter records dropped."),
    ROW(PARAMS_BOOL, spec_calibration, shuffle, "true", .help = "Draw records in an order given by seed."),
    ROW(PARAMS_INT, spec_calibration, report_tokens, "1024", .min = 0, .max = 1e12,
        .help = "Tokens, in complete sequences spread over the set, that the report's output errors are measured on "
                "where no code and no scale depends on inputs; 0 = all. Other jobs use all."),
    {.name = NULL},
};

static const struct params_row evaluation_rows[] = {
    ROW(PARAMS_STRING, spec_evaluation, file_id, "null", .id = "file",
        .help = "A file of purpose evaluation; without one the tail of the calibration set is held back."),
    ROW(PARAMS_NUMBER, spec_evaluation, hold_back, "0.125", .min = 0, .max = 0.5,
        .help = "Fraction of the calibration sequences held back when there is no file; 0 = no evaluation."),
    ROW(PARAMS_INT, spec_evaluation, max_tokens, "262144", .min = 2, .max = 1e9, .help = "Tokens to evaluate at most."),
    ROW(PARAMS_INT, spec_evaluation, sequence_length, "0", .min = 0, .max = 1048576,
        .help = "Tokens of a window of the file; 0 = the calibration's."),
    ROW(PARAMS_STRING, spec_evaluation, text_field, "\"text\"",
        .help = "The member of a record that holds its text; records may have messages or input_ids instead."),
    ROW(PARAMS_BOOL, spec_evaluation, add_special_tokens, "true",
        .help = "Put around a text what the tokenizer's template adds (BOS); false for text that has it already."),
    ROW(PARAMS_JSON, spec_evaluation, gate, "null", .quiet = true, .parts = gate_tables,
        .help = "Limits that the quantized model must keep for the job to succeed, and what to try when it does not."),
    {.name = NULL},
};

static const struct params_row output_rows[] = {
    ROW(PARAMS_STRING, spec_output, format, "null",
        .help = "Artifact format, from GET /v1/system; when not given, the first of these that carries the result."),
    ROW(PARAMS_INT, spec_output, max_shard_bytes, "1073741824", .min = 1048576, .max = 1e12,
        .help = "Size at which a new shard begins."),
    ROW(PARAMS_SWITCH, spec_output, sign, "null", .quiet = true,
        .help = "Sign the artifact (model.sig); null = if the daemon has a key."),
    ROW(PARAMS_STRINGS, spec_output, targets, "null", .quiet = true,
        .help = "Runtimes that must load the artifact, from GET /v1/runtimes: vllm, vllm>=0.32 (that version and all "
                "later ones) or vllm==0.33.0 (that one alone)."),
    ROW(PARAMS_INT, spec_output, tensor_parallel_size, "1", .min = 1, .max = RUNTIME_TENSOR_PARALLEL_MAX, .quiet = true,
        .help = "Devices that the targets divide the model over."),
    {.name = NULL},
};

static const struct params_row resources_rows[] = {
    ROW(PARAMS_STRING, spec_resources, device, "\"auto\"", .help = "auto, cpu or cuda:N."),
    ROW(PARAMS_INT, spec_resources, host_memory_bytes, "0", .min = 0, .max = 1e15,
        .help = "Activations kept in memory before they spill to disk; 0 = the daemon's budget."),
    {.name = NULL},
};

static const struct params_row *const calibration_tables[] = {calibration_rows, NULL};
static const struct params_row *const evaluation_tables[] = {evaluation_rows, NULL};
static const struct params_row *const output_tables[] = {output_rows, NULL};
static const struct params_row *const resources_tables[] = {resources_rows, NULL};

static const struct params_row top_rows[] = {
    ROW(PARAMS_STRING, top, name, "\"\"", .help = "A name for people; need not be unique."),
    ROW(PARAMS_JSON, top, model, NULL, .id = "mdl",
        .help = "Id of a registered model, or a registration: {\"uri\": ...}."),
    ROW(PARAMS_JSON, top, method, NULL,
        .help =
            "A method's name from GET /v1/methods, or a list: the last one quantizes, those before it only rewrite; "
            "auto: what \"recommendation\" leads to."),
    ROW(PARAMS_JSON, top, quantization, "null", .aliases = quantization_names, .help = "The method's parameters."),
    ROW(PARAMS_ENUM, top, mode, "\"auto\"", .choices = spec_modes,
        .help =
            "architecture: block by block, which the model's architecture must be known for; model_free: from names "
            "and shapes alone, without calibration; auto: the first that is possible."),
    ROW(PARAMS_JSON, top, output, "null", .parts = output_tables, .help = "What to write."),
    ROW(PARAMS_JSON, top, calibration, "null", .parts = calibration_tables,
        .help = "The inputs that the method learns from."),
    ROW(PARAMS_JSON, top, evaluation, "null", .parts = evaluation_tables,
        .help = "The text that perplexity and KL are measured on."),
    ROW(PARAMS_JSON, top, resources, "null", .parts = resources_tables, .help = "Device and memory."),
    ROW(PARAMS_INT, top, seed, "0", .min = 0, .max = 9007199254740991.0, .help = "Seed of every random choice."),
    ROW(PARAMS_INT, top, priority, "0", .min = -100, .max = 100, .help = "Higher runs first."),
    ROW(PARAMS_INT, top, max_attempts, "3", .min = 1, .max = 100,
        .help = "Attempts without a newly finished block before the job fails."),
    ROW(PARAMS_INT, top, timeout_seconds, "86400", .min = 1, .max = 31536000, .help = "Running time allowed."),
    ROW(PARAMS_INT, top, expires_after_seconds, "604800", .min = 1, .max = 31536000,
        .help = "Time for the calibration to become complete, after which a job that waits for it expires."),
    ROW(PARAMS_STRING, top, webhook_id, "null", .id = "wh",
        .help = "A webhook that is told of the job's end, in addition to those that are told of every job."),
    ROW(PARAMS_JSON, top, metadata, "null", .help = "Up to 16 string members of the client's own."),
    ROW(PARAMS_JSON, top, recommendation, "null", .help = "Of method auto: what the artifact is for."),
    {.name = NULL},
};

static const struct params_row *const top_tables[] = {top_rows, NULL};

static void parse_part(const struct params_row *const *tables, const json_t *object, const char *pointer, void *out,
                       struct validation_errors *errors)
{
    (void)params_parse(tables, object, pointer, out, errors);
}

void spec_check_metadata(const json_t *metadata, struct validation_errors *errors)
{
    const char *key;
    json_t *value;

    if (metadata == NULL) {
        return;
    }
    if (!json_is_object(metadata) || json_object_size(metadata) > 16) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/metadata",
                       "\"metadata\" must be an object of at most 16 members");
        return;
    }
    json_object_foreach((json_t *)metadata, key, value)
    {
        if (!json_is_string(value) || strlen(key) > 64 || json_string_length(value) > 512) {
            validation_add(errors, ERR_INVALID_PARAMETER, "/metadata",
                           "\"%.64s\" must be a string of at most 512 bytes under a name of at most 64", key);
        }
    }
}

static void refuse_file_id(const char *pointer, const char *id, struct validation_errors *errors)
{
    validation_add(errors, ERR_INVALID_PARAMETER, pointer,
                   "\"file_id\" is \"%s\"; it must be the id of a file (file_...)", id);
    validation_hint(errors, "POST /v1/files stores a file and answers its id");
}

static void spec_refuse_length(const char *pointer, struct validation_errors *errors)
{
    validation_add(
        errors, ERR_INVALID_PARAMETER, pointer,
        "\"sequence_length\" is 1; it must be 0 (choose for me) or at least 2, since a token is predicted from "
        "those before it");
}

/* A gate judges by what is measured on evaluation text. */
static void check_gate(const struct job_spec *spec, struct validation_errors *errors)
{
    const struct spec_evaluation *e = &spec->evaluation;
    bool evaluates = e->file_id[0] != '\0' || (spec_has_calibration(spec) && e->hold_back > 0);

    if (!spec->gate.asked) {
        return;
    }
    if (!evaluates) {
        validation_add(errors, ERR_MISSING_PARAMETER, "/evaluation/file_id",
                       "\"gate\" needs text to measure on: evaluation.file_id is not given, and no calibration "
                       "sequences are held back");
        validation_hint(errors, "evaluation.file_id, or calibration with evaluation.hold_back above 0");
    }
    if (spec->recipe.count > 0 && recipe_analyses(&spec->recipe)) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/evaluation/gate",
                       "\"gate\" does nothing: %s changes no model that could be evaluated", spec->recipe.name);
    }
    for (int i = 0; i < spec->gate.ladder_count; i++) {
        const struct recipe *rung = &spec->gate.ladder[i];
        char pointer[64];
        (void)snprintf(pointer, sizeof(pointer), "/evaluation/gate/ladder/%d/method", i);
        if (recipe_analyses(rung)) {
            validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, pointer, "%s makes no model", rung->name);
        } else if (recipe_needs_calibration(rung) && !spec_has_calibration(spec)) {
            validation_add(errors, ERR_MISSING_PARAMETER, "/calibration",
                           "\"calibration\" is required: %s, rung %d of the ladder, learns from the inputs of the "
                           "model's linears",
                           rung->name, i + 1);
        }
    }
}

/* Why a job of the recipe cannot do without records. */
static void calibration_reason(const struct recipe *recipe, char out[160])
{
    if (recipe->mixture != NULL) {
        snprintf(out, 160, "mixed_precision measures what each linear loses on these records");
    } else if (recipe->cache.element != DTYPE_F32) {
        snprintf(out, 160, "kv_cache takes its scales from the keys and values of these records");
    } else {
        snprintf(out, 160, "%.80s learns from the inputs of the model's linears", recipe->name);
    }
}

static void check_data(const struct job_spec *spec, struct validation_errors *errors)
{
    const struct spec_calibration *c = &spec->calibration;

    if (c->stream && c->file_id[0] != '\0') {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/calibration/stream",
                       "\"stream\" is true and \"file_id\" is given: records come from one of them");
        validation_hint(errors, "leave out file_id or stream");
    }
    if (spec->recipe.count > 0 && recipe_needs_calibration(&spec->recipe) && !spec_has_calibration(spec)) {
        char reason[160];
        calibration_reason(&spec->recipe, reason);
        validation_add(errors, ERR_MISSING_PARAMETER, "/calibration", "\"calibration\" is required: %s", reason);
        validation_hint(errors,
                        "\"calibration\": {\"file_id\": a file of purpose calibration}, or {\"stream\": true} and "
                        "POST the records to the job");
    }
    if (c->file_id[0] != '\0' && !id_valid(c->file_id, "file")) {
        refuse_file_id("/calibration/file_id", c->file_id, errors);
    }
    if (spec->evaluation.file_id[0] != '\0' && !id_valid(spec->evaluation.file_id, "file")) {
        refuse_file_id("/evaluation/file_id", spec->evaluation.file_id, errors);
    }
    if (spec->evaluation.file_id[0] != '\0' && spec->recipe.count > 0 && recipe_analyses(&spec->recipe)) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/evaluation/file_id",
                       "\"file_id\" does nothing: %s changes no model that could be evaluated", spec->recipe.name);
        validation_hint(errors, "leave \"evaluation\" out");
    }
    if (spec->evaluation.file_id[0] == '\0' && spec->evaluation.sequence_length > 0) {
        validation_add(
            errors, ERR_INCOMPATIBLE_OPTIONS, "/evaluation/sequence_length",
            "\"sequence_length\" needs an evaluation.file_id: a held-back tail has the calibration's length");
    }
    if (spec->webhook_id[0] != '\0' && !id_valid(spec->webhook_id, "wh")) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/webhook_id",
                       "\"webhook_id\" is \"%s\"; it must be the id of a webhook (wh_...)", spec->webhook_id);
        validation_hint(errors, "GET /v1/webhooks lists them");
    }
    if (c->sequence_length == 1) {
        spec_refuse_length("/calibration/sequence_length", errors);
    }
    if (spec->evaluation.sequence_length == 1) {
        spec_refuse_length("/evaluation/sequence_length", errors);
    }
}

static void parse_model(const struct top *top, struct job_spec *spec, struct validation_errors *errors)
{
    if (top->model == NULL) {
        return; /* reported as missing by its row */
    }
    const char *id = json_string_value(top->model);
    if (id == NULL || !id_valid(id, "mdl")) {
        char text[PARAMS_VALUE_SIZE];
        validation_add(errors, ERR_INVALID_PARAMETER, "/model",
                       "\"model\" is %s; it must be the id of a model (mdl_...)", params_value_text(top->model, text));
        validation_hint(errors, "POST /v1/models registers a checkpoint and answers its id");
        return;
    }
    snprintf(spec->model, sizeof(spec->model), "%s", id);
}

int spec_parse(const json_t *body, struct validation_errors *errors, struct job_spec *out)
{
    struct job_spec spec = {0};
    struct top top = {0};
    const char *name;

    if (!json_is_object(body)) {
        char text[PARAMS_VALUE_SIZE];
        validation_add(errors, ERR_INVALID_PARAMETER, "", "the body is %s; it must be an object",
                       params_value_text(body, text));
        return validation_raise(errors);
    }
    if (params_parse(top_tables, body, "", &top, errors) == 0) {
        snprintf(spec.name, sizeof(spec.name), "%s", top.name);
        snprintf(spec.webhook_id, sizeof(spec.webhook_id), "%s", top.webhook_id);
        spec.mode = (enum spec_mode)top.mode;
        spec.seed = top.seed;
        spec.priority = top.priority;
        spec.max_attempts = top.max_attempts;
        spec.timeout_seconds = top.timeout_seconds;
        spec.expires_after_seconds = top.expires_after_seconds;
    } else {
        /* The rows gave nothing back; look at the parts all the same, to name every error at once. */
        top.model = json_incref(json_object_get(body, "model"));
        top.quantization = json_incref(params_member(params_find(top_tables, "quantization"), body, &name));
        top.calibration = json_incref(json_object_get(body, "calibration"));
        top.evaluation = json_incref(json_object_get(body, "evaluation"));
        top.output = json_incref(json_object_get(body, "output"));
        top.resources = json_incref(json_object_get(body, "resources"));
        top.method = json_incref(json_object_get(body, "method"));
    }
    parse_model(&top, &spec, errors);
    parse_part(output_tables, top.output, "/output", &spec.output, errors);
    targets_parse(spec.output.targets, spec.output.tensor_parallel_size, &spec.targets, errors);
    json_t *filled = targets_defaults(&spec.targets, spec.output.format, top.method, top.quantization, spec.group_note);
    if (filled != NULL) {
        json_decref(top.quantization);
        top.quantization = filled;
    }
    if (top.method != NULL) { /* its absence is reported by its row */
        (void)recipe_parse(top.method, top.quantization, "/method", "/quantization", errors, &spec.recipe);
    }
    parse_part(calibration_tables, top.calibration, "/calibration", &spec.calibration, errors);
    parse_part(evaluation_tables, top.evaluation, "/evaluation", &spec.evaluation, errors);
    gate_parse(spec.evaluation.gate, top.method, top.quantization, errors, &spec.gate);
    parse_part(resources_tables, top.resources, "/resources", &spec.resources, errors);
    spec_check_metadata(top.metadata, errors);
    spec.metadata = json_incref(top.metadata);
    if (spec.output.format[0] != '\0') {
        spec.format = names_format(spec.output.format, "/output/format", errors);
        snprintf(spec.output.format, sizeof(spec.output.format), "%s", spec.format != NULL ? spec.format->name : "");
    }
    if (top.recommendation != NULL && !json_is_object(top.recommendation)) {
        validation_add(errors, ERR_INVALID_PARAMETER, "/recommendation", "\"recommendation\" must be an object");
    }
    spec.recommendation = json_incref(top.recommendation);
    check_data(&spec, errors);
    check_gate(&spec, errors);
    params_release(top_tables, &top);
    if (errors->count > 0) {
        spec_deinit(&spec);
        return validation_raise(errors);
    }
    *out = spec;
    return 0;
}

void spec_deinit(struct job_spec *spec)
{
    recipe_deinit(&spec->recipe);
    gate_deinit(&spec->gate);
    params_release(evaluation_tables, &spec->evaluation);
    params_release(output_tables, &spec->output);
    json_decref(spec->metadata);
    json_decref(spec->recommendation);
    memset(spec, 0, sizeof(*spec));
}

/* A gate is stored as what it was understood to be. */
static json_t *spec_evaluation_json(const struct job_spec *spec)
{
    json_t *evaluation = params_json(evaluation_tables, &spec->evaluation);

    if (spec->gate.asked && evaluation != NULL) {
        json_object_set_new(evaluation, "gate", gate_json(&spec->gate, &spec->recipe));
    }
    return evaluation;
}

void spec_use_rung(struct job_spec *spec, int rung)
{
    const int moves[] = {spec->rung, rung}; /* back to the request's own, then to the rung */

    for (size_t i = 0; i < sizeof(moves) / sizeof(moves[0]); i++) {
        if (moves[i] > 0) {
            struct recipe *other = &spec->gate.ladder[moves[i] - 1], recipe = spec->recipe;
            spec->recipe = *other;
            *other = recipe;
        }
    }
    spec->rung = rung;
}

json_t *spec_json(const struct job_spec *spec)
{
    return json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:s?, s:O?, s:s, s:O*}", "name",
                     spec->name, "model", spec->model, "method", recipe_method_json(&spec->recipe), "quantization",
                     recipe_parameters_json(&spec->recipe), "output", params_json(output_tables, &spec->output),
                     "calibration", params_json(calibration_tables, &spec->calibration), "evaluation",
                     spec_evaluation_json(spec), "resources", params_json(resources_tables, &spec->resources), "seed",
                     (json_int_t)spec->seed, "priority", (json_int_t)spec->priority, "max_attempts",
                     (json_int_t)spec->max_attempts, "timeout_seconds", (json_int_t)spec->timeout_seconds,
                     "expires_after_seconds", (json_int_t)spec->expires_after_seconds, "webhook_id",
                     spec->webhook_id[0] != '\0' ? spec->webhook_id : NULL, "metadata", spec->metadata, "mode",
                     spec_modes[spec->mode], "recommendation", spec->recommendation);
}

enum model_reading spec_reading(const struct job_spec *spec)
{
    static const enum model_reading readings[] = {
        [SPEC_AUTO] = MODEL_AUTO, [SPEC_ARCHITECTURE] = MODEL_KNOWN, [SPEC_MODEL_FREE] = MODEL_BARE};

    return readings[spec->mode];
}

bool spec_has_calibration(const struct job_spec *spec)
{
    return spec->calibration.stream || spec->calibration.file_id[0] != '\0';
}

int64_t spec_sequence_length(const struct job_spec *spec, const struct model_config *config)
{
    if (spec->calibration.sequence_length > 0) {
        return spec->calibration.sequence_length;
    }
    return config->max_position > 0 && config->max_position < 2048 ? config->max_position : 2048;
}

int64_t spec_passing_sequences(const struct job_spec *spec, int64_t sequences, int64_t length)
{
    int64_t tokens = spec->calibration.report_tokens;

    if (tokens == 0 || length < 1 || !recipe_data_free(&spec->recipe)) {
        return sequences;
    }
    int64_t wanted = tokens / length + (tokens % length != 0);
    return wanted < sequences ? wanted : sequences;
}

json_t *spec_schema(void)
{
    return params_schema(top_tables);
}

json_t *spec_quantization_schema(const struct quantizer *quantizer)
{
    return params_schema(quantizer->params);
}
