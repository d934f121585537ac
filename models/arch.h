#pragma once
/* Architectures as data: the plan of a layer, names outside of it, and what a config.json may say.
 * "Add a family" in CONTRIBUTING.md says how to add one. */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* Which layers attend through a window. */
enum window_rule {
    WINDOW_NEVER,    /* config.json's sliding_window is not read */
    WINDOW_ALL,      /* every layer, unless sliding_window is null; or as layer_types says where the row reads it */
    WINDOW_OPTIONAL, /* only with use_sliding_window; from max_window_layers on, or as layer_types says */
    WINDOW_PATTERN,  /* all but each sliding_window_pattern-th layer, or as layer_types says */
    WINDOW_NOPE,     /* only with use_sliding_window; the layers without rotation, or as layer_types says */
};

/* What layer_types calls the layers. */
enum layer_type {
    LAYER_FULL,    /* "full_attention" */
    LAYER_SLIDING, /* "sliding_attention": through a window */
    LAYER_CHUNKED, /* "chunked_attention" */
    LAYER_LINEAR,  /* "linear_attention": a recurrence */
    LAYER_MLP,     /* "mlp": that alone */
    LAYER_EXPERTS, /* "moe": a choice of experts alone */
    LAYER_TYPES,
};

/* Which layers have experts. */
enum experts_layers {
    EXPERTS_EVERY,
    EXPERTS_STEP,        /* each decoder_sparse_step-th but mlp_only_layers */
    EXPERTS_AFTER,       /* all but the first first_k_dense_replace; every one of those, moe_layer_freq 1 */
    EXPERTS_LISTED,      /* those that mlp_layer_types calls sparse; without it, all but the first */
    EXPERTS_SPAN,        /* each moe_layer_interval-th from moe_layer_start_index to moe_layer_end_index */
    EXPERTS_INTERLEAVED, /* moe_layers; without it, each interleave_moe_layer_step-th */
};

/* What a family of experts reads of config.json. A member that is NULL here has no meaning for it: one that would
 * change what is computed is then refused. */
struct arch_experts {
    const char *count;     /* how many experts; num_local_experts is another word for it */
    bool optional;         /* `count` may be 0: layers then have none */
    const char *per_token; /* NULL: num_experts_per_tok */
    const char *size;      /* an expert's width; NULL: the MLP's */
    const char *enabled;   /* a flag without which no layer has any; NULL: there is none */
    const char *normalize; /* whether the chosen scores are divided by their sum; NULL: always_normalized says it */
    bool always_normalized;
    const char *shared_count; /* a shared expert as wide as this many experts */
    const char *shared_size;  /* a shared expert of this width */
    const char *latent_size;  /* experts read and make rows of this width, between two linears; absent or null: none */
    bool scaled;              /* routed_scaling_factor counts */
    bool grouped;             /* n_group and topk_group count */
    const char *scoring;      /* what scoring_func must be where it is given; NULL: softmax */
    const char *const *methods; /* what topk_method may be where it is given, NULL-terminated; the first: no groups
                                 * count. NULL: it has no meaning */
    enum experts_layers layers;
    /* Checkpoints may have a layer's experts in two tensors, gate and up [experts, 2 * size, inputs] and down; NULL:
     * they have them as the plan says. `turned`: or as [experts, inputs, outputs]. `apart`: transformers loads one
     * tensor for each expert and linear, too. */
    const char *stacked[2];
    bool turned, apart;
    /* What a member means that config.json lacks. 0 of shared experts and of groups: none. */
    int64_t default_count, default_per_token, default_size, default_shared, default_groups, default_group_top_k;
    int64_t default_dense; /* of first_k_dense_replace */
    bool default_normalize;
    double default_factor; /* 0: 1 */
};

/* Multi-head latent attention (DeepSeek-AI 2024, arXiv 2405.04434, section 2.1): what its members mean that config.json
 * lacks. */
struct arch_latent {
    int64_t default_query_rank; /* of q_lora_rank; 0: it is required, null means that there is none */
    int64_t default_rank, default_nope, default_rope, default_value;
    bool interleaved; /* neighbours are rotated; with rope_interleave, by default */
    bool choosable;   /* rope_interleave counts */
};

/* What a family with recurrences reads of config.json: members, and what they mean that it lacks (0: required). */
struct arch_recurrence {
    const char *heads, *groups;   /* of values; of keys (of B and C) */
    const char *head_dim, *state; /* of a head: columns and rows of its state */
    const char *conv;             /* width of the convolution */
    const char *expand;           /* heads of head_dim are as wide as hidden_size times this; NULL: as they are given */
    const char *conv_bias, *bias; /* flags; NULL: none */
    const char *activation;       /* of the convolution, which must be silu; NULL: hidden_act */
    const char *positions;        /* attention rotates only where this member is "rope"; NULL: it is not read */
    const char *shared_size;      /* of the MLP that all layers have; NULL: intermediate_size */
    bool steps;                   /* time steps have limits: time_step_limit, */
    const char *step_min;         /* or the lower one alone, of this member */
    bool patterned;               /* layers_block_type or hybrid_override_pattern says what all layers are */
    bool default_conv_bias;
    int64_t default_heads, default_groups, default_head_dim, default_state, default_conv, default_expand,
        default_shared;
    int64_t default_interval; /* each so-manieth layer attends; 0: a list is required */
    double default_step_min;
};

struct model_config;
struct plan_builder; /* plan.h */

/* What a family's config.json calls a member that others call `common`. */
struct arch_alias {
    const char *own, *common;
};

struct arch {
    const char *name;       /* "LlamaForCausalLM" */
    const char *model_type; /* what config.json's model_type must be where it is given, */
    const char *also_type;  /* or this: a configuration class without a model of its own; NULL: none */
    /* The plan of a layer (plan.h); returns the value that is its output. */
    int (*plan)(const struct model_config *config, int64_t layer, struct plan_builder *builder);
    const char *layers;    /* what a layer's number comes after in names */
    const char *attention; /* the module of a layer that scales of keys and values, and old exports' rotary tables, are
                            * named after: "self_attn" */
    const char *embedding; /* the modules outside the layers: embedding, */
    const char *norm;      /* last norm, */
    const char *head;      /* output head */
    const char *prefix;    /* of all names but the head's, without which some exports are; NULL: none is */
    const char *masks[2];  /* causal masks that old exports keep, by their names in a layer */
    const char *unread[6]; /* tensors of layers that take keys and values of an earlier one, which no program reads */
    const char *loaded[2]; /* how some names begin, and what transformers renames that to; NULL: nothing */
    bool own_linears;      /* transformers has a class of its own for the linears: what replaces linears leaves them */
    const char *positions; /* a table whose row is added to the embedding of the token there; NULL: none */
    int64_t position_row;  /* of that table: the first token's */
    bool head_bias;        /* the output head has one */
    const char *tokens[3]; /* what layers get of their tokens next to their input is made by: the table, the matrix, the
                            * norm (block_tokens.c); NULL: they get nothing */
    /* Names of members that the family has of its own, to {NULL}; NULL: none. */
    const struct arch_alias *aliases;
    /* Members that no other family has, after the others; NULL: none. */
    int (*configure)(const json_t *config, struct model_config *c);
    const char *gguf;     /* what GGUF calls the architecture; NULL: nothing */
    bool gguf_neighbours; /* its runtime rotates a head's neighbouring elements, where the checkpoint rotates halves */
    bool qkv_bias;        /* q, k and v always have biases */
    bool attention_bias;  /* config.json's attention_bias applies: q, k, v and o */
    bool mlp_bias;        /* config.json's mlp_bias applies */
    enum window_rule window;
    unsigned layer_types;   /* bits of enum layer_type that layer_types may name; 0: it is not read */
    bool ropes_by_type;     /* layers of a window have a rotary table of their own, number 1 */
    bool nope;              /* no_rope_layers and no_rope_layer_interval apply */
    bool full_nope;         /* layers of full attention do not rotate */
    bool full_heads;        /* layers of full attention have heads of their own (config_heads.c); the last is one */
    bool vision_both_ways;  /* use_bidirectional_attention may be "vision", which changes nothing for tokens of text */
    bool partial_rope;      /* partial_rotary_factor applies */
    bool sections;          /* images have three positions: mrope_section says how many columns go by each */
    bool rope_neighbours;   /* columns are rotated with their neighbours, else halves with each other */
    bool query_scaling;     /* llama_4_scaling_beta of the rope parameters applies: rotary table 1 is the keys' */
    bool multipliers;       /* embedding_multiplier, residual_multiplier, attention_multiplier, logits_scaling apply */
    bool logit_scale;       /* config.json's logit_scale applies */
    bool query_scalar;      /* scores are divided by the root of query_pre_attn_scalar */
    bool soft_caps;         /* attn_logit_softcapping and final_logit_softcapping apply */
    bool embedding_root;    /* embeddings are multiplied by the root of hidden_size */
    bool layer_norms;       /* norms are LayerNorms; else RMS norms */
    bool norm_biases;       /* norms have biases, the last one too */
    bool no_rope;           /* no layer rotates */
    bool unit_offset;       /* the factor of norms is 1 + weight */
    bool tied;              /* what a missing tie_word_embeddings means */
    bool biased;            /* what a missing attention_bias means */
    bool o_unbiased;        /* attention_bias is of q, k and v alone */
    bool sinks;             /* attention has sinks */
    int default_activation; /* enum plan_activation: of the MLP where config.json names none */
    unsigned activations;   /* bits of the others that it may name */
    const char *activation_member;      /* NULL: hidden_act */
    const char *eps_member;             /* NULL: rms_norm_eps */
    const char *refused[3];             /* members that change what is computed, and must be absent, null, false or 0 */
    const struct arch_experts *experts; /* NULL: no layer has any */
    const char *head_norms_member;      /* whether queries and keys have norms; NULL: the plan says it */
    const struct arch_latent *latent;   /* NULL: attention has no latent keys and values */
    const char
        *sample; /* JSON: members for parts.c's sample, where the row does not take those that it has; NULL: none */
    const struct arch_recurrence *recurrence; /* NULL: no layer is one */
    /* What a member means that config.json lacks. 0: as many as heads; hidden_size / heads; no window. */
    int64_t default_kv_heads, default_head_dim, default_window, default_max_position;
    int64_t default_full_head_dim;                         /* of global_head_dim, with full_heads */
    int64_t default_mlp;                                   /* intermediate_size / hidden_size; 0: it must be given */
    int64_t default_heads, default_vocab, default_pattern; /* 0: required; 0: required; no window */
    int64_t default_window_from;                           /* of max_window_layers; 0: 28 */
    double default_rope_theta;                             /* 0: 10000 */
    double default_local_theta;                            /* of rotary table 1; 0: 10000 */
    double default_partial;                                /* 0: 1 */
    double default_norm_eps;                               /* 0: 1e-6 */
    double default_logit_scale, default_attention_cap, default_logit_cap, default_query_scalar;
};

#define ARCH_LAYERS_MAX 4096
#define ARCH_EXPERTS_MAX 4096 /* of a layer */

/* Latent attention: queries through a rank or directly, keys and values through a rank; each head has `nope` columns
 * without position and `rope` with. */
struct latent_attention {
    int64_t query_rank; /* 0: one linear makes queries directly */
    int64_t rank, nope, rope, value;
    bool interleaved;
    double scale; /* of the scores */
};

/* What precedes the names of a checkpoint's text model: for "model." of a row's names, and for its head. */
struct arch_layout {
    const char *model, *head; /* "model.language_model.", "" */
};

/* A class of checkpoints that hold a language model and more, such as a tower for images: its tensors pass through. */
struct arch_composite {
    const char *name;          /* "Mistral3ForConditionalGeneration" */
    const char *model_type;    /* config.json's */
    const char *text;          /* the member that holds the language model's configuration */
    const char *text_types[6]; /* its model_type: the first where it is missing. The row is that model_type's. */
    const struct arch_layout *layouts; /* [2]: by the module tree; as older exports have it, model NULL: likewise */
    bool flat;                         /* older exports have the members of `text` next to the others, in its place */
};
const struct arch_composite *arch_composites(void); /* ends with {0} */

enum rope_type {
    ROPE_DEFAULT,
    ROPE_LINEAR,
    ROPE_LLAMA3,
    ROPE_DYNAMIC,      /* a larger base beyond max_position ("NTK") */
    ROPE_YARN,         /* Peng et al. 2023, arXiv 2309.00071 */
    ROPE_LONGROPE,     /* Ding et al. 2024, arXiv 2402.13753 */
    ROPE_PROPORTIONAL, /* of all columns, the later ones not turned */
    ROPE_NONE,         /* no column is turned: scaling and growth alone */
};
#define ROPE_TABLES_MAX 4
#define ROPE_FACTORS_MAX 256 /* columns of a longrope table */

/* Layers that are recurrences. */
struct recurrence {
    int64_t heads, groups, head_dim, state, conv;
    int64_t shared_size;
    bool conv_bias, bias;
    double dt_min, dt_max;
};

/* A rotary table: angles of `dims` / 2 columns for each position. Members that its type does not have are 0. */
struct rope_spec {
    enum rope_type type;
    int64_t dims; /* rotated columns of a head, even */
    double theta, factor;
    double low_freq, high_freq;        /* llama3 */
    double beta_fast, beta_slow;       /* yarn */
    bool truncate;                     /* yarn: the bounds of its ramp are full columns */
    double original_max, max_position; /* llama3, yarn, longrope; dynamic */
    double turned;                     /* proportional: the part of the columns that is turned */
    double scaling;                    /* cos and sin are multiplied by it; 0: 1 */
    /* And by 1 + growth ln(1 + integer part((position + first) / period)); growth 0: not. */
    double growth, period, first;
    float short_factors[ROPE_FACTORS_MAX], long_factors[ROPE_FACTORS_MAX]; /* longrope */
};

/* How a checkpoint has the linears of experts, of the forms that its family allows. */
enum experts_storage {
    EXPERTS_AS_PLANNED,
    EXPERTS_STACKED, /* in two tensors: arch_experts.stacked */
    EXPERTS_TURNED,  /* the same, [experts, inputs, outputs] */
};

struct model_config {
    const struct arch *arch;
    int64_t hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, head_dim, vocab_size;
    int64_t max_position;
    const struct arch_composite *composite; /* NULL: the checkpoint is the language model alone */
    int64_t sliding_window;                 /* 0 = none */
    int64_t attention_chunk;                /* of layers LAYER_CHUNKED: positions see those of their own chunk */
    uint8_t layer_types[ARCH_LAYERS_MAX];   /* enum layer_type */
    int64_t full_head_dim, full_kv_heads;   /* of layers of full attention, with full_heads; 0: those of all layers */
    bool keys_are_values;                   /* one linear makes both there */
    int64_t taking_layers; /* the last so many take keys and values of the last layer of their type before them */
    bool wide_taking;      /* their MLPs are twice as wide */
    int64_t token_rows, token_columns; /* of the table of arch->tokens, columns of one layer; 0: there is none */
    struct recurrence recurrence;
    uint64_t nope_layers[ARCH_LAYERS_MAX / 64];          /* bits of those whose queries and keys are not rotated */
    int64_t num_experts, experts_per_token, expert_size; /* num_experts 0: layers have none */
    int64_t sparse_step;                                 /* layer l may have experts where it divides l + 1 */
    bool normalize_experts;                              /* the chosen scores are divided by their sum */
    enum experts_storage experts_storage;                /* found when the checkpoint is opened */
    int64_t shared_size;                                 /* of the shared expert; 0: there is none */
    int64_t expert_latent;                               /* columns that experts read and make; 0: hidden_size */
    int64_t expert_groups, expert_group_top_k;   /* the choice is among the experts of the best groups; 1: all */
    double experts_factor;                       /* of the scores */
    bool head_norms;                             /* queries and keys have norms, where a member says so */
    struct latent_attention latent;              /* rank 0: none */
    uint64_t dense_layers[ARCH_LAYERS_MAX / 64]; /* bits of those that have none all the same */
    double rms_norm_eps;
    bool tie_word_embeddings;
    bool qkv_bias, o_bias, mlp_bias;
    int activation;     /* of the MLP's gate: enum plan_activation */
    int64_t mtp_layers; /* layers after the last that only predict further tokens: they pass through */
    double embedding_scale, residual_scale, logit_scale; /* factors; 1 */
    double attention_scale;                              /* of scores; 0: 1 / sqrt(head_dim) */
    double attention_cap, logit_cap;                     /* x becomes cap * tanh(x / cap); 0: as it is */
    struct rope_spec ropes[ROPE_TABLES_MAX];
    int rope_count;         /* 0: no layer rotates */
    bool parallel;          /* attention and MLP read the layer's input side by side, */
    int64_t parallel_norms; /* through as many norms */
};

/* NULL-terminated list of rows. */
const struct arch *const *arch_list(void);
/* ERR_UNSUPPORTED_ARCHITECTURE with the reason; ERR_ALREADY_QUANTIZED; ERR_INVALID_MODEL on absurd values.
 * Accepts rope_scaling (transformers 4) and rope_parameters (5). */
int arch_parse_config(const json_t *config, struct model_config *out);
/* ERR_ALREADY_QUANTIZED where it says so; arch_parse_config checks it, too. */
int arch_check_float(const json_t *config);
/* Whether there is a row for the architecture that it names. */
bool arch_is_named(const json_t *config);
/* The attention window of a layer; 0 = sees everything before it. */
int64_t arch_window(const struct model_config *config, int64_t layer);
/* The heads of a layer's attention: columns of one, and how many there are of keys. */
int64_t arch_head_dim(const struct model_config *config, int64_t layer);
int64_t arch_kv_heads(const struct model_config *config, int64_t layer);
/* Whether a layer's MLP is a choice of experts. */
bool arch_has_experts(const struct model_config *config, int64_t layer);
/* Whether a layer rotates queries and keys, and the number of its table. */
bool arch_rotates(const struct model_config *config, int64_t layer);
int arch_rope(const struct model_config *config, int64_t layer);
int arch_key_rope(const struct model_config *config, int64_t layer); /* of keys: the same but for growing queries */
/* rope.c: cos and sin tables [length, dims/2] for sequences of that length, computed in double, stored as float. */
void rope_tables(const struct rope_spec *rope, int64_t length, float *cosine, float *sine);
/* What column i turns by from one position to the next. */
double rope_frequency(const struct rope_spec *rope, int64_t length, int64_t i);
