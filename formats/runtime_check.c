/* A result against a target: every weight and the cache against the table, then what lies in the model: linears that
 * are loaded as one, experts, and a division over devices. */

#include "formats/common.h"
#include "formats/runtimes.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct runtime_search {
    const struct format *format;
    const struct format_config *config;
    const struct format_target *target;
    int64_t devices;
    const struct format_module **table; /* [plans_modules] */
    struct runtime_refusal *out;
    int count;
};

static void target_add(struct runtime_search *s, const struct runtime_refusal *refusal, const char *module)
{
    for (int i = 0; i < s->count; i++) {
        if (s->out[i].part == refusal->part && strcmp(s->out[i].text, refusal->text) == 0) {
            return; /* blocks repeat their shapes */
        }
    }
    if (s->count < RUNTIME_REFUSALS_MAX) {
        s->out[s->count] = *refusal;
        snprintf(s->out[s->count++].module, sizeof(refusal->module), "%s", module);
    }
}

/* --- division over devices */

static const struct plan_fused *target_fused_set(const struct plan *plan, int module, int *place)
{
    for (int f = 0; f < plan->fused_count; f++) {
        for (int i = 0; i < plan->fused[f].count; i++) {
            if (plan->fused[f].modules[i] == module) {
                *place = i;
                return &plan->fused[f];
            }
        }
    }
    return NULL;
}

/* Over how many devices the outputs of a module are spread: keys and values of fewer heads are on several of them. */
static int64_t target_spread(const struct runtime_search *s, const struct plan *plan, int module)
{
    int64_t heads = model_config(s->config->model)->num_kv_heads;
    int place = 0;
    const struct plan_fused *fused = target_fused_set(plan, module, &place);
    bool cached = fused != NULL && place > 0 && fused->title[0] == 'q' && strcmp(fused->title, "qkv and z") != 0;

    return cached && heads > 0 && heads < s->devices && s->devices % heads == 0 ? heads : s->devices;
}

/* What a device has of a module: its outputs and inputs, 0 where they cannot be divided so. */
static void target_share(const struct runtime_search *s, const struct plan *plan, int module, int64_t *outputs,
                         int64_t *inputs)
{
    const struct plan_module *m = &plan->modules[module];
    enum runtime_cut cut = s->devices > 1 ? runtime_cut_of(plan, module) : CUT_NONE;
    int64_t over = cut == CUT_OUTPUTS ? target_spread(s, plan, module) : s->devices;

    *outputs = cut != CUT_OUTPUTS ? m->rows : m->rows % over == 0 ? m->rows / over : 0;
    *inputs = cut != CUT_INPUTS ? m->cols : m->cols % over == 0 ? m->cols / over : 0;
}

static bool target_splits_groups(const struct qscheme *scheme, int64_t cols, int64_t share)
{
    return !scheme->per_channel && scheme->group_size > 0 && scheme->group_size < cols &&
           share % scheme->group_size != 0;
}

/* The largest number of devices below those that are asked for that this module's shape allows. */
static int64_t target_fewer(const struct runtime_search *s, const struct plan *plan, int module,
                            const struct qscheme *scheme)
{
    struct runtime_search fewer = *s;
    int64_t outputs, inputs;

    while (--fewer.devices > 1) {
        target_share(&fewer, plan, module, &outputs, &inputs);
        bool heads = model_config(s->config->model)->num_heads % fewer.devices == 0;
        if (heads && outputs > 0 && inputs > 0 && !target_splits_groups(scheme, plan->modules[module].cols, inputs)) {
            break;
        }
    }
    return fewer.devices;
}

/* Whether a module can be divided; a reason is added where not. */
static bool target_division(struct runtime_search *s, const struct plan *plan, int module,
                            const struct format_module *m, int64_t outputs, int64_t inputs)
{
    struct runtime_refusal refusal = {.part = PART_PARALLEL};
    const char *name = s->target->runtime->name;
    bool block = m->scheme.kind == QTENSOR_FLOAT8 && !m->scheme.per_channel;

    if (outputs == 0 || inputs == 0) {
        snprintf(refusal.text, sizeof(refusal.text), "%s cannot divide %lld %s of a linear over %lld devices", name,
                 (long long)(outputs == 0 ? m->rows : m->cols), outputs == 0 ? "outputs" : "inputs",
                 (long long)s->devices);
    } else if (!s->format->plain && inputs != m->cols && target_splits_groups(&m->scheme, m->cols, inputs)) {
        snprintf(refusal.text, sizeof(refusal.text),
                 "each of %lld devices would have %lld of %lld inputs of a linear in %s, which is not a multiple of "
                 "its %s of %lld",
                 (long long)s->devices, (long long)inputs, (long long)m->cols, name, block ? "blocks" : "groups",
                 (long long)m->scheme.group_size);
    } else if (!s->format->plain && outputs != m->rows && block && outputs % m->scheme.group_rows != 0) {
        snprintf(refusal.text, sizeof(refusal.text),
                 "each of %lld devices would have %lld of %lld outputs of a linear in %s, which is not a multiple of "
                 "its blocks of %lld",
                 (long long)s->devices, (long long)outputs, (long long)m->rows, name, (long long)m->scheme.group_rows);
    } else {
        return true;
    }
    snprintf(refusal.hint, sizeof(refusal.hint), "tensor_parallel_size %lld%s",
             (long long)target_fewer(s, plan, module, &m->scheme), block ? "" : ", or a smaller group_size");
    target_add(s, &refusal, m->name);
    return false;
}

/* Outputs on a device of all that is loaded as one with a module. */
static int64_t target_joined(const struct runtime_search *s, const struct plan *plan, int module, int64_t outputs)
{
    int place = 0;
    const struct plan_fused *fused = target_fused_set(plan, module, &place);
    int64_t sum = 0;

    for (int i = 0; fused != NULL && i < fused->count; i++) {
        int64_t own, inputs;
        target_share(s, plan, fused->modules[i], &own, &inputs);
        sum += own;
    }
    return fused != NULL ? sum : outputs;
}

/* --- the parts of a check */

static struct runtime_subject target_subject(const struct runtime_search *s)
{
    return (struct runtime_subject){.format = s->format,
                                    .target = s->target,
                                    .architecture = model_config(s->config->model)->arch->name,
                                    .devices = s->devices};
}

/* The same linear of the expert before it is as this one is: nothing new follows from it. */
static bool target_repeats(const struct runtime_search *s, const struct plan *plan, size_t index, int module)
{
    int step = plan->modules[module].expert > 0 ? plan_find_step(plan, STEP_EXPERTS) : -1;
    const struct format_module *m = s->table[index];
    const struct format_module *before =
        step >= 0 ? s->table[index - (size_t)plan->steps[step].experts->plan->module_count] : NULL;

    return before != NULL && m->rows == before->rows && m->cols == before->cols &&
           format_same_geometry(&m->scheme, &before->scheme);
}

static void target_modules(struct runtime_search *s)
{
    const struct plans *plans = model_plans(s->config->model);
    const struct runtime_row *rows[RUNTIME_ROWS_MAX];
    struct runtime_refusal refusal;

    for (size_t i = 0; i < plans_modules(plans); i++) {
        const struct format_module *m = s->table[i];
        int64_t outputs, inputs;
        int module;
        if (m == NULL) {
            continue;
        }
        const struct plan *plan = plans_layer(plans, plans_module_at(plans, i, &module));
        if (target_repeats(s, plan, i, module)) {
            continue;
        }
        target_share(s, plan, module, &outputs, &inputs);
        if (!target_division(s, plan, module, m, outputs, inputs)) {
            continue;
        }
        struct runtime_subject subject = target_subject(s);
        subject.form = runtime_form_of(s->format, &m->scheme);
        subject.scheme = &m->scheme;
        subject.expert = plan->modules[module].expert >= 0;
        subject.outputs = target_joined(s, plan, module, outputs);
        subject.inputs = inputs;
        if (runtime_find_rows(&subject, rows, &refusal) == 0) {
            target_add(s, &refusal, m->name);
        }
    }
}

static void target_cache_scales(struct runtime_search *s)
{
    const struct cache_scheme *cache = &s->config->cache;
    const struct runtime_row *rows[RUNTIME_ROWS_MAX];
    struct runtime_subject subject = target_subject(s);
    struct runtime_refusal refusal;

    if (cache->element == DTYPE_F32) {
        return;
    }
    subject.form = cache->element == DTYPE_I8 ? RUNTIME_CACHE_INT8 : RUNTIME_CACHE_FP8;
    subject.cache = cache;
    if (runtime_find_rows(&subject, rows, &refusal) == 0) {
        target_add(s, &refusal, "");
    }
}

/* The heads of attention are divided too. */
static void target_heads(struct runtime_search *s)
{
    const struct model_config *c = model_config(s->config->model);
    struct runtime_refusal refusal = {.part = PART_PARALLEL};
    int64_t fewer = s->devices;

    if (s->devices <= 1) {
        return;
    }
    if (model_is_bare(s->config->model)) {
        snprintf(refusal.text, sizeof(refusal.text),
                 "how %s divides a model of this architecture is not known here, so it cannot be checked",
                 s->target->runtime->name);
        snprintf(refusal.hint, sizeof(refusal.hint), "leave out tensor_parallel_size");
    } else if (c->num_heads % s->devices != 0) {
        while (fewer > 1 && c->num_heads % fewer != 0) {
            fewer--;
        }
        snprintf(refusal.text, sizeof(refusal.text), "%s cannot divide %lld heads over %lld devices",
                 s->target->runtime->name, (long long)c->num_heads, (long long)s->devices);
        snprintf(refusal.hint, sizeof(refusal.hint), "tensor_parallel_size %lld", (long long)fewer);
    } else {
        return;
    }
    target_add(s, &refusal, "");
}

static bool target_like(const struct format_module *a, const struct format_module *b)
{
    return (a == NULL) == (b == NULL) && (a == NULL || format_same_geometry(&a->scheme, &b->scheme));
}

static void target_experts(struct runtime_search *s)
{
    const struct plans *plans = model_plans(s->config->model);
    struct runtime_refusal refusal = {.part = PART_FORM};

    for (int64_t layer = 0; layer < plans_config(plans)->num_layers; layer++) {
        const struct plan *plan = plans_layer(plans, layer);
        int step = plan_find_step(plan, STEP_EXPERTS);
        if (step < 0) {
            continue;
        }
        const struct plan_experts *experts = plan->steps[step].experts;
        const struct format_module *const *own =
            (const struct format_module *const *)s->table + plans_first_module(plans, layer) + experts->first_module;
        bool alike = true;
        for (int64_t i = 1; i < experts->count * experts->plan->module_count; i++) {
            alike = alike && target_like(own[0], own[i]);
        }
        if (!alike) {
            snprintf(refusal.text, sizeof(refusal.text),
                     "%s loads all linears of a layer's experts as one, and those of block %lld are not quantized "
                     "alike",
                     s->target->runtime->name, (long long)layer);
            snprintf(refusal.hint, sizeof(refusal.hint), "quantize all of them, or none");
            target_add(s, &refusal, "");
            return;
        }
    }
}

int runtime_find_edge(const struct format_config *config, const struct format_module **found)
{
    const struct plans *plans = model_plans(config->model);
    AUTO_FREE const struct format_module **table = NULL;

    *found = NULL;
    TRY(format_module_table(config, &table));
    for (int64_t layer = 0; *found == NULL && layer < plans_config(plans)->num_layers; layer++) {
        const struct plan *plan = plans_layer(plans, layer);
        for (int f = 0; f < plan->fused_count; f++) {
            for (int i = 0; *found == NULL && i < plan->fused[f].count - 1; i++) {
                const struct format_module *m =
                    table[plans_first_module(plans, layer) + (size_t)plan->fused[f].modules[i]];
                bool block = m != NULL && m->scheme.kind == QTENSOR_FLOAT8 && !m->scheme.per_channel;
                *found = block && m->rows % m->scheme.group_rows != 0 ? m : NULL;
            }
        }
    }
    return 0;
}

/* Blocks of linears that are loaded as one must not cross from one to the next. */
static int target_edges(struct runtime_search *s)
{
    struct runtime_refusal refusal = {.part = PART_FORM};
    const struct format_module *found = NULL;
    bool asks = false;

    for (const struct runtime_row *row = runtime_rows; row->runtime != NULL; row++) {
        asks = asks || (row->whole_blocks && strcmp(row->runtime, s->target->runtime->name) == 0 &&
                        strcmp(row->format, s->format->name) == 0);
    }
    TRY(asks ? runtime_find_edge(s->config, &found) : 0);
    if (found != NULL) {
        snprintf(refusal.text, sizeof(refusal.text),
                 "%s joins q, k and v, and gate and up, and %lld outputs do not end where a block of %lld does",
                 s->target->runtime->name, (long long)found->rows, (long long)found->scheme.group_rows);
        snprintf(refusal.hint, sizeof(refusal.hint), "granularity per_channel");
        target_add(s, &refusal, found->name);
    }
    return 0;
}

/* What is true of a model rather than of a weight is said by the warnings of the format. */
static int target_warnings(struct runtime_search *s)
{
    AUTO_JSON json_t *warnings = json_array();
    struct runtime_refusal refusal = {.part = PART_FORM};
    char code[48];
    size_t i;
    json_t *warning;

    TRY(format_warnings(s->format, s->config, warnings));
    snprintf(code, sizeof(code), "not_in_%s", s->target->runtime->name);
    json_array_foreach(warnings, i, warning)
    {
        if (strcmp(json_string_value(json_object_get(warning, "code")), code) == 0) {
            snprintf(refusal.text, sizeof(refusal.text), "%s", json_string_value(json_object_get(warning, "message")));
            target_add(s, &refusal, "");
        }
    }
    return 0;
}

static int target_judge(struct runtime_search *s)
{
    AUTO_FREE const struct format_module **table = NULL;

    TRY(format_module_table(s->config, &table));
    s->table = table;
    s->devices = s->target->runtime->parallel != NULL && s->devices > 1 ? s->devices : 1;
    target_heads(s);
    if (s->count == 0) {
        target_modules(s);
    }
    target_cache_scales(s);
    if (s->target->runtime->experts_alike && !s->format->plain) {
        target_experts(s);
    }
    TRY(target_edges(s));
    return s->count == 0 ? target_warnings(s) : 0;
}

/* --- hints */

static void target_add_formats(const struct runtime_search *s, struct runtime_refusal *refusal)
{
    struct runtime_refusal none[RUNTIME_REFUSALS_MAX];
    char others[160] = "";

    for (const struct format *const *at = format_list(); *at != NULL; at++) {
        struct runtime_search other = {
            .format = *at, .config = s->config, .target = s->target, .devices = s->devices, .out = none};
        bool plain_last = (*at)->plain && others[0] != '\0';
        if (*at == s->format || plain_last || !format_carries(*at, s->config)) {
            continue;
        }
        if (target_judge(&other) == 0 && other.count == 0) {
            size_t used = strlen(others);
            snprintf(others + used, sizeof(others) - used, "%s%s", used > 0 ? ", " : "", (*at)->name);
        }
    }
    size_t used = strlen(refusal->hint);
    if (others[0] != '\0') {
        snprintf(refusal->hint + used, sizeof(refusal->hint) - used, "%soutput.format %s", used > 0 ? "; or " : "",
                 others);
    }
}

int runtime_check(const struct format *format, const struct format_config *config, const struct format_target *target,
                  int64_t tensor_parallel, struct runtime_refusal out[RUNTIME_REFUSALS_MAX])
{
    struct runtime_search s = {
        .format = format, .config = config, .target = target, .devices = tensor_parallel, .out = out};

    TRY(target_judge(&s));
    for (int i = 0; i < s.count; i++) {
        target_add_formats(&s, &out[i]);
    }
    return s.count;
}

bool runtime_targets_load(const struct format *format, const struct format_config *config,
                          const struct format_targets *targets)
{
    struct runtime_refusal out[RUNTIME_REFUSALS_MAX];

    for (int i = 0; i < targets->count; i++) {
        struct runtime_search s = {.format = format,
                                   .config = config,
                                   .target = &targets->items[i],
                                   .devices = targets->tensor_parallel,
                                   .out = out};
        if (target_judge(&s) != 0 || s.count > 0) {
            return false;
        }
    }
    return true;
}

bool runtime_loads_scheme(const char *runtime, const char *format, const struct qscheme *scheme)
{
    const struct runtime_row *rows[RUNTIME_ROWS_MAX];
    struct runtime_refusal refusal;
    struct format_target target;

    if (runtime_target_parse(runtime, &target) != 0 || format_find(format) == NULL) {
        return false;
    }
    const struct runtime_subject subject = {.format = format_find(format),
                                            .target = &target,
                                            .form = runtime_form_of(format_find(format), scheme),
                                            .scheme = scheme,
                                            .devices = 1};
    return runtime_find_rows(&subject, rows, &refusal) > 0;
}

const struct runtime_row *runtime_row_of(const struct format *format, const struct format_config *config,
                                         const struct format_target *target)
{
    const struct runtime_row *rows[RUNTIME_ROWS_MAX];
    struct runtime_refusal refusal;
    struct runtime_subject subject = {.format = format, .target = target, .devices = 1};

    if (config->count > 0) {
        subject.scheme = &config->modules[0].scheme;
        subject.form = runtime_form_of(format, subject.scheme);
    } else {
        subject.cache = &config->cache;
        subject.form = config->cache.element == DTYPE_I8 ? RUNTIME_CACHE_INT8 : RUNTIME_CACHE_FP8;
    }
    return runtime_find_rows(&subject, rows, &refusal) > 0 ? rows[0] : NULL;
}
