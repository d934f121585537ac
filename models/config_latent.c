/* Multi-head latent attention in the words of config.json. */

#include "models/config_internal.h"

#include "base/err.h"
#include "base/json.h"

#include <math.h>
#include <string.h>

/* The scores' scale: YaRN's correction for the length that a rotary table was stretched to, squared, where
 * mscale_all_dim asks for it (Peng et al. 2023, arXiv 2309.00071, section 3.4). */
static int read_scale(const json_t *config, struct latent_attention *latent)
{
    const json_t *scaling = json_object_get(config, "rope_scaling");
    const json_t *rope = json_object_size(scaling) > 0 ? scaling : json_object_get(config, "rope_parameters");
    const char *type = json_string_value(json_object_get(rope, "rope_type"));
    double all = 0, factor = 1, correction = 1;

    type = type != NULL ? type : json_string_value(json_object_get(rope, "type"));
    latent->scale = 1.0 / sqrt((double)(latent->nope + latent->rope));
    if (type == NULL || strcmp(type, "default") == 0 ||
        json_number_value(json_object_get(rope, "mscale_all_dim")) == 0) {
        return 0;
    }
    TRY(config_positive(rope, "mscale_all_dim", 1e6, &all));
    TRY(config_positive(rope, "factor", 1e6, &factor));
    if (factor > 1) {
        correction = 0.1 * all * log(factor) + 1;
    }
    latent->scale *= correction * correction;
    return 0;
}

/* q_lora_rank: null says that queries have no rank. */
static int read_query_rank(const json_t *config, int64_t fallback, int64_t *out)
{
    const json_t *given = json_object_get(config, "q_lora_rank");

    *out = 0;
    if (given != NULL && json_is_null(given)) {
        return 0;
    }
    return config_int(config, "q_lora_rank", CONFIG_HIDDEN_MAX, fallback, out);
}

int config_latent(const json_t *config, struct model_config *c)
{
    const struct arch_latent *row = c->arch->latent;
    struct latent_attention *l = &c->latent;

    if (row == NULL) {
        return 0;
    }
    TRY(read_query_rank(config, row->default_query_rank, &l->query_rank));
    TRY(config_int(config, "kv_lora_rank", CONFIG_HIDDEN_MAX, row->default_rank, &l->rank));
    TRY(config_int(config, "qk_nope_head_dim", CONFIG_HEAD_DIM_MAX, row->default_nope, &l->nope));
    TRY(config_int(config, "qk_rope_head_dim", CONFIG_HEAD_DIM_MAX, row->default_rope, &l->rope));
    TRY(config_int(config, "v_head_dim", CONFIG_HEAD_DIM_MAX, row->default_value, &l->value));
    if (l->rope % 2 != 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: qk_rope_head_dim %lld is odd", (long long)l->rope);
    }
    if (c->num_heads * (l->nope + l->rope + l->value) > CONFIG_WIDE_MAX) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: %lld heads of %lld + %lld columns of keys and %lld of values are more than %lld",
                         (long long)c->num_heads, (long long)l->nope, (long long)l->rope, (long long)l->value,
                         (long long)CONFIG_WIDE_MAX);
    }
    if (c->num_kv_heads != c->num_heads) {
        return err_raise(ERR_INVALID_MODEL,
                         "config.json: num_key_value_heads %lld differs from num_attention_heads %lld, which latent "
                         "attention does not have",
                         (long long)c->num_kv_heads, (long long)c->num_heads);
    }
    l->interleaved = row->interleaved;
    if (row->choosable) {
        TRY(config_flag(config, "rope_interleave", &l->interleaved));
    }
    c->head_dim = l->rope; /* what rotary tables are made for */
    return read_scale(config, l);
}
