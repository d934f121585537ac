/* A request held against its model, from headers alone: a job that cannot finish is refused before it is accepted. */

#include "jobs/spec.h"

#include "base/err.h"
#include "jobs/check.h"
#include "jobs/memory_plan.h"

#include <stdlib.h>
#include <string.h>

int spec_modules(const struct job_spec *spec, const struct model *model, struct format_module **modules, int *count)
{
    const struct model_config *config = model_config(model);
    struct format_module *list = calloc((size_t)config->num_layers * LINEAR_COUNT, sizeof(*list));
    int n = 0;

    if (list == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the list of modules");
    }
    for (int64_t layer = 0; layer < config->num_layers; layer++) {
        for (int role = 0; role < LINEAR_COUNT; role++) {
            struct format_module *m = &list[n];
            model_linear_name(model, layer, (enum linear_role)role, m->name);
            const struct recipe_stage *solver = recipe_solver(&spec->recipe, m->name);
            if (solver == NULL) {
                continue;
            }
            arch_linear_shape(config, (enum linear_role)role, &m->rows, &m->cols);
            int rc = recipe_scheme(&spec->recipe, solver, m->name, m->rows, m->cols, &m->scheme);
            if (rc != 0) {
                free(list);
                return err_pass(rc, "scheme of %s", m->name);
            }
            m->scheme.scale_dtype = spec->format->scale_dtype(model_dtype(model));
            m->scheme.weight_dtype = model_dtype(model);
            n++;
        }
    }
    *modules = list;
    *count = n;
    return 0;
}

static void check_shape(const struct job_spec *spec, const struct model *model, int64_t layer, enum linear_role role,
                        struct faults *faults, bool *seen)
{
    struct qscheme scheme;
    int64_t rows, cols;
    char name[128];

    model_linear_name(model, layer, role, name);
    arch_linear_shape(model_config(model), role, &rows, &cols);
    const struct recipe_stage *solver = recipe_solver(&spec->recipe, name);
    if (solver != NULL && recipe_scheme(&spec->recipe, solver, name, rows, cols, &scheme) != 0) {
        const struct err_record *why = err_last();
        faults_add(faults, why->code, why->param[0] != '\0' ? why->param : "/quantization/group_size",
                   "%.80s [%lld, %lld]: %s", name, (long long)rows, (long long)cols, why->message);
        *seen = true;
    }
}

/* Shapes repeat in every block: each role is reported once, in the first block that has the fault. */
static void check_shapes(const struct job_spec *spec, const struct model *model, struct faults *faults)
{
    bool seen[LINEAR_COUNT] = {false};

    for (int64_t layer = 0; layer < model_config(model)->num_layers; layer++) {
        for (int role = 0; role < LINEAR_COUNT; role++) {
            if (!seen[role]) {
                check_shape(spec, model, layer, (enum linear_role)role, faults, &seen[role]);
            }
        }
    }
}

/* Refused is what cannot run at all: with one sequence at a time, nothing read ahead, activations elsewhere. */
static void check_memory(const struct job_spec *spec, const struct model *model, const char *usual,
                         struct faults *faults)
{
    const char *want = spec->resources.device;
    struct memory_plan plan;
    struct gpu_info info;

    if (gpu_describe(want[0] != '\0' && strcmp(want, "auto") != 0 ? want : usual, &info) != 0) {
        faults_add(faults, ERR_INVALID_PARAMETER, "/resources/device", "%s", err_last()->message);
        return;
    }
    memory_plan_of(spec, model, &info, 0, &plan);
    int64_t need = memory_plan_least(&plan);
    if (info.memory_total > 0 && need > info.memory_total) {
        faults_add(faults, ERR_INSUFFICIENT_MEMORY, "/resources/device",
                   "this model's blocks need about %lld MiB at a time and %s has %lld MiB", (long long)(need >> 20),
                   info.id, (long long)(info.memory_total >> 20));
    }
}

static void check_lengths(const struct job_spec *spec, const struct model *model, struct faults *faults)
{
    const struct model_config *config = model_config(model);
    int64_t length = spec_sequence_length(spec, config);

    if (config->max_position > 0 && length > config->max_position) {
        faults_add(faults, ERR_INCOMPATIBLE_OPTIONS, "/calibration/sequence_length",
                   "%lld is more than the model's %lld positions", (long long)length, (long long)config->max_position);
    }
    if (config->max_position > 0 && spec->evaluation.sequence_length > config->max_position) {
        faults_add(faults, ERR_INCOMPATIBLE_OPTIONS, "/evaluation/sequence_length",
                   "%lld is more than the model's %lld positions", (long long)spec->evaluation.sequence_length,
                   (long long)config->max_position);
    }
}

/* A static input scale is what the calibration set reached. */
static void check_inputs(const struct job_spec *spec, const struct format_module *modules, int count,
                         struct faults *faults)
{
    for (int i = 0; i < count; i++) {
        const struct gpu_input *input = &modules[i].scheme.input;
        if (input->number != GPU_NUMBER_NONE && !input->dynamic && !spec_has_calibration(spec)) {
            faults_add(faults, ERR_MISSING_PARAMETER, "/calibration",
                       "static input scales are measured: give calibration.file_id, or calibration.stream = true");
            return;
        }
    }
}

int spec_check(struct job_spec *spec, const struct model *model, const char *device, struct faults *faults)
{
    struct format_module *modules = NULL;
    int count = 0;
    size_t before = faults->count;

    if (!check_costs(spec, model, faults)) {
        return faults_raise(faults);
    }
    check_patterns(spec, model, faults);
    check_lengths(spec, model, faults);
    check_shapes(spec, model, faults);
    check_memory(spec, model, device, faults);
    if (faults->count > before) {
        return faults_raise(faults);
    }
    int rc = spec_modules(spec, model, &modules, &count);
    if (rc != 0) {
        faults_add(faults, rc, "/quantization", "%s", err_last()->message);
        return faults_raise(faults);
    }
    if (count == 0 && recipe_analyses(&spec->recipe)) {
        check_inputs(spec, modules, count, faults);
    } else if (count == 0 && spec->recipe.cache.number == GPU_NUMBER_NONE) {
        faults_add(faults, ERR_INCOMPATIBLE_OPTIONS, "/quantization/modules_to_not_convert",
                   "leaves no module to quantize");
    } else {
        json_t *parameters = recipe_parameters_json(&spec->recipe);
        const struct format_config config = {.modules = modules,
                                             .count = count,
                                             .model = model,
                                             .method = spec->recipe.name,
                                             .parameters = parameters,
                                             .cache = spec->recipe.cache};
        (void)format_check(spec->format, &config, "/output/format", faults);
        check_inputs(spec, modules, count, faults);
        json_decref(parameters);
    }
    free(modules);
    return faults->count > before ? faults_raise(faults) : 0;
}

int spec_warnings(const struct job_spec *spec, const struct model *model, json_t *warnings)
{
    struct format_module *modules = NULL;
    int count = 0;

    if (recipe_analyses(&spec->recipe)) {
        return 0;
    }
    int rc = spec_modules(spec, model, &modules, &count);
    if (rc == 0) {
        const struct format_config config = {.modules = modules,
                                             .count = count,
                                             .model = model,
                                             .method = spec->recipe.name,
                                             .cache = spec->recipe.cache};
        rc = format_warnings(spec->format, &config, warnings);
    }
    free(modules);
    return rc != 0 ? err_pass(rc, "warnings") : 0;
}
