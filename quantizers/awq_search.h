#pragma once
/* AWQ's parameters and its search for factors. Private to quantizers/awq*.c. */

#include "quantizers/common.h"

#define AWQ_GRID_MAX 200

struct awq_params {
    struct quant_common common;
    int64_t n_grid;
    bool duo_scaling, clip;
    int version; /* enum awq_version */
};

/* Search the factors of the context's input group and fold them into its block. A group that has no module on an
 * integer grid, or nothing to take up the factors, stays as it is. A quantizer's `rewrite`. */
int awq_rewrite(const struct rewrite_context *context);
/* Its `rewrite_cost`. */
void awq_rewrite_cost(const void *params, const struct quant_group *group, struct quant_cost *out);

/* The search at one group. Candidate 0 is the block as it is. */
struct awq_search {
    const struct rewrite_context *context;
    const struct awq_params *params;
    int64_t columns;
    int candidates;
    double *losses;                           /* [candidates]; infinite: out */
    float *inputs;                            /* x_j */
    float *weights;                           /* w_j */
    float *factors;                           /* s_j of the current candidate */
    struct block trial;                       /* the block with quantized readers in place; owns nothing */
    struct tensor *readers;                   /* of each of the group's modules; data NULL: it stays in float */
    plan_set steps;                           /* from the input to what the group is judged by */
    struct tensor codes, scale, zero, column; /* of the largest reader; F32 [columns] */
    struct tensor target, output;             /* what it is judged by, [tokens, width] */
    struct tensor moments;                    /* F32 [columns, columns], where a linear's own output is judged */
};

/* The scheme of the group's module i if it is rounded to an integer grid, or NULL. */
const struct qscheme *awq_reader(const struct rewrite_context *context, int i);
/* Q(W s) / s of the first `rows` rows of each reader (0: of all), in search->readers. */
int awq_place_candidate(struct awq_search *search, int candidate, int64_t rows);
/* awq_score.c: fill search->losses. Those that are still finite can be compared; candidate 0 is always among them,
 * unless its output is not finite. */
int awq_score(struct awq_search *search);
/* What it takes, in the members `solving` and `operations`: added to *out. */
void awq_score_cost(double candidates, const struct quant_group *group, struct quant_cost *out);
