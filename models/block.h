#pragma once
/* One decoder block on a device: its tensors by the plan of its layer (plan.h), and the plan's steps over explicit
 * activations, any of them at a time, so that a pipeline can look at each group's input and replace the group's modules
 * before what comes after them is computed (true-sequential).
 *
 * The modules of experts are loaded and dropped one by one, so that a block takes no more memory than the experts that
 * are in use. */

#include "models/model.h"
#include "models/plan.h"

#include <stdbool.h>

struct block_reader; /* block_reader.h */

struct block_module {
    struct tensor weight; /* F32 [out, in], on the device; data NULL: it is not loaded */
    struct tensor bias;   /* data NULL when there is none */
    bool changed;         /* by block_fold, its bias with it */
    /* What quantization made of it: */
    struct gpu_input input; /* how the runtime quantizes its input; F32: not at all */
    struct tensor outliers; /* F32 [in]: columns of the input that stay as they are; data NULL = none */
};

struct block_norm {
    struct tensor weight; /* F32 */
    struct tensor bias;   /* F32; data NULL when there is none */
    bool changed;         /* by block_fold, its bias with it */
};

struct block_factors; /* block_internal.h */
struct block_tokens;  /* block_tokens.c */

struct block {
    int64_t index;
    const struct model_config *config;
    const struct plan *plan;
    struct block_module *modules;            /* [plan->module_count] */
    struct block_norm *norms;                /* [plan->norm_count] */
    struct tensor *parameters;               /* [plan->parameter_count], F32; of a view: the other block's */
    struct block_factors *factors;           /* that block_fold gave to experts' modules, the last first */
    struct block_tokens *tokens;             /* NULL: no step needs it; of a view: the other block's */
    struct gpu_cache key_cache, value_cache; /* how the runtime keeps keys and values; group_size 0: as they are */
    struct tensor key_scale, value_scale;    /* F32, what the caches' `scale` points to; data NULL = none */
};

/* Read block `index` without its experts, of a listed plan nothing; weights as F32, from the bytes of a reader where it
 * has them (may be NULL). On return the device no longer reads those bytes. On failure nothing stays allocated. */
int block_load(const struct model *model, int64_t index, const struct gpu *gpu, struct gpu_stream *stream,
               struct block_reader *reader, struct block *out);
/* Read a module that is not loaded, an expert's or one of a listed plan, with the factors that it was given so far. */
int block_load_module(const struct model *model, const struct gpu *gpu, struct gpu_stream *stream, struct block *block,
                      int module);
/* Free such a module's weight and bias. What quantization says of its input stays. */
void block_drop_module(struct block *block, int module, const struct gpu *gpu);
void block_deinit(struct block *block, const struct gpu *gpu); /* zeroed is fine */
/* A block that sees the tensors of another one, to have some of them replaced: neither what it sees nor what replaces
 * that is its own. */
int block_view(const struct block *block, struct block *out);
void block_view_deinit(struct block *view);
/* The stored tensors of block `index` that block_load reads as they are, without experts, at most
 * block_tensors_max(model); returns how many. Their names live as long as the model. */
size_t block_tensors_max(const struct model *model);
size_t block_tensors(const struct model *model, int64_t index, struct model_tensor *list);
/* Ask the system to have the bytes of block `index` in memory by the time they are loaded. Returns at once; a block
 * that does not exist, or a system that cannot, is not an error. */
void block_prefetch(const struct model *model, int64_t index);

/* Move a factor for each column of a group's input from the modules that read it to what produces it (group->fold), so
 * that the output stays the same: producer[j] /= factors[j], column j of each reader *= what the producer lost. A norm
 * and its bias are rounded to `dtype` as they will be stored. factors: host, one for each column, positive and finite.
 * ERR_INTERNAL where the group has no fold. */
int block_fold(struct block *block, const struct plan_group *group, const float *factors, enum dtype dtype,
               const struct gpu *gpu, struct gpu_stream *stream);

/* Device scratch for `tokens` = sequences*length rows of any layer, and the rotary tables for `length`. The plans
 * outlive it. */
struct block_scratch;
int block_scratch_new(const struct plans *plans, int64_t sequences, int64_t length, const struct gpu *gpu,
                      struct gpu_stream *stream, struct block_scratch **out);
void block_scratch_free(struct block_scratch *scratch);
CLEANUP_FREE(block_scratch, struct block_scratch, block_scratch_free)
/* F32 elements of the values that `tokens` rows keep beyond the scratch (REGION_KEPT), of any layer. */
int64_t block_kept_elements(const struct plans *plans, int64_t tokens);

/* The memory of the values of one micro-batch. */
struct block_values {
    const struct plan *plan;
    struct block_scratch *scratch;
    float *at[PLAN_VALUES_MAX]; /* by storage */
    int first_module;           /* of the block's: what the plan's modules are numbered from; an expert's own */
    const int32_t *ids;         /* of the tokens, below the vocabulary's size, the caller's; for a step TOKENS */
};
/* Each in its place: in `kept` (block_kept_elements, the caller's) or in the scratch. kept NULL: the scratch has a
 * place for them too, made on first use. */
int block_values_init(struct block_values *values, const struct plan *plan, struct block_scratch *scratch,
                      const struct tensor *kept);
/* A view of the value [tokens, width]. */
struct tensor block_value(const struct block_values *values, int value);
/* Store it, and all values that share its storage, at `data` from now on. */
void block_value_bind(struct block_values *values, int value, void *data);

/* Tokens of a sequence of these values; an expert's rows are one sequence. */
int64_t block_values_length(const struct block_values *values);
/* Some of their rows, in the same memory: `sequences` of `length` tokens from row `first` on, complete ones or the
 * beginning of one; for steps that do not look along a sequence any rows, as one. `have`: the values that are there,
 * from which steps will be run. What the part's steps make lies over what other parts made. Not for a step EXPERTS. */
int block_values_part(const struct block_values *values, plan_set have, int64_t first, int64_t sequences,
                      int64_t length, struct block_values *out);
void block_values_part_deinit(struct block_values *part);
CLEANUP_DEINIT(block_values_part, struct block_values, block_values_part_deinit)

/* Run some of the plan's steps, in order (plan_steps selects them). All of them: the layer's input becomes its output,
 * in place. */
int block_run(const struct block *block, const struct block_values *values, plan_set steps);
/* A step EXPERTS, one expert at a time: first which tokens go to which expert, from the values that the step reads;
 * then for each expert the rows of the tokens that went to it (`all`: of every token, as if it had) and some steps of
 * its plan over them. `rows` has their values, by the numbers of the expert's plan; no token: block_values_rows is 0
 * and nothing is computed. Both results are valid until the next such call with the same scratch. */
int block_route(const struct block *block, const struct block_values *values, int step);
int block_expert(const struct block *block, const struct block_values *values, int step, int64_t expert, bool all,
                 plan_set steps, struct block_values *rows);
int64_t block_values_rows(const struct block_values *values);
/* Some experts of such a step, one after another: what each makes of its rows is added to the step's output, which the
 * first is to find zeroed (block_experts_begin). All of them in order are the step. */
int block_experts_begin(const struct block_values *values, int step);
int block_experts_add(const struct block *block, const struct block_values *values, int step, int64_t first,
                      int64_t count);
/* The input of a group from the values that it is made of (plan_sources): of a group of the layer `values` themselves,
 * of an expert's the rows that it gets, with the group's input among their values. */
int block_group_input(const struct block *block, const struct block_values *values, const struct plan_group *group,
                      bool all, struct block_values *rows);
/* Queries, keys (both rotated) and values [T, heads or kv_heads * head_dim] as they come to the block's attention,
 * before any cache, from the values `have`: valid until the next run. ERR_INTERNAL where there is no attention or it
 * does not follow from them. */
struct block_heads {
    struct tensor q, k, v;
    struct gpu_attention spec;
};
int block_attention_heads(const struct block *block, const struct block_values *values, plan_set have,
                          struct block_heads *out);

/* What surrounds the blocks. */
struct head {
    struct tensor embedding; /* kept in its own dtype [V, h] */
    struct tensor positions; /* F32 [rows, h], loaded with the embedding; data NULL = none */
    struct tensor norm;      /* F32 [h] */
    struct tensor norm_bias; /* F32 [h]; data NULL = none */
    struct tensor lm_head;   /* own dtype [V, h]; the embedding's view when tied */
    struct tensor head_bias; /* F32 [V]; data NULL = none */
    bool tied;
};
/* Both fill a zeroed (or partly filled) head; a tied output loads the embedding when it is not there yet. On failure
 * what was there before stays; head_deinit frees it. */
int head_load_embedding(const struct model *model, const struct gpu *gpu, struct gpu_stream *stream, struct head *out);
int head_load_output(const struct model *model, const struct gpu *gpu, struct gpu_stream *stream, struct head *out);
void head_deinit(struct head *head, const struct gpu *gpu);
/* What embeddings of that type are multiplied by: a root of the width is kept in it. */
double head_factor(const struct model_config *config, enum dtype dtype);
/* x [T, h] F32 = the embeddings of ids, with the configuration's factor, and what is added for each position in
 * sequences of `length`. ERR_INVALID_PARAMETER where there are fewer positions. */
int head_embed(const struct head *head, const struct model_config *config, const struct gpu *gpu,
               struct gpu_stream *stream, const struct tensor *x, const int32_t *ids, int64_t length);
/* What the final norm is. */
struct gpu_norm head_norm(const struct head *head, const struct model_config *config);
/* logits [T, V] F32 = lm_head(norm(x)) with the configuration's factor; x is overwritten by its norm. */
int head_logits(const struct head *head, const struct model_config *config, const struct gpu *gpu,
                struct gpu_stream *stream, const struct tensor *x, const struct tensor *logits);
