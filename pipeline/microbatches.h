#pragma once
/* A token set on its way through the blocks, in fixed micro-batches. */

#include "models/block.h"
#include "models/calibration.h"
#include "pipeline/activations.h"

struct microbatches {
    const struct calibration_set *set;  /* NULL: there is none */
    int64_t batch;                      /* sequences of a micro-batch: a function of device and length */
    bool shares;                        /* the scratch is that of others */
    struct block_scratch *scratch;      /* for full micro-batches */
    struct block_scratch *rest_scratch; /* for the last, shorter one; NULL when there is none */
    struct tensor kept;                 /* a micro-batch's values that outlive a pass (block_kept_elements) */
};

/* One micro-batch: rows [first, first+rows), and where its values lie. */
struct microbatch {
    int64_t first, rows;
    struct block_values values;
};

/* tokens: of a micro-batch. */
int microbatches_init(struct microbatches *batches, const struct calibration_set *set, const struct plans *plans,
                      int64_t tokens, const struct gpu *gpu, struct gpu_stream *stream);
/* Others over the set of `first`, by its scratch; what outlives a pass is their own. */
int microbatches_init_second(struct microbatches *batches, const struct microbatches *first, const struct plans *plans,
                             const struct gpu *gpu);
void microbatches_deinit(struct microbatches *batches, const struct gpu *gpu); /* zeroed is fine */
/* How many there are; number i on its way through a layer of this plan. */
int64_t microbatches_count(const struct microbatches *batches);
struct microbatch microbatches_at(const struct microbatches *batches, const struct plan *plan, int64_t i);
/* A value of a micro-batch from its rows of a store: in place where the device can work there (what is done to the
 * value is done to the store), else a copy. */
int microbatch_open(struct microbatch *batch, int value, struct activations *store, enum activations_side side,
                    const struct gpu *gpu, struct gpu_stream *stream);
/* Always a copy, which may be written to. */
int microbatch_read(const struct microbatch *batch, int value, struct activations *store, enum activations_side side,
                    const struct gpu *gpu, struct gpu_stream *stream);
/* The value is about to be made: in place where the device can work there. */
void microbatch_place(struct microbatch *batch, int value, const struct activations *store, const struct gpu *gpu);
/* To its rows of the store's OUT side, unless it lies there. */
int microbatch_write(const struct microbatch *batch, int value, struct activations *store, const struct gpu *gpu,
                     struct gpu_stream *stream);
/* Embed the set into the store and make it the first block's input. */
int microbatches_embed(const struct microbatches *batches, struct activations *store, const struct model *model,
                       const struct gpu *gpu, struct gpu_stream *stream);
