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
    struct tensor cosine[ROPE_TABLES_MAX], sine[ROPE_TABLES_MAX]; /* F32 [length, dims / 2], by number */
};

static inline int64_t block_padded(int64_t tokens)
{
    return (tokens + BLOCK_TOKENS_ALIGN - 1) / BLOCK_TOKENS_ALIGN * BLOCK_TOKENS_ALIGN;
}

/* block_experts.c */
void block_experts_free(struct block_scratch *s);

/* block_tokens.c: what a step TOKENS needs of the checkpoint, which outlives it; the step, for s->tokens ids. */
int block_tokens_load(const struct model *model, int64_t index, const struct gpu *gpu, struct gpu_stream *stream,
                      struct block_tokens **out);
void block_tokens_free(struct block_tokens *tokens, const struct gpu *gpu); /* NULL is fine */
int block_run_tokens(const struct block_scratch *s, const struct block *block, const int32_t *ids,
                     const struct tensor *out);

/* block_recurrent.c: a step CONV, DELTA, SCAN or GATED_NORM. */
int block_run_recurrent(const struct block_scratch *s, const struct block *block, const struct plan_step *step,
                        const struct tensor *out, const struct tensor *in);
