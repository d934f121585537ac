#pragma once
/* What run_plan.c and run_plan_block.c share. */

#include "pipeline/run_plan.h"
#include "pipeline/stores.h"

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
    bool reports;             /* statistics serve the report alone (recipe_data_free) */
    bool rounds, rounds_late; /* some inputs are rounded while calibrating; while evaluating alone */
    const struct sensitivity_candidates *candidates; /* that a pass tries on each group; NULL: modules are solved */
    const struct recipe_stage *trial;                /* the one of them that is looked at */
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
/* Learning on the complete model, where the recipe asks for it; sequences of its steps, else 0. */
void run_walk_end(struct run_walk *w);
int64_t run_walk_end_batch(const struct run_load *load);
/* Room for activations in the host's memory, as stores take it one after the other. */
struct run_walk_stores {
    int64_t left;                            /* bytes of memory */
    int64_t activations, in_memory, spilled; /* as run_plan has them */
};
/* A store of so many columns; stream: a residual stream, which is read and written at the same time. */
void run_walk_store(struct run_walk_stores *stores, int64_t tokens, int64_t columns, bool stream);
/* All that a use keeps within blocks and between them, but for its streams. */
void run_walk_values(const struct run_walk *w, struct run_walk_stores *stores, int64_t tokens, enum stores_use use);
/* Of the device, micro-batches of a set; *rows: tokens of one. */
int64_t run_walk_batches(const struct run_walk *w, int64_t sequences, int64_t length, bool rounds, int64_t *rows);
/* The embedding or the head as it is stored. */
int64_t run_walk_table(const struct run_walk *w);
/* The pass for output moments, if there is one. */
void run_walk_moments(struct run_walk *w);
/* One layer, with its work added to the plan's. */
int run_walk_layer(struct run_walk *w, int64_t layer);
/* One layer that sets only pass through: its memory. tried: the candidates of its groups are solved, too; also the
 * work of that, and of statistics. */
int run_walk_passed(struct run_walk *w, int64_t layer, bool tried);
/* Of the device, what block_load has of a layer, without experts; *largest: bytes of the largest tensor as stored.
 * stored: bytes of a stored element. */
int64_t run_walk_weights(const struct plan *plan, int64_t stored, int64_t *largest);
/* Of the device, weights of the experts of one turn; NULL: there are none. */
int64_t run_walk_turn(const struct run_walk *w, const struct plan_experts *experts);
/* The plan's width, and whether there are experts. */
void run_walk_widths(struct run_walk *w);
/* Products of a layer's forward for so many tokens; ends: nothing reads its output. */
double run_walk_forward(const struct run_walk *w, int64_t layer, int64_t tokens, int64_t length, bool ends);
/* Bytes of a layer's modules as they are stored, but for experts; *experts: theirs. */
double run_walk_stored(const struct run_walk *w, int64_t layer, double *experts);
/* The pass of a mixture or of the method sensitivity, where the recipe has one; run_plan_pass.c. Of `w` what the
 * run's sets and its device decide. */
int run_walk_pass(const struct run_walk *w);

/* --- one block, within run_plan_block.c and run_plan_rewrite.c */

struct layer_walk {
    struct run_walk *w;
    int64_t layer;
    const struct plan *plan;
    int64_t weights; /* loaded, in F32 */
    int64_t floats;  /* float weights that the reference path still reads */
    int64_t piece;
};

struct group_walk {
    const struct plan_group *group;
    int64_t tokens;  /* that come to it */
    int64_t stats;   /* bytes of its statistics */
    int64_t pooled;  /* of all tokens', while an expert's own are too few */
    int64_t experts; /* bytes of loaded experts */
    double times;    /* groups like this one: one for each expert */
    double starved;  /* the share of these that has too few tokens */
    bool aimed;
    bool all; /* an expert sees all tokens */
};

/* Tokens that come to a group: of an expert's its share. */
int64_t run_layer_tokens(const struct layer_walk *l, const struct plan_group *group);
/* The share of a group's experts that fewer tokens come to than their method wants; 0 of other groups, and where
 * experts see all tokens. */
double run_layer_starved(const struct plan_group *group, const struct expert_calibration *experts, int64_t tokens);
struct quant_shape run_layer_shape(const struct layer_walk *l, const struct group_walk *g, int module);
/* What an expert computes of so many rows, before the group's input. */
double run_layer_inner(const struct layer_walk *l, const struct plan_group *group, int64_t rows);
/* All groups, where a stage rewrites. */
void run_layer_rewrite(struct layer_walk *l);
