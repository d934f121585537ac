/* A request held against its model, from headers alone: a job that cannot finish is refused before it is accepted.
 *
 * modules_to_not_convert entries match a module path exactly, as a glob (* and ?), as a path suffix ("lm_head"), or
 * as a regular expression behind "re:". */

#include "jobs/spec.h"

#include "base/err.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fnmatch.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

static bool matches_regex(const char *pattern, const char *module)
{
    int code;
    PCRE2_SIZE offset;
    pcre2_code *regex = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED, &code, &offset, NULL);
    if (regex == NULL) {
        return false;
    }
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(regex, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    if (context != NULL) {
        pcre2_set_match_limit(context, 100000);
    }
    int found = data == NULL ? -1 : pcre2_match(regex, (PCRE2_SPTR)module, PCRE2_ZERO_TERMINATED, 0, 0, data, context);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
    pcre2_code_free(regex);
    return found >= 0;
}

static bool matches(const char *pattern, const char *module)
{
    if (strncmp(pattern, "re:", 3) == 0) {
        return matches_regex(pattern + 3, module);
    }
    if (fnmatch(pattern, module, 0) == 0) {
        return true;
    }
    size_t m = strlen(module);
    size_t p = strlen(pattern);
    return p < m && strcmp(module + m - p, pattern) == 0 && module[m - p - 1] == '.';
}

static const json_t *skip_list(const struct job_spec *spec)
{
    return ((const struct quant_common *)spec->params)->modules_to_not_convert;
}

bool spec_skips(const struct job_spec *spec, const char *module)
{
    size_t i;
    json_t *pattern;

    json_array_foreach((json_t *)skip_list(spec), i, pattern)
    {
        if (matches(json_string_value(pattern), module)) {
            return true;
        }
    }
    return false;
}

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
            if (spec_skips(spec, m->name)) {
                continue;
            }
            arch_linear_shape(config, (enum linear_role)role, &m->rows, &m->cols);
            int rc = spec->quantizer->scheme(spec->params, m->rows, m->cols, &m->scheme);
            if (rc != 0) {
                free(list);
                return err_pass(rc, "scheme of %s", m->name);
            }
            m->scheme.scale_dtype = spec->format->scale_dtype(model_dtype(model));
            n++;
        }
    }
    *modules = list;
    *count = n;
    return 0;
}

/* Every pattern must hit something: a pattern that hits nothing is a typo that would cost the layer it meant. */
static void check_skips(const struct job_spec *spec, const struct model *model, struct faults *faults)
{
    const struct model_config *config = model_config(model);
    size_t i;
    json_t *pattern;
    char name[128];

    json_array_foreach((json_t *)skip_list(spec), i, pattern)
    {
        const char *text = json_string_value(pattern);
        bool hit = matches(text, "lm_head") || matches(text, "model.embed_tokens");
        for (int64_t layer = 0; !hit && layer < config->num_layers; layer++) {
            for (int role = 0; !hit && role < LINEAR_COUNT; role++) {
                model_linear_name(model, layer, (enum linear_role)role, name);
                hit = matches(text, name);
            }
        }
        if (!hit) {
            char pointer[64];
            snprintf(pointer, sizeof(pointer), "/quantization/modules_to_not_convert/%zu", i);
            faults_add(faults, ERR_INVALID_PARAMETER, pointer, "\"%.100s\" matches no module of the model", text);
        }
    }
}

/* Shapes repeat in every block, so the first block's linears stand for all. */
static void check_shapes(const struct job_spec *spec, const struct model *model, struct faults *faults)
{
    const struct model_config *config = model_config(model);

    for (int role = 0; role < LINEAR_COUNT; role++) {
        struct qscheme scheme;
        int64_t rows;
        int64_t cols;
        char name[128];
        model_linear_name(model, 0, (enum linear_role)role, name);
        arch_linear_shape(config, (enum linear_role)role, &rows, &cols);
        if (!spec_skips(spec, name) && spec->quantizer->scheme(spec->params, rows, cols, &scheme) != 0) {
            const struct err_record *why = err_last();
            faults_add(faults, why->code, "/quantization/group_size", "%.80s [%lld, %lld]: %s", name, (long long)rows,
                       (long long)cols, why->message);
        }
    }
}

int64_t spec_peak_bytes(const struct job_spec *spec, const struct model *model)
{
    const struct model_config *c = model_config(model);
    int64_t block = 0;
    int64_t widest = 0;
    int64_t largest = 0;

    for (int role = 0; role < LINEAR_COUNT; role++) {
        int64_t rows;
        int64_t cols;
        arch_linear_shape(c, (enum linear_role)role, &rows, &cols);
        block += rows * cols;
        widest = cols > widest ? cols : widest;
        largest = rows * cols > largest ? rows * cols : largest;
    }
    /* F32 block, Hessian and factor of the widest input, three working copies and the codes of the largest linear. */
    int64_t peak = block * 4 + largest * 13;
    if (spec->quantizer->stats != STATS_NONE || spec_has_calibration(spec)) {
        peak += widest * widest * 8;
    }
    /* Embedding and head in their own type, one head's worth of logits twice. */
    int64_t head = c->vocab_size * c->hidden_size * dtype_rows[model_dtype(model)].bytes;
    return peak > 2 * head ? peak : 2 * head;
}

static void check_memory(const struct job_spec *spec, const struct model *model, struct faults *faults)
{
    struct gpu gpu;

    if (gpu_open(spec->resources.device[0] != '\0' ? spec->resources.device : "auto", 1, &gpu) != 0) {
        faults_add(faults, ERR_INVALID_PARAMETER, "/resources/device", "%s", err_last()->message);
        return;
    }
    int64_t need = spec_peak_bytes(spec, model);
    if (gpu.info.memory_total > 0 && need > gpu.info.memory_total) {
        faults_add(faults, ERR_INSUFFICIENT_MEMORY, "/resources/device",
                   "one block of this model needs about %lld MiB and %s has %lld MiB", (long long)(need >> 20),
                   gpu.info.id, (long long)(gpu.info.memory_total >> 20));
    }
    gpu_close(&gpu);
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

int spec_check(const struct job_spec *spec, const struct model *model, struct faults *faults)
{
    struct format_module *modules = NULL;
    int count = 0;
    size_t before = faults->count;

    check_skips(spec, model, faults);
    check_lengths(spec, model, faults);
    check_shapes(spec, model, faults);
    check_memory(spec, model, faults);
    if (faults->count > before) {
        return faults_raise(faults);
    }
    int rc = spec_modules(spec, model, &modules, &count);
    if (rc != 0) {
        faults_add(faults, rc, "/quantization", "%s", err_last()->message);
        return faults_raise(faults);
    }
    if (count == 0) {
        faults_add(faults, ERR_INCOMPATIBLE_OPTIONS, "/quantization/modules_to_not_convert",
                   "leaves no module to quantize");
    } else {
        json_t *parameters = params_json(spec->quantizer->params, spec->params);
        const struct format_config config = {
            .modules = modules, .count = count, .model = model, .method = spec->method, .parameters = parameters};
        (void)format_check(spec->format, &config, "/output/format", faults);
        json_decref(parameters);
    }
    free(modules);
    return faults->count > before ? faults_raise(faults) : 0;
}
