#pragma once
/* The plan of a decoder layer: which activations there are, which modules and norms make them, step by step. A family
 * (families/<name>.c) writes it from the configuration; the rest is derived here, once, and never changes. Knows no
 * device and reads no weight.
 *
 * value         an activation [tokens, width], numbered; value 0 is the layer's input. A layer may take others that an
 *               earlier one gave, such as keys and values, under a number of the model's
 * module        a linear: its path below the layer, its shape
 * step          what makes one value of others
 * input group   the modules that read the same value, in program order: solved together from one set of statistics
 * kept          the values that are stored between the pass for one group and the pass for the next
 *
 * With experts, a step EXPERTS holds the plan of one expert, whose values are the rows gathered for it; its modules
 * are listed among the layer's, once for each expert. */

#include "base/arena.h"
#include "base/cleanup.h"
#include "models/arch.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PLAN_VALUES_MAX 64 /* of a layer, or of an expert: sets of values and of steps are bits of 64 */
#define PLAN_STEPS_MAX 64
#define PLAN_INPUTS_MAX 3
#define PLAN_SHARED_MAX 4                                     /* values that cross layers, by number */
#define PLAN_SHARED_STORE (PLAN_VALUES_MAX - PLAN_SHARED_MAX) /* the activation store of number 0 */
#define PLAN_NAME_MAX 128                                     /* a module's full name, with its NUL */

typedef uint64_t plan_set; /* of values, or of steps, by number */
#define PLAN_BIT(number) ((plan_set)1 << (number))

enum plan_step_kind {
    STEP_LINEAR,     /* out = in W^T + b */
    STEP_NORM,       /* struct plan_norm, over the row or over each head of it */
    STEP_ROPE,       /* rotates each head by its position, and scales it: struct plan_rope */
    STEP_ATTENTION,  /* causal; in: queries, keys, values */
    STEP_ACTIVATE,   /* out = act(in 0), times in 1 where there are two; in 0 may be one column wide */
    STEP_SELECT,     /* some columns of each head: struct plan_select */
    STEP_JOIN,       /* each head of in 0, then the same head of in 1: struct plan_join */
    STEP_ADD,        /* out = in 0 + in 1 */
    STEP_SCALE,      /* out = factor * in, or of that the product with a parameter */
    STEP_EXPERTS,    /* in: the tokens, the router's logits */
    STEP_CONV,       /* causal, along the sequence, column by column: struct plan_conv */
    STEP_DELTA,      /* the gated delta rule; in: queries, keys and values side by side, a, beta: struct plan_delta */
    STEP_SCAN,       /* a selective state space; in: x, B and C side by side, dt: struct plan_scan */
    STEP_GATED_NORM, /* an RMS norm and a gate, silu(in 1): struct plan_gated_norm */
    STEP_TOKENS,     /* reads no value: what the layer gets of its tokens (block_tokens.c) */
};

enum plan_activation {
    ACTIVATION_SILU,
    ACTIVATION_GELU,      /* x Phi(x), by erf */
    ACTIVATION_GELU_TANH, /* its approximation by tanh */
    ACTIVATION_RELU,
    ACTIVATION_RELU2,   /* relu(x)^2 */
    ACTIVATION_SIGMOID, /* a gate */
    /* g sigmoid(1.702 g) (u + 1), g = min(in 0, 7), u = in 1 cut to [-7, 7] (gpt-oss) */
    ACTIVATION_SWIGLU_CLAMPED,
};

enum plan_norm_kind {
    NORM_RMS,   /* in / sqrt(mean(in^2) + eps) */
    NORM_LAYER, /* (in - mean) / sqrt(variance + eps) */
};

/* out = norm(in) * (offset + w) + b; without a path neither w nor b: out = norm(in). */
struct plan_norm {
    const char *path; /* "input_layernorm" */
    const char *gguf;
    int64_t size; /* of its weight: the row's width, or a head's */
    enum plan_norm_kind kind;
    bool unit_offset; /* the factor is 1 + w */
    bool bias;
    double eps; /* 0: the configuration's */
};

/* The first `rotated` columns of each head, halves against each other or neighbours against each other. */
struct plan_rope {
    int64_t head_dim, rotated;
    bool interleaved;
    int table; /* of the model's rotary tables, arch.h */
};

struct plan_attention {
    int64_t heads, kv_heads, head_dim;
    int64_t value_dim; /* of a head's values and outputs */
    int64_t window;    /* 0: all positions before it */
    int64_t chunk;     /* positions see those of their own chunk of this many alone; 0: of all */
    double scale;      /* of the scores */
    double cap;        /* scores become cap * tanh(score / cap); 0: as they are */
    bool has_sinks;
    int sinks; /* parameter [heads]: logits that take their share of the softmax and give nothing */
};

/* Columns [first, first + count) of each `stride` columns. */
struct plan_select {
    int64_t stride, first, count;
};

struct plan_join {
    int64_t heads; /* of in 0 and the output */
    bool shared;   /* in 1 is one head, which all get */
};

/* out[t] = the sum of weight[:, j] * in[t - width + 1 + j] and the bias, then silu where it is said so; zeros before a
 * sequence. Parameters by number. */
struct plan_conv {
    int weight; /* [columns, 1, width] */
    bool biased, silu;
    int bias; /* [columns] */
    int64_t width;
};

/* Linear attention (Yang et al. 2024, arXiv 2412.06464): see `delta_rule` of gpu/ops.def. */
struct plan_delta {
    int64_t key_heads, value_heads;
    int64_t key_dim, value_dim; /* of a head */
    int a_log, dt_bias;         /* parameters [value_heads] */
};

/* Mamba 2 (Dao and Gu 2024, arXiv 2405.21060): see `state_scan` of gpu/ops.def. */
struct plan_scan {
    int64_t heads, groups, head_dim, state;
    double dt_min, dt_max;
    int a_log, dt_bias, d; /* parameters [heads] */
};

/* norm(in 0) * silu(in 1), or norm(in 0 * silu(in 1)), over each `size` columns; its weight is of so many, or of all.
 */
struct plan_gated_norm {
    int64_t size;
    bool gate_first;
};

enum plan_scores {
    SCORES_SOFTMAX_ALL,    /* softmax over all experts, then the choice */
    SCORES_SOFTMAX_CHOSEN, /* the choice by logits, then softmax over the chosen */
    SCORES_SIGMOID,        /* of each logit by itself */
};

/* A token goes to the top_k experts of the largest scores; out = factor * sum of score * expert(token). A shared expert
 * is ordinary steps of the layer and an ADD. */
struct plan_experts {
    const char *path; /* "mlp.experts": expert e's modules are "mlp.experts.<e>.<path in the expert's plan>" */
    int64_t count, top_k;
    enum plan_scores scores;
    bool normalize; /* the chosen scores are divided by their sum + epsilon */
    double factor, epsilon;
    /* Equal runs of experts, of which the choice is among the best `group_top_k`; 0 or 1: none. A group is as good as
     * its best expert, or as the sum of its two best. */
    int64_t groups, group_top_k;
    bool group_pairs;
    bool has_bias, has_scale;
    int bias;         /* parameter [count]: added to scores for the choice alone */
    int scale;        /* parameter [count]: what an expert's score is multiplied by in the end */
    bool scale_input; /* out = sum of expert(score * token); scores are sigmoids, not normalized, and the factor is 1 */
    /* Derived. The plan of one expert: value 0 is the rows gathered for it, `output` what it makes of them. Module m of
     * expert e is module first_module + e * plan->module_count + m of the layer. */
    const struct plan *plan;
    int first_module;
};

struct plan_step {
    enum plan_step_kind kind;
    int in[PLAN_INPUTS_MAX], inputs;
    int out;
    int module;    /* LINEAR; of the plan that the step is in */
    int norm;      /* NORM, GATED_NORM */
    double factor; /* SCALE, */
    bool has_parameter;
    int parameter; /* [1], or one number for each column */
    enum plan_activation activation;
    struct plan_rope rope;
    struct plan_select select;
    struct plan_join join;
    struct plan_attention attention;
    struct plan_conv conv;
    struct plan_delta delta;
    struct plan_scan scan;
    struct plan_gated_norm gated;
    const struct plan_experts *experts;
};

/* Where the weight and the bias of a module are in the checkpoint, where it has no "<path>.weight" [rows, cols] and
 * "<path>.bias" [rows] of its own. */
struct plan_stored {
    const char *weight, *bias; /* all that follows the layer's number; NULL: the module's own */
    bool transposed;           /* the weight is [inputs, outputs] */
    int64_t entries, entry;    /* one of `entries` matrices (vectors) of a tensor: an expert's; 0: no such dimension */
    struct plan_select rows;   /* which of the stored outputs are the module's; stride 0: all */
};

struct plan_module {
    const char *path;   /* below the layer: "self_attn.o_proj" */
    const char *gguf;   /* what GGUF calls it, "attn_output"; NULL: nothing */
    int64_t rows, cols; /* outputs, inputs */
    bool bias;
    bool fixed;                       /* stays in float whatever the request says: a router */
    bool optional;                    /* stays in float unless an override takes it */
    int expert;                       /* whose it is, or -1 */
    const struct plan_stored *stored; /* NULL: its tensors are its own */
    /* Derived: */
    int step;     /* LINEAR; of the expert's plan where it is an expert's */
    int group;    /* of the plan that it stands in */
    bool rotated; /* its outputs, or some of them, are rotated by position */
    bool scores;  /* its outputs, or some, are attention's queries or keys: multiplied with another's, or each other */
};

/* A tensor of the layer that is neither a linear's nor a norm's: sinks of attention, the decay of a recurrence. */
struct plan_parameter {
    const char *path; /* all that follows the layer's number: "self_attn.sinks" */
    const char *gguf; /* the same in GGUF: "attn_sinks.weight" */
    int64_t shape[3];
    int rank;
};

/* Where a factor for each column of a value can be taken up, so that dividing there and multiplying the columns of all
 * readers leaves the layer's output as it is. */
enum plan_fold_kind {
    FOLD_NONE,
    FOLD_NORM, /* by the norm's weight */
    FOLD_ROWS, /* by the rows of a module: up's under a gate, or v's under attention */
};
struct plan_fold {
    enum plan_fold_kind kind;
    int norm, module; /* -1: none */
    /* Which rows of `module`, in order: row `first` of each `stride` and those after it; stride 0: all. */
    struct plan_select rows;
    /* Rows of `module` feed the value through attention; `shared`: each feeds several columns, since key heads are
     * grouped, and kind is NONE. */
    bool attention, shared;
};

struct plan_group {
    int input;  /* the value that its modules read; of the expert's plan where it is an expert's */
    int expert; /* or -1 */
    const int *modules;
    int count;
    int64_t columns; /* of the value */
    int step;        /* the first that reads the value, in the layer's plan */
    struct plan_fold fold;
    /* What these modules end in: the value that is next added to the residual stream, or of a sum that is added the
     * part which follows from `input` alone; -1 where none does, or experts take part. */
    int branch;
    /* The one module whose output is that value itself; -1 where there is none. */
    int residual;
    plan_set kept; /* values that are stored when all before `step` is done: enough for what comes after it */
};

/* Modules that runtimes load as one linear. */
struct plan_fused {
    const char *title; /* "q, k and v" */
    const int *modules;
    int count;
};

enum plan_region {
    REGION_KEPT, /* values that outlive a pass, or that a search runs from several times: the micro-batch's own */
    REGION_WORK, /* the others */
};

/* Memory that values share one after another, where a step works in place. */
struct plan_storage {
    enum plan_region region;
    int64_t offset, width; /* in columns of the region */
    int store;             /* number of the activation store that keeps its values between passes; -1: none */
};

struct plan_value {
    int64_t width;
    int producer; /* step; -1: the layer's input */
    int last;     /* step that reads it last; -1: none */
    int storage;
    bool residual; /* the layer's input, or the sum that took its place */
    int shared;    /* number + 1 under which layers after this one take it, or this one takes it; 0: it stays within */
};

struct plan {
    const struct plan_module *modules;
    const struct plan_norm *norms;
    const struct plan_parameter *parameters;
    const struct plan_step *steps;
    const struct plan_fused *fused;
    int module_count, norm_count, parameter_count, step_count, fused_count;
    /* Derived: */
    const struct plan_value *values;
    const struct plan_group *groups;
    const struct plan_storage *storages;
    int value_count, group_count, storage_count;
    int output;
    plan_set inputs, given;           /* values that are there when the layer begins, 0 included; that it gives */
    int store_count;                  /* store 0 keeps the residual stream */
    int64_t columns[REGION_WORK + 1]; /* of each region */
    int64_t widest_input, tallest;    /* inputs and outputs of a linear */
    int64_t store_columns[PLAN_VALUES_MAX];
};

/* --- Used by the families: each adds a step and returns the number of the value that it makes. What fails is kept by
 * the builder and raised at the end. Strings are copied where they are not literals: they must outlive the plan. */
struct plan_builder;
int plan_linear(struct plan_builder *b, int in, const char *path, const char *gguf, int64_t rows, bool bias);
/* A linear that stays in float unless an override takes it. */
int plan_optional(struct plan_builder *b, int in, const char *path, const char *gguf, int64_t rows, bool bias);
/* A linear that no method quantizes. */
int plan_router(struct plan_builder *b, int in, const char *path, const char *gguf, int64_t rows, bool bias);
/* Any norm; the others are RMS norms whose factor is the weight. */
int plan_normalize(struct plan_builder *b, int in, const struct plan_norm *norm);
int plan_row_norm(struct plan_builder *b, int in, const char *path, const char *gguf);
int plan_head_norm(struct plan_builder *b, int in, const char *path, const char *gguf, int64_t head_dim);
/* All columns by table 0, halves against each other. */
int plan_rope(struct plan_builder *b, int in, int64_t head_dim);
int plan_rotate(struct plan_builder *b, int in, const struct plan_rope *rope);
/* attention: value_dim 0 is head_dim. */
int plan_attend(struct plan_builder *b, int q, int k, int v, const struct plan_attention *attention);
/* up -1: none. */
int plan_activate(struct plan_builder *b, enum plan_activation activation, int gate, int up);
int plan_select(struct plan_builder *b, int in, const struct plan_select *select);
int plan_join(struct plan_builder *b, int first, int second, const struct plan_join *join);
/* Returns the parameter's number. */
int plan_parameter(struct plan_builder *b, const struct plan_parameter *parameter);
int plan_conv(struct plan_builder *b, int in, const struct plan_conv *conv);
int plan_delta(struct plan_builder *b, int in, int a, int beta, const struct plan_delta *delta);
int plan_scan(struct plan_builder *b, int in, int dt, const struct plan_scan *scan);
/* norm->size: of the weight. */
int plan_gated_norm(struct plan_builder *b, int in, int gate, const struct plan_norm *norm,
                    const struct plan_gated_norm *gated);
int plan_add(struct plan_builder *b, int to, int what);
int plan_scale(struct plan_builder *b, int in, double factor);
/* What the layer gets of its tokens next to its input, `width` columns: arch->tokens. */
int plan_tokens(struct plan_builder *b, int64_t width);
/* Take what an earlier layer gave under `number`, in [0, PLAN_SHARED_MAX), as another input; give a value under it,
 * which must be made before the first sum of the residual stream. */
int plan_take(struct plan_builder *b, int number, int64_t width);
void plan_give(struct plan_builder *b, int value, int number);
/* out = factor * parameter * in: of one number, or one for each column. */
int plan_scale_by(struct plan_builder *b, int in, double factor, const struct plan_parameter *parameter);
/* Say that runtimes load the linears that made these values as one. */
void plan_fuse(struct plan_builder *b, const char *title, const int *values, int count);
/* Say where the linear that made a value is stored. Of an expert's with `entries`, `entry` is set to the expert. */
void plan_store(struct plan_builder *b, int value, const struct plan_stored *stored);
/* Begin the plan of one expert, whose value 0 is `width` wide; add its steps to the builder that is returned, and give
 * both to plan_experts. Never NULL. */
struct plan_builder *plan_expert(struct plan_builder *b, int64_t width);
int plan_experts(struct plan_builder *b, int in, int logits, const struct plan_experts *experts,
                 struct plan_builder *expert, int output);

/* --- The plans of a model: one for each distinct kind of layer. Immutable, any thread. */
struct plans;
int plans_new(const struct model_config *config, struct plans **out);
/* Of a bare model: layer l is modules [ends[l - 1], ends[l]), without steps. Their paths must outlive the plans. */
int plans_new_listed(const struct model_config *config, const struct plan_module *modules, const size_t *ends,
                     struct plans **out);
void plans_free(struct plans *plans); /* NULL is fine */
CLEANUP_FREE(plans, struct plans, plans_free)
const struct model_config *plans_config(const struct plans *plans);
int plans_kinds(const struct plans *plans);
const struct plan *plans_kind(const struct plans *plans, int kind);
const struct plan *plans_layer(const struct plans *plans, int64_t layer);
/* The modules of all layers in order, as one list: their number, and where a layer's begin. */
size_t plans_modules(const struct plans *plans);
size_t plans_first_module(const struct plans *plans, int64_t layer);
/* The layer that module `index` of that list is in; *module its number there. */
int64_t plans_module_at(const struct plans *plans, size_t index, int *module);

/* --- Questions to a plan. */
/* A bare model's: nothing is known of what its modules compute, so each is loaded for its own solve alone. */
static inline bool plan_is_listed(const struct plan *plan)
{
    return plan->step_count == 0;
}
/* The inputs other than the residual stream. */
static inline plan_set plan_taken(const struct plan *plan)
{
    return plan->inputs & ~PLAN_BIT(0);
}
/* The steps that make the values `want` from the values `have`, no more than needed; *used gets those of `have` that
 * they, or `want` itself, take. False when some of them do not follow. */
bool plan_steps(const struct plan *plan, plan_set have, plan_set want, plan_set *steps, plan_set *used);
/* The module of this path, or -1. */
int plan_find_module(const struct plan *plan, const char *path);
/* Outputs of the matrix that a module is stored in. */
int64_t plan_stored_outputs(const struct plan_module *module);
/* Whether a module reads the group's input value, in an expert or outside of it: all that do take up its factors. */
bool plan_reads(const struct plan *plan, const struct plan_group *group, int module);
/* The value that is the residual stream when all before the group is done; after the last one, the output. */
int plan_residual_before(const struct plan *plan, int group);
/* The group after whose modules the layer's attention comes, before those of any other; -1: none. */
int plan_attention_group(const struct plan *plan);
/* The values of the layer that a group's input is made of: itself, or what a step EXPERTS reads. */
plan_set plan_sources(const struct plan *plan, const struct plan_group *group);
/* The plan whose values a group's input and branch are: the layer's or an expert's. */
const struct plan *plan_of_group(const struct plan *plan, const struct plan_group *group);
/* The first step of a kind, or -1. */
int plan_find_step(const struct plan *plan, enum plan_step_kind kind);
/* What `steps` compute for `rows` tokens of sequences of `length`: products of linears, of attention and
 * of recurrences. */
double plan_flops(const struct plan *plan, plan_set steps, int64_t rows, int64_t length);
/* "o_proj" of "self_attn.o_proj". */
const char *plan_short_path(const char *path);
