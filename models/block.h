#pragma once
/* One decoder block on a device, cut at its sites so that a pipeline can look at each distinct input
 * and replace each linear before the next site is computed (true-sequential):
 *
 *   x --norm--> [SITE_ATTENTION] q,k,v -> rope -> attention -> [SITE_OUTPUT] o -> + x = m
 *   m --norm--> [SITE_MLP] gate,up -> silu*mul -> [SITE_DOWN] down -> + m = x'                        */

#include "models/model.h"

#include <stdbool.h>

struct block_reader; /* block_reader.h */

struct block {
    int64_t index;
    const struct model_config *config;
    struct tensor linears[LINEAR_COUNT]; /* F32 [out, in], on the device */
    struct tensor biases[LINEAR_COUNT];  /* data NULL when there is none */
    struct tensor norms[NORM_COUNT];     /* F32; data NULL when there is none */
    /* What quantization made of it: */
    struct gpu_input inputs[LINEAR_COUNT];   /* how the runtime quantizes a linear's input; F32: not at all */
    struct tensor kept[LINEAR_COUNT];        /* F32 [in]: columns that it leaves alone; data NULL = none */
    struct gpu_cache key_cache, value_cache; /* how the runtime keeps keys and values; run 0: as they are */
    struct tensor key_scale, value_scale;    /* F32, what the caches' `scale` points to; data NULL = none */
    bool changed_linears[LINEAR_COUNT], changed_norms[NORM_COUNT]; /* by block_fold; biases go with their linears */
};

/* Read block `index`, weights as F32. On failure nothing is held. */
int block_load(const struct model *model, int64_t index, const struct gpu *gpu, struct gpu_stream *stream,
               struct block *out);
/* The same, by what a reader has of it; reader may be NULL. The device has done with the reader's bytes on return. */
int block_load_read(const struct model *model, int64_t index, const struct gpu *gpu, struct gpu_stream *stream,
                    struct block_reader *reader, struct block *out);
/* The stored tensors of block `index` that block_load reads; returns how many. Their names live as the model does. */
#define BLOCK_TENSORS_MAX (2 * LINEAR_COUNT + NORM_COUNT)
int block_tensors(const struct model *model, int64_t index, struct model_tensor list[BLOCK_TENSORS_MAX]);
/* Ask the system to have the bytes of block `index` in memory by the time they are loaded. Returns at once; a block
 * that there is not, or a system that cannot, is no error. */
void block_prefetch(const struct model *model, int64_t index);
void block_deinit(struct block *block, const struct gpu *gpu);

/* Move a factor for each input of a site from the linears that read it to what produces it, so that the output stays
 * the same: producer[j] /= factors[j], column j of each consumer *= what the producer lost. Producers: the norms for
 * SITE_ATTENTION and SITE_MLP, rounded to `dtype` as they will be stored; v's rows for SITE_OUTPUT, up's rows for
 * SITE_DOWN. factors: host, one for each input, positive and finite. */
int block_fold(struct block *block, enum site site, const float *factors, enum dtype dtype, const struct gpu *gpu,
               struct gpu_stream *stream);
/* False where the site's inputs have no producer of their own: with grouped key heads, one row of v feeds several. */
bool block_can_fold(const struct block *block, enum site site);
/* Inputs of a site. */
int64_t block_site_columns(const struct model_config *config, enum site site);

/* Device scratch for `tokens` = sequences*length rows, and the rotary tables for `length`. */
struct block_scratch;
int block_scratch_new(const struct model_config *config, int64_t sequences, int64_t length, const struct gpu *gpu,
                      struct gpu_stream *stream, struct block_scratch **out);
void block_scratch_free(struct block_scratch *scratch);

/* The four stages; each works on all `sequences` of the scratch at once. Tensors are [sequences*length, ...]. */
/* in = rmsnorm(x), the SITE_ATTENTION input. */
int block_attention_input(const struct block *block, struct block_scratch *s, const struct tensor *x,
                          const struct tensor *in);
/* Queries, keys (both rotated) and values [T, heads or kv_heads * head_dim] of the block in the scratch, as they come,
 * before any cache: valid until the next stage. */
struct block_heads {
    struct tensor q, k, v;
    struct gpu_attention spec;
};
int block_attention_heads(const struct block *block, struct block_scratch *s, const struct tensor *in,
                          struct block_heads *out);
/* out [T, heads*head_dim] = attention(q,k,v of in), the SITE_OUTPUT input. */
int block_attention(const struct block *block, struct block_scratch *s, const struct tensor *in,
                    const struct tensor *out);
/* x += o(out): x is now m. */
int block_attention_output(const struct block *block, struct block_scratch *s, const struct tensor *out,
                           const struct tensor *x);
/* in = rmsnorm(x), the SITE_MLP input. */
int block_mlp_input(const struct block *block, struct block_scratch *s, const struct tensor *x,
                    const struct tensor *in);
/* act [T, intermediate] = silu(gate(in)) * up(in), the SITE_DOWN input. */
int block_mlp(const struct block *block, struct block_scratch *s, const struct tensor *in, const struct tensor *act);
/* x += down(act). */
int block_mlp_output(const struct block *block, struct block_scratch *s, const struct tensor *act,
                     const struct tensor *x);
/* All of the above: x becomes the block's output. */
int block_forward(const struct block *block, struct block_scratch *s, const struct tensor *x);

/* What surrounds the blocks. */
struct head {
    struct tensor embedding; /* kept in its own dtype [V, h] */
    struct tensor norm;      /* F32 [h] */
    struct tensor lm_head;   /* own dtype [V, h]; the embedding's view when tied */
    bool tied;
};
/* Both fill a zeroed (or partly filled) head; a tied output loads the embedding when it is not there yet. On failure
 * what was there before stays; head_deinit frees it. */
int head_load_embedding(const struct model *model, const struct gpu *gpu, struct gpu_stream *stream, struct head *out);
int head_load_output(const struct model *model, const struct gpu *gpu, struct gpu_stream *stream, struct head *out);
void head_deinit(struct head *head, const struct gpu *gpu);
/* logits [T, V] F32 = lm_head(rmsnorm(x)); x is overwritten by its norm. */
int head_logits(const struct head *head, const struct model_config *config, const struct gpu *gpu,
                struct gpu_stream *stream, const struct tensor *x, const struct tensor *logits);
