#pragma once
/* What run_plan.c and run_plan_block.c share. */

#include "pipeline/run_plan.h"

struct run_walk {
    const struct run_load *load;
    const struct model *model;
    const struct model_config *config;
    const struct gpu_info *device;
    int threads;              /* of the host's cores, where the device computes on them; else 0 */
    int64_t tokens;           /* of the calibration set; 0: there is none */
    int64_t eval_tokens;      /* likewise */
    int64_t batch_rows;       /* tokens of a micro-batch of the calibration set */
    int64_t kept;             /* memory of micro-batches that is untouched where stores are worked on in place */
    int64_t always;           /* on the device for as long as the run has */
    int64_t scratch;          /* of operations, the largest so far */
    int64_t expert_bytes;     /* as run.expert_bytes */
    int64_t stores_host;      /* activations in the host's memory */
    int64_t outputs;          /* results of the open block in the host's memory */
    bool targets;             /* there is a float path */
    bool rounds, rounds_late; /* some inputs are rounded while calibrating; while evaluating alone */
    struct run_plan *plan;
};

/* What is on the device beyond `always` and the scratch, and in the host's memory beyond outputs, in a stage. */
void run_walk_note(struct run_walk *w, enum run_stage stage, int64_t device, int64_t host);
/* An operation takes so many bytes for itself, next to `device`: while its scratch grows, the old one is still there.
 */
void run_walk_scratch(struct run_walk *w, enum run_stage stage, int64_t device, int64_t bytes);
/* The solver of a module with its scheme; NULL: it stays in float. */
const struct recipe_stage *run_walk_solver(const struct run_walk *w, int64_t layer, int module, struct qscheme *scheme);
/* What learning on a block of that plan takes next to it, with its work added; 0: nothing learns. */
int64_t run_walk_tuning(struct run_walk *w, const struct plan *plan);
/* One layer, with its work added to the plan's. */
int run_walk_layer(struct run_walk *w, int64_t layer);
