/* The multiple-choice knapsack problem by dynamic programming over costs (Kellerer, Pferschy and Pisinger, "Knapsack
 * Problems", 2004, chapter 11):
 *
 *   best[s][u] = min over the options o of set s with e_o <= u of best[s - 1][u - e_o] + loss_o
 *
 * where e is a cost beyond that of the set's cheapest option, in units of the greatest common divisor of all of these.
 * Linears of a model have few shapes and candidates few widths, so the divisor is large, the units are few, and the
 * minimum is exact. Where they would be too many for the table of choices, the unit is made larger and costs are
 * rounded up to it: the budget is kept all the same. */

#include "pipeline/allocate.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"

#include <math.h>

#define CHOICES_MAX ((int64_t)64 << 20) /* bytes of the table of choices */

/* An option, by its place in the set, with its cost beyond the cheapest one. */
struct step {
    int64_t extra; /* in units */
    double loss;
    int option;
};

struct table {
    const struct allocate_set *sets;
    int count;
    int64_t units; /* that may be spent beyond the lowest costs */
    int64_t unit;
    double *best, *next; /* [units + 1] */
    uint8_t *choices;    /* [count, units + 1]: options */
};

static int64_t lowest_cost(const struct allocate_set *set)
{
    int64_t lowest = set->options[0].cost;

    for (int i = 1; i < set->count; i++) {
        lowest = set->options[i].cost < lowest ? set->options[i].cost : lowest;
    }
    return lowest;
}

/* Whether option a comes before b: it loses less, or the same at a lower cost. */
static bool loses_less(const struct allocate_option *a, const struct allocate_option *b)
{
    return a->loss < b->loss || (a->loss == b->loss && a->cost < b->cost);
}

static bool costs_less(const struct allocate_option *a, const struct allocate_option *b)
{
    return a->cost < b->cost || (a->cost == b->cost && a->loss < b->loss);
}

static int first_option(const struct allocate_set *set,
                        bool (*before)(const struct allocate_option *, const struct allocate_option *))
{
    int first = 0;

    for (int i = 1; i < set->count; i++) {
        first = before(&set->options[i], &set->options[first]) ? i : first;
    }
    return first;
}

static struct allocate_total sum(const struct allocate_set *sets, int count, const int *choice)
{
    struct allocate_total total = {.exact = true};

    for (int s = 0; s < count; s++) {
        total.cost += sets[s].options[choice[s]].cost;
        total.loss += sets[s].options[choice[s]].loss;
    }
    return total;
}

void allocate_range(const struct allocate_set *sets, int count, struct allocate_total *least,
                    struct allocate_total *best)
{
    *least = *best = (struct allocate_total){.exact = true};
    for (int s = 0; s < count; s++) {
        const struct allocate_option *cheap = &sets[s].options[first_option(&sets[s], costs_less)];
        const struct allocate_option *good = &sets[s].options[first_option(&sets[s], loses_less)];
        least->cost += cheap->cost;
        least->loss += cheap->loss;
        best->cost += good->cost;
        best->loss += good->loss;
    }
}

static int64_t greatest_divisor(int64_t a, int64_t b)
{
    while (b != 0) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Of all costs beyond the sets' lowest; 1 where there are none. */
static int64_t common_unit(const struct allocate_set *sets, int count)
{
    int64_t unit = 0;

    for (int s = 0; s < count; s++) {
        int64_t lowest = lowest_cost(&sets[s]);
        for (int i = 0; i < sets[s].count; i++) {
            unit = greatest_divisor(unit, sets[s].options[i].cost - lowest);
        }
    }
    return unit > 0 ? unit : 1;
}

/* The set's options from the cheapest on, of equal costs the first. */
static void list_steps(const struct table *t, const struct allocate_set *set, struct step steps[ALLOCATE_OPTIONS_MAX])
{
    int64_t lowest = lowest_cost(set);

    for (int i = 0; i < set->count; i++) {
        int64_t over = set->options[i].cost - lowest;
        struct step step = {.extra = over / t->unit + (over % t->unit != 0), .loss = set->options[i].loss, .option = i};
        int at = i;
        for (; at > 0 && steps[at - 1].extra > step.extra; at--) {
            steps[at] = steps[at - 1];
        }
        steps[at] = step;
    }
}

static void add_set(struct table *t, int s)
{
    struct step steps[ALLOCATE_OPTIONS_MAX];
    uint8_t *choices = t->choices + (size_t)s * ((size_t)t->units + 1);

    list_steps(t, &t->sets[s], steps);
    for (int64_t u = 0; u <= t->units; u++) {
        double best = INFINITY;
        for (int i = 0; i < t->sets[s].count && steps[i].extra <= u; i++) {
            double loss = t->best[u - steps[i].extra] + steps[i].loss;
            if (loss < best) {
                best = loss;
                choices[u] = (uint8_t)steps[i].option;
            }
        }
        t->next[u] = best;
    }
    double *best = t->best;
    t->best = t->next;
    t->next = best;
}

/* The cheapest way to the lowest loss, from the last set back. */
static void follow(const struct table *t, int *choice)
{
    struct step steps[ALLOCATE_OPTIONS_MAX];
    int64_t u = t->units;

    while (u > 0 && t->best[u - 1] == t->best[u]) {
        u--;
    }
    for (int s = t->count - 1; s >= 0; s--) {
        choice[s] = t->choices[(size_t)s * ((size_t)t->units + 1) + (size_t)u];
        list_steps(t, &t->sets[s], steps);
        for (int i = 0; i < t->sets[s].count; i++) {
            u -= steps[i].option == choice[s] ? steps[i].extra : 0;
        }
    }
}

int allocate(const struct allocate_set *sets, int count, int64_t budget, int *choice, struct allocate_total *total)
{
    struct allocate_total least, best;
    struct table t = {.sets = sets, .count = count, .unit = common_unit(sets, count)};

    allocate_range(sets, count, &least, &best);
    if (budget < least.cost) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "a budget of %lld is less than the lowest cost, %lld",
                         (long long)budget, (long long)least.cost);
    }
    int64_t spare = (budget < best.cost ? budget : best.cost) - least.cost;
    int64_t units_max = CHOICES_MAX / (count > 0 ? count : 1);
    bool exact = spare / t.unit < units_max;
    t.unit = exact ? t.unit : spare / (units_max - 1) + 1;
    t.units = spare / t.unit;

    AUTO_FREE double *values = NULL;
    AUTO_FREE uint8_t *choices = NULL;
    TRY(mem_array(&values, 2 * ((size_t)t.units + 1)));
    TRY(mem_array(&choices, (size_t)count * ((size_t)t.units + 1)));
    t.best = values;
    t.next = values + t.units + 1;
    t.choices = choices;
    for (int s = 0; s < count; s++) {
        add_set(&t, s);
    }
    follow(&t, choice);
    *total = sum(sets, count, choice);
    total->exact = exact;
    return 0;
}
