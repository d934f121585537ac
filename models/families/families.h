#pragma once
/* The families' own parts. Inside models/ only. */

#include "models/plan.h"

/* For the row of a family whose tensors have Llama's names. */
#define LLAMA_NAMES                                                                                               \
    .layers = "model.layers.", .attention = "self_attn", .embedding = "model.embed_tokens", .norm = "model.norm", \
    .head = "lm_head"

/* What the norms of queries and keys, before their rotation, are over. */
enum family_norms {
    FAMILY_NORMS_NONE,
    FAMILY_NORMS_HEAD, /* each head by itself */
    FAMILY_NORMS_ROW,  /* all heads together */
};

/* What several families share: attention and MLP on `in`, under Llama's names. Each returns what its last linear makes,
 * which is to be added to the residual stream, through a norm where a family has one there. */
int families_attention(struct plan_builder *b, const struct model_config *c, int64_t layer, int in,
                       enum family_norms norms);
int families_mlp(struct plan_builder *b, const struct model_config *c, int in);
/* A norm of the family's kind over `size` columns at a time. */
int families_norm(struct plan_builder *b, const struct model_config *c, int in, const char *path, const char *gguf,
                  int64_t size);
/* The sum with what a half of the layer makes, which the configuration may give a factor. */
int families_add(struct plan_builder *b, const struct model_config *c, int to, int what);

/* What families of experts call their modules: the router, the list, and an expert's three linears. */
struct family_experts {
    const char *router, *path, *gate, *up, *down, *fused;
};
/* A choice of experts in an MLP's place, each a gated SiLU. */
int families_experts(struct plan_builder *b, const struct model_config *c, int in, const struct family_experts *names);

/* The plan of a layer; returns its output. */
int family_llama_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_qwen3_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_mixtral_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_qwen3_moe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_olmo2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
