#pragma once
/* Architectures as data: the plan of a layer, names outside of it, and what a config.json may say.
 * Adding one = one file in families/ and one row in arch.c. */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Which layers attend through a window. */
enum window_rule {
    WINDOW_NEVER,    /* config.json's sliding_window is not read */
    WINDOW_ALL,      /* every layer, unless sliding_window is null */
    WINDOW_OPTIONAL, /* only with use_sliding_window; from max_window_layers on, or as layer_types says */
};

/* Whether layers have experts, and which members of config.json say so. */
enum experts_rule {
    EXPERTS_NEVER,
    EXPERTS_ALL,    /* every layer; of the MLP's size; chosen scores are always normalized */
    EXPERTS_SPARSE, /* each decoder_sparse_step-th layer but mlp_only_layers; of moe_intermediate_size; norm_topk_prob
                     */
};

struct model_config;
struct plan_builder; /* plan.h */

struct arch {
    const char *name;       /* "LlamaForCausalLM" */
    const char *model_type; /* what config.json's model_type must be where it is given */
    /* The plan of a layer (plan.h); returns the value that is its output. */
    int (*plan)(const struct model_config *config, int64_t layer, struct plan_builder *builder);
    const char *layers;    /* what a layer's number comes after in names */
    const char *attention; /* the module of a layer that scales of keys and values, and old exports' rotary tables, are
                            * named after: "self_attn" */
    const char *embedding; /* the modules outside the layers: embedding, */
    const char *norm;      /* last norm, */
    const char *head;      /* output head */
    const char *gguf;      /* what GGUF calls the architecture; NULL: nothing */
    bool gguf_neighbours;  /* its runtime rotates a head's neighbouring elements, where the checkpoint rotates halves */
    bool qkv_bias;         /* q, k and v always have biases */
    bool attention_bias;   /* config.json's attention_bias applies: q, k, v and o */
    bool mlp_bias;         /* config.json's mlp_bias applies */
    enum window_rule window;
    enum experts_rule experts;
    /* What a member means that config.json lacks. 0: as many as heads; hidden_size / heads; no window. */
    int64_t default_kv_heads, default_head_dim, default_window, default_max_position;
    int64_t default_experts, default_experts_per_token, default_expert_size;
    double default_rope_theta; /* 0: 10000 */
    double default_norm_eps;   /* 0: 1e-6 */
};

#define ARCH_LAYERS_MAX 4096
#define ARCH_EXPERTS_MAX 4096 /* of a layer */

enum rope_type { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 };

struct model_config {
    const struct arch *arch;
    int64_t hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim, vocab_size;
    int64_t max_position;
    int64_t sliding_window;                              /* 0 = none */
    int64_t sliding_from_layer;                          /* layers >= this use the window */
    int64_t num_experts, experts_per_token, expert_size; /* num_experts 0: layers have none */
    int64_t sparse_step;                                 /* layer l may have experts where it divides l + 1 */
    bool normalize_experts;                              /* the chosen scores are divided by their sum */
    uint64_t dense_layers[ARCH_LAYERS_MAX / 64];         /* bits of those that have none all the same */
    double rms_norm_eps;
    bool tie_word_embeddings;
    bool qkv_bias, o_bias, mlp_bias;
    enum rope_type rope_type;
    double rope_theta, rope_factor, rope_low_freq, rope_high_freq, rope_original_max;
};

/* NULL-terminated list of rows. */
const struct arch *const *arch_list(void);
/* ERR_UNSUPPORTED_ARCHITECTURE with the reason; ERR_ALREADY_QUANTIZED; ERR_INVALID_MODEL on absurd values.
 * Accepts rope_scaling (transformers 4) and rope_parameters (5). */
int arch_parse_config(const json_t *config, struct model_config *out);
/* The attention window of a layer; 0 = sees everything before it. */
int64_t arch_window(const struct model_config *config, int64_t layer);
/* Whether a layer's MLP is a choice of experts. */
bool arch_has_experts(const struct model_config *config, int64_t layer);
/* cos and sin tables [length, head_dim/2], computed in double, stored as float. */
void arch_rope_tables(const struct model_config *config, int64_t length, float *cosine, float *sine);
