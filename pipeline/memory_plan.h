#pragma once
/* What a job takes of its device: one reckoning, by which admission refuses, the pipeline divides what there is, and
 * the job says what it expects. Bytes; activations between blocks come on top, where there is room (chain.c). Any
 * thread. */

#include "pipeline/spec.h"

struct memory_plan {
    int64_t blocks; /* the open block in F32, its codes, and the next one as one goes when the other comes; with targets
                     * from the float model, also the float linears of half a block */
    int64_t solve;  /* statistics of the widest site, their factor and a copy, five copies of the largest linear; with
                     * targets, two more */
    int64_t flows;  /* one micro-batch on its way through a block, for calibration, evaluation and the float path */
    int64_t reader; /* a block as stored, read ahead */
    int64_t head;   /* embedding, head and logits: when there is no block */
    int64_t reserve; /* scratch of operations, and what an allocator cannot use */
};

/* tokens: of a micro-batch, from gpu_info.batch_tokens, or 0 for a single sequence. */
void memory_plan_of(const struct job_spec *spec, const struct model *model, const struct gpu_info *device,
                    int64_t tokens, struct memory_plan *out);
/* Taken at once at most, when nothing is short. */
int64_t memory_plan_usual(const struct memory_plan *plan);
/* Of that what a run still takes when its reader and its flows have theirs. */
int64_t memory_plan_left(const struct memory_plan *plan);
/* What the job cannot do without: of a plan for 0 tokens. */
int64_t memory_plan_least(const struct memory_plan *plan);
/* Positions whose logits are there at once, of both models. */
int64_t memory_plan_logits(const struct model_config *config, bool host_memory);
