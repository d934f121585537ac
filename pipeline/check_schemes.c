/* What each module becomes: whether its shape takes the parameters, and which format carries the modules. */

#include "pipeline/check.h"

#include "base/err.h"
#include "formats/runtimes.h"

#include <stdlib.h>
#include <string.h>

/* Where the request says the parameter that a scheme was refused for: in the override that decides about the module, or
 * in "quantization". name: as err_set_param of a scheme has it, a parameter's name or a pointer of its own. */
static void locate(const struct recipe *recipe, const struct recipe_stage *solver, const char *module, const char *name,
                   char out[192])
{
    const struct params_row *row = params_find(solver->quantizer->params, name);
    const json_t *overrides = recipe_base(recipe)->overrides;
    int decider = recipe_override_of(recipe, module);
    const json_t *item = decider >= 0 ? json_array_get(overrides, (size_t)decider) : NULL;
    const char *spelled = name;
    char base[64] = "/quantization";

    if (name[0] == '/') {
        snprintf(out, 192, "%s", name);
        return;
    }
    if (item != NULL && (row == NULL || params_member(row, item, &spelled) != NULL)) {
        snprintf(base, sizeof(base), "/quantization/overrides/%d", decider);
    } else {
        spelled = name;
    }
    if (name[0] == '\0') {
        snprintf(out, 192, "%s", base);
    } else {
        text_pointer(out, 192, base, spelled);
    }
}

/* Reasons that were said already. */
struct reasons {
    char texts[VALIDATION_ERRORS_MAX][160];
    int count;
};

static bool is_new(struct reasons *reasons, const char *pointer, const char *message)
{
    char text[sizeof(reasons->texts[0])];

    snprintf(text, sizeof(text), "%.60s %s", pointer, message);
    for (int i = 0; i < reasons->count; i++) {
        if (strcmp(reasons->texts[i], text) == 0) {
            return false;
        }
    }
    if (reasons->count < VALIDATION_ERRORS_MAX) {
        memcpy(reasons->texts[reasons->count++], text, sizeof(text));
    }
    return true;
}

static void check_shape(const struct recipe *recipe, const struct model *model, int64_t layer, int number,
                        struct reasons *reasons, struct validation_errors *errors)
{
    const struct plan_module *m = &plans_layer(model_plans(model), layer)->modules[number];
    struct qscheme scheme;
    char name[PLAN_NAME_MAX], pointer[192];

    model_module_name(model, layer, number, name);
    const struct recipe_stage *solver = recipe_module_solver(recipe, m, name);
    if (solver == NULL || recipe_scheme(recipe, solver, name, m->rows, m->cols, &scheme) == 0) {
        return;
    }
    const struct err_record why = *err_last();
    locate(recipe, solver, name, why.param, pointer);
    if (is_new(reasons, pointer, why.message)) {
        validation_add(errors, why.code, pointer, "%s (%s, [%lld, %lld])", why.message, name, (long long)m->rows,
                       (long long)m->cols);
        validation_hint(errors, "%s", why.hint);
    }
}

/* Shapes repeat in every block: each reason is reported once, with the first module that has it. */
void check_shapes(const struct recipe *recipe, const struct model *model, struct validation_errors *errors)
{
    struct reasons reasons = {.count = 0};

    for (int64_t layer = 0; layer < model_config(model)->num_layers; layer++) {
        for (int i = 0; i < plans_layer(model_plans(model), layer)->module_count; i++) {
            check_shape(recipe, model, layer, i, &reasons, errors);
        }
    }
}

static void check_set_scales(const struct format *format, const struct model *model, struct format_module *modules,
                             int count)
{
    for (int i = 0; i < count; i++) {
        modules[i].scheme.scale_dtype = format->scale_dtype(model_dtype(model));
    }
}

static bool quantizes_inputs(const struct format_module *modules, int count)
{
    for (int i = 0; i < count; i++) {
        if (modules[i].scheme.input.element != DTYPE_F32) {
            return true;
        }
    }
    return false;
}

/* The first format that takes each of the modules; whether it carries them together is checked after that, because
 * where it does not the request contradicts itself. The format of float weights is not chosen where another format
 * would carry some of the modules, nor where quantized inputs would be lost: there the other format's reasons are
 * reported. */
static const struct format *choose_format(const struct format_config *config, struct format_module *modules)
{
    const struct format *own = NULL, *plain = NULL;

    for (const struct format *const *at = format_list(); *at != NULL; at++) {
        check_set_scales(*at, config->model, modules, config->count);
        int taken = format_takes_model(*at, config->model) ? format_count_taken(*at, config) : 0;
        if (taken == config->count && !(*at)->plain && format_takes_model(*at, config->model)) {
            return *at;
        }
        if ((*at)->plain) {
            plain = taken == config->count ? *at : plain;
        } else if (own == NULL && taken > 0) {
            own = *at;
        }
    }
    bool loses = plain == NULL || quantizes_inputs(modules, config->count);
    return own != NULL ? own : loses ? format_list()[0] : plain;
}

/* The first format that carries the result and that all targets load, or NULL. Float weights are loaded everywhere, but
 * are not chosen for it. */
static const struct format *choose_loaded(const struct format_config *config, struct format_module *modules)
{
    for (const struct format *const *at = format_list(); *at != NULL; at++) {
        check_set_scales(*at, config->model, modules, config->count);
        if (!(*at)->plain && format_carries(*at, config) && runtime_targets_load(*at, config, config->targets)) {
            return *at;
        }
    }
    return NULL;
}

void check_format(const struct recipe *recipe, const struct format **format, const struct model *model,
                  struct format_module *modules, int count, const struct format_targets *targets,
                  struct validation_errors *errors)
{
    json_t *parameters = recipe_parameters_json(recipe);
    const struct format_config config = {.modules = modules,
                                         .count = count,
                                         .model = model,
                                         .method = recipe->name,
                                         .parameters = parameters,
                                         .cache = recipe->cache,
                                         .targets = targets};
    bool given = *format != NULL;

    if (!given && targets != NULL && targets->count > 0) {
        *format = choose_loaded(&config, modules);
    }
    if (*format == NULL) {
        *format = choose_format(&config, modules);
    }
    check_set_scales(*format, model, modules, count);
    (void)format_check(*format, &config, given ? "/output/format" : "/quantization", errors);
    json_decref(parameters);
}
