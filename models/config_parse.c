/* config.json to a model_config: every member that changes the arithmetic is read and bounded, and a value that this
 * forward pass does not know is refused with its name. Members that only steer training or generation are ignored,
 * auto_map above all: no code comes from a checkpoint. */

#include "models/config_internal.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"

#include <stdio.h>
#include <string.h>

/* Some loaders go by model_type and some by architectures: where the two disagree, so would their results. */
static int check_model_type(const json_t *config, const char *name, const char *wanted, const char *also)
{
    const json_t *value = json_object_get(config, "model_type");
    const char *type = json_string_value(value);

    if (value == NULL || json_is_null(value) || (type != NULL && strcmp(type, wanted) == 0) ||
        (type != NULL && also != NULL && strcmp(type, also) == 0)) {
        return 0;
    }
    if (type == NULL) {
        return err_raise(ERR_INVALID_MODEL, "config.json: model_type is not a string");
    }
    return err_set_hint(
        err_raise(ERR_INVALID_MODEL, "config.json: model_type \"%.60s\" contradicts architectures, %s", type, name),
        "the model_type of %s is \"%s\"", name, wanted);
}

/* The row of the language model that a checkpoint holds with other parts; *config becomes its configuration. */
static int find_composite(const struct arch_composite *composite, const json_t **config, const struct arch **out)
{
    const json_t *text = json_object_get(*config, composite->text);
    const char *type = json_get_string(text, "model_type");
    bool known = false;

    TRY(check_model_type(*config, composite->name, composite->model_type, NULL));
    text = composite->flat && (text == NULL || json_is_null(text)) ? *config : text;
    if (!json_is_object(text)) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s, the language model of a %s, is missing", composite->text,
                         composite->name);
    }
    type = type != NULL ? type : composite->text_types[0];
    for (size_t i = 0; i < sizeof(composite->text_types) / sizeof(composite->text_types[0]); i++) {
        known = known || (composite->text_types[i] != NULL && strcmp(composite->text_types[i], type) == 0);
    }
    for (const struct arch *const *row = arch_list(); known && *row != NULL; row++) {
        if (strcmp((*row)->model_type, type) == 0 ||
            ((*row)->also_type != NULL && strcmp((*row)->also_type, type) == 0)) {
            *out = *row;
            *config = text;
            return 0;
        }
    }
    char what[128];
    snprintf(what, sizeof(what), "config.json: %s.model_type", composite->text);
    return config_unsupported(what, type);
}

static int find_arch(const json_t **config, struct model_config *c)
{
    const json_t *list = json_object_get(*config, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));

    if (name == NULL) {
        return config_unsupported("an architecture without a name in config.json's list \"architectures\",", "");
    }
    for (const struct arch *const *row = arch_list(); *row != NULL; row++) {
        if (strcmp((*row)->name, name) == 0) {
            c->arch = *row;
            return check_model_type(*config, name, (*row)->model_type, (*row)->also_type);
        }
    }
    for (const struct arch_composite *composite = arch_composites(); composite->name != NULL; composite++) {
        if (strcmp(composite->name, name) == 0) {
            c->composite = composite;
            return find_composite(composite, config, &c->arch);
        }
    }
    return config_unsupported("architecture", name);
}

bool arch_is_named(const json_t *config)
{
    AUTO_FREE struct model_config *c = NULL;

    return mem_new(&c) != 0 || find_arch(&config, c) != ERR_UNSUPPORTED_ARCHITECTURE;
}

int arch_check_float(const json_t *config)
{
    static const char *const keys[] = {"quantization_config", "compression_config"};

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        const json_t *value = json_object_get(config, keys[i]);
        if (value != NULL && !json_is_null(value)) {
            const char *method = json_get_string(value, "quant_method");
            return err_raise(ERR_ALREADY_QUANTIZED, "config.json has a %s of method \"%.60s\"", keys[i],
                             method != NULL ? method : "unknown");
        }
    }
    return 0;
}

/* The head is the embedding. Of a composite checkpoint, its own member counts before the language model's. */
static int parse_tied(const json_t *config, const json_t *text, struct model_config *c)
{
    c->tie_word_embeddings = c->arch->tied;
    TRY(config_flag(text, "tie_word_embeddings", &c->tie_word_embeddings));
    return config_flag(config, "tie_word_embeddings", &c->tie_word_embeddings);
}

static int parse_biases(const json_t *config, struct model_config *c)
{
    bool attention_bias = c->arch->biased, mlp_bias = false;

    TRY(config_flag(config, "attention_bias", &attention_bias));
    TRY(config_flag(config, "mlp_bias", &mlp_bias));
    c->qkv_bias = c->arch->qkv_bias || (c->arch->attention_bias && attention_bias);
    c->o_bias = c->arch->attention_bias && attention_bias && !c->arch->o_unbiased;
    c->mlp_bias = c->arch->mlp_bias && mlp_bias;
    return 0;
}

/* The configuration with what the family calls by names of its own under the common ones. New reference; NULL: no
 * memory. */
static json_t *common_names(const json_t *config, const struct arch *arch)
{
    AUTO_JSON json_t *common = json_copy((json_t *)config);

    for (const struct arch_alias *a = arch->aliases; common != NULL && a != NULL && a->own != NULL; a++) {
        json_t *value = json_object_get(config, a->own);
        if (value != NULL && json_object_set(common, a->common, value) != 0) {
            return NULL;
        }
    }
    return MOVE(common);
}

static int parse_parts(const json_t *config, const json_t *text, struct model_config *c)
{
    TRY(config_shape(text, c));
    TRY(config_latent(text, c));
    TRY(parse_tied(config, text, c));
    TRY(parse_biases(text, c));
    TRY(config_activation(text, c));
    TRY(config_norms(text, c));
    TRY(config_layers(text, c));
    TRY(config_full_heads(text, c));
    TRY(config_recurrent(text, c));
    TRY(config_rope(text, c));
    TRY(config_factors(text, c));
    TRY(config_experts(text, c));
    return c->arch->configure != NULL ? c->arch->configure(text, c) : 0;
}

int arch_parse_config(const json_t *config, struct model_config *out)
{
    AUTO_FREE struct model_config *c = NULL;
    const json_t *text = config;

    if (!json_is_object(config)) {
        return err_raise(ERR_INVALID_MODEL, "config.json is not an object");
    }
    TRY(mem_new(&c));
    TRY(arch_check_float(config));
    TRY(find_arch(&text, c));
    AUTO_JSON json_t *common = common_names(text, c->arch);
    if (common == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for config.json");
    }
    TRY(parse_parts(config, common, c));
    *out = *c;
    return 0;
}
