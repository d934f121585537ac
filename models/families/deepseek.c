/* DeepSeek V2 and V3, and GLM-4.7-Flash (DeepSeek-AI 2024, arXiv 2405.04434 and 2412.19437; GLM-4.5 Team 2025, arXiv
 * 2508.06471): latent attention, whose keys and values are made from one narrow row for each token, and experts next to
 * a shared one after the first, dense layers. V2 scores experts by softmax and V3 by sigmoid, with a bias that only
 * moves the choice. */

#include "models/families/families.h"

/* Keys and values of all heads: columns without position from the latent row, and the rotated ones that heads share. */
static void latent_keys(struct plan_builder *b, const struct model_config *c, int latent, int *key, int *value)
{
    const struct latent_attention *l = &c->latent;
    const struct plan_rope rope = {.head_dim = l->rope, .rotated = l->rope, .interleaved = l->interleaved};
    const struct plan_norm norm = {.path = "self_attn.kv_a_layernorm", .size = l->rank, .eps = 1e-6};
    int64_t row = l->rank + l->rope, head = l->nope + l->value;
    int narrow = plan_select(b, latent, &(struct plan_select){.stride = row, .count = l->rank});
    int shared = plan_select(b, latent, &(struct plan_select){.stride = row, .first = l->rank, .count = l->rope});
    int made =
        plan_linear(b, plan_normalize(b, narrow, &norm), "self_attn.kv_b_proj", NULL, c->num_heads * head, false);
    int nope = plan_select(b, made, &(struct plan_select){.stride = head, .count = l->nope});

    *value = plan_select(b, made, &(struct plan_select){.stride = head, .first = l->nope, .count = l->value});
    shared = plan_rotate(b, shared, &rope);
    *key = plan_join(b, nope, shared, &(struct plan_join){.heads = c->num_heads, .shared = true});
}

/* The last columns of each query are rotated. */
static int latent_queries(struct plan_builder *b, const struct model_config *c, int q)
{
    const struct latent_attention *l = &c->latent;
    const struct plan_rope rope = {.head_dim = l->rope, .rotated = l->rope, .interleaved = l->interleaved};
    int64_t head = l->nope + l->rope;
    int nope = plan_select(b, q, &(struct plan_select){.stride = head, .count = l->nope});
    int tail = plan_select(b, q, &(struct plan_select){.stride = head, .first = l->nope, .count = l->rope});

    tail = plan_rotate(b, tail, &rope);
    return plan_join(b, nope, tail, &(struct plan_join){.heads = c->num_heads});
}

int families_latent_attention(struct plan_builder *b, const struct model_config *c, int in)
{
    const struct latent_attention *l = &c->latent;
    const struct plan_attention attention = {.heads = c->num_heads,
                                             .kv_heads = c->num_heads,
                                             .head_dim = l->nope + l->rope,
                                             .value_dim = l->value,
                                             .scale = l->scale};
    int64_t width = c->num_heads * (l->nope + l->rope);
    int q, key, value;

    if (l->query_rank > 0) {
        const struct plan_norm norm = {.path = "self_attn.q_a_layernorm", .size = l->query_rank, .eps = 1e-6};
        q = plan_linear(b, in, "self_attn.q_a_proj", NULL, l->query_rank, c->qkv_bias);
        q = plan_linear(b, plan_normalize(b, q, &norm), "self_attn.q_b_proj", NULL, width, false);
    } else {
        q = plan_linear(b, in, "self_attn.q_proj", NULL, width, false);
    }
    int latent = plan_linear(b, in, "self_attn.kv_a_proj_with_mqa", NULL, l->rank + l->rope, c->qkv_bias);
    latent_keys(b, c, latent, &key, &value);
    int out = plan_attend(b, latent_queries(b, c, q), key, value, &attention);
    return plan_linear(b, out, "self_attn.o_proj", NULL, c->hidden_size, c->o_bias);
}

static int deepseek_layer(const struct model_config *c, int64_t layer, struct plan_builder *b,
                          const struct family_experts *names)
{
    int in = plan_row_norm(b, 0, "input_layernorm", NULL);
    int x = plan_add(b, 0, families_latent_attention(b, c, in));

    in = plan_row_norm(b, x, "post_attention_layernorm", NULL);
    return plan_add(b, x, arch_has_experts(c, layer) ? families_experts(b, c, in, names) : families_mlp(b, c, in));
}

int family_deepseek_v2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_experts names = {FAMILY_EXPERTS_QWEN, FAMILY_SHARED_EXPERTS};

    return deepseek_layer(c, layer, b, &names);
}

int family_deepseek_v3_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_experts names = {FAMILY_EXPERTS_QWEN, FAMILY_SHARED_EXPERTS, FAMILY_EXPERTS_BIASED};

    return deepseek_layer(c, layer, b, &names);
}
