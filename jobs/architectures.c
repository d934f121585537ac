/* What can be quantized, row by row of models/arch.c, and what of a model that no row describes: GET /v1/architectures
 * and docs/families.md. */

#include "jobs/jobs.h"

#include "formats/format.h"
#include "models/bare.h"
#include "models/parts.h"
#include "quantizers/quantizer.h"

#include <pthread.h>
#include <string.h>

static bool method_applies(const struct quantizer *quantizer, const struct arch_parts *parts)
{
    bool cache = quantizer->solve == NULL && quantizer->rewrite == NULL && quantizer->tune == NULL &&
                 !quantizer->measures; /* and its analysis */

    return quantizer->measures       ? true
           : quantizer->tune != NULL ? parts->differentiable
           : cache                   ? parts->attention && !parts->latent
                                     : quantizer->solve != NULL || parts->folds;
}

/* parts NULL: of a model that no row describes. */
static json_t *methods_of(const struct arch_parts *parts)
{
    json_t *list = json_array();

    for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
        bool free = (*q)->stats == STATS_NONE && (*q)->rewrite == NULL && (*q)->solve != NULL;
        if (parts == NULL ? free : method_applies(*q, parts)) {
            json_array_append_new(list, json_string((*q)->name));
        }
    }
    return list;
}

static json_t *formats_of(const struct arch *row, const struct arch_parts *parts)
{
    json_t *list = json_array();

    for (const struct format *const *f = format_list(); *f != NULL; f++) {
        bool gguf = strcmp((*f)->name, "gguf") == 0;
        bool takes = row == NULL ? (*f)->bare : !gguf || (row->gguf != NULL && !parts->experts);
        if (takes) {
            json_array_append_new(list, json_string((*f)->name));
        }
    }
    return list;
}

static json_t *parts_of(const struct arch_parts *parts)
{
    json_t *list = json_array();

    for (size_t i = 0; i < parts->count; i++) {
        json_array_append_new(list, json_string(parts->names[i]));
    }
    return list;
}

/* Classes of checkpoints that hold such a language model and more. */
static json_t *composites_of(const struct arch *row)
{
    json_t *list = json_array();

    for (const struct arch_composite *c = arch_composites(); c->name != NULL; c++) {
        for (size_t i = 0; i < sizeof(c->text_types) / sizeof(c->text_types[0]) && c->text_types[i] != NULL; i++) {
            if (strcmp(c->text_types[i], row->model_type) == 0) {
                json_array_append_new(list, json_string(c->name));
            }
        }
    }
    return list;
}

static json_t *describe_row(const struct arch *row)
{
    struct arch_parts parts = {.attention = true, .folds = true, .experts = row->experts != NULL};

    (void)arch_parts(row, &parts);
    return json_pack("{s:s, s:s, s:s, s:o, s:o, s:s?, s:o, s:o}", "object", "architecture", "name", row->name,
                     "model_type", row->model_type, "composites", composites_of(row), "parts", parts_of(&parts), "gguf",
                     row->gguf, "methods", methods_of(&parts), "formats", formats_of(row, &parts));
}

/* The list's names, each once. */
static json_t *list_left_in_float(void)
{
    static const char *const matches[] = {
        [BARE_HAS] = "part_has", [BARE_PART] = "part", [BARE_LAST] = "last_part", [BARE_OUTSIDE] = "outside"};
    json_t *list = json_array();

    for (const struct bare_rule *rule = bare_rules(); rule->what != NULL; rule++) {
        json_t *words = json_array();
        for (const char *const *word = rule->words; word != NULL && *word != NULL; word++) {
            json_array_append_new(words, json_string(*word));
        }
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:o}", "what", rule->what, "match", matches[rule->match], "words", words));
    }
    return list;
}

static json_t *list_architecture_rows(void)
{
    json_t *data = json_array();

    for (const struct arch *const *row = arch_list(); *row != NULL; row++) {
        json_array_append_new(data, describe_row(*row));
    }
    return json_pack("{s:s, s:o, s:b, s:{s:o, s:o, s:o}}", "object", "list", "data", data, "has_more", 0, "model_free",
                     "methods", methods_of(NULL), "formats", formats_of(NULL, NULL), "left_in_float",
                     list_left_in_float());
}

/* The same for the life of the process, and some hundred plans to make it: made once. */
json_t *service_architectures(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static json_t *made;

    (void)pthread_mutex_lock(&lock);
    made = made != NULL ? made : list_architecture_rows();
    json_t *copy = json_deep_copy(made);
    (void)pthread_mutex_unlock(&lock);
    return copy;
}
