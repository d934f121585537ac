#pragma once
/* What solving a block leaves for learning on it (tune.c): the float weights, facts and statistics of solved modules.
 */

#include "pipeline/report.h"
#include "pipeline/run.h"

/* A module that was solved. */
struct tuned {
    int module, stats;    /* of the list; -1: it has none of its own */
    struct tensor weight; /* the float model's */
    struct report_facts facts;
    struct linear_job job; /* that the facts are of, without its result */
    char name[PLAN_NAME_MAX];
};

struct tuning {
    const struct recipe_stage *stage;
    struct activations *input, *target, *shared[PLAN_SHARED_MAX];
    struct block_tape *tape;
    int64_t batch, tape_bytes; /* sequences of the tape */

    /* of the open block */
    struct tuned *list;
    struct layer_stats *stats;
    int count, stats_count, with_stats; /* modules that were added before the last statistics */
    struct tune_curve curve;
};

/* run->tuning gets a module: `weight` moves there; its facts as measured. */
int tuned_add(struct run *run, int module, struct tensor *weight, const struct report_facts *facts);
/* The statistics by which the modules that were added since the last call were solved; *stats is zeroed where they are
 * kept. Nothing where nothing learns. */
int tuned_add_stats(struct run *run, struct layer_stats *stats);
/* Drop what belongs to the open block. */
void tuned_clear(struct run *run);
