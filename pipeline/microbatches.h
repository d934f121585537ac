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
    struct tensor x, in, wide;          /* device scratch: [batch*length, hidden], [.., hidden], [.., widest] */
};

/* One micro-batch: rows [first, first+rows) and tensors cut to it. */
struct batch {
    int64_t first, rows;
    struct block_scratch *scratch;
    struct tensor x, in;
};

/* tokens: of a micro-batch. */
int microbatches_init(struct microbatches *batches, const struct calibration_set *set,
                      const struct model_config *config, int64_t tokens, const struct gpu *gpu,
                      struct gpu_stream *stream);
/* Others over the set of `first`, by the scratch of its stages; tensors are their own. */
int microbatches_init_second(struct microbatches *batches, const struct microbatches *first,
                             const struct model_config *config, const struct gpu *gpu);
void microbatches_deinit(struct microbatches *batches, const struct gpu *gpu); /* zeroed is fine */
/* How many there are; number i; batches->wide as [batch rows, width]. */
int64_t microbatches_count(const struct microbatches *batches);
struct batch microbatches_at(const struct microbatches *batches, int64_t i);
struct tensor microbatches_wide(const struct microbatches *batches, const struct batch *batch, int64_t width);
/* Embed the set into the store and make it the first block's input. */
int microbatches_embed(const struct microbatches *batches, struct activations *store, const struct model *model,
                       const struct gpu *gpu, struct gpu_stream *stream);
