#pragma once
/* One attempt at a run: its device, the sets that pass through it, and the open block. pipeline.c owns it and opens
 * what it has; the other files work on the open block. */

#include "models/block.h"
#include "pipeline/checkpoint.h"
#include "pipeline/message_sender.h"
#include "pipeline/microbatches.h"
#include "pipeline/phase_clock.h"

/* The calibration set in float, where targets come from it. */
struct reference {
    struct microbatches batches;                 /* set NULL: there is no such path */
    struct activations *stores[PLAN_VALUES_MAX]; /* by plan_storage.store; 0: its residual stream; NULL: none */
    struct tensor *float_weights; /* of the open block's modules: solved, and still in use there; data NULL: not so */
    struct tensor lacks;          /* F32 [a micro-batch, hidden]: what an output lacks of the float model's */
};

/* The evaluation set on both paths. */
struct evaluation {
    struct microbatches batches;                 /* set NULL: there is none */
    struct activations *float_model, *quantized; /* the residual stream of each path */
    bool kept;                                   /* the float model's is complete, from an earlier run */
    struct activations *stores[PLAN_VALUES_MAX]; /* what else is kept in a block, by plan_storage.store; 0: NULL */
    struct activations
        *shared[2][PLAN_SHARED_MAX]; /* what blocks give to later ones: in float, quantized; NULL: none */
};

/* What a pass does that tries candidates on each group instead of solving it. */
struct run;
struct run_trials {
    /* Statistics (STATS_*) that a group's candidates need; 0: it has none. */
    unsigned (*needs)(struct run *run, const struct plan_group *group);
    int (*group)(struct run *run, struct block *block, int group, const struct layer_stats *stats);
};

struct tuning;

struct run {
    const struct pipeline *p;
    const struct model_config *config;
    struct message_sender *sender;
    struct checkpoint *checkpoint;
    struct gpu_stream *stream;
    struct phase_clock clock;
    struct block_reader *reader; /* of the next block; NULL: the system reads ahead */
    int64_t batch_tokens;        /* of a micro-batch */
    bool keep_on_device;         /* activations, where they fit */
    int64_t expert_bytes;        /* F32 weights of experts that are loaded at once; of one where that is more */
    struct activations_budget budget;

    struct microbatches calibration;             /* set NULL: there is none */
    struct activations *stores[PLAN_VALUES_MAX]; /* what is kept of it between passes, on the quantized path, by number
                                                  * (plan_storage.store); 0: the residual stream; NULL: none */
    struct reference reference;
    struct evaluation evaluation;
    struct tuning *tuning;         /* of solved blocks (tuned.h); NULL: nothing learns */
    struct tune_progress learning; /* of what learns at the time */

    bool blocks_done; /* all of them: the open block is one that passes are repeated through */
    /* a pass that only measures (sensitivity.c) */
    const struct run_trials *trials;  /* NULL: this attempt quantizes */
    struct sensitivity *sensitivity;  /* theirs */
    const struct recipe_stage *trial; /* what solves every module that does not stay in float; without a quantizer:
                                       * nothing does; NULL: as the recipe has it */
    double pass_share, pass_done;     /* of the run, the pass's; of the pass, what is done */

    /* the open block */
    int64_t block_index;
    double block_fraction;         /* done of the part that is at hand, */
    double part_begin, part_left;  /* where that part begins in the block, and what comes after it; 0, 0: it is all */
    int64_t next_row;              /* number of the next report row */
    struct cache_scales cache;     /* of its keys and values; count 0: none */
    struct analysis_rows analysis; /* of it */
};

/* Commit what is on disk, and say where the run is; nonzero stops it. share: how much of the open block is done, 0..1.
 */
int run_tick(struct run *run, double share, const char *step);
/* A phase ends, and the next one begins: it gets the time since the one before ended (phase_clock_end), and flops. */
void run_end_phase(struct run *run, enum pipeline_phase phase, double flops);
