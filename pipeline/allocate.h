#pragma once
/* One option for each of several sets, such that their losses sum to the minimum and their costs stay within a budget:
 * the multiple-choice knapsack problem. Knows neither models nor methods. Any thread. */

#include <stdbool.h>
#include <stdint.h>

#define ALLOCATE_OPTIONS_MAX 64

struct allocate_option {
    int64_t cost; /* 0 or more */
    double loss;  /* finite */
};

struct allocate_set {
    const struct allocate_option *options;
    int count; /* 1 .. ALLOCATE_OPTIONS_MAX */
};

struct allocate_total {
    int64_t cost;
    double loss;
    bool exact; /* false: costs were rounded up to a unit, so that another choice within the budget may lose less */
};

/* What budgets can reach: each set at its lowest cost; each at its lowest loss, of several such at the lowest cost. */
void allocate_range(const struct allocate_set *sets, int count, struct allocate_total *least,
                    struct allocate_total *best);
/* choice [count]: the option of each set. Of choices that lose the same, the cheaper one, and then the options that
 * come first; so the answer depends on the sets and the budget alone. ERR_INCOMPATIBLE_OPTIONS: the budget is less than
 * the lowest cost. */
int allocate(const struct allocate_set *sets, int count, int64_t budget, int *choice, struct allocate_total *total);
