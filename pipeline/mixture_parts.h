#pragma once
/* What a mixture chooses among: the linears of a model with what each takes under each candidate. Inside this folder
 * only; any thread. */

#include "pipeline/mixture.h"

struct mixture_module {
    char name[PLAN_NAME_MAX];
    char unit[PLAN_NAME_MAX]; /* as in a table of sensitivities */
    int set;                  /* from 0 on, in the order of the model */
    int64_t rows, cols;
    double share;                             /* of what it takes that the budget counts */
    int64_t bits[SENSITIVITY_CANDIDATES_MAX]; /* in the artifact; -1: the candidate is impossible */
};

struct mixture_plan {
    struct mixture_module *modules; /* that are chosen for */
    int count, sets;
    double parameters;   /* of all quantized linears */
    double fixed_bits;   /* of those with an override */
    double fixed, limit; /* what the budget counts of all else, and the budget; bits */
};

/* recipe: with a mixture, bound. format NULL: what is stored for codes and scales as such. Deinit after success. */
int mixture_plan(const struct recipe *recipe, const struct format *format, const struct model *model,
                 struct mixture_plan *out);
void mixture_plan_deinit(struct mixture_plan *plan);
CLEANUP_DEINIT(mixture_plan, struct mixture_plan, mixture_plan_deinit)
