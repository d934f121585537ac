/* Qwen3-Next and Qwen3.5 (Qwen Team 2025): most layers are Gated DeltaNets, the others attend with a gate for their
 * output and turn a part of each head; norms' factors are 1 + w. The two differ in how the DeltaNet's linears are
 * stored. Those of its gates stay in float, as in the published quantizations. */

#include "models/families/families.h"

#include <math.h>

static const struct family_experts qwen_experts = {
    FAMILY_EXPERTS_QWEN,
    .shared = {"mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"},
    .shared_gate = "mlp.shared_expert_gate",
};

/* Each head's query, then its gate, in one linear. */
static int gated_attention(struct plan_builder *b, const struct model_config *c, int in)
{
    const struct plan_attention attention = {.heads = c->num_heads,
                                             .kv_heads = c->num_kv_heads,
                                             .head_dim = c->head_dim,
                                             .scale = 1.0 / sqrt((double)c->head_dim)};
    const struct plan_rope rope = {.head_dim = c->head_dim, .rotated = c->ropes[0].dims};
    int64_t dim = c->head_dim, width = c->num_heads * dim, kv_width = c->num_kv_heads * dim;
    int both = plan_linear(b, in, "self_attn.q_proj", NULL, 2 * width, c->qkv_bias);
    int k = plan_linear(b, in, "self_attn.k_proj", NULL, kv_width, c->qkv_bias);
    int v = plan_linear(b, in, "self_attn.v_proj", NULL, kv_width, c->qkv_bias);

    plan_fuse(b, "q, k and v", (int[]){both, k, v}, 3);
    int gate = plan_select(b, both, &(struct plan_select){.stride = 2 * dim, .first = dim, .count = dim});
    int q = plan_select(b, both, &(struct plan_select){.stride = 2 * dim, .count = dim});
    q = plan_rotate(b, families_norm(b, c, q, "self_attn.q_norm", NULL, dim), &rope);
    k = plan_rotate(b, families_norm(b, c, k, "self_attn.k_norm", NULL, dim), &rope);
    int out = plan_activate(b, ACTIVATION_SIGMOID, gate, plan_attend(b, q, k, v, &attention));
    return plan_linear(b, out, "self_attn.o_proj", NULL, c->hidden_size, c->o_bias);
}

static int qwen_layer(struct plan_builder *b, const struct model_config *c, int64_t layer,
                      int (*delta)(struct plan_builder *b, const struct model_config *c, int in))
{
    int in = families_norm(b, c, 0, "input_layernorm", NULL, c->hidden_size);
    bool linear = c->layer_types[layer] == LAYER_LINEAR;
    int x = plan_add(b, 0, linear ? delta(b, c, in) : gated_attention(b, c, in));

    in = families_norm(b, c, x, "post_attention_layernorm", NULL, c->hidden_size);
    bool experts = arch_has_experts(c, layer);
    return plan_add(b, x, experts ? families_experts(b, c, in, &qwen_experts) : families_mlp(b, c, in));
}

static int part(struct plan_builder *b, int in, int64_t stride, int64_t first, int64_t count)
{
    return plan_select(b, in, &(struct plan_select){.stride = stride, .first = first, .count = count});
}

/* Key head by key head: query, key, values, gates; and beta, a. */
static int delta_by_head(struct plan_builder *b, const struct model_config *c, int in)
{
    const struct plan_join all = {.heads = 1};
    int64_t heads = c->recurrence.groups, own = c->recurrence.heads / heads;
    int64_t key = c->recurrence.state, values = own * c->recurrence.head_dim, stride = 2 * key + 2 * values;
    int made = plan_linear(b, in, "linear_attn.in_proj_qkvz", NULL, heads * stride, false);
    int gates = plan_router(b, in, "linear_attn.in_proj_ba", NULL, 2 * heads * own, false);
    int q = part(b, made, stride, 0, key), k = part(b, made, stride, key, key);
    int v = part(b, made, stride, 2 * key, values);
    struct family_delta delta = {.qkv = plan_join(b, plan_join(b, q, k, &all), v, &all)};

    delta.gate = part(b, made, stride, 2 * key + values, values);
    delta.beta = part(b, gates, 2 * own, 0, own);
    delta.a = part(b, gates, 2 * own, own, own);
    return families_delta(b, c, &delta);
}

static int delta_by_part(struct plan_builder *b, const struct model_config *c, int in)
{
    const struct recurrence *r = &c->recurrence;
    int64_t values = r->heads * r->head_dim;
    struct family_delta delta;

    delta.qkv = plan_linear(b, in, "linear_attn.in_proj_qkv", NULL, 2 * r->groups * r->state + values, false);
    delta.gate = plan_linear(b, in, "linear_attn.in_proj_z", NULL, values, false);
    plan_fuse(b, "qkv and z", (int[]){delta.qkv, delta.gate}, 2);
    delta.beta = plan_router(b, in, "linear_attn.in_proj_b", NULL, r->heads, false);
    delta.a = plan_router(b, in, "linear_attn.in_proj_a", NULL, r->heads, false);
    return families_delta(b, c, &delta);
}

int family_qwen3_next_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    return qwen_layer(b, c, layer, delta_by_head);
}

int family_qwen3_5_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    return qwen_layer(b, c, layer, delta_by_part);
}
