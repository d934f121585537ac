/* Modules, layers and plans of a bare model, from the headers of its shards.
 *
 * A run of modules is what is finished and saved at a time. It follows from the checkpoint alone, so that an
 * interrupted job finds the same runs again, and is never larger than the largest module that is quantized, so that
 * memory follows the largest tensor and not the shard. */

#include "models/bare.h"

#include "base/err.h"
#include "base/mem.h"
#include "models/model_internal.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SUFFIX ".weight"
#define RUN_ELEMENTS_MIN ((int64_t)1 << 20) /* small modules share a run */

#define WORDS(...)        \
    (const char *const[]) \
    {                     \
        __VA_ARGS__, NULL \
    }

static const struct bare_rule rules[] = {
    {"norms", BARE_HAS, WORDS("norm")},
    {"norms", BARE_PART, WORDS("ln_1", "ln_2", "ln_f")},
    {"embeddings and positions", BARE_HAS, WORDS("embed", "rotary", "position", "relative")},
    {"embeddings and positions", BARE_PART, WORDS("wte", "wpe")},
    {"routers and gates", BARE_HAS, WORDS("router", "expert_gate")},
    {"routers and gates", BARE_PART, WORDS("gate", "gating")},
    {"routers and gates", BARE_LAST, WORDS("b_proj", "in_proj_a", "in_proj_b", "in_proj_ba", "dt_proj", "x_proj")},
    {"convolutions", BARE_HAS, WORDS("conv")},
    {"towers", BARE_HAS, WORDS("vision", "visual", "audio", "image", "video", "speech", "tower", "siglip")},
    {"towers", BARE_PART, WORDS("vit", "clip")},
    {"projectors", BARE_HAS,
     WORDS("projector", "multi_modal", "mm_proj", "connector", "merger", "resampler", "aligner")},
    {"heads", BARE_HAS, WORDS("lm_head")},
    {"heads", BARE_LAST, WORDS("head", "score", "classifier", "pooler")},
    {"prediction layers and indexers", BARE_HAS, WORDS("nextn", "indexer")},
    {"prediction layers and indexers", BARE_PART, WORDS("mtp")},
    {"whatever lies outside of numbered layers", BARE_OUTSIDE, NULL},
    {.what = NULL},
};

const struct bare_rule *bare_rules(void)
{
    return rules;
}

/* Whether one part of a path, [part, part + length), matches. */
static bool bare_part_matches(const struct bare_rule *rule, const char *part, size_t length, bool last)
{
    for (const char *const *word = rule->words; *word != NULL; word++) {
        size_t size = strlen(*word);
        bool equal = length == size && memcmp(part, *word, size) == 0;
        if (rule->match == BARE_PART ? equal : rule->match == BARE_LAST && equal && last) {
            return true;
        }
        for (size_t at = 0; rule->match == BARE_HAS && at + size <= length; at++) {
            if (memcmp(part + at, *word, size) == 0) {
                return true;
            }
        }
    }
    return false;
}

static bool bare_rule_matches(const struct bare_rule *rule, const char *path)
{
    bool number = false;

    for (const char *part = path, *end; part != NULL; part = *end == '.' ? end + 1 : NULL) {
        size_t length = strcspn(part, ".");
        end = part + length;
        number = number || (length > 0 && strspn(part, "0123456789") == length);
        if (rule->match != BARE_OUTSIDE && bare_part_matches(rule, part, length, *end == '\0')) {
            return true;
        }
    }
    return rule->match == BARE_OUTSIDE && !number;
}

const struct bare_rule *bare_rule_of(const char *path)
{
    char lower[PLAN_NAME_MAX];
    size_t i = 0;

    for (; path[i] != '\0' && i + 1 < sizeof(lower); i++) {
        lower[i] = (char)tolower((unsigned char)path[i]);
    }
    lower[i] = '\0';
    for (const struct bare_rule *rule = rules; rule->what != NULL; rule++) {
        if (bare_rule_matches(rule, lower)) {
            return rule;
        }
    }
    return NULL;
}

/* --- tensors */

static bool bare_is_weight(const struct model_tensor *tensor)
{
    const struct safetensors_entry *entry = tensor->entry;
    size_t length = strlen(tensor->name), suffix = sizeof(SUFFIX) - 1;

    return entry->rank == 2 && entry->shape[0] > 1 && entry->shape[1] > 1 && length > suffix &&
           length - suffix < PLAN_NAME_MAX && strcmp(tensor->name + length - suffix, SUFFIX) == 0;
}

/* Codes would be taken for what is copied, and an artifact made of them could be read by nothing. Numbers of positions
 * and masks are not codes. */
static int bare_check_tensor(const struct model_tensor *tensor)
{
    enum dtype dtype = tensor->entry->dtype;
    bool is_float = dtype == DTYPE_F32 || dtype == DTYPE_F16 || dtype == DTYPE_BF16;
    bool other = dtype == DTYPE_F64 || dtype == DTYPE_BOOL || dtype == DTYPE_I64;

    if (is_float || (other && !bare_is_weight(tensor)) || (tensor->entry->rank < 2 && !dtype_rows[dtype].is_float)) {
        return 0;
    }
    if (other) {
        return err_raise(ERR_INVALID_MODEL, "tensor %.160s is %s; weights must be F32, F16 or BF16", tensor->name,
                         dtype_rows[dtype].name);
    }
    int rc = err_raise(ERR_ALREADY_QUANTIZED, "tensor %.160s is %s: the checkpoint is quantized already", tensor->name,
                       dtype_rows[dtype].name);
    return err_set_hint(rc, "register the float checkpoint that it was made of");
}

/* --- modules and their runs */

struct bare_list {
    struct plan_module *modules; /* in checkpoint order */
    size_t *ends;                /* of runs, in modules */
    size_t count, runs;
};

static void bare_list_deinit(struct bare_list *list)
{
    free(list->modules);
    free(list->ends);
}

CLEANUP_DEINIT(bare_list, struct bare_list, bare_list_deinit)

/* The type of most elements that are quantized. */
static void bare_find_dtype(struct model *model, const int64_t elements[DTYPE_COUNT])
{
    enum dtype best = DTYPE_F32;

    for (int i = 0; i < DTYPE_COUNT; i++) {
        best = elements[i] > elements[best] ? (enum dtype)i : best;
    }
    model->bare->dtype = best;
}

static int bare_add_module(struct model *model, const struct model_tensor *tensor, struct bare_list *list)
{
    const struct safetensors_entry *entry = tensor->entry;
    const char *path = arena_strndup(&model->arena, tensor->name, strlen(tensor->name) - (sizeof(SUFFIX) - 1));

    if (path == NULL) {
        return arena_check(&model->arena);
    }
    list->modules[list->count++] = (struct plan_module){.path = path,
                                                        .rows = entry->shape[0],
                                                        .cols = entry->shape[1],
                                                        .optional = bare_rule_of(path) != NULL,
                                                        .expert = -1,
                                                        .step = -1};
    return 0;
}

/* The shards that the modules lie in end runs. */
static int bare_list_modules(struct model *model, struct bare_list *list)
{
    AUTO_FREE const struct safetensors **files = NULL;
    int64_t largest = RUN_ELEMENTS_MIN, filled = 0, elements[DTYPE_COUNT] = {0};

    TRY(mem_array(&list->modules, model->tensor_count));
    TRY(mem_array(&list->ends, model->tensor_count));
    TRY(mem_array(&files, model->tensor_count));
    for (size_t i = 0; i < model->tensor_count; i++) {
        const struct model_tensor *tensor = &model->tensors[i];
        TRY(bare_check_tensor(tensor));
        if (bare_is_weight(tensor)) {
            files[list->count] = tensor->file;
            TRY(bare_add_module(model, tensor, list));
            const struct plan_module *m = &list->modules[list->count - 1];
            largest = !m->optional && m->rows * m->cols > largest ? m->rows * m->cols : largest;
            elements[tensor->entry->dtype] += m->optional ? 1 : m->rows * m->cols;
        }
    }
    for (size_t i = 0; i < list->count; i++) {
        int64_t size = list->modules[i].rows * list->modules[i].cols;
        bool fits = i > 0 && files[i] == files[i - 1] && filled + size <= largest;
        list->runs += fits ? 0 : 1;
        filled = fits ? filled + size : size;
        list->ends[list->runs - 1] = i + 1;
    }
    bare_find_dtype(model, elements);
    return 0;
}

static int bare_by_name(const void *a, const void *b)
{
    return strcmp(((const struct bare_name *)a)->name, ((const struct bare_name *)b)->name);
}

static int bare_index_names(struct model *model, const struct bare_list *list)
{
    struct bare *bare = model->bare;

    TRY(mem_array(&bare->by_name, list->count));
    for (size_t i = 0; i < list->count; i++) {
        bare->by_name[i] = (struct bare_name){list->modules[i].path, i};
    }
    bare->count = list->count;
    qsort(bare->by_name, bare->count, sizeof(*bare->by_name), bare_by_name);
    return 0;
}

int bare_load(struct model *model)
{
    AUTO(bare_list) struct bare_list list = {0};

    TRY(bare_list_modules(model, &list));
    if (list.count == 0) {
        return err_raise(
            ERR_UNSUPPORTED_ARCHITECTURE,
            "%.300s, and the checkpoint has no weight of two dimensions that could be quantized without it",
            model->bare->reason);
    }
    TRY(bare_index_names(model, &list));
    model->config.num_layers = (int64_t)list.runs;
    return plans_new_listed(&model->config, list.modules, list.ends, &model->plans);
}

/* --- what takes the place of a configuration */

int bare_configure(struct model *model, const char *reason)
{
    const json_t *architectures = json_object_get(model->json, "architectures");
    const char *name = json_string_value(json_array_get(architectures, 0));
    const char *type = json_string_value(json_object_get(model->json, "model_type"));

    name = name != NULL && name[0] != '\0' ? name : type != NULL && type[0] != '\0' ? type : "unknown";
    TRY(mem_new(&model->bare));
    struct bare *bare = model->bare;
    bare->reason = arena_strndup(&model->arena, reason, strlen(reason));
    bare->arch = (struct arch){.name = arena_strndup(&model->arena, name, strnlen(name, 100)),
                               .model_type = "",
                               .layers = "",
                               .attention = "",
                               .embedding = "",
                               .norm = "",
                               .head = ""};
    model->config = (struct model_config){.arch = &bare->arch};
    model->layout = (struct arch_layout){"", ""};
    TRY(mem_array(&model->extras, 1)); /* there is nothing that they would be next to */
    return arena_check(&model->arena);
}

void bare_free(struct bare *bare)
{
    if (bare != NULL) {
        free(bare->by_name);
        free(bare);
    }
}

/* --- questions */

bool model_is_bare(const struct model *model)
{
    return model->bare != NULL;
}

const char *model_bare_reason(const struct model *model)
{
    return model->bare->reason;
}

bool bare_is_solved(const struct model *model, const char *tensor)
{
    size_t length = strlen(tensor), suffix = sizeof(SUFFIX) - 1;
    char path[PLAN_NAME_MAX];
    int module;

    if (length <= suffix || length - suffix >= sizeof(path) || strcmp(tensor + length - suffix, SUFFIX) != 0) {
        return false;
    }
    snprintf(path, sizeof(path), "%.*s", (int)(length - suffix), tensor);
    int64_t layer = bare_find(model, path, &module);
    return layer >= 0 && !plans_layer(model->plans, layer)->modules[module].optional;
}

int64_t bare_find(const struct model *model, const char *name, int *module)
{
    const struct bare_name key = {.name = name};
    const struct bare_name *found = bsearch(&key, model->bare->by_name, model->bare->count, sizeof(key), bare_by_name);

    return found != NULL ? plans_module_at(model->plans, found->index, module) : -1;
}
