/* Choices under a budget: against all that there are, where these are few. */

#include "base/err.h"
#include "pipeline/allocate.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdint.h>

#define SETS 5
#define OPTIONS 4
#define CHOICES 1024 /* OPTIONS to the power of SETS */

static uint64_t state;

static int64_t draw(int64_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((state >> 33) % (uint64_t)below);
}

/* The loss of choice number `number` of all, and its cost. */
static struct allocate_total total_of(const struct allocate_set *sets, int number, int *choice)
{
    struct allocate_total total = {0};

    for (int s = 0; s < SETS; s++, number /= OPTIONS) {
        choice[s] = number % OPTIONS;
        total.cost += sets[s].options[choice[s]].cost;
        total.loss += sets[s].options[choice[s]].loss;
    }
    return total;
}

static struct allocate_total brute_force(const struct allocate_set *sets, int64_t budget)
{
    struct allocate_total best = {.loss = INFINITY};
    int choice[SETS];

    for (int number = 0; number < CHOICES; number++) {
        struct allocate_total total = total_of(sets, number, choice);
        if (total.cost <= budget && total.loss < best.loss) {
            best = total;
        }
    }
    return best;
}

/* unit: of costs. */
static void check_random(uint64_t seed, int64_t unit)
{
    struct allocate_option options[SETS][OPTIONS];
    struct allocate_set sets[SETS];
    struct allocate_total least, most, total;
    int choice[SETS];

    state = seed;
    for (int s = 0; s < SETS; s++) {
        sets[s] = (struct allocate_set){options[s], OPTIONS};
        for (int i = 0; i < OPTIONS; i++) {
            options[s][i] = (struct allocate_option){.cost = unit * draw(40), .loss = (double)draw(1000) / 7};
        }
    }
    allocate_range(sets, SETS, &least, &most);
    for (int64_t budget = least.cost; budget <= most.cost; budget += 1 + (most.cost - least.cost) / 9) {
        ck_assert_rc_ok(allocate(sets, SETS, budget, choice, &total));
        const struct allocate_total expected = brute_force(sets, budget);
        ck_assert_double_eq_tol(total.loss, expected.loss, 1e-9);
        ck_assert_int_le(total.cost, budget);
        ck_assert(total.exact);
    }
    ck_assert_rc_ok(allocate(sets, SETS, most.cost, choice, &total));
    ck_assert_double_eq_tol(total.loss, most.loss, 1e-9);
    ck_assert_int_eq(allocate(sets, SETS, least.cost - 1, choice, &total), ERR_INCOMPATIBLE_OPTIONS);
}

START_TEST(best_of_all_choices)
{
    for (uint64_t seed = 1; seed <= 40; seed++) {
        check_random(seed, 1);
        check_random(seed, 8192);
    }
}
END_TEST

START_TEST(equal_losses_take_the_cheaper_and_then_the_first)
{
    const struct allocate_option same[] = {{3, 1}, {2, 1}, {2, 1}, {5, 0.5}};
    const struct allocate_set sets[] = {{same, 4}, {same, 3}};
    struct allocate_total total;
    int choice[2];

    ck_assert_rc_ok(allocate(sets, 2, 6, choice, &total));
    ck_assert_int_eq(choice[0], 1);
    ck_assert_int_eq(choice[1], 1);
    ck_assert_int_eq(total.cost, 4);
    ck_assert_rc_ok(allocate(sets, 2, 100, choice, &total));
    ck_assert_int_eq(choice[0], 3);
    ck_assert_int_eq(choice[1], 1);
    ck_assert_int_eq(total.cost, 7);
}
END_TEST

/* Costs without a common divisor, as many as no table has entries for. */
START_TEST(rounded_costs_keep_the_budget)
{
    enum { MANY = 64 };
    struct allocate_option options[MANY][3];
    struct allocate_set sets[MANY];
    struct allocate_total least, most, total;
    int choice[MANY];

    state = 3;
    for (int s = 0; s < MANY; s++) {
        int64_t size = ((int64_t)1 << 34) + draw(1 << 30);
        sets[s] = (struct allocate_set){options[s], 3};
        for (int i = 0; i < 3; i++) {
            options[s][i] =
                (struct allocate_option){.cost = size * (i + 2) + 1, .loss = pow(0.25, i) * (double)(1 + draw(9))};
        }
    }
    allocate_range(sets, MANY, &least, &most);
    int64_t budget = (least.cost + most.cost) / 2;
    ck_assert_rc_ok(allocate(sets, MANY, budget, choice, &total));
    ck_assert(!total.exact);
    ck_assert_int_le(total.cost, budget);
    ck_assert_int_gt(total.cost, budget - budget / 100);
    ck_assert_double_lt(total.loss, 0.5 * (least.loss + most.loss)); /* better than by lot */
}
END_TEST

START_TEST(nothing_to_choose)
{
    const struct allocate_option one = {7, 2};
    const struct allocate_set set = {&one, 1};
    struct allocate_total total;
    int choice = -1;

    ck_assert_rc_ok(allocate(&set, 1, 7, &choice, &total));
    ck_assert_int_eq(choice, 0);
    ck_assert_int_eq(total.cost, 7);
    ck_assert_rc_ok(allocate(NULL, 0, 0, NULL, &total));
    ck_assert_int_eq(total.cost, 0);
}
END_TEST

UNIT_MAIN("allocate", best_of_all_choices, equal_losses_take_the_cheaper_and_then_the_first,
          rounded_costs_keep_the_budget, nothing_to_choose)
