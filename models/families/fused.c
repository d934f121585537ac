/* Halves of layers whose attention has queries, keys and values in one linear, or whose MLP has gate and up in one, or
 * no gate. A fused linear is one module, as runtimes load it; its outputs are selected by columns. */

#include "models/families/families.h"

#include <math.h>

int families_fused_attention(struct plan_builder *b, const struct model_config *c, int64_t layer, int in,
                             const struct family_fused *f)
{
    const struct plan_attention attention = {.heads = c->num_heads,
                                             .kv_heads = c->num_kv_heads,
                                             .head_dim = c->head_dim,
                                             .window = arch_window(c, layer),
                                             .scale = 1.0 / sqrt((double)c->head_dim)};
    int64_t all = (c->num_heads + 2 * c->num_kv_heads) * c->head_dim;
    int64_t stride = f->by_group ? all / c->num_kv_heads : all;
    int64_t keys = f->by_group ? c->head_dim : c->num_kv_heads * c->head_dim, queries = stride - 2 * keys;
    int qkv = plan_linear(b, in, f->qkv, NULL, all, c->qkv_bias);
    int q = plan_select(b, qkv, &(struct plan_select){stride, 0, queries});
    int k = plan_select(b, qkv, &(struct plan_select){stride, queries, keys});
    int v = plan_select(b, qkv, &(struct plan_select){stride, queries + keys, keys});

    if (arch_rotates(c, layer)) {
        q = families_rotate(b, c, q, arch_rope(c, layer));
        k = families_rotate(b, c, k, arch_key_rope(c, layer));
    }
    int heads = plan_attend(b, q, k, v, &attention);
    int out = plan_linear(b, heads, f->out, NULL, c->hidden_size, c->o_bias);
    if (f->by_inputs) {
        plan_store(b, qkv, &(struct plan_stored){.transposed = true});
        plan_store(b, out, &(struct plan_stored){.transposed = true});
    }
    return out;
}

int families_fused_mlp(struct plan_builder *b, const struct model_config *c, int in, const struct family_fused *f)
{
    int64_t size = c->intermediate_size;
    int both = plan_linear(b, in, f->up, NULL, 2 * size, c->mlp_bias);
    int gate = plan_select(b, both, &(struct plan_select){2 * size, 0, size});
    int up = plan_select(b, both, &(struct plan_select){2 * size, size, size});
    int product = plan_activate(b, (enum plan_activation)c->activation, gate, up);

    return plan_linear(b, product, f->down, NULL, c->hidden_size, c->mlp_bias);
}

int families_plain_mlp(struct plan_builder *b, const struct model_config *c, int in, const struct family_fused *f)
{
    int up = plan_linear(b, in, f->up, NULL, c->intermediate_size, c->mlp_bias);
    int active = plan_activate(b, (enum plan_activation)c->activation, up, -1);
    int out = plan_linear(b, active, f->down, NULL, c->hidden_size, c->mlp_bias);

    if (f->by_inputs) {
        plan_store(b, up, &(struct plan_stored){.transposed = true});
        plan_store(b, out, &(struct plan_stored){.transposed = true});
    }
    return out;
}
