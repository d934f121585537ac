/* A choice as it is kept and shown. */

#include "pipeline/mixture.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

#define MIXTURE_VERSION 1
#define MIXTURE_FILE_MAX ((size_t)64 << 20)

/* --- the choice as JSON */

static json_t *mixture_totals(const struct mixture *mixture)
{
    return json_pack("{s:f, s:f, s:b}", "bits_per_weight", mixture->bits, "predicted_kl", mixture->predicted_kl,
                     "exact", (int)mixture->exact);
}

json_t *mixture_json(const struct mixture *mixture)
{
    json_t *object = mixture_totals(mixture), *names = json_array(), *modules = json_object();

    for (int i = 0; i < mixture->candidates.count; i++) {
        json_array_append_new(names, json_string(mixture->candidates.list[i].name));
    }
    for (size_t i = 0; i < mixture->choice_count; i++) {
        const struct mixture_choice *choice = &mixture->choices[i];
        json_object_set_new(modules, choice->module, json_pack("[i, f]", choice->candidate, choice->kl));
    }
    if (object == NULL || json_object_set_new(object, "candidates", names) != 0 ||
        json_object_set_new(object, "modules", modules) != 0) {
        json_decref(object);
        return NULL;
    }
    return object;
}

json_t *mixture_summary(const struct mixture *mixture)
{
    json_t *object = mixture_totals(mixture), *list = json_array();

    for (int i = 0; i < mixture->candidates.count; i++) {
        json_int_t modules = 0;
        for (size_t k = 0; k < mixture->choice_count; k++) {
            modules += mixture->choices[k].candidate == i;
        }
        json_array_append_new(list,
                              json_pack("{s:s, s:I}", "name", mixture->candidates.list[i].name, "modules", modules));
    }
    json_object_set_new(object, "candidates", list);
    return object;
}

int mixture_save(const struct mixture *mixture, const char *directory)
{
    AUTO_JSON json_t *file = mixture_json(mixture);
    AUTO_FREE char *text = NULL;
    char path[600];

    if (file != NULL) {
        json_object_set_new(file, "version", json_integer(MIXTURE_VERSION));
        text = json_dumps(file, JSON_COMPACT | JSON_REAL_PRECISION(17));
    }
    if (text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a choice of precisions");
    }
    TRY(fs_path(path, sizeof(path), "%s/%s", directory, MIXTURE_FILE));
    return fs_write_atomic(path, text, strlen(text));
}

static int mixture_compare(const void *a, const void *b)
{
    return strcmp(((const struct mixture_choice *)a)->module, ((const struct mixture_choice *)b)->module);
}

/* Choices are numbers of candidates, so the file is of use to the list that it was made with alone: another version of
 * the daemon may have another by default. */
static bool mixture_lists_same(const json_t *file, const struct sensitivity_candidates *candidates)
{
    const json_t *names = json_object_get(file, "candidates");

    if (json_array_size(names) != (size_t)candidates->count) {
        return false;
    }
    for (int i = 0; i < candidates->count; i++) {
        const char *name = json_string_value(json_array_get(names, (size_t)i));
        if (name == NULL || strcmp(name, candidates->list[i].name) != 0) {
            return false;
        }
    }
    return true;
}

static bool mixture_read(const json_t *file, const struct mixture *mixture, struct mixture_choice *choices,
                         size_t *count)
{
    const char *module;
    json_t *value;

    *count = 0;
    json_object_foreach(json_object_get(file, "modules"), module, value)
    {
        struct mixture_choice *choice = &choices[(*count)++];
        if (json_unpack(value, "[i, F]", &choice->candidate, &choice->kl) != 0 || choice->candidate < 0 ||
            choice->candidate >= mixture->candidates.count || strlen(module) >= sizeof(choice->module)) {
            return false;
        }
        memcpy(choice->module, module, strlen(module) + 1);
    }
    qsort(choices, *count, sizeof(*choices), mixture_compare);
    return *count > 0;
}

int mixture_load(struct mixture *mixture, const char *directory)
{
    const struct json_budget budget = {.depth = 8, .memory = (size_t)1 << 30};
    AUTO_FREE struct mixture_choice *choices = NULL;
    AUTO_FREE char *text = NULL;
    AUTO_JSON json_t *file = NULL;
    size_t size = 0, count = 0;
    char path[600];

    TRY(fs_path(path, sizeof(path), "%s/%s", directory, MIXTURE_FILE));
    bool there = fs_read_file(path, MIXTURE_FILE_MAX, &text, &size) == 0 &&
                 json_parse_within(text, size, &budget, &file) == 0 &&
                 json_integer_value(json_object_get(file, "version")) == MIXTURE_VERSION &&
                 mixture_lists_same(file, &mixture->candidates);
    if (there) {
        TRY(mem_array(&choices, json_object_size(json_object_get(file, "modules")) + 1));
        there = mixture_read(file, mixture, choices, &count);
    }
    if (!there) {
        return err_raise(ERR_NOT_FOUND, "there is no choice of precisions for this job");
    }
    mixture->exact = json_is_true(json_object_get(file, "exact"));
    mixture->predicted_kl = json_number_value(json_object_get(file, "predicted_kl"));
    mixture->bits = json_number_value(json_object_get(file, "bits_per_weight"));
    mixture->chosen = true;
    free(mixture->choices);
    mixture->choices = MOVE(choices);
    mixture->choice_count = count;
    return 0;
}
