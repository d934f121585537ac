/* Choices of a mixture: one for checks, before anything was measured, and the one of least loss. */

#include "pipeline/mixture_parts.h"

#include "base/err.h"
#include "base/mem.h"
#include "pipeline/allocate.h"
#include "pipeline/run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIXTURE_TOKENS_MAX 32768     /* calibration tokens that outputs' errors are measured on */
#define MIXTURE_MEASUREMENTS_MAX 256 /* of the effect on the logits */
#define MIXTURE_SHARE 0.4            /* of a run's progress: what is measured before the first block */

/* The options of all sets. */
struct mixture_options {
    struct allocate_set *sets;
    struct allocate_option *options; /* [sets, SENSITIVITY_CANDIDATES_MAX] */
    int *candidates;                 /* of each option */
    int *choice;                     /* of each set: an option */
};

static void mixture_options_deinit(struct mixture_options *options)
{
    free(options->sets);
    free(options->options);
    free(options->candidates);
    free(options->choice);
}

CLEANUP_DEINIT(mixture_options, struct mixture_options, mixture_options_deinit)

/* What each set takes under each candidate, by the budget, in bits; -1: impossible for one of its modules. */
static void add_costs(const struct mixture_plan *plan, int candidates, int64_t *costs)
{
    for (int i = 0; i < plan->count; i++) {
        const struct mixture_module *m = &plan->modules[i];
        int64_t *of_set = costs + (size_t)m->set * SENSITIVITY_CANDIDATES_MAX;
        for (int c = 0; c < candidates; c++) {
            bool possible = of_set[c] >= 0 && m->bits[c] >= 0;
            of_set[c] = possible ? of_set[c] + llround((double)m->bits[c] * m->share) : -1;
        }
    }
}

/* losses [sets, SENSITIVITY_CANDIDATES_MAX], NAN: not an option; NULL: the more bits, the better. */
static int list_options(const struct mixture_plan *plan, int candidates, const double *losses,
                        struct mixture_options *out)
{
    size_t all = (size_t)plan->sets * SENSITIVITY_CANDIDATES_MAX;
    AUTO_FREE int64_t *costs = NULL;

    TRY(mem_array(&costs, all + 1));
    add_costs(plan, candidates, costs);
    TRY(mem_array(&out->sets, (size_t)plan->sets + 1));
    TRY(mem_array(&out->options, all + 1));
    TRY(mem_array(&out->candidates, all + 1));
    TRY(mem_array(&out->choice, (size_t)plan->sets + 1));
    for (int s = 0; s < plan->sets; s++) {
        size_t first = (size_t)s * SENSITIVITY_CANDIDATES_MAX;
        out->sets[s].options = out->options + first;
        for (int c = 0; c < candidates; c++) {
            int64_t cost = costs[first + (size_t)c];
            double loss = losses != NULL ? losses[first + (size_t)c] : -(double)cost;
            if (cost >= 0 && isfinite(loss)) {
                size_t at = first + (size_t)out->sets[s].count++;
                out->options[at] = (struct allocate_option){cost, loss};
                out->candidates[at] = c;
            }
        }
    }
    return 0;
}

/* The first module of a set that no candidate is possible for, or NULL. */
static const struct mixture_module *without_option(const struct mixture_plan *plan,
                                                   const struct mixture_options *options)
{
    for (int i = 0; i < plan->count; i++) {
        if (options->sets[plan->modules[i].set].count == 0) {
            return &plan->modules[i];
        }
    }
    return NULL;
}

static int choice_compare(const void *a, const void *b)
{
    return strcmp(((const struct mixture_choice *)a)->module, ((const struct mixture_choice *)b)->module);
}

/* Give the modules what their sets chose. kl [modules, candidates of the mixture at most]: NULL: not known. */
static int take_choice(struct mixture *mixture, const struct mixture_plan *plan, const struct mixture_options *options,
                       const double *kl)
{
    AUTO_FREE struct mixture_choice *choices = NULL;
    double bits = plan->fixed_bits;
    size_t count = 0;

    TRY(mem_array(&choices, (size_t)plan->count + 1));
    for (int i = 0; i < plan->count; i++) {
        const struct mixture_module *m = &plan->modules[i];
        if (options->sets[m->set].count == 0) {
            continue;
        }
        int candidate = options->candidates[m->set * SENSITIVITY_CANDIDATES_MAX + options->choice[m->set]];
        struct mixture_choice *choice = &choices[count++];
        memcpy(choice->module, m->name, sizeof(choice->module));
        choice->candidate = candidate;
        choice->kl = kl != NULL ? kl[(size_t)i * SENSITIVITY_CANDIDATES_MAX + (size_t)candidate] : 0;
        bits += (double)m->bits[candidate];
    }
    qsort(choices, count, sizeof(*choices), choice_compare);
    free(mixture->choices);
    mixture->choices = MOVE(choices);
    mixture->choice_count = count;
    mixture->bits = plan->parameters > 0 ? bits / plan->parameters : 0;
    return 0;
}

int mixture_assume(const struct recipe *recipe, const struct format *format, const struct model *model)
{
    struct mixture *mixture = recipe->mixture;
    AUTO(mixture_plan) struct mixture_plan plan = {0};
    AUTO(mixture_options) struct mixture_options options = {0};

    if (mixture->chosen) {
        return 0;
    }
    TRY(mixture_plan(recipe, format, model, &plan));
    TRY(list_options(&plan, mixture->candidates.count, NULL, &options));
    for (int s = 0; s < plan.sets; s++) {
        options.choice[s] = options.sets[s].count > 0 ? s % options.sets[s].count : 0;
    }
    return take_choice(mixture, &plan, &options, NULL);
}

/* --- checks */

/* How many candidates some set can have; of the listed ones each must be. */
static int check_candidates(const struct recipe *recipe, const struct format *format, const struct mixture_plan *plan,
                            struct validation_errors *errors)
{
    const struct mixture *mixture = recipe->mixture;
    int possible = 0;

    for (int c = 0; c < mixture->candidates.count; c++) {
        bool any = false;
        for (int i = 0; i < plan->count && !any; i++) {
            any = plan->modules[i].bits[c] >= 0;
        }
        possible += any;
        if (!any && mixture->listed) {
            char at[96];
            snprintf(at, sizeof(at), "/quantization/mixed_precision/candidates/%d", c);
            validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                           "%s is possible for no linear of this model in format %s", mixture->candidates.list[c].name,
                           format->name);
            validation_hint(errors, "leave it out, or choose another output.format");
        }
    }
    return possible;
}

/* A number of bits as the request says the budget. */
static double in_units(const struct mixture *mixture, const struct mixture_plan *plan, double bits)
{
    return mixture->budget == MIXTURE_BITS    ? bits / plan->parameters
           : mixture->budget == MIXTURE_BYTES ? ceil(bits / 8)
                                              : bits / 8 / mixture->memory_bandwidth * 1e3;
}

static void refuse_budget(const struct mixture *mixture, const struct mixture_plan *plan, double least, double most,
                          struct validation_errors *errors)
{
    static const struct {
        const char *member, *unit;
    } words[] = {[MIXTURE_BITS] = {"bits_per_weight", "bits"},
                 [MIXTURE_BYTES] = {"max_bytes", "bytes"},
                 [MIXTURE_DECODE] = {"decode_milliseconds", "ms"}};
    const char *member = words[mixture->budget].member, *unit = words[mixture->budget].unit;
    char at[96];

    snprintf(at, sizeof(at), "/quantization/mixed_precision/%s", member);
    validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, at,
                   "\"%s\" is %.8g, and the candidates reach %.8g to %.8g %s, with all that is stored for them", member,
                   in_units(mixture, plan, plan->limit), in_units(mixture, plan, plan->fixed + least),
                   in_units(mixture, plan, plan->fixed + most), unit);
    validation_hint(errors, "a larger budget, or candidates of fewer bits");
}

int mixture_check(const struct recipe *recipe, const struct format *format, const struct model *model,
                  struct validation_errors *errors, int64_t *bytes)
{
    const struct mixture *mixture = recipe->mixture;
    AUTO(mixture_plan) struct mixture_plan plan = {0};
    AUTO(mixture_options) struct mixture_options options = {0};
    struct allocate_total least, most;
    size_t before = errors->count + errors->dropped;

    TRY(mixture_plan(recipe, format, model, &plan));
    TRY(list_options(&plan, mixture->candidates.count, NULL, &options));
    const struct mixture_module *without = without_option(&plan, &options);
    if (without != NULL) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/quantization/mixed_precision/candidates",
                       "no candidate is possible for %s [%lld, %lld] in format %s", without->name,
                       (long long)without->rows, (long long)without->cols, format->name);
        validation_hint(errors, "add one, or leave the module in float: modules_to_not_convert");
    } else if (check_candidates(recipe, format, &plan, errors) < 2) {
        validation_add(errors, ERR_INCOMPATIBLE_OPTIONS, "/quantization/mixed_precision",
                       "format %s takes fewer than two of the candidates, so there is nothing to mix", format->name);
        validation_hint(errors, "output.format compressed-tensors takes integers of 2 to 8 bits, gguf the types of "
                                "method ggml");
    }
    if (errors->count + errors->dropped != before) {
        return validation_raise(errors);
    }
    allocate_range(options.sets, plan.sets, &least, &most);
    if (plan.limit - plan.fixed < (double)least.cost) {
        refuse_budget(mixture, &plan, (double)least.cost, (double)most.cost, errors);
        return validation_raise(errors);
    }
    double chosen = plan.limit - plan.fixed < (double)most.cost ? plan.limit - plan.fixed : (double)most.cost;
    if (mixture->budget == MIXTURE_DECODE) { /* what is read, in proportion to what is stored */
        double stored = 0, counted = 0;
        for (int i = 0; i < plan.count; i++) {
            stored += (double)plan.modules[i].rows * (double)plan.modules[i].cols;
            counted += plan.modules[i].share * (double)plan.modules[i].rows * (double)plan.modules[i].cols;
        }
        chosen *= counted > 0 ? stored / counted : 1;
    }
    *bytes = (int64_t)((chosen + plan.fixed_bits) / 8);
    return 0;
}

/* --- the choice */

struct unit_module {
    const char *unit;
    int module;
};

static int unit_compare(const void *a, const void *b)
{
    const struct unit_module *x = a, *y = b;
    int order = strcmp(x->unit, y->unit);

    return order != 0 ? order : x->module - y->module;
}

static int unit_find(const void *key, const void *item)
{
    return strcmp(key, ((const struct unit_module *)item)->unit);
}

/* The table's losses: by module, and summed by set, each unit once; NAN where the table has no row. */
static int read_losses(const struct mixture_plan *plan, int candidates, const struct sensitivity_table *table,
                       double *kl, double *losses)
{
    AUTO_FREE struct unit_module *units = NULL;
    size_t count = (size_t)plan->count;

    TRY(mem_array(&units, count + 1));
    for (int i = 0; i < plan->count; i++) {
        units[i] = (struct unit_module){plan->modules[i].unit, i};
    }
    qsort(units, count, sizeof(*units), unit_compare);
    for (int i = 0; i < table->count; i++) {
        const struct sensitivity_row *row = &table->rows[i];
        struct unit_module *at = bsearch(row->module, units, count, sizeof(*units), unit_find);
        if (at == NULL || row->candidate >= candidates) {
            continue;
        }
        while (at > units && strcmp(at[-1].unit, row->module) == 0) {
            at--;
        }
        for (; at < units + count && strcmp(at->unit, row->module) == 0; at++) {
            kl[(size_t)at->module * SENSITIVITY_CANDIDATES_MAX + (size_t)row->candidate] = row->kl;
        }
    }
    for (size_t i = 0; i < (size_t)plan->sets * SENSITIVITY_CANDIDATES_MAX; i++) {
        losses[i] = 0;
    }
    for (size_t i = 0; i < count; i++) {
        bool first = i == 0 || strcmp(units[i - 1].unit, units[i].unit) != 0;
        size_t module = (size_t)units[i].module, set = (size_t)plan->modules[module].set;
        for (size_t c = 0; first && c < SENSITIVITY_CANDIDATES_MAX; c++) {
            losses[set * SENSITIVITY_CANDIDATES_MAX + c] += kl[module * SENSITIVITY_CANDIDATES_MAX + c];
        }
    }
    return 0;
}

int mixture_choose(const struct recipe *recipe, const struct format *format, const struct model *model,
                   const struct sensitivity_table *table)
{
    struct mixture *mixture = recipe->mixture;
    AUTO(mixture_plan) struct mixture_plan plan = {0};
    AUTO(mixture_options) struct mixture_options options = {0};
    AUTO_FREE double *kl = NULL;
    AUTO_FREE double *losses = NULL;
    struct allocate_total total;

    TRY(mixture_plan(recipe, format, model, &plan));
    TRY(mem_array(&kl, (size_t)plan.count * SENSITIVITY_CANDIDATES_MAX + 1));
    TRY(mem_array(&losses, (size_t)plan.sets * SENSITIVITY_CANDIDATES_MAX + 1));
    for (size_t i = 0; i < (size_t)plan.count * SENSITIVITY_CANDIDATES_MAX; i++) {
        kl[i] = NAN;
    }
    TRY(read_losses(&plan, mixture->candidates.count, table, kl, losses));
    TRY(list_options(&plan, mixture->candidates.count, losses, &options));
    const struct mixture_module *without = without_option(&plan, &options);
    if (without != NULL) {
        return err_set_module(err_raise(ERR_INCOMPATIBLE_OPTIONS, "no candidate was measured for %s", without->name),
                              without->name);
    }
    double budget = floor(plan.limit - plan.fixed);
    TRY(allocate(options.sets, plan.sets, budget < 9e18 ? (int64_t)budget : INT64_MAX, options.choice, &total));
    TRY(take_choice(mixture, &plan, &options, kl));
    mixture->predicted_kl = total.loss;
    mixture->exact = total.exact;
    mixture->chosen = true;
    return 0;
}

/* Measurements that a pass may make: two for each unit, from which its other candidates follow. */
static int measurements(const struct recipe *recipe, const struct format *format, const struct model *model,
                        int64_t *out)
{
    AUTO(mixture_plan) struct mixture_plan plan = {0};
    int64_t units = 0;

    TRY(mixture_plan(recipe, format, model, &plan));
    for (int i = 0; i < plan.count; i++) {
        units += i == 0 || strcmp(plan.modules[i].unit, plan.modules[i - 1].unit) != 0;
    }
    int64_t all = 2 * units;
    *out = all < MIXTURE_MEASUREMENTS_MAX ? all : MIXTURE_MEASUREMENTS_MAX;
    return 0;
}

int mixture_pass_request(const struct recipe *recipe, const struct format *format, const struct model *model,
                         struct sensitivity_request *out)
{
    struct sensitivity_request request = {.candidates = &recipe->mixture->candidates,
                                          .max_tokens = MIXTURE_TOKENS_MAX,
                                          .kl_tokens = recipe->mixture->kl_tokens};

    TRY(measurements(recipe, format, model, &request.max_streams));
    *out = request;
    return 0;
}

int mixture_measure(const struct run *attempt)
{
    const struct pipeline *p = attempt->p;
    struct mixture *mixture = p->recipe->mixture;
    struct sensitivity_table table = {0};
    struct sensitivity_request request;

    if (mixture == NULL || mixture->chosen) {
        return 0;
    }
    TRY(mixture_pass_request(p->recipe, p->format, p->model, &request));
    TRY(sensitivity_pass(attempt, &request, MIXTURE_SHARE, &table));
    int rc = mixture_choose(p->recipe, p->format, p->model, &table);
    sensitivity_table_deinit(&table);
    return rc != 0 ? rc : mixture_save(mixture, p->directory);
}
