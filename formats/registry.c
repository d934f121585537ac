/* The list of formats and the question every job is asked before it runs: can this result be carried, and if not, why
 * and by which format instead. */

#include "formats/common.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct format *const rows[] = {&format_compressed_tensors,
                                            &format_gptq,
                                            &format_gptq_v2,
                                            &format_bitsandbytes,
                                            &format_awq,
                                            &format_gguf,
                                            &format_aqlm,
                                            &format_dense,
                                            NULL};

const struct format *const *format_list(void)
{
    return rows;
}

const struct format *format_find(const char *name)
{
    for (const struct format *const *row = rows; *row != NULL; row++) {
        if (name != NULL && strcmp((*row)->name, name) == 0) {
            return *row;
        }
    }
    return NULL;
}

bool format_holds_tensors(const char *path)
{
    static const char *const endings[] = {".safetensors", ".gguf"};
    size_t length = strlen(path);

    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
        size_t ending = strlen(endings[i]);
        if (length >= ending && strcmp(path + length - ending, endings[i]) == 0) {
            return true;
        }
    }
    return false;
}

int format_check_shape(const struct qscheme *scheme, int64_t rows_count, int64_t cols)
{
    if (scheme->kind != QTENSOR_INT || scheme->input.element != DTYPE_F32) {
        int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS, "this format carries integer weights alone, not %s%s",
                           qtensor_kind_names[scheme->kind],
                           scheme->input.element != DTYPE_F32 ? " with quantized inputs" : "");
        return err_set_hint(rc, "another output.format");
    }
    if (scheme->group_rows > 1 || rows_count <= 0 || cols <= 0 || scheme->group_size <= 0 ||
        cols % scheme->group_size != 0) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "a [%lld, %lld] weight cannot have groups of %lld",
                         (long long)rows_count, (long long)cols, (long long)scheme->group_size);
    }
    return 0;
}

bool format_same_geometry(const struct qscheme *a, const struct qscheme *b)
{
    return a->kind == b->kind && a->bits == b->bits && a->sym == b->sym && a->per_channel == b->per_channel &&
           (a->per_channel || a->group_size == b->group_size) && a->nested == b->nested &&
           a->codebooks == b->codebooks && a->block_type == b->block_type && a->element == b->element &&
           a->input.element == b->input.element && a->input.dynamic == b->input.dynamic &&
           a->input.group_size == b->input.group_size && a->input_threshold == b->input_threshold &&
           (a->group_rows > 1) == (b->group_rows > 1);
}

int format_check_one_geometry(const struct format_config *config, const char *name, const char *hint)
{
    for (int i = 1; i < config->count; i++) {
        if (!format_same_geometry(&config->modules[0].scheme, &config->modules[i].scheme)) {
            int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS, "%s has one geometry for the model; %.80s differs", name,
                               config->modules[i].name);
            return err_set_hint(rc, "%s", hint);
        }
    }
    return 0;
}

int format_module_table(const struct format_config *config, const struct format_module ***out)
{
    const struct plans *plans = model_plans(config->model);
    AUTO_FREE const struct format_module **table = NULL;

    TRY(mem_array(&table, plans_modules(plans)));
    for (int i = 0; i < config->count; i++) {
        int64_t layer;
        int module = model_find_module(config->model, config->modules[i].name, &layer);
        if (module < 0) {
            return err_raise(ERR_INTERNAL, "%.100s is not a linear of this model", config->modules[i].name);
        }
        table[plans_first_module(plans, layer) + (size_t)module] = &config->modules[i];
    }
    *out = MOVE(table);
    return 0;
}

json_t *format_left_in_float(const struct format_config *config, const struct format_module *const *table)
{
    const struct plans *plans = model_plans(config->model);
    const char *outside = model_tokens_module(config->model);
    json_t *names = json_array();
    char name[PLAN_NAME_MAX];

    if (outside != NULL) {
        format_add_name(names, config->model, outside);
    }
    for (size_t i = 0; i < plans_modules(plans); i++) {
        if (table[i] == NULL) {
            int module;
            int64_t layer = plans_module_at(plans, i, &module);
            model_module_name(config->model, layer, module, name);
            format_add_name(names, config->model, name);
        }
    }
    return names;
}

/* The module or the part of one that a tensor belongs to: its name without the last part. */
static void owner_of(const char *tensor, char out[PLAN_NAME_MAX * 2])
{
    const char *dot = strrchr(tensor, '.');

    snprintf(out, PLAN_NAME_MAX * 2, "%.*s", (int)(dot != NULL ? (size_t)(dot - tensor) : strlen(tensor)), tensor);
}

json_t *format_bare_ignored(const struct format_config *config, const struct format_module *const *table)
{
    AUTO_JSON json_t *seen = json_object();
    AUTO_JSON json_t *names = json_array();
    const struct plans *plans = model_plans(config->model);
    char owner[PLAN_NAME_MAX * 2];
    int64_t layer;

    for (size_t i = 0; i < model_tensor_count(config->model); i++) {
        const struct model_tensor tensor = model_tensor_at(config->model, i);
        owner_of(tensor.name, owner);
        int module = model_find_module(config->model, owner, &layer);
        bool quantized = module >= 0 && table[plans_first_module(plans, layer) + (size_t)module] != NULL;
        if (tensor.entry->rank < 2 || quantized || json_object_get(seen, owner) != NULL) {
            continue;
        }
        if (json_array_append_new(names, json_string(owner)) != 0 ||
            json_object_set_new(seen, owner, json_true()) != 0) {
            return NULL;
        }
    }
    return MOVE(names);
}

/* Modules that runtimes load as one: all or none, and alike. */
static int check_fused(const struct plan_fused *fused, const struct format_module *const *modules, int64_t layer)
{
    const struct format_module *a = modules[fused->modules[0]];

    for (int i = 1; i < fused->count; i++) {
        const struct format_module *b = modules[fused->modules[i]];
        if ((a == NULL) != (b == NULL) || (a != NULL && b != NULL && !format_same_geometry(&a->scheme, &b->scheme))) {
            int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS, "%s of block %lld are not quantized alike", fused->title,
                               (long long)layer);
            return err_set_hint(rc, "runtimes load them as one linear: quantize all of them, or none");
        }
    }
    return 0;
}

static int check_all_fused(const struct format_config *config)
{
    const struct format_module **table = NULL;
    const struct plans *plans = model_plans(config->model);

    int rc = format_module_table(config, &table);
    for (int64_t layer = 0; rc == 0 && layer < plans_config(plans)->num_layers; layer++) {
        const struct plan *plan = plans_layer(plans, layer);
        for (int i = 0; rc == 0 && i < plan->fused_count; i++) {
            rc = check_fused(&plan->fused[i],
                             (const struct format_module *const *)table + plans_first_module(plans, layer), layer);
        }
    }
    free(table);
    return rc;
}

int format_encode_scales(const float *scales, int64_t stride, int64_t count, enum dtype dtype, void *out)
{
    for (int64_t i = 0; i < count; i++) {
        float value = scales[i * stride];
        if (!isfinite(dtype_round(value, dtype)) || value == 0) {
            return err_raise(ERR_NON_FINITE_VALUE, "scale %lld is %g, which %s cannot hold", (long long)i,
                             (double)value, dtype_rows[dtype].name);
        }
        if (dtype_round(value, dtype) != value) {
            /* The codes were computed for another scale than the one that would be stored. */
            return err_raise(ERR_INTERNAL, "scale %lld is %.9g and was not rounded to %s", (long long)i, (double)value,
                             dtype_rows[dtype].name);
        }
        format_narrow(&value, 1, dtype, (unsigned char *)out + i * dtype_rows[dtype].bytes);
    }
    return 0;
}

void format_narrow(const float *values, int64_t count, enum dtype dtype, void *out)
{
    for (int64_t i = 0; i < count; i++) {
        switch (dtype) {
        case DTYPE_F16:
            ((uint16_t *)out)[i] = dtype_f32_to_f16(values[i]);
            break;
        case DTYPE_BF16:
            ((uint16_t *)out)[i] = dtype_f32_to_bf16(values[i]);
            break;
        default:
            ((float *)out)[i] = values[i];
        }
    }
}

bool format_takes_model(const struct format *format, const struct model *model)
{
    return format->bare || !model_is_bare(model);
}

/* Whether a format has a place for models like this one. */
static int formats_judge_model(const struct format *format, const struct model *model)
{
    if (format_takes_model(format, model)) {
        return 0;
    }
    return err_raise(ERR_INCOMPATIBLE_OPTIONS,
                     "%s needs to know the architecture, and this %.100s is quantized from names and shapes alone",
                     format->name, model_config(model)->arch->name);
}

/* The first reason why not, or 0. */
static int formats_judge(const struct format *format, const struct format_config *config)
{
    TRY(formats_judge_model(format, config->model));
    for (int i = 0; i < config->count; i++) {
        const struct format_module *m = &config->modules[i];
        int rc = format->accepts(&m->scheme, m->rows, m->cols);
        if (rc != 0) {
            return rc;
        }
    }
    if (config->cache.element != DTYPE_F32) {
        int rc = format->accepts_cache != NULL
                     ? format->accepts_cache(&config->cache)
                     : err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS,
                                              "%s has no place for the scales of a quantized cache", format->name),
                                    "without kv_cache");
        if (rc != 0) {
            return rc;
        }
    }
    TRY(format_check_stored(format, config));
    if (format->accepts_all != NULL) {
        TRY(format->accepts_all(config));
    }
    return format->fuses ? check_all_fused(config) : 0;
}

bool format_carries(const struct format *format, const struct format_config *config)
{
    return formats_judge(format, config) == 0;
}

int format_count_taken(const struct format *format, const struct format_config *config)
{
    int count = 0;

    for (int i = 0; i < config->count; i++) {
        const struct format_module *m = &config->modules[i];
        count += format->accepts(&m->scheme, m->rows, m->cols) == 0;
    }
    return count;
}

static void name_others(const struct format_config *config, char *out, size_t size)
{
    size_t used = 0;

    out[0] = '\0';
    for (const struct format *const *row = rows; *row != NULL && used < size; row++) {
        if (formats_judge(*row, config) == 0) {
            used += (size_t)snprintf(out + used, size - used, "%s%s", used == 0 ? "formats that carry it: " : ", ",
                                     (*row)->name);
        }
    }
    if (used == 0) {
        snprintf(out, size, "no format carries it");
    }
}

static void add_error(struct validation_errors *errors, const char *pointer, const char *module, const char *others)
{
    const struct err_record record = *err_last(), *why = &record;

    validation_add(errors, why->code, pointer, "%s%s%s", module, module[0] != '\0' ? ": " : "", why->message);
    validation_hint(errors, "%s%s%s", why->hint, why->hint[0] != '\0' ? "; " : "", others);
}

int format_check(const struct format *format, const struct format_config *config, const char *pointer,
                 struct validation_errors *errors)
{
    enum { SEEN_MAX = 8 };
    char seen[SEEN_MAX][128];
    char others[256];
    int count = 0;

    if (formats_judge(format, config) == 0) {
        return 0;
    }
    name_others(config, others, sizeof(others));
    for (int i = 0; i < config->count; i++) {
        const struct format_module *m = &config->modules[i];
        bool known = format->accepts(&m->scheme, m->rows, m->cols) == 0;
        for (int k = 0; !known && k < count; k++) {
            known = strncmp(seen[k], err_last()->message, sizeof(seen[k]) - 1) == 0;
        }
        /* Blocks repeat their shapes: each reason once, with the first module that it is true of. */
        if (!known && count < SEEN_MAX) {
            snprintf(seen[count++], sizeof(seen[0]), "%s", err_last()->message);
            add_error(errors, pointer, m->name, others);
        }
    }
    if (count == 0 && formats_judge(format, config) != 0) {
        add_error(errors, pointer, "", others);
    }
    return validation_raise(errors);
}

enum dtype format_scale_f16(enum dtype model_dtype)
{
    (void)model_dtype;
    return DTYPE_F16;
}
