/* Sizes, heads, activation, norms and factors in the words of config.json. */

#include "models/config_internal.h"

#include "base/err.h"
#include "base/json.h"
#include "models/plan.h"

#include <math.h>
#include <string.h>

int config_shape(const json_t *config, struct model_config *c)
{
    const struct arch *arch = c->arch;

    TRY(config_int(config, "hidden_size", CONFIG_HIDDEN_MAX, 0, &c->hidden_size));
    TRY(config_int(config, "intermediate_size", CONFIG_WIDE_MAX, arch->default_mlp * c->hidden_size,
                   &c->intermediate_size));
    int64_t listed = arch->recurrence != NULL && arch->recurrence->patterned ? config_recurrent_layers(config) : 0;
    TRY(config_int(config, "num_hidden_layers", ARCH_LAYERS_MAX, listed, &c->num_layers));
    TRY(config_int(config, "num_attention_heads", CONFIG_HEADS_MAX, arch->default_heads, &c->num_heads));
    TRY(config_int(config, "vocab_size", CONFIG_VOCAB_MAX, arch->default_vocab, &c->vocab_size));
    TRY(config_int(config, "max_position_embeddings", CONFIG_POSITION_MAX, arch->default_max_position,
                   &c->max_position));
    bool said = json_object_get(config, "num_key_value_heads") != NULL; /* null is said: as many as heads */
    int64_t kv_heads = !said && arch->default_kv_heads > 0 ? arch->default_kv_heads : c->num_heads;
    TRY(config_int(config, "num_key_value_heads", CONFIG_HEADS_MAX, kv_heads, &c->num_kv_heads));
    said = json_object_get(config, "head_dim") != NULL;
    int64_t head_dim = !said && arch->default_head_dim > 0 ? arch->default_head_dim : c->hidden_size / c->num_heads;
    TRY(config_int(config, "head_dim", CONFIG_HEAD_DIM_MAX, head_dim, &c->head_dim));
    if (c->num_heads % c->num_kv_heads != 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: num_key_value_heads %lld does not divide %lld heads",
                         (long long)c->num_kv_heads, (long long)c->num_heads);
    }
    if (c->head_dim % 2 != 0 || c->head_dim > CONFIG_HEAD_DIM_MAX || c->num_heads * c->head_dim > CONFIG_WIDE_MAX) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: %lld heads of %lld: head_dim must be even, at most %d, and "
                         "all heads together at most %lld",
                         (long long)c->num_heads, (long long)c->head_dim, CONFIG_HEAD_DIM_MAX,
                         (long long)CONFIG_WIDE_MAX);
    }
    return 0;
}

int config_activation(const json_t *config, struct model_config *c)
{
    static const struct {
        const char *name;
        enum plan_activation activation;
    } names[] = {{"silu", ACTIVATION_SILU},          {"swish", ACTIVATION_SILU},
                 {"gelu", ACTIVATION_GELU},          {"gelu_pytorch_tanh", ACTIVATION_GELU_TANH},
                 {"gelu_new", ACTIVATION_GELU_TANH}, {"gelu_fast", ACTIVATION_GELU_TANH},
                 {"relu", ACTIVATION_RELU},          {"relu2", ACTIVATION_RELU2}};
    const char *member = c->arch->activation_member != NULL ? c->arch->activation_member : "hidden_act";
    unsigned known = c->arch->activations | 1U << c->arch->default_activation;
    const json_t *given = json_object_get(config, member);
    const char *name = json_string_value(given);

    c->activation = c->arch->default_activation;
    if (given == NULL || json_is_null(given)) {
        return 0;
    }
    if (name == NULL) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s is not a string", member);
    }
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(names[i].name, name) == 0 && (known >> names[i].activation & 1) != 0) {
            c->activation = (int)names[i].activation;
            return 0;
        }
    }
    return config_unsupported(member, name);
}

int config_norms(const json_t *config, struct model_config *c)
{
    const char *member = c->arch->eps_member != NULL ? c->arch->eps_member : "rms_norm_eps";

    c->rms_norm_eps = c->arch->default_norm_eps > 0 ? c->arch->default_norm_eps : 1e-6;
    return config_positive(config, member, 1, &c->rms_norm_eps);
}

/* A cap: null, or a positive number. One that is missing is the row's. */
static int config_cap(const json_t *config, const char *key, double fallback, double *out)
{
    *out = json_object_get(config, key) == NULL ? fallback : 0;
    return config_positive(config, key, 1e6, out);
}

int config_factors(const json_t *config, struct model_config *c)
{
    const struct arch *arch = c->arch;
    double scalar = arch->default_query_scalar, logits = 1;

    c->embedding_scale = c->residual_scale = c->logit_scale = 1;
    if (arch->multipliers) {
        c->attention_scale = 1;
        TRY(config_positive(config, "embedding_multiplier", 1e6, &c->embedding_scale));
        TRY(config_positive(config, "residual_multiplier", 1e6, &c->residual_scale));
        TRY(config_positive(config, "attention_multiplier", 1e6, &c->attention_scale));
        TRY(config_positive(config, "logits_scaling", 1e6, &logits));
        c->logit_scale = 1 / logits;
    }
    if (arch->logit_scale) {
        c->logit_scale = arch->default_logit_scale;
        TRY(config_positive(config, "logit_scale", 1e6, &c->logit_scale));
    }
    if (arch->query_scalar) {
        TRY(config_positive(config, "query_pre_attn_scalar", 1e9, &scalar));
        c->attention_scale = 1 / sqrt(scalar);
    }
    if (arch->soft_caps) {
        TRY(config_cap(config, "attn_logit_softcapping", arch->default_attention_cap, &c->attention_cap));
        TRY(config_cap(config, "final_logit_softcapping", arch->default_logit_cap, &c->logit_cap));
    }
    if (arch->embedding_root) {
        c->embedding_scale = sqrt((double)c->hidden_size);
    }
    return 0;
}
