#pragma once
/* What a run takes of its device: one estimate, by which admission refuses, the run divides what there is, and the job
 * says what it expects. Bytes; activations between blocks come on top, where there is capacity (activations.c). Any
 * thread. */

#include "formats/format.h"
#include "pipeline/recipe.h"

/* What passes through the model. */
struct memory_load {
    const struct recipe *recipe;
    bool calibrates, evaluates;
    int64_t sequences;       /* of the calibration set; 0: not known yet */
    int64_t sequence_length; /* of the calibration set */
    int64_t longest;         /* sequence of either set */
};

struct memory_plan {
    int64_t blocks; /* the open block in F32, with the experts of one turn, its codes, and the next one as one goes when
                     * the other comes; with targets
                     * from the float model, also the float weights between two sums of the residual stream */
    int64_t solve;  /* statistics of the widest input, their factor and a copy, five copies of the largest linear; with
                     * targets, two more */
    int64_t microbatches; /* values of one micro-batch: of calibration, evaluation and the float path */
    int64_t reader;       /* a block without experts as stored, read ahead */
    int64_t head;         /* embedding, head and logits: when there is no block */
    int64_t reserve;      /* scratch of operations, and what an allocator cannot use */
};

/* tokens: of a micro-batch, from gpu_info.batch_tokens, or 0 for a single sequence. */
struct memory_plan memory_plan(const struct memory_load *load, const struct model *model, const struct gpu_info *device,
                               int64_t tokens);
/* F32 weights of experts that are loaded at once: as much as the block's other modules have, and on a device with
 * memory of its own up to a share of it. */
int64_t memory_plan_experts(const struct model *model, const struct gpu_info *device);
/* What learning takes (run_plan_tune.c), of the device: a tape of so many sequences; next to a solved block of that
 * plan its float weights, statistics and states; 0: nothing learns. */
int64_t memory_plan_tape(const struct plans *plans, int64_t sequences, int64_t length);
/* What learning on the complete model adds: the head with its tape, and hidden states of a step and of those of the
 * tape.
 */
int64_t memory_plan_end_to_end(const struct recipe *recipe, const struct model *model, bool host_memory,
                               int64_t batch_tokens, int64_t tape_tokens);
int64_t memory_plan_tuned(const struct recipe *recipe, const struct plan *plan, int64_t sequences);
/* Output moments (moments.h): bytes of those of a layer of that plan, on the device and in its file; how many sequences
 * of a calibration set their pass takes. */
int64_t memory_plan_moments(const struct recipe *recipe, const struct plan *plan);
/* Tokens whose logits are there at once when labels are drawn, of so many. */
int64_t memory_plan_labels(const struct model_config *config, bool host_memory, int64_t tokens);
int64_t memory_plan_moments_sequences(const struct recipe *recipe, int64_t sequences, int64_t length);
/* How many experts that is, at least one. */
int64_t memory_plan_turn(const struct plan_experts *experts, int64_t expert_bytes);
/* Not all experts of a step of the layer are loaded at once, and results of those that were leave memory. */
bool memory_plan_takes_turns(const struct plan *plan, int64_t expert_bytes);
/* Taken at once, when nothing is short. */
int64_t memory_plan_max(const struct memory_plan *plan);
/* Of that what a run still takes when its reader and its micro-batches have theirs. */
int64_t memory_plan_rest(const struct memory_plan *plan);
/* What the job cannot do without: of a plan for 0 tokens. */
int64_t memory_plan_min(const struct memory_plan *plan);
/* Positions whose logits are there at once, of both models. */
int64_t memory_plan_logits(const struct model_config *config, bool host_memory);
