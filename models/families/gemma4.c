/* Gemma 4 (Gemma Team 2026): norms before and after attention and MLP, whose factor is the weight; scores that are not
 * scaled, since norms of queries and keys have weights; values that are normed without one. Layers of full attention
 * have heads of their own, and may make keys and values by one linear. With experts a layer has an MLP as well, each
 * with norms of its own, and their sum is normed again; the router reads the sum of the residual stream through a norm
 * without a weight and a factor for each column, and each expert's share has a factor. A layer's output is multiplied
 * by a number of the layer.
 *
 * The last layers may take the keys and values of the last layer of their type before them; their MLPs may be twice as
 * wide. A layer may end in a small MLP whose gate multiplies what the layer gets of its tokens. */

#include "models/families/families.h"

#include "base/err.h"
#include "base/json.h"
#include "models/config_internal.h"

#include <math.h>

static const struct arch_experts gemma4_experts = {
    .count = "num_experts",
    .per_token = "top_k_experts",
    .size = "moe_intermediate_size",
    .enabled = "enable_moe_block",
    .always_normalized = true,
};

const struct arch arch_gemma4 = {
    .name = "Gemma4ForCausalLM",
    .model_type = "gemma4_text",
    .plan = family_gemma4_plan,
    .configure = family_gemma4_configure,
    LLAMA_NAMES,
    .tokens = {"model.embed_tokens_per_layer", "model.per_layer_model_projection", "model.per_layer_projection_norm"},
    .sample = "{\"hidden_size_per_layer_input\": 32, \"enable_moe_block\": true, \"top_k_experts\": 2, "
              "\"global_head_dim\": 32, \"num_kv_shared_layers\": 1, \"layer_types\": [\"sliding_attention\", "
              "\"full_attention\", \"sliding_attention\", \"full_attention\"]}",
    .unread = {"self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.k_norm.weight", "self_attn.k_proj.bias",
               "self_attn.v_proj.bias"},
    .attention_bias = true,
    .tied = true,
    .embedding_root = true,
    .soft_caps = true,
    .ropes_by_type = true,
    .full_heads = true,
    .vision_both_ways = true,
    .activation_member = "hidden_activation",
    .default_activation = ACTIVATION_GELU_TANH,
    .refused = {"attn_logit_softcapping"},
    .experts = &gemma4_experts,
    .window = WINDOW_PATTERN,
    .layer_types = 1U << LAYER_FULL | 1U << LAYER_SLIDING,
    .default_window = 512,
    .default_pattern = 6,
    .default_heads = 8,
    .default_kv_heads = 4,
    .default_head_dim = 256,
    .default_full_head_dim = 512,
    .default_vocab = 262144,
    .default_max_position = 131072,
    .default_rope_theta = 1e6,
    .default_local_theta = 1e4,
};

/* --- configuration */

static bool gemma4_is_given(const json_t *config, const char *key)
{
    const json_t *value = json_object_get(config, key);

    return value != NULL && !json_is_null(value);
}

/* What programs would read in different ways, or not at all. */
static int gemma4_refuse_members(const json_t *config)
{
    static const char *const keys[] = {"rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"};

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if (gemma4_is_given(config, keys[i])) {
            return config_unsupported("config.json: outside of rope_parameters,", keys[i]);
        }
    }
    if (!gemma4_is_given(config, "layer_types") && gemma4_is_given(config, "sliding_window_pattern")) {
        return config_unsupported("config.json: in place of layer_types,", "sliding_window_pattern");
    }
    return 0;
}

/* What layers get of their tokens. */
static int gemma4_tokens(const json_t *config, struct model_config *c)
{
    c->token_columns = 256;
    TRY(config_count(config, "hidden_size_per_layer_input", CONFIG_WIDE_MAX, &c->token_columns));
    TRY(config_int(config, "vocab_size_per_layer_input", CONFIG_VOCAB_MAX, 262144, &c->token_rows));
    if (c->token_columns > 0 && c->token_rows < c->vocab_size) {
        return err_raise(ERR_INVALID_MODEL, "config.json: vocab_size_per_layer_input %lld is less than vocab_size %lld",
                         (long long)c->token_rows, (long long)c->vocab_size);
    }
    return 0;
}

/* The layer whose keys and values a layer's attention has: its own number, or that of one before it; -1: there is none.
 */
static int64_t gemma4_source(const struct model_config *c, int64_t layer)
{
    int64_t first = c->num_layers - c->taking_layers, source = layer;

    while (layer >= first && source >= 0 && (source >= first || c->layer_types[source] != c->layer_types[layer])) {
        source--;
    }
    return source;
}

/* Whether a layer after it has its keys and values. */
static bool gemma4_gives(const struct model_config *c, int64_t layer)
{
    int64_t first = c->num_layers - c->taking_layers;
    bool wanted = false;

    for (int64_t other = layer + 1; other < c->num_layers; other++) {
        bool same = c->layer_types[other] == c->layer_types[layer];
        if (same && other < first) {
            return false;
        }
        wanted = wanted || (same && other >= first);
    }
    return layer < first && wanted;
}

static int gemma4_taking(const json_t *config, struct model_config *c)
{
    TRY(config_count(config, "num_kv_shared_layers", ARCH_LAYERS_MAX, &c->taking_layers));
    TRY(config_flag(config, "use_double_wide_mlp", &c->wide_taking));
    if (c->taking_layers >= c->num_layers) {
        return err_raise(ERR_INVALID_MODEL, "config.json: num_kv_shared_layers %lld leaves none of %lld layers",
                         (long long)c->taking_layers, (long long)c->num_layers);
    }
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        if (gemma4_source(c, layer) < 0) {
            return err_raise(
                ERR_INVALID_MODEL,
                "config.json: num_kv_shared_layers %lld: no layer of the type of layer %lld is before them",
                (long long)c->taking_layers, (long long)layer);
        }
    }
    if (c->wide_taking && c->intermediate_size > CONFIG_WIDE_MAX / 2) {
        return err_raise(ERR_INVALID_MODEL, "config.json: use_double_wide_mlp makes an MLP of more than %lld",
                         (long long)CONFIG_WIDE_MAX);
    }
    return 0;
}

/* The tables of both types that there are layers of: all of it is given, or none. */
static int gemma4_ropes(const json_t *config, struct model_config *c)
{
    const json_t *parameters = json_object_get(config, "rope_parameters");

    if (!gemma4_is_given(config, "rope_parameters")) {
        c->ropes[0].type = ROPE_PROPORTIONAL;
        c->ropes[0].factor = 1;
        c->ropes[0].turned = 0.25;
        return 0;
    }
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        const char *key = c->layer_types[layer] == LAYER_FULL ? "full_attention" : "sliding_attention";
        if (!gemma4_is_given(json_object_get(parameters, key), "rope_theta")) {
            return err_raise(ERR_INVALID_MODEL, "config.json: rope_parameters.%s.rope_theta is missing", key);
        }
    }
    return 0;
}

int family_gemma4_configure(const json_t *config, struct model_config *c)
{
    c->attention_scale = 1;
    TRY(gemma4_tokens(config, c));
    TRY(gemma4_taking(config, c));
    TRY(gemma4_refuse_members(config));
    if (c->sliding_window == 0) {
        return err_raise(ERR_INVALID_MODEL, "config.json: sliding_window is null");
    }
    return gemma4_ropes(config, c);
}

/* --- the plan */

static int gemma4_rotate(struct plan_builder *b, const struct model_config *c, int64_t layer, int in)
{
    int table = arch_rope(c, layer);
    const struct plan_rope rope = {
        .head_dim = arch_head_dim(c, layer), .rotated = c->ropes[table].dims, .table = table};

    return plan_rotate(b, in, &rope);
}

/* Keys and values on `in`, or those of an earlier layer. q: the queries, to be fused with them. */
static void gemma4_keys_values(struct plan_builder *b, const struct model_config *c, int64_t layer, int in, int q,
                               int *key, int *value)
{
    bool full = c->layer_types[layer] == LAYER_FULL, one = c->keys_are_values && full;
    int64_t dim = arch_head_dim(c, layer), width = arch_kv_heads(c, layer) * dim;
    int number = full ? 0 : 2; /* of the keys; the values' is the next */

    if (gemma4_source(c, layer) != layer) {
        *key = plan_take(b, number, width);
        *value = plan_take(b, number + 1, width);
        return;
    }
    int k = plan_linear(b, in, "self_attn.k_proj", NULL, width, c->qkv_bias);
    int v = one ? k : plan_linear(b, in, "self_attn.v_proj", NULL, width, c->qkv_bias);
    plan_fuse(b, one ? "q and k" : "q, k and v", (int[]){q, k, v}, one ? 2 : 3);
    *key = gemma4_rotate(b, c, layer, families_norm(b, c, k, "self_attn.k_norm", NULL, dim));
    *value = families_norm(b, c, v, NULL, NULL, dim);
    if (gemma4_gives(c, layer)) {
        plan_give(b, *key, number);
        plan_give(b, *value, number + 1);
    }
}

static int gemma4_attention(struct plan_builder *b, const struct model_config *c, int64_t layer, int in)
{
    int64_t dim = arch_head_dim(c, layer);
    const struct plan_attention attention = {.heads = c->num_heads,
                                             .kv_heads = arch_kv_heads(c, layer),
                                             .head_dim = dim,
                                             .window = arch_window(c, layer),
                                             .scale = c->attention_scale};
    int q = plan_linear(b, in, "self_attn.q_proj", NULL, c->num_heads * dim, c->qkv_bias), k, v;

    gemma4_keys_values(b, c, layer, in, q, &k, &v);
    q = gemma4_rotate(b, c, layer, families_norm(b, c, q, "self_attn.q_norm", NULL, dim));
    return plan_linear(b, plan_attend(b, q, k, v, &attention), "self_attn.o_proj", NULL, c->hidden_size, c->o_bias);
}

static int gemma4_mlp(struct plan_builder *b, const struct model_config *c, int64_t layer, int in)
{
    bool wide = c->wide_taking && gemma4_source(c, layer) != layer;
    int64_t size = (wide ? 2 : 1) * c->intermediate_size;
    int gate = plan_linear(b, in, "mlp.gate_proj", NULL, size, false);
    int up = plan_linear(b, in, "mlp.up_proj", NULL, size, false);

    plan_fuse(b, "gate and up", (int[]){gate, up}, 2);
    int product = plan_activate(b, ACTIVATION_GELU_TANH, gate, up);
    return plan_linear(b, product, "mlp.down_proj", NULL, c->hidden_size, false);
}

/* The MLP's share and the experts', each normed. */
static int gemma4_mixture(struct plan_builder *b, const struct model_config *c, int x, int mlp)
{
    static const struct family_stacked stacked = {.both = "experts.gate_up_proj", .down = "experts.down_proj"};
    static const struct family_experts names = {.path = "experts",
                                                .gate = "gate_proj",
                                                .up = "up_proj",
                                                .down = "down_proj",
                                                .fused = "gate and up",
                                                .scores = SCORES_SOFTMAX_ALL,
                                                .scale = "router.per_expert_scale",
                                                .activation = ACTIVATION_GELU_TANH,
                                                .stacked = &stacked};
    const struct plan_parameter columns = {.path = "router.scale", .shape = {c->hidden_size}, .rank = 1};
    int64_t size = c->hidden_size;

    mlp = families_norm(b, c, mlp, "post_feedforward_layernorm_1", NULL, size);
    int in = plan_scale_by(b, families_norm(b, c, x, NULL, NULL, size), 1 / sqrt((double)size), &columns);
    int logits = plan_router(b, in, "router.proj", NULL, c->num_experts, false);
    in = families_norm(b, c, x, "pre_feedforward_layernorm_2", NULL, size);
    int out = families_routed(b, c, in, logits, &names);
    return plan_add(b, mlp, families_norm(b, c, out, "post_feedforward_layernorm_2", NULL, size));
}

int family_gemma4_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    const struct plan_parameter whole = {.path = "layer_scalar", .shape = {1}, .rank = 1};
    int64_t size = c->hidden_size;
    int in = families_norm(b, c, 0, "input_layernorm", NULL, size);
    int out = gemma4_attention(b, c, layer, in);
    int x = plan_add(b, 0, families_norm(b, c, out, "post_attention_layernorm", NULL, size));

    in = families_norm(b, c, x, "pre_feedforward_layernorm", NULL, size);
    out = gemma4_mlp(b, c, layer, in);
    if (arch_has_experts(c, layer)) {
        out = gemma4_mixture(b, c, x, out);
    }
    x = plan_add(b, x, families_norm(b, c, out, "post_feedforward_layernorm", NULL, size));
    if (c->token_columns > 0) {
        int gate = plan_linear(b, x, "per_layer_input_gate", NULL, c->token_columns, false);
        out = plan_activate(b, ACTIVATION_GELU_TANH, gate, plan_tokens(b, c->token_columns));
        out = plan_linear(b, out, "per_layer_projection", NULL, size, false);
        x = plan_add(b, x, families_norm(b, c, out, "post_per_layer_input_norm", NULL, size));
    }
    return plan_scale_by(b, x, 1, &whole);
}
