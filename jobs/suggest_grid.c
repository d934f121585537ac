/* Finer grids: smaller groups, more bits, larger types of blocks, and modules left in float. */

#include "jobs/suggest_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SMALL_GROUP 32 /* for which part_range_ratio is measured */
#define DENSE 2.0      /* times the mean error, from which on a module is among the worst */
#define DENSE_KIND 1.5 /* likewise of a kind */
#define WORST_MAX 12   /* modules of one change */
#define LOSSY 0.05     /* mean error, from which on more bits for all are suggested */
#define FEW_PARAMETERS 0.02
#define FLOAT_BITS 16
#define BUDGET_STEP 0.5 /* bits for each weight */

/* --- groups */

static bool has_larger_group(const struct anatomy_row *row)
{
    return (row->group_size > SMALL_GROUP || row->group_size == -1) && row->cols % SMALL_GROUP == 0 &&
           !isnan(row->part_range);
}

static double group_bytes(const struct suggest_work *work, const struct anatomy_row *row)
{
    bool zeros = json_is_false(json_object_get(work->quantization, "sym"));
    double group = row->group_size > 0 ? (double)row->group_size : (double)row->cols;
    double bits = 16 + (zeros ? (double)row->bits : 0);

    return (double)row->parameters * bits * (1.0 / SMALL_GROUP - 1 / group) / 8;
}

static void describe_groups(const struct suggest_work *work, struct suggest_change *change)
{
    double loss = suggest_set_loss(change->set), outliers = 0, parameters = 0;
    char a[32], b[32], first[128] = "";

    for (size_t i = 0; i < change->set->count; i++) {
        const struct anatomy_row *row = change->set->list[i];
        outliers += isnan(row->outliers) ? 0 : row->outliers * (double)row->parameters;
        parameters += (double)row->parameters;
    }
    if (outliers / parameters >= 0.0005) {
        (void)snprintf(first, sizeof(first), "%s of the weights lie beyond 6 times the median of their group; ",
                       anatomy_percent(outliers / parameters, b));
    }
    (void)snprintf(change->reason, sizeof(change->reason),
                   "%sgroups of 32 have smaller ranges and so finer steps: about %s of the error is left in %zu "
                   "module%s",
                   first, anatomy_percent(1 - change->removed / loss, a), change->set->count,
                   change->set->count > 1 ? "s" : "");
    (void)snprintf(change->basis, sizeof(change->basis),
                   "measured: part_range_ratio, the mean square of the ranges of 32 weights by that of the groups");
}

static void add_groups(struct suggest_work *work, const struct suggest_set *set, bool all)
{
    struct suggest_change change = {.set = set};

    for (size_t i = 0; i < set->count; i++) {
        change.removed += set->list[i]->loss * (1 - set->list[i]->part_range);
        change.bytes += group_bytes(work, set->list[i]);
    }
    if (set->count == 0) {
        return;
    }
    if (all) {
        change.patch = suggest_patch_take("group_size", json_integer(SMALL_GROUP));
    } else {
        json_t *members = json_pack("{s:i}", "group_size", SMALL_GROUP);
        change.patch = suggest_patch_take("overrides", suggest_overrides(work, set, members));
        json_decref(members);
    }
    describe_groups(work, &change);
    (void)suggest_add(work, &change);
}

static void suggest_groups(struct suggest_work *work)
{
    struct suggest_set all = {work->space, 0}, some = {work->space + work->rows.count, 0};
    double mean = anatomy_mean(&work->rows);

    if (suggest_whole(work, "group_size") == SMALL_GROUP || json_object_get(work->quantization, "group_size") == NULL) {
        return;
    }
    for (size_t i = 0; i < work->rows.count; i++) {
        const struct anatomy_row *row = &work->rows.list[i];
        if (has_larger_group(row)) {
            all.list[all.count++] = row;
        }
    }
    for (size_t i = 0; i < all.count; i++) {
        const struct anatomy_row *row = all.list[i];
        if ((row->cause == CAUSE_WEIGHTS || row->error >= DENSE * mean) && some.count < WORST_MAX &&
            row->part_range < 0.9) {
            suggest_set_add(work, &some, row);
        }
    }
    add_groups(work, &all, true);
    if (some.count < all.count) {
        add_groups(work, &some, false);
    }
}

/* --- bits */

/* Types of GGUF blocks that hold more, by bits a weight. */
static const struct block_step {
    const char *type;
    int64_t bits;
    double stored;
} block_steps[] = {{"q4_k", 4, 4.5}, {"q6_k", 6, 6.5625}, {"q8_0", 8, 8.5}};

/* What a module of `row` can have beyond its bits: members of an override, and the bits; NULL: nothing. */
static json_t *more_bits(const struct suggest_work *work, const struct anatomy_row *row, int step, int64_t *bits,
                         double *stored)
{
    if (strcmp(row->method, "ggml") == 0) {
        for (size_t i = 0; i < sizeof(block_steps) / sizeof(block_steps[0]); i++) {
            if (block_steps[i].bits > row->bits && step-- == 0) {
                *bits = block_steps[i].bits;
                *stored = block_steps[i].stored - (double)row->bits - 0.5;
                return json_pack("{s:s}", "type", block_steps[i].type);
            }
        }
        return NULL;
    }
    *bits = row->bits;
    for (; step >= 0; step--) {
        *bits = anatomy_next_bits(*bits);
    }
    *stored = (double)(*bits - row->bits);
    return *bits > 0 && json_object_get(work->quantization, "bits") != NULL
               ? json_pack("{s:I}", "bits", (json_int_t)*bits)
               : NULL;
}

/* What longer tables of kmeans take, one of 2^bits values of 16 bits for each row; in bytes. */
static double table_bytes(const struct suggest_work *work, const struct anatomy_row *row, int64_t bits)
{
    if (strcmp(row->method, "kmeans") != 0 || suggest_whole(work, "in_group_size") != 1) {
        return 0;
    }
    double rows = (double)row->parameters / (double)row->cols;
    return 2 * rows * (double)(((int64_t)1 << bits) - ((int64_t)1 << row->bits));
}

/* Adds a module, and what runtimes join with it, in place of nothing that has other bits. */
static void describe_bits(const struct suggest_work *work, const char *what, int64_t from, int64_t to,
                          struct suggest_change *change)
{
    double loss = suggest_set_loss(change->set), parameters = 0;
    char a[32], b[32], c[32];

    for (size_t i = 0; i < change->set->count; i++) {
        parameters += (double)change->set->list[i]->parameters;
    }
    (void)snprintf(
        change->reason, sizeof(change->reason),
        "%.160s: %s of the job's error in %s of its weights; %lld bits in place of %lld leave about %s of it", what,
        anatomy_percent(loss / work->rows.loss, a), anatomy_percent(parameters / work->rows.parameters, b),
        (long long)to, (long long)from, anatomy_percent(1 - change->removed / loss, c));
    (void)snprintf(change->basis, sizeof(change->basis),
                   "the ratio of the squared steps of the two grids, about 4 for each bit");
}

/* One change of bits for a set that has the same bits; match: a pattern for all of it, or NULL. */
static bool add_bits(struct suggest_work *work, const struct suggest_set *set, const char *match, const char *what)
{
    bool added = false, more = true;

    for (int step = 0; !added && more && step < 3; step++) {
        struct suggest_change change = {.set = set};
        int64_t bits = 0;
        double stored = 0;
        json_t *members = more_bits(work, set->list[0], step, &bits, &stored);
        more = members != NULL;
        for (size_t i = 0; more && i < set->count; i++) {
            change.removed += set->list[i]->loss * (1 - anatomy_bits_ratio(set->list[0]->bits, bits));
            change.bytes += (double)set->list[i]->parameters * stored / 8 + table_bytes(work, set->list[i], bits);
        }
        if (more && match == NULL) {
            change.patch = suggest_patch_take("overrides", suggest_overrides(work, set, members));
        } else if (more && match[0] != '\0') {
            json_t *given = json_object_get(work->quantization, "overrides");
            json_t *list = json_is_array(given) ? json_deep_copy(given) : json_array();
            json_object_set_new(members, "match", json_string(match));
            json_array_append(list, members);
            change.patch = suggest_patch_take("overrides", list);
        } else if (more) {
            change.patch = json_pack("{s:O}", "quantization", members);
        }
        if (more) {
            describe_bits(work, what, set->list[0]->bits, bits, &change);
            added = suggest_add(work, &change);
        }
        json_decref(members);
    }
    return added;
}

static int by_error_down(const void *a, const void *b)
{
    const struct anatomy_row *x = *(const struct anatomy_row *const *)a, *y = *(const struct anatomy_row *const *)b;
    return x->error < y->error ? 1 : x->error > y->error ? -1 : (x > y) - (x < y);
}

/* Rows in descending order of error, without those of no known error, into the second half of the space. */
static struct suggest_set ranked_rows(const struct suggest_work *work)
{
    struct suggest_set sorted = {work->space + work->rows.count, 0};

    for (size_t i = 0; i < work->rows.count; i++) {
        if (!isnan(work->rows.list[i].error)) {
            sorted.list[sorted.count++] = &work->rows.list[i];
        }
    }
    if (sorted.count > 0) {
        qsort(sorted.list, sorted.count, sizeof(const struct anatomy_row *), by_error_down);
    }
    return sorted;
}

/* The worst module, and all that are far worse than the mean. */
static void suggest_worst_bits(struct suggest_work *work)
{
    struct suggest_set sorted = ranked_rows(work), set = {work->space, 0};
    double mean = anatomy_mean(&work->rows);
    char what[160];

    if (sorted.count < 2 || sorted.list[0]->error < 1.2 * mean) {
        return;
    }
    suggest_set_add(work, &set, sorted.list[0]);
    size_t alone = set.count;
    (void)snprintf(what, sizeof(what),
                   alone > 1 ? "%.100s is the worst module (runtimes join it with %zu more)"
                             : "%.100s is the worst module",
                   sorted.list[0]->module, alone - 1);
    (void)add_bits(work, &set, NULL, what);
    for (size_t i = 1; i < sorted.count && sorted.list[i]->error >= DENSE * mean && set.count < WORST_MAX; i++) {
        if (sorted.list[i]->bits == sorted.list[0]->bits) {
            suggest_set_add(work, &set, sorted.list[i]);
        }
    }
    if (set.count > alone) {
        (void)snprintf(what, sizeof(what), "%zu modules are among the worst or joined with them by runtimes",
                       set.count);
        (void)add_bits(work, &set, NULL, what);
    }
}

/* The largest loss of one module of a kind. */
static double worst_of_kind(const struct suggest_work *work, const char *kind)
{
    double largest = 0;

    for (size_t i = 0; i < work->rows.count; i++) {
        bool same = strcmp(work->rows.list[i].kind, kind) == 0;
        largest = same && work->rows.list[i].loss > largest ? work->rows.list[i].loss : largest;
    }
    return largest;
}

/* The kind with the most error of those that lose clearly more than the mean, not for one module alone; NULL: none
 * does. */
static const struct anatomy_row *worst_kind(const struct suggest_work *work)
{
    struct anatomy_part *parts = calloc(work->rows.count + 1, sizeof(*parts));
    const struct anatomy_row *worst = NULL;
    double mean = anatomy_mean(&work->rows), most = 0;
    size_t count = parts != NULL ? anatomy_gather(&work->rows, true, parts) : 0;

    for (size_t i = 0; count > 1 && i < count; i++) {
        double largest = worst_of_kind(work, parts[i].first->kind);
        if (parts[i].loss >= DENSE_KIND * mean * parts[i].parameters && parts[i].loss > most &&
            largest <= parts[i].loss / 2) {
            most = parts[i].loss;
            worst = parts[i].first;
        }
    }
    free(parts);
    return worst;
}

/* A kind of module in all layers. */
static void suggest_kind_bits(struct suggest_work *work)
{
    const struct anatomy_row *worst = worst_kind(work);
    struct suggest_set set = {work->space, 0};
    char match[96], what[160];

    for (size_t i = 0; worst != NULL && i < work->rows.count; i++) {
        const struct anatomy_row *row = &work->rows.list[i];
        if (strcmp(row->kind, worst->kind) == 0 && row->bits == worst->bits) {
            set.list[set.count++] = row;
        }
    }
    if (set.count < 2 || strchr(worst->kind, '*') != NULL) {
        return;
    }
    (void)snprintf(match, sizeof(match), "*.%s", worst->kind);
    (void)snprintf(what, sizeof(what), "%.64s loses more than other kinds in all blocks", worst->kind);
    (void)add_bits(work, &set, match, what);
}

static void suggest_all_bits(struct suggest_work *work)
{
    struct suggest_set set = {work->space, 0};

    for (size_t i = 0; i < work->rows.count; i++) {
        if (work->rows.list[i].bits == work->rows.list[0].bits) {
            set.list[set.count++] = &work->rows.list[i];
        }
    }
    if (set.count > 0 && anatomy_mean(&work->rows) >= LOSSY) {
        (void)add_bits(work, &set, "", "the width is low for this model");
    }
}

/* --- modules in float */

static void suggest_float(struct suggest_work *work)
{
    struct suggest_set sorted = ranked_rows(work), set = {work->space, 0};
    struct suggest_change change = {.set = &set};
    double parameters = 0;
    char a[32], b[32];

    if (sorted.count < 2 || sorted.list[0]->error < DENSE * anatomy_mean(&work->rows)) {
        return;
    }
    suggest_set_add(work, &set, sorted.list[0]);
    for (size_t i = 0; i < set.count; i++) {
        const struct anatomy_row *row = set.list[i];
        if (anatomy_next_bits(row->bits) > 0 && json_object_get(work->quantization, "bits") != NULL) {
            return; /* more bits cost less */
        }
        parameters += (double)row->parameters;
        change.bytes += (double)row->parameters * (FLOAT_BITS - (double)row->bits) / 8;
    }
    if (parameters > FEW_PARAMETERS * work->rows.parameters) {
        return;
    }
    json_t *members = json_pack("{s:b}", "skip", 1);
    change.patch = suggest_patch_take("overrides", suggest_overrides(work, &set, members));
    json_decref(members);
    change.removed = suggest_set_loss(&set);
    (void)snprintf(change.reason, sizeof(change.reason),
                   "%.100s has %s of the job's error in %s of its weights: leave it in float", sorted.list[0]->module,
                   anatomy_percent(change.removed / work->rows.loss, a),
                   anatomy_percent(parameters / work->rows.parameters, b));
    (void)snprintf(change.basis, sizeof(change.basis), "a module in float has no error");
    (void)suggest_add(work, &change);
}

/* --- mixtures */

/* Where widths are chosen under a budget, what one module gains others pay for: more is had of a larger budget alone.
 * Whether that is so. */
static bool suggest_budget(struct suggest_work *work)
{
    const json_t *mixed = json_object_get(work->quantization, "mixed_precision");
    double bits = json_number_value(json_object_get(mixed, "bits_per_weight"));
    struct suggest_set all = {work->space, 0};
    struct suggest_change change = {.set = &all};

    if (!json_is_object(mixed) || !(bits > 0)) {
        return json_is_object(mixed);
    }
    for (size_t i = 0; i < work->rows.count; i++) {
        all.list[all.count++] = &work->rows.list[i];
    }
    change.patch = suggest_patch_take("mixed_precision", json_pack("{s:f}", "bits_per_weight", bits + BUDGET_STEP));
    change.removed = suggest_set_loss(&all) * (1 - pow(4, -BUDGET_STEP));
    change.bytes = work->rows.parameters * BUDGET_STEP / 8;
    (void)snprintf(change.reason, sizeof(change.reason),
                   "the budget of %.4g bits for each weight decides what linears lose: one of %.4g leaves about half",
                   bits, bits + BUDGET_STEP);
    (void)snprintf(change.basis, sizeof(change.basis), "the squared step of a grid, about 4 for each bit");
    (void)suggest_add(work, &change);
    return true;
}

void suggest_grids(struct suggest_work *work)
{
    if (suggest_budget(work)) {
        return;
    }
    suggest_groups(work);
    suggest_worst_bits(work);
    suggest_kind_bits(work);
    suggest_all_bits(work);
    suggest_float(work);
}
