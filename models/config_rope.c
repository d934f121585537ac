/* Rotary tables in the words of config.json, of which there are several generations. */

#include "models/config_internal.h"

#include "base/err.h"
#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static int parse_rope_type(const struct arch *arch, const char *type, const char *place, enum rope_type *out)
{
    static const struct {
        const char *name;
        enum rope_type type;
    } names[] = {{"default", ROPE_DEFAULT},
                 {"linear", ROPE_LINEAR},
                 {"llama3", ROPE_LLAMA3},
                 {"dynamic", ROPE_DYNAMIC},
                 {"yarn", ROPE_YARN},
                 {"longrope", ROPE_LONGROPE},
                 {"su", ROPE_LONGROPE}, /* its first name */
                 {"proportional", ROPE_PROPORTIONAL}};
    char what[64];

    if (arch->sections && strcmp(type, "mrope") == 0) { /* the ordinary one, with sections */
        *out = ROPE_DEFAULT;
        return 0;
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(type, names[i].name) == 0) {
            *out = names[i].type;
            return 0;
        }
    }
    snprintf(what, sizeof(what), "config.json: %s: rope type", place);
    return config_unsupported(what, type);
}

/* The type in either spelling. Readers disagree on which of two wins, so two must agree. */
static int read_rope_type(const struct arch *arch, const json_t *rope, const char *place, enum rope_type *out)
{
    static const char *const keys[] = {"rope_type", "type"};
    enum rope_type types[] = {ROPE_DEFAULT, ROPE_DEFAULT};
    bool said[] = {false, false};

    for (int i = 0; i < 2; i++) {
        const json_t *value = json_object_get(rope, keys[i]);
        if (value == NULL || json_is_null(value)) {
            continue;
        }
        if (!json_is_string(value)) {
            return err_raise(ERR_INVALID_MODEL, "config.json: %s.%s is not a string", place, keys[i]);
        }
        TRY(parse_rope_type(arch, json_string_value(value), place, &types[i]));
        said[i] = true;
    }
    if (said[0] && said[1] && types[0] != types[1]) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s names two types, rope_type \"%s\" and type \"%s\"", place,
                         json_get_string(rope, "rope_type"), json_get_string(rope, "type"));
    }
    *out = said[0] ? types[0] : types[1];
    return 0;
}

/* Every member of rope parameters, so that one that would change the table and is not computed here is seen. */
static int check_rope_members(const json_t *rope, const char *place)
{
    static const char *const known[] = {"rope_type", "type", "rope_theta", "factor", "low_freq_factor",
                                        "high_freq_factor", "original_max_position_embeddings",
                                        "max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
                                        "mscale", "mscale_all_dim", "truncate", "short_factor", "long_factor",
                                        "partial_rotary_factor", "llama_4_scaling_beta",
                                        /* Positions of images: those of text are the same in all sections. */
                                        "mrope_section", "mrope_interleaved",
                                        /* Says where the values come from. */
                                        "finetuned"};
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)rope, key, value)
    {
        bool found = json_is_null(value);
        for (size_t i = 0; !found && i < sizeof(known) / sizeof(known[0]); i++) {
            found = strcmp(key, known[i]) == 0;
        }
        if (!found) {
            char what[96];
            snprintf(what, sizeof(what), "config.json: %.60s with the member", place);
            return config_unsupported(what, key);
        }
    }
    return 0;
}

static bool rope_by_type(const json_t *rope)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)rope, key, value)
    {
        if (json_is_object(value)) {
            return true;
        }
    }
    return false;
}

/* One of the members that hold rope parameters: NULL when it is absent, null or empty, which all mean the same. Its
 * type is judged even where another member counts: a type that is not computed here would show that the checkpoint is
 * meant for another forward pass. */
static int read_rope(const struct arch *arch, const json_t *config, const char *key, const char *place,
                     const json_t **rope, enum rope_type *type)
{
    *rope = json_object_get(config, key);
    *type = ROPE_DEFAULT;
    if (*rope == NULL || json_is_null(*rope)) {
        *rope = NULL;
        return 0;
    }
    if (!json_is_object(*rope)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s is not an object", place);
    }
    if (json_object_size(*rope) == 0) {
        *rope = NULL;
        return 0;
    }
    if (rope_by_type(*rope)) {
        return 0;
    }
    TRY(check_rope_members(*rope, place));
    return read_rope_type(arch, *rope, place, type);
}

/* Where it is given inside and outside of the parameters, versions of the same library take one or the other. */
static int read_original_max(const json_t *config, const json_t *rope, struct rope_spec *spec)
{
    double outer = 0;

    TRY(config_positive(config, "original_max_position_embeddings", 1e10, &outer));
    spec->original_max = outer;
    TRY(config_positive(rope, "original_max_position_embeddings", 1e10, &spec->original_max));
    if (outer > 0 && outer != spec->original_max) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: original_max_position_embeddings is %g, and %g in the rope parameters", outer,
                         spec->original_max);
    }
    return 0;
}

static int need_original_max(const struct rope_spec *spec, const char *type)
{
    return spec->original_max > 0
               ? 0
               : err_raise(ERR_INVALID_MODEL, "config.json: %s rope needs original_max_position_embeddings", type);
}

static int parse_llama3(const json_t *rope, struct rope_spec *spec)
{
    TRY(config_positive(rope, "low_freq_factor", 1e6, &spec->low_freq));
    TRY(config_positive(rope, "high_freq_factor", 1e6, &spec->high_freq));
    if (!(spec->low_freq > 0 && spec->high_freq >= spec->low_freq && spec->original_max > 0)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: llama3 rope needs low_freq_factor, high_freq_factor of at "
                                            "least as much and original_max_position_embeddings");
    }
    return 0;
}

static double yarn_scale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static int parse_yarn(const json_t *rope, struct rope_spec *spec)
{
    double mscale = 0, all = 0;

    spec->beta_fast = 32;
    spec->beta_slow = 1;
    spec->truncate = true;
    TRY(need_original_max(spec, "yarn"));
    TRY(config_positive(rope, "beta_fast", 1e6, &spec->beta_fast));
    TRY(config_positive(rope, "beta_slow", 1e6, &spec->beta_slow));
    TRY(config_flag(rope, "truncate", &spec->truncate));
    TRY(config_optional(rope, "mscale", &mscale));
    TRY(config_optional(rope, "mscale_all_dim", &all));
    TRY(config_positive(rope, "attention_factor", 1e6, &spec->scaling));
    if (spec->beta_fast < spec->beta_slow) {
        return err_raise(ERR_INVALID_MODEL, "config.json: yarn rope needs beta_fast = %g to be at least beta_slow = %g",
                         spec->beta_fast, spec->beta_slow);
    }
    if (spec->theta <= 1) {
        return err_raise(ERR_INVALID_MODEL, "config.json: yarn rope needs a rope_theta above 1");
    }
    if (spec->scaling == 0) {
        spec->scaling = mscale > 0 && all > 0 ? yarn_scale(spec->factor, mscale) / yarn_scale(spec->factor, all)
                                              : yarn_scale(spec->factor, 1);
    }
    return 0;
}

static int read_rope_factors(const json_t *rope, const char *key, int64_t count, float *out)
{
    const json_t *list = json_object_get(rope, key);

    if (!json_is_array(list) || (int64_t)json_array_size(list) != count) {
        return err_raise(ERR_INVALID_MODEL, "config.json: longrope needs %s, a list of %lld numbers", key,
                         (long long)count);
    }
    for (int64_t i = 0; i < count; i++) {
        double value = json_number_value(json_array_get(list, (size_t)i));
        if (!(value >= 1e-6 && value <= 1e6)) {
            return err_raise(ERR_INVALID_MODEL, "config.json: %s[%lld] is not a number in [1e-6, 1e6]", key,
                             (long long)i);
        }
        out[i] = (float)value;
    }
    return 0;
}

static int parse_longrope(const json_t *rope, struct rope_spec *spec)
{
    if (spec->dims / 2 > ROPE_FACTORS_MAX) {
        return err_raise(ERR_INVALID_MODEL, "config.json: longrope of more than %d columns", ROPE_FACTORS_MAX);
    }
    TRY(need_original_max(spec, "longrope"));
    TRY(read_rope_factors(rope, "short_factor", spec->dims / 2, spec->short_factors));
    TRY(read_rope_factors(rope, "long_factor", spec->dims / 2, spec->long_factors));
    TRY(config_positive(rope, "attention_factor", 1e6, &spec->scaling));
    if (spec->scaling == 0) {
        spec->scaling =
            spec->factor <= 1 || spec->original_max <= 1 ? 1 : sqrt(1 + log(spec->factor) / log(spec->original_max));
    }
    return 0;
}

/* The factor; yarn and longrope take what the context grew by where there is none. */
static int read_rope_factor(const json_t *config, const json_t *rope, struct model_config *c, struct rope_spec *spec)
{
    bool grows = spec->type == ROPE_YARN || spec->type == ROPE_LONGROPE;

    TRY(read_original_max(config, rope, spec));
    spec->factor = spec->type == ROPE_PROPORTIONAL ? 1 : 0;
    TRY(config_positive(rope, "factor", 1e6, &spec->factor));
    if (spec->factor == 0 && grows && spec->original_max > 0) {
        spec->factor = (double)c->max_position / spec->original_max;
    }
    if (spec->factor < 1 && spec->type != ROPE_LONGROPE) {
        return err_raise(ERR_INVALID_MODEL, "config.json: a rope factor of at least 1 is needed");
    }
    return 0;
}

static int parse_rope_scaling(const json_t *config, const json_t *rope, struct model_config *c, struct rope_spec *spec)
{
    if (spec->type == ROPE_DEFAULT) {
        return 0;
    }
    TRY(read_rope_factor(config, rope, c, spec));
    switch (spec->type) {
    case ROPE_LLAMA3:
        return parse_llama3(rope, spec);
    case ROPE_YARN:
        return parse_yarn(rope, spec);
    case ROPE_LONGROPE:
        return parse_longrope(rope, spec);
    case ROPE_DYNAMIC:
        spec->max_position = (double)c->max_position;
        return spec->dims > 2 ? 0 : err_raise(ERR_INVALID_MODEL, "config.json: dynamic rope needs 4 columns or more");
    case ROPE_DEFAULT:
    case ROPE_LINEAR:
    case ROPE_PROPORTIONAL:
    case ROPE_NONE:
        break;
    }
    return 0;
}

/* Queries are scaled as their positions grow: their table is another one than the keys'. */
static int parse_query_scaling(const json_t *rope, struct model_config *c, struct rope_spec *spec)
{
    double growth = 0;

    TRY(config_optional(rope, "llama_4_scaling_beta", &growth));
    if (growth == 0) {
        return 0;
    }
    if (!c->arch->query_scaling) {
        return config_unsupported("config.json: rope parameters with the member", "llama_4_scaling_beta");
    }
    TRY(need_original_max(spec, "llama_4_scaling_beta's"));
    c->ropes[1] = *spec;
    c->rope_count = 2;
    spec->growth = growth;
    spec->period = spec->original_max;
    return 0;
}

/* Columns go by three positions, which are those of an image (Wang et al. 2024, arXiv 2409.12191, section 2.1). Of a
 * text all three are the same: it is rotated in the ordinary way, however the columns are dealt out. */
static int check_sections(const json_t *rope, const struct model_config *c, const struct rope_spec *spec)
{
    const json_t *list = json_object_get(rope, "mrope_section");
    int64_t sum = 0;
    bool fits = json_array_size(list) == 3;

    if (!c->arch->sections || list == NULL || json_is_null(list)) {
        return 0;
    }
    for (size_t i = 0; fits && i < 3; i++) {
        const json_t *entry = json_array_get(list, i);
        json_int_t columns = json_integer_value(entry);
        fits = json_is_integer(entry) && columns >= 0 && columns <= spec->dims / 2;
        sum += fits ? columns : 0;
    }
    return fits && sum == spec->dims / 2
               ? 0
               : err_raise(ERR_INVALID_MODEL,
                           "config.json: mrope_section is not three numbers of columns that are %lld together",
                           (long long)spec->dims / 2);
}

/* rope NULL: none is given. `spec` has type and base as they are without it. */
static int parse_table(const json_t *config, const json_t *rope, struct model_config *c, struct rope_spec *spec)
{
    int64_t head_dim = spec == &c->ropes[0] && c->full_head_dim > 0 ? c->full_head_dim : c->head_dim;
    double partial = c->arch->default_partial > 0 ? c->arch->default_partial : 1;

    TRY(config_positive(config, "partial_rotary_factor", 1, &partial));
    if (rope != NULL) {
        TRY(config_positive(rope, "rope_theta", 1e15, &spec->theta));
        TRY(config_positive(rope, "partial_rotary_factor", 1, &partial));
    }
    if (spec->theta < 1) {
        return err_raise(ERR_INVALID_MODEL, "config.json: rope_theta = %g is below 1", spec->theta);
    }
    if (partial < 1 && !c->arch->partial_rope && spec->type != ROPE_PROPORTIONAL) {
        return config_unsupported("rope with", "partial_rotary_factor below 1");
    }
    spec->turned = partial;
    spec->dims = spec->type == ROPE_PROPORTIONAL ? head_dim : (int64_t)((double)head_dim * partial);
    if (spec->dims < 2 || spec->dims % 2 != 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: partial_rotary_factor %g of head_dim %lld is no even number",
                         partial, (long long)head_dim);
    }
    TRY(rope != NULL ? check_sections(rope, c, spec) : 0);
    return rope != NULL ? parse_rope_scaling(config, rope, c, spec) : 0;
}

/* A table for layers that attend to everything and one for those of a window. */
static int parse_two_tables(const json_t *config, struct model_config *c)
{
    static const char *const keys[] = {"full_attention", "sliding_attention"};
    const json_t *scaling, *parameters, *given[2] = {NULL, NULL};
    enum rope_type types[2] = {ROPE_DEFAULT, ROPE_DEFAULT}, unused;
    double local = c->arch->default_local_theta > 0 ? c->arch->default_local_theta : 10000;

    TRY(read_rope(c->arch, config, "rope_scaling", "rope_scaling", &scaling, &types[0]));
    TRY(read_rope(c->arch, config, "rope_parameters", "rope_parameters", &parameters, &unused));
    if ((scaling != NULL && (parameters != NULL || rope_by_type(scaling))) ||
        (parameters != NULL && !rope_by_type(parameters))) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: a %s has rope_parameters by layer type, or a rope_scaling of "
                         "its layers of full_attention; here is neither",
                         c->arch->name);
    }
    given[0] = scaling;
    for (int i = 0; parameters != NULL && i < 2; i++) {
        char place[64];
        snprintf(place, sizeof(place), "rope_parameters.%s", keys[i]);
        TRY(read_rope(c->arch, parameters, keys[i], place, &given[i], &types[i]));
    }
    TRY(config_positive(config, "rope_local_base_freq", 1e15, &local));
    c->ropes[1].theta = local;
    for (int i = 0; i < 2; i++) {
        c->ropes[i].type = types[i];
        TRY(parse_table(config, given[i], c, &c->ropes[i]));
    }
    c->rope_count = 2;
    return 0;
}

/* rope_scaling (transformers 4) and rope_parameters (5). With both, transformers 5 takes rope_scaling and forgets the
 * other, its rope_theta too; where that would change theta unseen, the pair is refused. */
static int parse_one_table(const json_t *config, struct model_config *c)
{
    const json_t *scaling, *parameters;
    enum rope_type scaling_type, parameters_type;
    struct rope_spec *spec = &c->ropes[0];

    TRY(read_rope(c->arch, config, "rope_scaling", "rope_scaling", &scaling, &scaling_type));
    TRY(read_rope(c->arch, config, "rope_parameters", "rope_parameters", &parameters, &parameters_type));
    const json_t *rope = scaling != NULL ? scaling : parameters;
    if (rope != NULL && rope_by_type(rope)) {
        return config_unsupported("config.json: rope parameters by layer type, here",
                                  json_object_iter_key(json_object_iter((json_t *)rope)));
    }
    spec->type = scaling != NULL ? scaling_type : parameters_type;
    TRY(parse_table(config, rope, c, spec));
    double other = spec->theta;
    if (parameters != NULL) {
        TRY(config_positive(parameters, "rope_theta", 1e15, &other));
    }
    if (other != spec->theta) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: rope_scaling replaces rope_parameters, and with it rope_theta = %g by %g; write "
                         "rope_theta into rope_scaling, or keep one of the two members",
                         other, spec->theta);
    }
    c->rope_count = 1;
    return rope != NULL ? parse_query_scaling(rope, c, spec) : 0;
}

int config_rope(const json_t *config, struct model_config *c)
{
    if (c->arch->no_rope) {
        return 0;
    }
    c->ropes[0].theta = c->arch->default_rope_theta > 0 ? c->arch->default_rope_theta : 10000;
    TRY(config_positive(config, "rope_theta", 1e15, &c->ropes[0].theta));
    return c->arch->ropes_by_type ? parse_two_tables(config, c) : parse_one_table(config, c);
}
