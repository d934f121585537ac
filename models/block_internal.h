#pragma once
/* What the files of a block share. Not for other files. */

#include "models/block.h"

/* block_fold.c. What an expert's module was given by a fold: the same again whenever it is loaded. */
struct block_factors {
    struct block_factors *next;
    int module;
    bool rows; /* of its rows and its bias, else of its columns */
    int64_t count;
    float factors[];
};

/* Give a module that was just loaded what folds gave it before, in their order. */
int block_apply_factors(struct block *block, int module, const struct gpu *gpu, struct gpu_stream *stream);
void block_free_factors(struct block *block);

#define BLOCK_TOKENS_ALIGN 16 /* places begin at multiples of as many rows */

/* What the experts of a layer are computed in, made on first use: of the largest. */
struct expert_scratch {
    struct tensor ids, places; /* I32 [T, k] */
    struct tensor weights;     /* F32 [T, k] */
    struct tensor memory;      /* F32: both regions of the widest expert's plan, for T rows */
    int64_t *offsets;          /* [experts + 1] */
};

struct block_scratch {
    struct block_scratch *owner; /* of the scratch that rows of an expert have: of the layer's; else NULL */
    struct expert_scratch experts;
    struct block_scratch *rows; /* of an expert's rows; made on first use */
    const struct plans *plans;
    const struct gpu *gpu;
    struct gpu_stream *stream;
    int64_t sequences, length, tokens;
    struct tensor work;    /* F32: REGION_WORK of the widest layer */
    struct tensor kept;    /* F32: REGION_KEPT likewise, where the caller brings none */
    struct tensor rounded; /* F32 [T * widest input]: an input as the runtime quantizes it; made on first use */
    /* What `rounded` holds during a run, for linears that share an input; x NULL: nothing that may be taken again. */
    struct block_rounding {
        const void *x, *outliers;
        int64_t rows, cols;
        struct gpu_input input;
    } rounding;
    struct tensor cosine[ROPE_TABLES_MAX], sine[ROPE_TABLES_MAX]; /* F32 [length, dims / 2], by number */
};

static inline int64_t block_padded(int64_t tokens)
{
    return (tokens + BLOCK_TOKENS_ALIGN - 1) / BLOCK_TOKENS_ALIGN * BLOCK_TOKENS_ALIGN;
}

/* --- block.c: a step on its way, forward or in reverse, and what both directions have of it. */
struct block_step {
    const struct block *block;
    const struct block_values *values;
    struct block_scratch *s;
    const struct plan_step *step;
    int number; /* the step's */
};
const struct block_module *block_step_module(const struct block_step *r);
struct gpu_norm block_norm_spec(const struct block_step *r);
struct gpu_attention block_attention_spec(const struct block_step *r);
enum gpu_activation block_activation(enum plan_activation activation);
/* Of copy_columns, from inputs of these widths: exchanged they are the way back. */
struct gpu_columns block_select_columns(const struct plan_select *select, int64_t width);
void block_join_columns(const struct plan_join *join, int64_t first_width, int64_t second_width,
                        struct gpu_columns columns[2]);
int block_step_rotate(const struct block_step *r, const struct tensor *x, bool inverse);             /* in place */
int block_step_scale(const struct block_step *r, const struct tensor *out, const struct tensor *in); /* out may be in */
/* x as the module's runtime would quantize it, in s->rounded, which is made on first use. */
int block_round_input(const struct block_step *r, const struct block_module *module, const struct tensor *x,
                      struct tensor *rounded);
/* Memory of s->rounded, or of its owner's, for a linear's input; what was in it is lost. */
int block_rounded(struct block_scratch *s, const struct tensor *like, struct tensor *rounded);
int block_rounded_new(struct block_scratch *s);
int64_t block_rounded_bytes(const struct plans *plans, int64_t tokens);
/* A scratch without `work`, for who has memory of its own for values. */
int block_scratch_bare(const struct plans *plans, int64_t sequences, int64_t length, const struct gpu *gpu,
                       struct gpu_stream *stream, struct block_scratch **out);

/* --- block_experts.c */
void block_experts_free(struct block_scratch *s);
/* Make what experts are computed in, with memory for so many columns of all tokens at least; what is there already
 * stays. Its bytes. */
int block_experts_make(struct block_scratch *s, int64_t columns);
int64_t block_experts_bytes(const struct plans *plans, int64_t tokens, int64_t columns);
struct gpu_route block_route_spec(const struct plan_experts *experts);
/* After block_route, of the tokens that went to an expert: how many, their places, and the weights of all. */
int64_t block_expert_count(const struct block_scratch *s, int64_t expert);
struct tensor block_expert_places(const struct block_scratch *s, int64_t expert);
struct tensor block_expert_weights(const struct block_scratch *s, const struct plan_experts *experts);
/* The rows of an expert, without a place for their values; and its input of them, as the expert gets it. */
struct block_values block_expert_rows(struct block_scratch *s, const struct plan_experts *experts, int64_t expert,
                                      int64_t count);
int block_expert_gather(struct block_scratch *s, const struct plan_experts *experts, int64_t expert,
                        const struct tensor *tokens, const struct tensor *in);
/* Numbers [T, k] of the chosen, each times its expert's factor; the places are lost. */
int block_scale_weights(struct block_scratch *s, const struct tensor *ids, const struct tensor *weights,
                        const struct tensor *scale);

/* block_tokens.c: what a step TOKENS needs of the checkpoint, which outlives it; the step, for s->tokens ids. */
int block_tokens_load(const struct model *model, int64_t index, const struct gpu *gpu, struct gpu_stream *stream,
                      struct block_tokens **out);
void block_tokens_free(struct block_tokens *tokens, const struct gpu *gpu); /* NULL is fine */
int block_run_tokens(const struct block_scratch *s, const struct block *block, const int32_t *ids,
                     const struct tensor *out);

/* block_recurrent.c: a step CONV, DELTA, SCAN or GATED_NORM. */
int block_run_recurrent(const struct block_scratch *s, const struct block *block, const struct plan_step *step,
                        const struct tensor *out, const struct tensor *in);
