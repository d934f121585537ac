/* Llama and Mistral, and with layers that do not rotate or factors, SmolLM3 and Granite (Touvron et al. 2023, arXiv
 * 2307.09288; Jiang et al. 2023, arXiv 2310.06825): RMS norms before attention and MLP, rotary positions, grouped key
 * heads, a gated SiLU. Qwen's layers are these with additions. */

#include "models/families/families.h"

#include <math.h>

int families_norm(struct plan_builder *b, const struct model_config *c, int in, const char *path, const char *gguf,
                  int64_t size)
{
    const struct plan_norm norm = {.path = path,
                                   .gguf = gguf,
                                   .size = size,
                                   .kind = c->arch->layer_norms ? NORM_LAYER : NORM_RMS,
                                   .unit_offset = c->arch->unit_offset,
                                   .bias = c->arch->norm_biases};

    return plan_normalize(b, in, &norm);
}

int families_add(struct plan_builder *b, const struct model_config *c, int to, int what)
{
    return plan_add(b, to, c->residual_scale != 1 ? plan_scale(b, what, c->residual_scale) : what);
}

int families_rotate(struct plan_builder *b, const struct model_config *c, int in, int table)
{
    const struct plan_rope rope = {.head_dim = c->head_dim,
                                   .rotated = c->ropes[table].dims,
                                   .interleaved = c->arch->rope_neighbours,
                                   .table = table};

    return plan_rotate(b, in, &rope);
}

int families_attention(struct plan_builder *b, const struct model_config *c, int64_t layer, int in,
                       enum family_norms norms)
{
    return families_attention_into(b, c, layer, in, norms, "self_attn.o_proj");
}

int families_attention_into(struct plan_builder *b, const struct model_config *c, int64_t layer, int in,
                            enum family_norms norms, const char *last)
{
    struct plan_attention attention = {.heads = c->num_heads,
                                       .kv_heads = c->num_kv_heads,
                                       .head_dim = c->head_dim,
                                       .window = arch_window(c, layer),
                                       .scale = c->attention_scale > 0 ? c->attention_scale
                                                                       : 1.0 / sqrt((double)c->head_dim),
                                       .cap = c->attention_cap};
    int64_t width = c->num_heads * c->head_dim, kv_width = c->num_kv_heads * c->head_dim;
    int q = plan_linear(b, in, "self_attn.q_proj", "attn_q", width, c->qkv_bias);
    int k = plan_linear(b, in, "self_attn.k_proj", "attn_k", kv_width, c->qkv_bias);
    int v = plan_linear(b, in, "self_attn.v_proj", "attn_v", kv_width, c->qkv_bias);

    plan_fuse(b, "q, k and v", (int[]){q, k, v}, 3);
    if (norms != FAMILY_NORMS_NONE) {
        bool row = norms == FAMILY_NORMS_ROW;
        q = families_norm(b, c, q, "self_attn.q_norm", "attn_q_norm", row ? width : c->head_dim);
        k = families_norm(b, c, k, "self_attn.k_norm", "attn_k_norm", row ? kv_width : c->head_dim);
    }
    if (arch_rotates(c, layer)) {
        q = families_rotate(b, c, q, arch_rope(c, layer));
        k = families_rotate(b, c, k, arch_key_rope(c, layer));
    }
    if (c->arch->sinks) {
        attention.has_sinks = true;
        attention.sinks =
            plan_parameter(b, &(struct plan_parameter){.path = "self_attn.sinks", .shape = {c->num_heads}, .rank = 1});
    }
    int out = plan_attend(b, q, k, v, &attention);
    return plan_linear(b, out, last, "attn_output", c->hidden_size, c->o_bias);
}

int families_mlp(struct plan_builder *b, const struct model_config *c, int in)
{
    int gate = plan_linear(b, in, "mlp.gate_proj", "ffn_gate", c->intermediate_size, c->mlp_bias);
    int up = plan_linear(b, in, "mlp.up_proj", "ffn_up", c->intermediate_size, c->mlp_bias);

    plan_fuse(b, "gate and up", (int[]){gate, up}, 2);
    int product = plan_activate(b, (enum plan_activation)c->activation, gate, up);
    return plan_linear(b, product, "mlp.down_proj", "ffn_down", c->hidden_size, c->mlp_bias);
}

int family_llama_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    int in = plan_row_norm(b, 0, "input_layernorm", "attn_norm");
    int x = families_add(b, c, 0, families_attention(b, c, layer, in, FAMILY_NORMS_NONE));
    in = plan_row_norm(b, x, "post_attention_layernorm", "ffn_norm");
    return families_add(b, c, x, families_mlp(b, c, in));
}
