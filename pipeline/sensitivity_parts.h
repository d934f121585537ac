#pragma once
/* Parts of a sensitivity pass. Inside this folder only; the run's thread. */

#include "pipeline/block_writer.h"
#include "pipeline/run.h"
#include "pipeline/sensitivity.h"

/* A linear, or one path of all experts of a layer: consecutive rows of the table. */
struct sensitivity_unit {
    int64_t layer;
    int step;            /* EXPERTS, of an expert's; -1 */
    int module, stride;  /* its first module in the layer's plan; from one expert's to the next, 0: it is one module */
    int modules;         /* how many */
    int first_row, rows; /* in the table */
    int probe;           /* row from whose measurement the others are predicted; -1: none is measured */
};

/* What was found of a row so far. */
struct sensitivity_sums {
    double error_sq, weight_sq;         /* of weights */
    double output_error, output_signal; /* over all tokens */
    double bits;
    int64_t parameters;
};

/* A measurement under way: the tokens that kl is measured on, after the unit's block. */
struct sensitivity_stream {
    int row;
    struct activations *store;
    struct activations *shared[PLAN_SHARED_MAX]; /* what blocks gave to later ones; NULL: nothing */
};

struct sensitivity {
    const struct sensitivity_request *request;
    struct sensitivity_table table;
    struct sensitivity_unit *units;
    int unit_count;
    struct sensitivity_sums *sums;      /* by row */
    bool *planned;                      /* by row: kl is measured */
    struct sensitivity_stream *streams; /* that are under way */
    int stream_count, stream_capacity;
    struct block_outputs *experts; /* by row: of a planned one of experts, their results in the open block */
    double work_done, work_total;  /* passes of a stream through a block, and what costs as much */
    int candidate;                 /* being tried */
    int64_t tokens;                /* of the calibration set */
};

/* run->trial while nothing is tried. */
extern const struct recipe_stage sensitivity_nothing;
/* A block of the wave over the blocks [first, end): streams that are under way pass through it, its own begin. */
int sensitivity_block(struct run *run, struct block *block, int64_t first, int64_t end);
/* Every candidate on a group of the open block: errors to the sums, and measurements begin. */
extern const struct run_trials sensitivity_trials;

/* The units and empty rows of a model, and which rows are measured. Deinit also after a failure. */
int sensitivity_plan(struct run *run, struct sensitivity *s);
void sensitivity_plan_deinit(struct sensitivity *s);
/* The block after those whose streams go together, from `first` on. */
int64_t sensitivity_wave_end(const struct sensitivity *s, int64_t first, int64_t layers);
/* Of a set of sequences of that length how many H is made of, the first ones, and how many streams are of, the last. */
void sensitivity_divide(const struct sensitivity_request *request, int64_t sequences, int64_t length,
                        int64_t *statistics, int64_t *streams);
/* Units of layer: the first, and their number. */
int sensitivity_units(const struct sensitivity *s, int64_t layer, int *first);
/* The unit of a module, or NULL. */
const struct sensitivity_unit *sensitivity_unit_of(const struct sensitivity *s, int64_t layer, int module);
/* The unit's row under a candidate, or -1. */
int sensitivity_row_of(const struct sensitivity *s, const struct sensitivity_unit *unit, int candidate);
/* Rows of a layer that are planned. */
int sensitivity_planned(const struct sensitivity *s, int64_t layer);
/* kl of all rows that were not measured, and the predictions of those that were, once all measurements are there. */
void sensitivity_predict(struct sensitivity *s);
