#pragma once
/* How much each part of a model loses in each way that it could be quantized: the error of its outputs, and what that
 * does to the model's logits. Nothing is changed; a report or an allocation of bits follows from the table.
 *
 * unit    what a row is about: one linear, or of a layer's experts the linears of one path in all of them, whose name
 *         has "*" in the expert's place ("<layers>3.mlp.experts.*.up_proj"), as patterns of modules have
 * set     units that must get the same candidate: linears that runtimes load as one (q, k and v; gate and up), all
 *         experts of a layer. A linear that is tied to no other is a set of its own
 * rows    one for each unit and candidate that is possible for it, by unit, then by candidate; units in the order of
 *         the model. A candidate that is impossible for a unit (group_size does not divide its inputs) has no row.
 *         Modules that stay in float whatever is asked (routers; modules_to_not_convert) or have an override of
 *         their own have none, nor have the embedding and the head, which no method quantizes.
 *
 * kl adds up: what a choice of one row for each unit is expected to lose is the sum of its rows' kl, in nats for each
 * token, to first order. So the loss of a set under a candidate is the sum over its units. */

#include "pipeline/recipe.h"

#define SENSITIVITY_FILE "sensitivity.json" /* in the run's folder */

struct sensitivity_row {
    int64_t layer;              /* -1: outside of the layers */
    char module[PLAN_NAME_MAX]; /* the unit's name: a module's, or with "*" */
    int set;                    /* number of its set, ascending from 0 over the model */
    int candidate;              /* index */
    int64_t parameters;         /* weights of the unit */
    double bits_per_weight;     /* with scales and all else that is stored */
    double relative_mse;        /* |W - Wq|^2 / |W|^2 */
    double output_relative_mse; /* tr(dW H dW^T) / tr(W H W^T); of experts the mean by their tokens' energy */
    double output_mse;          /* tr(dW H dW^T) for each token: what kl is proportional to within a unit */
    double kl; /* mean KL(float || quantized) of the logits in nats for each token, this unit alone being quantized so;
                  measured on tokens that H was not made of, where there are enough; >= 0 and finite */
    bool measured;    /* kl was; else it follows from output_mse and what was measured of the unit, or of its
                         neighbours in depth */
    double predicted; /* the prediction of kl from the unit's probe, where kl was measured next to it; else NAN */
};

struct sensitivity_table {
    struct sensitivity_row *rows;
    int count;
    int64_t tokens, kl_tokens; /* that H was made of; that kl was measured on */
};
void sensitivity_table_deinit(struct sensitivity_table *table); /* zeroed is fine */

/* How well `predicted` does over the rows that have it: Spearman's correlation with kl, and the median of |ln(predicted
 * / kl)|; count: of those rows. Both NAN with fewer than three. */
struct sensitivity_law {
    int count;
    double spearman, median_log_error;
};
struct sensitivity_law sensitivity_law(const struct sensitivity_table *table);

/* What a pass measures. */
struct sensitivity_request {
    const struct sensitivity_candidates *candidates;
    int64_t max_tokens; /* calibration tokens that H is made of, at most; 0: all */
    int64_t kl_tokens;  /* that kl is measured on, at most; at least one sequence */
    int64_t
        max_streams; /* measurements of kl at most; each costs a pass of kl_tokens through the blocks after its own */
};

struct run;
/* The pass, in the place of an attempt's blocks: of `attempt` the pipeline, the sender, the micro-batch and the memory
 * that it may take count, and nothing of it needs to be open. The pipeline must have calibration data and a model with
 * a forward pass. Modules that p->recipe leaves in float or has an override for have no rows. Progress is reported from
 * 0 to `share` of the run, with the step "measuring". Finished parts of the pass are in SENSITIVITY_FILE: called again
 * with the same request on the same data and weights, in this process or another, it goes on from there, or, after a
 * complete pass, returns its table at once. The table depends on the request, the data, the seed and the micro-batch,
 * like all results. */
int sensitivity_pass(const struct run *attempt, const struct sensitivity_request *request, double share,
                     struct sensitivity_table *out);

/* The file, written atomically and durably. key: identifies what the table was made of (any text without control
 * characters). blocks: how many blocks, from the first on, the rows are of. */
int sensitivity_save(const char *directory, const char *key, int64_t blocks, const struct sensitivity_table *table);
/* ERR_NOT_FOUND where there is no file, it is damaged or it was made under another key. */
int sensitivity_load(const char *directory, const char *key, int64_t *blocks, struct sensitivity_table *out);
