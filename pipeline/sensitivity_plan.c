/* What a sensitivity pass has rows for, which of them are measured, and what follows for the others.
 *
 * To second order, KL(float || quantized) = 1/2 dz^T F dz with F the Fisher information of the logits, and dz is linear
 * in what a unit's outputs lack. Between candidates of one unit the errors differ in size far more than in direction,
 * so kl is proportional to the output error: one measurement, the probe, gives the factor for all. That holds within
 * some hundredths for errors as small as those of 3 bits and more. At 2 bits they are of one sign and large, and kl is
 * 1.1 to 2 times what proportion says (on trained checkpoints of 4 M weights), enough to mislead a choice: so the
 * cheapest candidate is measured next, and what it is off by corrects units that have no such measurement. Where a unit
 * none, because there are more units than measurements, its factor is interpolated between those of the same path in
 * layers before and after it; along the depth the factor changes slowly, but for the first and the last layer. */

#include "pipeline/sensitivity_parts.h"

#include "base/err.h"
#include "base/mem.h"
#include "pipeline/solve.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLAN_SPARE 8 /* a share of the measurements is for second ones, by which predictions are checked */

/* The set of a module in its layer: the number of its first one in the plan. */
static int plan_set_of(const struct plan *plan, int module)
{
    for (int f = 0; f < plan->fused_count; f++) {
        for (int i = 0; i < plan->fused[f].count; i++) {
            if (plan->fused[f].modules[i] == module) {
                return plan->fused[f].modules[0];
            }
        }
    }
    return module;
}

/* Of expert 0's name that of all experts. */
static void plan_unit_name(struct run *run, int64_t layer, const struct sensitivity_unit *unit, char out[PLAN_NAME_MAX])
{
    const struct plan *plan = plans_layer(model_plans(run->p->model), layer);
    char name[PLAN_NAME_MAX], experts[PLAN_NAME_MAX];

    model_module_name(run->p->model, layer, unit->module, name);
    snprintf(out, PLAN_NAME_MAX, "%s", name);
    if (unit->step < 0) {
        return;
    }
    snprintf(experts, sizeof(experts), "%s.0.", plan->steps[unit->step].experts->path);
    const char *at = strstr(name, experts);
    if (at != NULL) {
        size_t stem = (size_t)(at - name) + strlen(experts) - 2;
        snprintf(out, PLAN_NAME_MAX, "%.*s*%s", (int)stem, name, name + stem + 1);
    }
}

/* Whether any of the unit's modules is to be quantized, and candidate c possible for it. */
static bool plan_possible(struct run *run, const struct sensitivity_unit *unit, int c)
{
    struct qscheme scheme;

    run->trial = &run->sensitivity->request->candidates->list[c].solver;
    run->block_index = unit->layer;
    for (int i = 0; i < unit->modules; i++) {
        if (module_solver(run, unit->module + i * unit->stride, &scheme) != NULL) {
            return true;
        }
    }
    return false;
}

static int plan_add_rows(struct run *run, struct sensitivity *s, struct sensitivity_unit *unit, int set)
{
    const struct plan_module *module = &plans_layer(model_plans(run->p->model), unit->layer)->modules[unit->module];
    int count = s->request->candidates->count;

    unit->first_row = s->table.count;
    unit->probe = -1;
    for (int c = 0; c < count; c++) {
        if (!plan_possible(run, unit, c)) {
            continue;
        }
        struct sensitivity_row *row = &s->table.rows[s->table.count++];
        *row = (struct sensitivity_row){.layer = unit->layer,
                                        .set = set,
                                        .candidate = c,
                                        .parameters = unit->modules * module->rows * module->cols,
                                        .kl = NAN,
                                        .predicted = NAN};
        plan_unit_name(run, unit->layer, unit, row->module);
        unit->rows++;
    }
    return unit->rows;
}

/* The unit that begins with a module; modules 0: the module is not the first of one. */
static struct sensitivity_unit plan_unit(const struct plan *plan, int64_t layer, int module)
{
    struct sensitivity_unit unit = {.layer = layer, .step = -1, .module = module, .modules = 1};

    if (plan->modules[module].expert < 0) {
        return unit;
    }
    for (int i = 0; i < plan->step_count; i++) {
        const struct plan_experts *experts = plan->steps[i].kind == STEP_EXPERTS ? plan->steps[i].experts : NULL;
        if (experts != NULL && module >= experts->first_module &&
            module < experts->first_module + experts->plan->module_count) {
            unit.step = i;
            unit.stride = experts->plan->module_count;
            unit.modules = (int)experts->count;
            return unit;
        }
    }
    unit.modules = 0;
    return unit;
}

static void plan_layer(struct run *run, struct sensitivity *s, int64_t layer, int *sets)
{
    const struct plan *plan = plans_layer(model_plans(run->p->model), layer);
    int first = s->unit_count;

    for (int m = 0; m < plan->module_count; m++) {
        struct sensitivity_unit unit = plan_unit(plan, layer, m);
        int set = -1, tied = unit.step >= 0 ? -1 - unit.step : plan_set_of(plan, m);
        for (int i = first; i < s->unit_count; i++) {
            const struct sensitivity_unit *other = &s->units[i];
            int theirs = other->step >= 0 ? -1 - other->step : plan_set_of(plan, other->module);
            set = theirs == tied ? s->table.rows[other->first_row].set : set;
        }
        if (unit.modules > 0 && plan_add_rows(run, s, &unit, set >= 0 ? set : *sets) > 0) {
            *sets += set < 0;
            s->units[s->unit_count++] = unit;
        }
    }
}

/* The row of a unit that its other rows are predicted from: the middle one by size. */
static int plan_probe(const struct sensitivity *s, const struct sensitivity_unit *unit)
{
    const struct sensitivity_candidate *list = s->request->candidates->list;
    int chosen = unit->first_row, target = (unit->rows - 1) / 2;

    for (int i = 0; i < unit->rows; i++) {
        const struct sensitivity_candidate *c = &list[s->table.rows[unit->first_row + i].candidate];
        int below = 0;
        for (int k = 0; k < unit->rows; k++) {
            const struct sensitivity_candidate *other = &list[s->table.rows[unit->first_row + k].candidate];
            below += other->bits < c->bits || (other->bits == c->bits && k < i);
        }
        chosen = below == target ? unit->first_row + i : chosen;
    }
    return chosen;
}

/* Layers that are probed when only `count` of them can be: evenly over the depth, with the first and the last. */
static bool plan_is_sampled(int64_t layer, int64_t layers, int64_t count)
{
    if (count >= layers) {
        return true;
    }
    for (int64_t i = 0; i < count; i++) {
        if (layer == (count > 1 ? (i * (layers - 1) + (count - 1) / 2) / (count - 1) : layers / 2)) {
            return true;
        }
    }
    return false;
}

static int64_t plan_probes(const struct sensitivity *s, int64_t layers, int64_t count)
{
    int64_t probes = 0;

    for (int i = 0; i < s->unit_count; i++) {
        probes += plan_is_sampled(s->units[i].layer, layers, count);
    }
    return probes;
}

/* Of a unit's rows other than the probe, by bits, number n; -1: it has fewer. */
static int plan_other(const struct sensitivity *s, const struct sensitivity_unit *unit, int n)
{
    const struct sensitivity_candidate *list = s->request->candidates->list;

    for (int i = unit->first_row; i < unit->first_row + unit->rows; i++) {
        int bits = list[s->table.rows[i].candidate].bits, below = 0;
        for (int k = unit->first_row; k < unit->first_row + unit->rows; k++) {
            int other = list[s->table.rows[k].candidate].bits;
            below += k != unit->probe && (other < bits || (other == bits && k < i));
        }
        if (i != unit->probe && below == n) {
            return i;
        }
    }
    return -1;
}

/* `count` more measurements of units that have one, evenly: of the candidates of fewest bits, whose kl grows beyond
 * proportion, and once all units have that, of the next. */
static void plan_checks(struct sensitivity *s, int64_t probes, int64_t count)
{
    for (int turn = 0; count > 0 && turn + 1 < s->request->candidates->count; turn++) {
        int64_t now = count < probes ? count : probes, seen = 0, done = 0;
        for (int i = 0; i < s->unit_count; i++) {
            const struct sensitivity_unit *unit = &s->units[i];
            if (unit->probe >= 0 && ++seen * now / probes > done) {
                int row = plan_other(s, unit, turn);
                done++;
                if (row >= 0) {
                    s->planned[row] = true;
                    count--;
                }
            }
        }
    }
}

static void plan_measurements(struct sensitivity *s, int64_t layers)
{
    int64_t most = s->request->max_streams, spare = most / PLAN_SPARE, sampled = layers;

    bool all = s->table.count <= most;
    while (!all && sampled > 1 && plan_probes(s, layers, sampled) > most - spare) {
        sampled--;
    }
    for (int i = 0; i < s->unit_count; i++) {
        struct sensitivity_unit *unit = &s->units[i];
        if (plan_is_sampled(unit->layer, layers, sampled)) {
            unit->probe = plan_probe(s, unit);
            s->planned[unit->probe] = true;
        }
    }
    if (all) {
        memset(s->planned, 1, (size_t)s->table.count * sizeof(*s->planned));
        return;
    }
    int64_t probes = plan_probes(s, layers, sampled);
    if (probes > 0 && most > probes) {
        plan_checks(s, probes, most - probes);
    }
}

int sensitivity_plan(struct run *run, struct sensitivity *s)
{
    size_t modules = plans_modules(model_plans(run->p->model));
    size_t rows = modules * (size_t)s->request->candidates->count;
    int sets = 0;

    TRY(mem_array(&s->units, modules + 1));
    TRY(mem_array(&s->table.rows, rows + 1));
    for (int64_t layer = 0; layer < run->config->num_layers; layer++) {
        plan_layer(run, s, layer, &sets);
    }
    if (s->table.count == 0) {
        return err_raise(ERR_INCOMPATIBLE_OPTIONS, "no candidate is possible for any linear of the model");
    }
    TRY(mem_array(&s->sums, (size_t)s->table.count));
    TRY(mem_array(&s->planned, (size_t)s->table.count));
    TRY(mem_array(&s->experts, (size_t)s->table.count));
    plan_measurements(s, run->config->num_layers);
    return 0;
}

void sensitivity_plan_deinit(struct sensitivity *s)
{
    free(s->units);
    free(s->sums);
    free(s->planned);
    free(s->experts);
    sensitivity_table_deinit(&s->table);
}

int sensitivity_units(const struct sensitivity *s, int64_t layer, int *first)
{
    int count = 0;

    *first = 0;
    while (*first < s->unit_count && s->units[*first].layer < layer) {
        (*first)++;
    }
    while (*first + count < s->unit_count && s->units[*first + count].layer == layer) {
        count++;
    }
    return count;
}

const struct sensitivity_unit *sensitivity_unit_of(const struct sensitivity *s, int64_t layer, int module)
{
    int first, count = sensitivity_units(s, layer, &first);

    for (int i = first; i < first + count; i++) {
        const struct sensitivity_unit *unit = &s->units[i];
        int at = module - unit->module;
        if (at == 0 || (unit->stride > 0 && at > 0 && at % unit->stride == 0 && at / unit->stride < unit->modules)) {
            return unit;
        }
    }
    return NULL;
}

int sensitivity_row_of(const struct sensitivity *s, const struct sensitivity_unit *unit, int candidate)
{
    for (int i = 0; i < unit->rows; i++) {
        if (s->table.rows[unit->first_row + i].candidate == candidate) {
            return unit->first_row + i;
        }
    }
    return -1;
}

int sensitivity_planned(const struct sensitivity *s, int64_t layer)
{
    int first, count = sensitivity_units(s, layer, &first), planned = 0;

    for (int i = first; i < first + count; i++) {
        for (int r = 0; r < s->units[i].rows; r++) {
            planned += s->planned[s->units[i].first_row + r];
        }
    }
    return planned;
}

/* kl of a row for each unit of output error; NAN: neither is known, or one is zero. */
static double predict_factor(const struct sensitivity_row *row)
{
    double factor = row->measured && row->output_mse > 0 ? row->kl / row->output_mse : NAN;
    return factor > 0 ? factor : NAN;
}

/* Between the measured rows of the unit whose errors are next to this one's, on a line in logarithms; beyond them in
 * proportion. NAN: nothing was measured of it. */
static double predict_within(const struct sensitivity *s, const struct sensitivity_unit *unit, double output_mse)
{
    const struct sensitivity_row *below = NULL, *above = NULL;

    for (int i = 0; i < unit->rows; i++) {
        const struct sensitivity_row *row = &s->table.rows[unit->first_row + i];
        if (isnan(predict_factor(row))) {
            continue;
        }
        if (row->output_mse <= output_mse && (below == NULL || row->output_mse > below->output_mse)) {
            below = row;
        }
        if (row->output_mse >= output_mse && (above == NULL || row->output_mse < above->output_mse)) {
            above = row;
        }
    }
    if (below == NULL || above == NULL || below->output_mse >= above->output_mse) {
        const struct sensitivity_row *one = below != NULL ? below : above;
        return one != NULL ? predict_factor(one) * output_mse : NAN;
    }
    double at = log(output_mse / below->output_mse) / log(above->output_mse / below->output_mse);
    return exp((1 - at) * log(below->kl) + at * log(above->kl));
}

/* The path of a unit below its layer. */
static const char *predict_path(struct sensitivity *s, const struct sensitivity_unit *unit)
{
    const char *name = s->table.rows[unit->first_row].module, *at = name;

    while (*at != '\0' && !(*at >= '0' && *at <= '9')) {
        at++;
    }
    while (*at >= '0' && *at <= '9') {
        at++;
    }
    return at;
}

/* Units of the same path next to this one in depth whose probe is known: of layers other than the first and the last,
 * which are unlike the others, or of all. */
static void predict_neighbours(struct sensitivity *s, const struct sensitivity_unit *unit, bool inner,
                               const struct sensitivity_unit **before, const struct sensitivity_unit **after)
{
    int64_t last = s->units[s->unit_count - 1].layer;

    *before = *after = NULL;
    for (int i = 0; i < s->unit_count; i++) {
        const struct sensitivity_unit *other = &s->units[i];
        bool outer = other->layer == 0 || other->layer == last;
        if (other->probe < 0 || (inner && outer) || isnan(predict_factor(&s->table.rows[other->probe])) ||
            strcmp(predict_path(s, other), predict_path(s, unit)) != 0) {
            continue;
        }
        *before = other->layer < unit->layer ? other : *before;
        *after = other->layer > unit->layer && *after == NULL ? other : *after;
    }
}

/* The mean factor of all probes, for a unit whose path has none. */
static double predict_mean(const struct sensitivity *s)
{
    double sum = 0;
    int count = 0;

    for (int i = 0; i < s->unit_count; i++) {
        double factor = s->units[i].probe >= 0 ? predict_factor(&s->table.rows[s->units[i].probe]) : NAN;
        sum += isnan(factor) ? 0 : log(factor);
        count += !isnan(factor);
    }
    return count > 0 ? exp(sum / count) : 0;
}

/* The factor of a unit that nothing was measured of, by those of its path in other layers; else by all. */
static double predict_across(struct sensitivity *s, const struct sensitivity_unit *unit)
{
    const struct sensitivity_unit *before, *after;

    predict_neighbours(s, unit, true, &before, &after);
    if (before == NULL && after == NULL) {
        predict_neighbours(s, unit, false, &before, &after);
    }
    if (before == NULL && after == NULL) {
        return predict_mean(s);
    }
    const struct sensitivity_unit *from = before != NULL ? before : after, *to = after != NULL ? after : before;
    double first = log(predict_factor(&s->table.rows[from->probe]));
    double last = log(predict_factor(&s->table.rows[to->probe]));
    double at = to->layer > from->layer ? (double)(unit->layer - from->layer) / (double)(to->layer - from->layer) : 0;
    return exp((1 - at) * first + at * last);
}

/* ln of what kl of a candidate is, where it was measured, divided by what the probe says in proportion: the mean over
 * units of this one's path, or where it has none over all; 0: nowhere. */
static double predict_bend(struct sensitivity *s, const struct sensitivity_unit *unit, int candidate)
{
    double sums[2] = {0, 0}; /* of all, of the path */
    int counts[2] = {0, 0};

    for (int i = 0; i < s->unit_count; i++) {
        const struct sensitivity_unit *other = &s->units[i];
        int at = other->probe >= 0 ? sensitivity_row_of(s, other, candidate) : -1;
        double own = at >= 0 ? predict_factor(&s->table.rows[at]) : NAN;
        double probe = at >= 0 ? predict_factor(&s->table.rows[other->probe]) : NAN;
        if (isnan(own) || isnan(probe)) {
            continue;
        }
        bool path = strcmp(predict_path(s, other), predict_path(s, unit)) == 0;
        for (int k = 0; k <= path; k++) {
            sums[k] += log(own / probe);
            counts[k]++;
        }
    }
    int from = counts[1] > 0;
    return counts[from] > 0 ? sums[from] / counts[from] : 0;
}

/* kl of a row that was not measured. */
static double predict_row(struct sensitivity *s, const struct sensitivity_unit *unit, const struct sensitivity_row *row)
{
    int known = 0;

    if (!(row->output_mse > 0)) {
        return 0;
    }
    for (int i = 0; i < unit->rows; i++) {
        known += !isnan(predict_factor(&s->table.rows[unit->first_row + i]));
    }
    double kl = known > 0 ? predict_within(s, unit, row->output_mse) : predict_across(s, unit) * row->output_mse;
    return known > 1 ? kl : kl * exp(predict_bend(s, unit, row->candidate));
}

static void predict_unit(struct sensitivity *s, const struct sensitivity_unit *unit)
{
    double factor = unit->probe >= 0 ? predict_factor(&s->table.rows[unit->probe]) : NAN;

    for (int i = 0; i < unit->rows; i++) {
        struct sensitivity_row *row = &s->table.rows[unit->first_row + i];
        if (row->measured) {
            row->predicted = unit->first_row + i != unit->probe ? factor * row->output_mse : NAN;
            continue;
        }
        row->kl = predict_row(s, unit, row);
    }
}

void sensitivity_predict(struct sensitivity *s)
{
    for (int i = 0; i < s->unit_count; i++) {
        predict_unit(s, &s->units[i]);
    }
}
