#pragma once
/* The families' own parts. Inside models/ only. */

#include "models/plan.h"

/* For the row of a family whose tensors have Llama's names. */
#define LLAMA_NAMES                                                                                               \
    .layers = "model.layers.", .attention = "self_attn", .embedding = "model.embed_tokens", .norm = "model.norm", \
    .head = "lm_head"

/* What an MLP without a gate, or a gate, may be activated by. */
#define ACTIVATIONS_PLAIN                                                                                 \
    (1U << ACTIVATION_SILU | 1U << ACTIVATION_GELU | 1U << ACTIVATION_GELU_TANH | 1U << ACTIVATION_RELU | \
     1U << ACTIVATION_RELU2)

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
/* The same with another path for the last linear. */
int families_attention_into(struct plan_builder *b, const struct model_config *c, int64_t layer, int in,
                            enum family_norms norms, const char *last);
int families_mlp(struct plan_builder *b, const struct model_config *c, int in);
/* A norm of the family's kind over `size` columns at a time. */
int families_norm(struct plan_builder *b, const struct model_config *c, int in, const char *path, const char *gguf,
                  int64_t size);
/* Queries or keys, by one of the configuration's rotary tables. */
int families_rotate(struct plan_builder *b, const struct model_config *c, int in, int table);
/* The sum with what a half of the layer makes, which the configuration may give a factor. */
int families_add(struct plan_builder *b, const struct model_config *c, int to, int what);

/* Where the linears of all experts are stored as one: gate and up [experts, 2 * size, inputs], all of the gate and then
 * all of up or in turns, and down. */
struct family_stacked {
    const char *both, *both_bias, *down, *down_bias;
    bool by_inputs; /* the matrices are [inputs, outputs] */
    bool in_turns;
};

/* Of a row: transformers loads experts of two tensors and of one for each linear, and saves either form. */
#define FAMILY_EXPERTS_STACKED .stacked = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}, .apart = true

/* What families of experts call their modules: the router, the list, and an expert's three linears; how they score. */
struct family_experts {
    const char *router, *path, *gate, *up, *down, *fused; /* gate NULL: what up makes is activated by itself */
    enum plan_scores scores;
    double epsilon;    /* of the sum that chosen scores are divided by */
    bool group_pairs;  /* plan_experts */
    bool scale_input;  /* plan_experts */
    const char *bias;  /* the parameter that is added to scores for the choice; NULL: none */
    int bias_rank;     /* 2: it is stored as [1, experts] */
    const char *scale; /* the parameter with a factor for the score of each expert once it is chosen; NULL: none */
    bool router_bias, expert_bias;
    enum plan_activation activation;
    const struct family_stacked *stacked; /* NULL: each expert's linears have tensors of their own */
    const char *shared[3];                /* gate, up and down of the shared expert, where c->shared_size is not 0 */
    const char *shared_gate;              /* the linear whose sigmoid its output is multiplied by; NULL: none */
    /* Where c->expert_latent is not 0: the linear that makes what experts read, and the one that reads their sum. */
    const char *latent[2];
};
/* What most families call them. */
#define FAMILY_EXPERTS_QWEN                                                                                 \
    .router = "mlp.gate", .path = "mlp.experts", .gate = "gate_proj", .up = "up_proj", .down = "down_proj", \
    .fused = "gate and up"
#define FAMILY_SHARED_EXPERTS \
    .shared = {"mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj"}
/* Scores by sigmoid, and groups by their two best, with DeepSeek V3's bias. */
#define FAMILY_EXPERTS_BIASED \
    .scores = SCORES_SIGMOID, .epsilon = 1e-20, .group_pairs = true, .bias = "mlp.gate.e_score_correction_bias"
/* Latent attention on `in`, under DeepSeek's names; returns as families_attention does. */
int families_latent_attention(struct plan_builder *b, const struct model_config *c, int in);
/* A choice of experts in an MLP's place, each a gated SiLU, and what a shared expert adds. */
int families_experts(struct plan_builder *b, const struct model_config *c, int in, const struct family_experts *names);
/* The same by the scores of a router that the family has placed. */
int families_routed(struct plan_builder *b, const struct model_config *c, int in, int logits,
                    const struct family_experts *names);

/* What families with fused linears call them, and how these are laid out. */
struct family_fused {
    const char *qkv, *out; /* outputs of qkv: all queries, all keys, all values; */
    bool by_group;         /* or for each key head its queries, its key, its value */
    const char *up, *down; /* up: of a gated MLP all of the gate, then all of up */
    bool by_inputs;        /* their weights are stored [inputs, outputs] */
};
/* Attention with one linear for queries, keys and values. */
int families_fused_attention(struct plan_builder *b, const struct model_config *c, int64_t layer, int in,
                             const struct family_fused *f);
/* down(act(gate) * up) with gate and up in one linear, and down(act(up)). */
int families_fused_mlp(struct plan_builder *b, const struct model_config *c, int in, const struct family_fused *f);
int families_plain_mlp(struct plan_builder *b, const struct model_config *c, int in, const struct family_fused *f);
/* The values that a Gated DeltaNet begins with: queries, keys and values side by side, the output's gate, a and beta of
 * each value head. Returns what its last linear makes. */
struct family_delta {
    int qkv, gate, a, beta;
};
int families_delta(struct plan_builder *b, const struct model_config *c, const struct family_delta *in);
/* What families of Mamba 2 call its tensors. */
struct family_mamba {
    const char *in, *out, *norm, *conv_weight, *conv_bias, *a_log, *dt_bias, *d;
};
#define FAMILY_MAMBA_NAMES(prefix)                                                                         \
    prefix ".in_proj", prefix ".out_proj", prefix ".norm", prefix ".conv1d.weight", prefix ".conv1d.bias", \
        prefix ".A_log", prefix ".dt_bias", prefix ".D"
int families_mamba(struct plan_builder *b, const struct model_config *c, int in, const struct family_mamba *names);

/* The plan of a layer; returns its output. */
int family_qwen3_next_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_qwen3_5_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_nemotron_h_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_granite_hybrid_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_llama_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_llama4_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_qwen3_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_mixtral_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_qwen3_moe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_qwen2_moe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_deepseek_v2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_deepseek_v3_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_glm4_moe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_ernie_moe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_dots1_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_flex_olmo_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_gpt_oss_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_granite_moe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_olmoe_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_gemma2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_gemma3_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_gemma4_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_cohere2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_exaone4_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_olmo2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_phi3_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_gpt_neox_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_falcon_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_glm4_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_gpt2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_opt_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_starcoder2_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_phi_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);
int family_nemotron_plan(const struct model_config *c, int64_t layer, struct plan_builder *b);

/* Members of config.json that one family alone has. */
int family_gpt_neox_configure(const json_t *config, struct model_config *c);
int family_falcon_configure(const json_t *config, struct model_config *c);
int family_gpt2_configure(const json_t *config, struct model_config *c);
int family_opt_configure(const json_t *config, struct model_config *c);
int family_starcoder2_configure(const json_t *config, struct model_config *c);
int family_phi_configure(const json_t *config, struct model_config *c);
int family_gpt_oss_configure(const json_t *config, struct model_config *c);
int family_gemma4_configure(const json_t *config, struct model_config *c);
int family_exaone4_configure(const json_t *config, struct model_config *c);
int family_llama4_configure(const json_t *config, struct model_config *c);

extern const struct arch arch_gemma4; /* gemma4.c */
/* rows_experts.c: the rows of families with experts. */
extern const struct arch arch_gpt_oss, arch_granite_moe, arch_dots1, arch_flex_olmo, arch_deepseek_v2, arch_deepseek_v3,
    arch_ernie_moe, arch_glm4_moe, arch_glm4_moe_lite, arch_llama4, arch_olmoe, arch_qwen2_moe;
/* rows_fused.c: those of families with fused linears. */
extern const struct arch arch_falcon, arch_glm4, arch_gpt2, arch_gpt_neox, arch_phi3;
/* rows_plain.c: those of families with layer norms and separate linears. */
extern const struct arch arch_nemotron, arch_opt, arch_phi, arch_starcoder2;
/* rows_vision.c: those of language models that are found within composite checkpoints alone. */
extern const struct arch arch_qwen2_5_vl, arch_qwen2_vl, arch_qwen3_vl, arch_qwen3_vl_moe;
/* rows_hybrids.c: those of families most of whose layers are recurrences. */
extern const struct arch arch_granite_hybrid, arch_nemotron_h, arch_qwen3_5, arch_qwen3_5_moe, arch_qwen3_next;
