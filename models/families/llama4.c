/* The language model of Llama 4 (Meta AI 2025, model cards of Scout and Maverick). Most layers rotate neighbours,
 * normalize what they rotated without weights, and see positions of their own chunk alone; the others neither rotate
 * nor stop at a chunk, and their queries grow with their position, which keeps the softmax of long sequences sharp
 * (Nakanishi 2025, arXiv 2501.19399). Next to a shared expert, a token is multiplied by its score before it goes to an
 * expert, not after. */

#include "models/families/families.h"

#include "base/err.h"
#include "base/json.h"
#include "models/config_internal.h"

#include <math.h>

#define LLAMA4_GROWING 1 /* the rotary table that turns nothing, and grows */

static int llama4_attention(struct plan_builder *b, const struct model_config *c, int64_t layer, int in)
{
    const struct plan_attention attention = {.heads = c->num_heads,
                                             .kv_heads = c->num_kv_heads,
                                             .head_dim = c->head_dim,
                                             .chunk = c->layer_types[layer] == LAYER_CHUNKED ? c->attention_chunk : 0,
                                             .scale = 1.0 / sqrt((double)c->head_dim)};
    const struct plan_norm norm = {.size = c->head_dim};
    int64_t width = c->num_heads * c->head_dim, kv_width = c->num_kv_heads * c->head_dim;
    int q = plan_linear(b, in, "self_attn.q_proj", NULL, width, c->qkv_bias);
    int k = plan_linear(b, in, "self_attn.k_proj", NULL, kv_width, c->qkv_bias);
    int v = plan_linear(b, in, "self_attn.v_proj", NULL, kv_width, c->qkv_bias);

    plan_fuse(b, "q, k and v", (int[]){q, k, v}, 3);
    if (arch_rotates(c, layer)) {
        q = families_rotate(b, c, q, 0);
        k = families_rotate(b, c, k, 0);
        if (c->head_norms) {
            q = plan_normalize(b, q, &norm);
            k = plan_normalize(b, k, &norm);
        }
    } else if (c->rope_count > LLAMA4_GROWING) {
        q = families_rotate(b, c, q, LLAMA4_GROWING);
    }
    int out = plan_attend(b, q, k, v, &attention);
    return plan_linear(b, out, "self_attn.o_proj", NULL, c->hidden_size, c->o_bias);
}

static int llama4_mlp(struct plan_builder *b, const struct model_config *c, int in)
{
    int gate = plan_linear(b, in, "feed_forward.gate_proj", NULL, c->intermediate_size, false);
    int up = plan_linear(b, in, "feed_forward.up_proj", NULL, c->intermediate_size, false);

    plan_fuse(b, "gate and up", (int[]){gate, up}, 2);
    int product = plan_activate(b, (enum plan_activation)c->activation, gate, up);
    return plan_linear(b, product, "feed_forward.down_proj", NULL, c->hidden_size, false);
}

int family_llama4_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    static const struct family_stacked stacked = {
        .both = "feed_forward.experts.gate_up_proj", .down = "feed_forward.experts.down_proj", .by_inputs = true};
    static const struct family_experts names = {
        .router = "feed_forward.router",
        .path = "feed_forward.experts",
        .gate = "gate_proj",
        .up = "up_proj",
        .down = "down_proj",
        .fused = "gate and up",
        .scores = SCORES_SIGMOID,
        .scale_input = true,
        .stacked = &stacked,
        .shared = {"feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj",
                   "feed_forward.shared_expert.down_proj"},
    };
    int in = plan_row_norm(b, 0, "input_layernorm", NULL);
    int x = plan_add(b, 0, llama4_attention(b, c, layer, in));

    in = plan_row_norm(b, x, "post_attention_layernorm", NULL);
    return plan_add(b, x, arch_has_experts(c, layer) ? families_experts(b, c, in, &names) : llama4_mlp(b, c, in));
}

/* Which layers see their own chunk alone: those that layer_types names, or without it all that rotate. */
static int llama4_chunks(const json_t *config, struct model_config *c)
{
    const json_t *types = json_object_get(config, "layer_types");
    bool said = types != NULL && !json_is_null(types);

    c->attention_chunk = json_object_get(config, "attention_chunk_size") == NULL ? 8192 : 0;
    int rc = config_check(json_get_int(config, "attention_chunk_size", 1, CONFIG_POSITION_MAX, &c->attention_chunk));
    TRY(rc < 0 ? rc : 0);
    for (int64_t layer = 0; layer < c->num_layers; layer++) {
        if (!said && c->attention_chunk > 0 && arch_rotates(c, layer)) {
            c->layer_types[layer] = LAYER_CHUNKED;
        }
        if (c->layer_types[layer] == LAYER_CHUNKED && c->attention_chunk == 0) {
            return err_raise(ERR_INVALID_MODEL, "config.json: layer_types asks for chunked_attention, but "
                                                "attention_chunk_size is null");
        }
    }
    return 0;
}

/* Queries of layers that do not rotate. */
static int llama4_growth(const json_t *config, struct model_config *c)
{
    const json_t *tuning = json_object_get(config, "attn_temperature_tuning");
    bool grows = true;
    int64_t period = 8192;
    double growth = 0.1;

    if (json_is_integer(tuning)) { /* 4 in the first checkpoints that were published: any but 0 is true */
        grows = json_integer_value(tuning) != 0;
    } else {
        TRY(config_flag(config, "attn_temperature_tuning", &grows));
    }
    TRY(config_int(config, "floor_scale", CONFIG_POSITION_MAX, period, &period));
    TRY(config_optional(config, "attn_scale", &growth));
    if (grows && growth > 0) {
        c->ropes[LLAMA4_GROWING] = (struct rope_spec){.type = ROPE_NONE,
                                                      .dims = c->head_dim,
                                                      .theta = c->ropes[0].theta,
                                                      .growth = growth,
                                                      .period = (double)period,
                                                      .first = 1};
        c->rope_count = LLAMA4_GROWING + 1;
    }
    return 0;
}

/* intermediate_size is the width of an expert and of the shared one; other MLPs have a width of their own. */
int family_llama4_configure(const json_t *config, struct model_config *c)
{
    c->head_norms = true;
    TRY(config_flag(config, "use_qk_norm", &c->head_norms));
    c->shared_size = c->expert_size;
    TRY(config_int(config, "intermediate_size_mlp", CONFIG_WIDE_MAX, 16384, &c->intermediate_size));
    TRY(llama4_chunks(config, c));
    return llama4_growth(config, c);
}
