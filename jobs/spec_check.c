/* A request held against its model, from headers alone: a job that cannot finish is refused before it is accepted. */

#include "jobs/spec.h"

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "models/block_grad.h"
#include "pipeline/check.h"
#include "pipeline/mixture.h"
#include "pipeline/run_plan.h"
#include "quantizers/tune.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct memory_load spec_load(const struct job_spec *spec, const struct model_config *config)
{
    int64_t length = spec_sequence_length(spec, config), other = spec->evaluation.sequence_length;

    return (struct memory_load){
        .recipe = &spec->recipe,
        .calibrates = spec_has_calibration(spec),
        .evaluates =
            spec->evaluation.file_id[0] != '\0' || (spec_has_calibration(spec) && spec->evaluation.hold_back > 0),
        .sequences = spec->calibration.num_samples,
        .sequence_length = length,
        .longest = length > other ? length : other,
    };
}

/* What a run takes at least. A device with memory of its own can do with one sequence at a time and nothing read ahead;
 * where it computes in the host's memory, the micro-batch stays as it is. Activations are elsewhere. */
static int least_memory(const struct job_spec *spec, const struct model *model, const struct gpu_info *device,
                        int64_t *bytes)
{
    const struct memory_load load = spec_load(spec, model_config(model));
    int64_t sequences = spec->calibration.num_samples > 0 ? spec->calibration.num_samples : device->batch_tokens;
    const struct run_load run = {.recipe = &spec->recipe,
                                 .format = spec->format,
                                 .sequences = load.calibrates ? sequences : 0,
                                 .length = load.calibrates ? load.sequence_length : 0};
    struct run_plan plan;

    if (!device->host_memory) {
        const struct memory_plan least = memory_plan(&load, model, device, 0);
        *bytes = memory_plan_min(&least);
        return 0;
    }
    TRY(run_plan_make(&run, model, device, 0, &plan));
    *bytes = run_plan_peak(&plan).device;
    return 0;
}

/* Refused is what cannot run at all. */
static void check_memory(const struct job_spec *spec, const struct model *model, const struct gpu_info *device,
                         struct validation_errors *errors)
{
    int64_t need = 0;

    int rc = least_memory(spec, model, device, &need);
    if (rc != 0) {
        const struct err_record why = *err_last();
        validation_add(errors, rc, why.param, "%s", why.message);
    } else if (device->memory_total > 0 && need > device->memory_total) {
        const double sizes[] = {(double)need, (double)device->memory_total};
        const struct bytes_unit unit = bytes_unit_of(sizes, 2);
        char least[BYTES_SIZE], total[BYTES_SIZE];
        validation_add(errors, ERR_INSUFFICIENT_MEMORY, "/resources/device",
                       "this model's blocks need about %s at a time and %s has %s", bytes_in(&unit, sizes[0], least),
                       device->id, bytes_in(&unit, sizes[1], total));
        validation_hint(errors, "a device or host with more memory; activations between blocks are not counted here");
    }
}

static void refuse_length(const char *pointer, int64_t length, int64_t positions, struct validation_errors *errors)
{
    validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, pointer,
                   "\"sequence_length\" is %lld; the model has %lld positions, and no sequence can be longer",
                   (long long)length, (long long)positions);
    validation_hint(errors, "%lld or less; 0 = the smaller of 2048 and the model's positions", (long long)positions);
}

/* Lengths that were left to the model are filled in, so that the job says what it uses. */
static void check_lengths(struct job_spec *spec, const struct model *model, struct validation_errors *errors)
{
    const struct model_config *config = model_config(model);

    spec->calibration.sequence_length = spec_sequence_length(spec, config);
    if (spec->evaluation.sequence_length == 0 && spec->evaluation.file_id[0] != '\0') {
        spec->evaluation.sequence_length = spec->calibration.sequence_length;
    }
    if (config->max_position > 0 && spec->calibration.sequence_length > config->max_position) {
        refuse_length("/calibration/sequence_length", spec->calibration.sequence_length, config->max_position, errors);
    }
    if (config->max_position > 0 && spec->evaluation.sequence_length > config->max_position) {
        refuse_length("/evaluation/sequence_length", spec->evaluation.sequence_length, config->max_position, errors);
    }
}

/* Runtimes keep the narrow row of latent attention (models/arch.h) in their caches, or the keys and values that it
 * makes, and no artifact says which of the two a scale is for: vLLM would take that of keys for the row's. */
static void check_cache(const struct job_spec *spec, const struct model *model, struct validation_errors *errors)
{
    const struct recipe *recipe = &spec->recipe;
    const struct quantizer *last = recipe->stages[recipe->count - 1].quantizer;
    bool own = last->solve == NULL && !last->measures; /* a method for nothing else */

    if (model_config(model)->latent.rank == 0 || (!own && recipe->cache.element == DTYPE_F32)) {
        return;
    }
    validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, own ? "/method" : "/quantization/kv_cache",
                   "%s is about the keys and values that attention reads; of a %.100s, runtimes such as vLLM keep the "
                   "latent row that these are made from, and its scales are others",
                   own ? recipe->name : "\"kv_cache\"", model_config(model)->arch->name);
    validation_hint(errors, "%s", own ? "a method that quantizes weights" : "leave it out");
}

/* Gradients go from block to block through the residual stream alone. */
static void check_end_to_end(const struct job_spec *spec, const struct model *model, struct validation_errors *errors)
{
    const struct plans *plans = model_plans(model);
    struct tune_model_plan unused;

    for (int64_t i = 0; recipe_end_to_end(&spec->recipe, &unused) && i < model_config(model)->num_layers; i++) {
        const struct plan *plan = plans_layer(plans, i);
        if (plan->inputs != PLAN_BIT(0) || plan->given != 0) {
            validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/quantization/end_to_end",
                           "layers of this %.100s give values to later layers, through which end_to_end does not learn",
                           model_config(model)->arch->name);
            return;
        }
    }
}

/* What learns needs the backward pass of every step of a layer. */
static void check_tuner(const struct job_spec *spec, const struct model *model, struct validation_errors *errors)
{
    const struct recipe_stage *tuner = recipe_tuner(&spec->recipe);
    const char *reason = "";

    if (tuner == NULL || plans_differentiable(model_plans(model), &reason)) {
        return;
    }
    validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/method",
                   "%s learns by gradients, and layers of this %.100s have %s, which has no backward pass here",
                   tuner->quantizer->name, model_config(model)->arch->name, reason);
    validation_hint(errors, "gptq, which needs none");
}

/* Output moments: a backward pass of the float model as it is. */
static void check_output_moments(const struct job_spec *spec, const struct model *model,
                                 struct validation_errors *errors)
{
    static const char at[] = "/quantization/output_moments";
    const char *reason = "";

    if (recipe_output_tokens(&spec->recipe) == 0) {
        return;
    }
    if (!plans_differentiable(model_plans(model), &reason)) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                       "\"output_moments\" needs gradients, and layers of this %.100s have %s, which has no backward "
                       "pass here",
                       model_config(model)->arch->name, reason);
        validation_hint(errors, "leave it out");
    } else if (recipe_rewrites(&spec->recipe)) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                       "\"output_moments\" are those of the model as it is; %s changes its weights before they are "
                       "solved",
                       spec->recipe.stages[0].quantizer->name);
        validation_hint(errors, "the method gptq alone");
    }
}

/* A static input scale is what the calibration set reached. */
static void check_inputs(const struct job_spec *spec, const struct format_module *modules, int count,
                         struct validation_errors *errors)
{
    for (int i = 0; i < count; i++) {
        const struct gpu_input *input = &modules[i].scheme.input;
        if (input->element != DTYPE_F32 && !input->dynamic && !spec_has_calibration(spec)) {
            validation_add(errors, ERR_MISSING_PARAMETER, "/calibration",
                           "\"calibration\" is required: static input scales are measured on it");
            validation_hint(errors, "calibration.file_id, or calibration.stream = true");
            return;
        }
    }
}

/* Methods that need no inputs, "rtn, fp8, nf4". */
static void list_data_free(char *out, size_t size)
{
    out[0] = '\0';
    for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
        size_t used = strlen(out);
        if ((*q)->stats == STATS_NONE && (*q)->rewrite == NULL && (*q)->solve != NULL) {
            snprintf(out + used, size - used, "%s%s", used > 0 ? ", " : "", (*q)->name);
        }
    }
}

static void refuse_forward(const struct model *model, const char *pointer, const char *what,
                           struct validation_errors *errors)
{
    char methods[160];

    list_data_free(methods, sizeof(methods));
    validation_add(errors, ERR_UNSUPPORTED_ARCHITECTURE, pointer,
                   "%.100s needs a forward pass, and there is none for this %.100s: %.300s", what,
                   model_config(model)->arch->name, model_bare_reason(model));
    validation_hint(errors,
                    "\"calibration\": null and no \"evaluation\", with one of the methods %s, whose parameters ask "
                    "for no inputs",
                    methods);
}

/* Whether the request is possible without a forward pass; its mode becomes the model's. */
static bool check_mode(struct job_spec *spec, const struct model *model, struct validation_errors *errors)
{
    size_t before = errors->count;

    spec->mode = model_is_bare(model) ? SPEC_MODEL_FREE : SPEC_ARCHITECTURE;
    if (!model_is_bare(model)) {
        return true;
    }
    if (recipe_needs_calibration(&spec->recipe)) {
        refuse_forward(model, "/method", spec->recipe.name, errors);
    } else if (spec_has_calibration(spec)) {
        refuse_forward(model, "/calibration", "\"calibration\"", errors);
    }
    if (spec->evaluation.file_id[0] != '\0') {
        refuse_forward(model, "/evaluation/file_id", "\"evaluation\"", errors);
    } else if (spec->gate.asked) {
        refuse_forward(model, "/evaluation/gate", "\"gate\"", errors);
    }
    return errors->count == before;
}

/* The format, which the targets take part in choosing, and whether they load what it makes. */
static void check_output(struct job_spec *spec, const struct model *model, struct format_module *modules, int count,
                         struct validation_errors *errors)
{
    const struct format *given = spec->format, *usual = given;
    AUTO_JSON json_t *parameters = recipe_parameters_json(&spec->recipe);
    size_t before = errors->count;

    if (given == NULL && spec->targets.count > 0) {
        struct validation_errors *none = calloc(1, sizeof(*none));
        if (none != NULL) {
            check_format(&spec->recipe, &usual, model, modules, count, NULL, none);
        }
        free(none);
    }
    check_format(&spec->recipe, &spec->format, model, modules, count, &spec->targets, errors);
    if (given == NULL && spec->targets.count > 0 && usual != spec->format) {
        snprintf(spec->format_note, sizeof(spec->format_note), "format %s was chosen, the first that %s",
                 spec->format->name, spec->targets.count == 1 ? spec->targets.items[0].runtime->name : "all targets");
        size_t used = strlen(spec->format_note);
        snprintf(spec->format_note + used, sizeof(spec->format_note) - used, " load%s",
                 spec->targets.count == 1 ? "s" : "");
    }
    snprintf(spec->output.format, sizeof(spec->output.format), "%s", spec->format->name);
    bool carried = errors->count == before;
    check_inputs(spec, modules, count, errors);
    if (carried && !recipe_analyses(&spec->recipe)) {
        const struct format_config config = {.modules = modules,
                                             .count = count,
                                             .model = model,
                                             .method = spec->recipe.name,
                                             .parameters = parameters,
                                             .cache = spec->recipe.cache};
        targets_check(&spec->targets, &spec->recipe, spec->format, &config, errors);
    }
}

void spec_warn_targets(const struct job_spec *spec, json_t *warnings)
{
    const char *const notes[] = {spec->group_note, spec->format_note};

    for (size_t i = 0; i < sizeof(notes) / sizeof(notes[0]); i++) {
        if (notes[i][0] != '\0') {
            json_array_append_new(warnings, json_pack("{s:s, s:s}", "code", "chosen_for_target", "message", notes[i]));
        }
    }
}

/* The budget of a mixture, and what it stores by it; modules get candidates that the format takes. */
static void check_mixture(struct job_spec *spec, const struct model *model, struct validation_errors *errors)
{
    struct disk_plan *disk = &spec->disk;
    int64_t bytes;

    if (mixture_check(&spec->recipe, spec->format, model, errors, &bytes) == 0 && !spec->format->plain) {
        double share = disk->quantized > 0 ? (double)bytes / (double)disk->quantized : 1;
        disk->blocks = (int64_t)(share * (double)disk->blocks); /* their codes are as wide as the artifact's */
        disk->last = (int64_t)(share * (double)disk->last);
        disk->artifact += bytes - disk->quantized;
        disk->quantized = bytes;
    }
}

/* Prompts and what follows them have positions. */
static void check_generation(const struct job_spec *spec, const struct model *model, struct validation_errors *errors)
{
    const struct gate *gate = &spec->gate;
    int64_t positions = model_config(model)->max_position, length = gate->prompt_tokens + gate->tokens;

    if (gate->asked && gate->generates && positions > 0 && length > positions) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/evaluation/gate/generation",
                       "\"prompt_tokens\" and \"tokens\" make %lld together; the model has %lld positions",
                       (long long)length, (long long)positions);
    }
}

/* A request with one of its recipes. */
static int check_recipe(struct job_spec *spec, const struct model *model, const struct gpu_info *device,
                        struct validation_errors *errors)
{
    AUTO_FREE struct format_module *modules = NULL;
    int count = 0;
    size_t before = errors->count;

    if (!check_mode(spec, model, errors) || !check_costs(&spec->recipe, model, errors)) {
        return validation_raise(errors);
    }
    if (spec->recipe.mixture != NULL) {
        TRY(mixture_assume(&spec->recipe, spec->format, model));
    }
    check_patterns(&spec->recipe, model, errors);
    check_lengths(spec, model, errors);
    check_generation(spec, model, errors);
    check_cache(spec, model, errors);
    check_tuner(spec, model, errors);
    check_output_moments(spec, model, errors);
    check_end_to_end(spec, model, errors);
    check_shapes(&spec->recipe, model, errors);
    if (errors->count > before) {
        return validation_raise(errors);
    }
    int rc = recipe_modules(&spec->recipe, spec->format, model, &modules, &count);
    if (rc != 0) {
        validation_add(errors, rc, "/quantization", "%s", err_last()->message);
        return validation_raise(errors);
    }
    if (count == 0 && !recipe_analyses(&spec->recipe) && spec->recipe.cache.element == DTYPE_F32) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/quantization/modules_to_not_convert",
                       "\"modules_to_not_convert\" and the overrides leave no module to quantize");
    } else {
        check_output(spec, model, modules, count, errors);
    }
    if (errors->count == before) {
        rc = disk_plan(&spec->recipe, spec->format, model, modules, count, &spec->disk);
        if (rc != 0) {
            validation_add(errors, rc, "/quantization", "%s", err_last()->message);
        }
    }
    if (errors->count == before && spec->recipe.mixture != NULL) {
        check_mixture(spec, model, errors);
    }
    if (device != NULL && errors->count == before) {
        check_memory(spec, model, device, errors);
    }
    return errors->count > before ? validation_raise(errors) : 0;
}

/* Errors of a rung, named where the client finds it; those about other members that are known already are not repeated.
 */
static void add_rung_errors(const struct validation_errors *found, int rung, struct validation_errors *errors)
{
    for (size_t i = 0; i < found->count; i++) {
        const struct validation_error *error = &found->items[i];
        bool format = strcmp(error->param, "/output/format") == 0; /* which does not carry the rung */
        bool own = format || strncmp(error->param, "/quantization", 13) == 0 || strcmp(error->param, "/method") == 0;
        char pointer[sizeof(error->param)];
        bool known = false;

        if (own) {
            (void)snprintf(pointer, sizeof(pointer), "/evaluation/gate/ladder/%d%.150s", rung - 1,
                           format ? "/quantization" : error->param);
        } else {
            (void)snprintf(pointer, sizeof(pointer), "%s", error->param);
        }
        for (size_t k = 0; k < errors->count; k++) {
            known = known || (strcmp(errors->items[k].param, pointer) == 0 &&
                              strcmp(errors->items[k].detail, error->detail) == 0);
        }
        if (!known) {
            validation_add(errors, error->code, pointer, "%s", error->detail);
            validation_hint(errors, "%s", error->hint);
        }
    }
}

static int64_t spec_larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

int spec_check(struct job_spec *spec, const struct model *model, const struct gpu_info *device,
               struct validation_errors *errors)
{
    size_t before = errors->count;

    (void)check_recipe(spec, model, device, errors);
    struct disk_plan most = spec->disk;
    for (int rung = 1; spec->format != NULL && rung <= spec->gate.ladder_count; rung++) {
        AUTO_FREE struct validation_errors *found = NULL;
        if (mem_new(&found) != 0) {
            validation_add(errors, ERR_HOST_OUT_OF_MEMORY, "/evaluation/gate/ladder", "no memory to check a ladder");
            break;
        }
        spec_use_rung(spec, rung);
        (void)check_recipe(spec, model, device, found);
        most.blocks = spec_larger(most.blocks, spec->disk.blocks);
        if (spec->disk.artifact > most.artifact) {
            most.artifact = spec->disk.artifact;
            most.quantized = spec->disk.quantized;
            most.parameters = spec->disk.parameters;
            most.extra = spec->disk.extra;
        }
        add_rung_errors(found, rung, errors);
    }
    spec_use_rung(spec, 0);
    spec->disk = most;
    return errors->count > before ? validation_raise(errors) : 0;
}
