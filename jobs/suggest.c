/* Changes of methods, inputs and calibration; the order of all. What a change removes is a share of the sum of errors
 * weighed by parameters, as "anatomy" has it. Nothing is suggested that the job's own checks refuse. */

#include "jobs/suggest_internal.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REMOVED_MIN 0.01 /* of the job's error, that a change has to remove */
#define ERROR_MIN 1e-4   /* mean, below which nothing is suggested */
#define MODULES_NAMED 24
#define KURTOSIS_LOW 2.5 /* about normally distributed */
#define KURTOSIS_HIGH 4.5
#define REFINED_RATIO 0.8   /* left of the error by refinement; docs/reports.md */
#define UNROUNDED_RATIO 0.6 /* left by GPTQ of what rounding loses; likewise */

int64_t suggest_whole(const struct suggest_work *work, const char *name)
{
    const json_t *value = json_object_get(work->quantization, name);
    return json_is_integer(value) ? (int64_t)json_integer_value(value) : -1;
}

const char *suggest_text(const struct suggest_work *work, const char *name)
{
    const char *text = json_string_value(json_object_get(work->quantization, name));
    return text != NULL ? text : "";
}

json_t *suggest_patch_take(const char *name, json_t *value)
{
    return json_pack("{s:{s:o}}", "quantization", name, value);
}

double suggest_set_loss(const struct suggest_set *set)
{
    double loss = 0;

    for (size_t i = 0; i < set->count; i++) {
        loss += set->list[i]->loss;
    }
    return loss;
}

static bool set_has(const struct suggest_set *set, const struct anatomy_row *row)
{
    for (size_t i = 0; i < set->count; i++) {
        if (set->list[i] == row) {
            return true;
        }
    }
    return false;
}

static const struct anatomy_row *module_row(const struct suggest_work *work, const char *module)
{
    for (size_t i = 0; i < work->rows.count; i++) {
        if (strcmp(work->rows.list[i].module, module) == 0) {
            return &work->rows.list[i];
        }
    }
    return NULL;
}

void suggest_set_add(const struct suggest_work *work, struct suggest_set *set, const struct anatomy_row *row)
{
    const struct suggest *from = work->from;
    json_t *joined = from->fused != NULL ? from->fused(from->data, row->layer, row->module) : NULL, *name;
    size_t i;

    if (!set_has(set, row)) {
        set->list[set->count++] = row;
    }
    json_array_foreach(joined, i, name)
    {
        const struct anatomy_row *other = module_row(work, json_string_value(name));
        if (other != NULL && !set_has(set, other)) {
            set->list[set->count++] = other;
        }
    }
    json_decref(joined);
}

/* The override of exactly this module gets the members; else a new one, with what the module has of its own. */
static void override_module(const struct suggest_work *work, json_t *list, const struct anatomy_row *row,
                            const json_t *members)
{
    int64_t bits = suggest_whole(work, "bits"), group = suggest_whole(work, "group_size");
    json_t *override;
    size_t i;

    json_array_foreach(list, i, override)
    {
        const char *match = json_string_value(json_object_get(override, "match"));
        if (match != NULL && strcmp(match, row->module) == 0) {
            json_object_update(override, (json_t *)members);
            return;
        }
    }
    override = json_pack("{s:s}", "match", row->module);
    if (bits > 0 && row->bits != bits) {
        json_object_set_new(override, "bits", json_integer(row->bits));
    }
    if (group != -1 && row->group_size != group && suggest_whole(work, "group_size") > 0) {
        json_object_set_new(override, "group_size", json_integer(row->group_size));
    }
    json_object_update(override, (json_t *)members);
    json_array_append_new(list, override);
}

json_t *suggest_overrides(const struct suggest_work *work, const struct suggest_set *set, const json_t *members)
{
    json_t *given = json_object_get(work->quantization, "overrides");
    json_t *list = json_is_array(given) ? json_deep_copy(given) : json_array();

    for (size_t i = 0; i < set->count; i++) {
        override_module(work, list, set->list[i], members);
    }
    return list;
}

static bool accepted(const struct suggest_work *work, const json_t *patch)
{
    AUTO_JSON json_t *body = json_merge_patch(work->from->request, patch);

    return body != NULL && !json_equal(body, work->from->request) && work->from->accepts(work->from->data, body);
}

static json_t *number_or_null_of(double value)
{
    return isnan(value) ? json_null() : json_real(value);
}

bool suggest_add(struct suggest_work *work, struct suggest_change *change)
{
    double loss = suggest_set_loss(change->set), removed = change->removed / work->rows.loss;
    json_t *modules = json_array();

    if (work->count == (int)(sizeof(work->items) / sizeof(work->items[0])) || removed < REMOVED_MIN ||
        change->set->count == 0 || !accepted(work, change->patch)) {
        json_decref(change->patch);
        json_decref(modules);
        return false;
    }
    for (size_t i = 0; i < change->set->count && i < MODULES_NAMED; i++) {
        json_array_append_new(modules, json_string(change->set->list[i]->module));
    }
    /* An unknown effect ranks as the least that is suggested. Free of bytes: before all that costs some. */
    double gain = isnan(removed) ? REMOVED_MIN : removed;
    double key = change->first ? 1e300 : change->bytes > 0 ? gain / change->bytes : 1e100 * gain;
    json_t *object = json_pack("{s:o, s:s, s:o, s:I, s:o, s:o, s:I, s:s}", "patch", change->patch, "reason",
                               change->reason, "modules", modules, "module_count", (json_int_t)change->set->count,
                               "error_ratio", number_or_null_of(loss > 0 ? 1 - change->removed / loss : NAN),
                               "error_removed", number_or_null_of(removed), "bytes_added",
                               (json_int_t)llround(change->bytes), "basis", change->basis);
    if (object == NULL) {
        return false;
    }
    work->items[work->count++] = (struct suggest_item){object, key};
    return true;
}

/* --- calibration */

/* Sequences enough for twice as many tokens as any of the modules has inputs. */
static void suggest_tokens(struct suggest_work *work)
{
    struct suggest_set set = {work->space, 0};
    const json_t *calibration = json_object_get(work->from->request, "calibration");
    int64_t samples = json_integer_value(json_object_get(calibration, "num_samples")), cols = 0;
    int64_t length = json_integer_value(json_object_get(calibration, "sequence_length"));
    struct suggest_change change = {.set = &set, .removed = NAN, .first = true};

    for (size_t i = 0; i < work->rows.count; i++) {
        if (work->rows.list[i].cause == CAUSE_TOKENS) {
            set.list[set.count++] = &work->rows.list[i];
            cols = work->rows.list[i].cols > cols ? work->rows.list[i].cols : cols;
        }
    }
    int64_t more = length > 0 ? (2 * cols + length - 1) / length : 0;
    bool held = work->from->calibration_tokens > samples * length; /* there are records that were not used */
    bool stream = json_is_true(json_object_get(calibration, "stream"));
    if (set.count == 0 || samples <= 0 || more <= samples || (!held && !stream)) {
        return;
    }
    change.patch = json_pack("{s:{s:I}}", "calibration", "num_samples", (json_int_t)more);
    (void)snprintf(change.reason, sizeof(change.reason),
                   "%zu modules were solved from fewer tokens than they have inputs (%lld of %lld); %lld sequences "
                   "give two for each input%s",
                   set.count, (long long)set.list[0]->tokens, (long long)cols, (long long)more,
                   held ? "" : ", which takes more records");
    (void)snprintf(change.basis, sizeof(change.basis),
                   "not predicted: the report's error is measured on the same tokens that it was minimized on, so it "
                   "is too low now; an evaluation set shows the effect");
    (void)suggest_add(work, &change);
}

/* --- methods */

static const char *sole_method(const struct suggest_work *work)
{
    const json_t *method = json_object_get(work->from->request, "method");
    const char *name =
        json_string_value(json_is_array(method) && json_array_size(method) == 1 ? json_array_get(method, 0) : method);
    return name != NULL ? name : "";
}

/* How much AWQ gains depends on what else shares a group with a large channel, which only its own search finds. */
static void suggest_awq(struct suggest_work *work, const char *method)
{
    struct suggest_set set = {work->space, 0};
    struct suggest_change change = {.set = &set, .removed = NAN};
    double even = 0, loss;
    char a[32], b[32];

    for (size_t i = 0; i < work->rows.count; i++) {
        const struct anatomy_row *row = &work->rows.list[i];
        if (row->cause == CAUSE_CHANNELS && row->evenness < 0.5) {
            set.list[set.count++] = row;
            even += row->loss * row->evenness;
        }
    }
    loss = suggest_set_loss(&set);
    if (set.count == 0 || loss < 0.1 * work->rows.loss) {
        return;
    }
    change.patch = json_pack("{s:[s, s]}", "method", "awq", strcmp(method, "rtn") == 0 ? "rtn" : "gptq");
    (void)snprintf(change.reason, sizeof(change.reason),
                   "a few input channels carry the error of %zu modules (%s of the job's error); AWQ moves part of "
                   "their range from the inputs into the weights before these are solved",
                   set.count, anatomy_percent(loss / work->rows.loss, a));
    (void)snprintf(change.basis, sizeof(change.basis),
                   "not predicted; errors alike in all channels would leave %s of these modules' error "
                   "(input_evenness), and AWQ keeps only what its search finds to lower the error",
                   anatomy_percent(even / loss, b));
    (void)suggest_add(work, &change);
}

static void all_rows(const struct suggest_work *work, const char *method, struct suggest_set *set)
{
    for (size_t i = 0; i < work->rows.count; i++) {
        if (strcmp(work->rows.list[i].method, method) == 0) {
            set->list[set->count++] = &work->rows.list[i];
        }
    }
}

/* Rounded to nearest, with inputs at hand that GPTQ would use. */
static void suggest_gptq(struct suggest_work *work, const char *method)
{
    struct suggest_set set = {work->space, 0};
    struct suggest_change change = {.set = &set};

    all_rows(work, "rtn", &set);
    if (strcmp(method, "rtn") != 0 || !work->from->calibrated) {
        return;
    }
    change.patch = json_pack("{s:s}", "method", "gptq");
    change.removed = suggest_set_loss(&set) * (1 - UNROUNDED_RATIO);
    (void)snprintf(change.reason, sizeof(change.reason),
                   "weights are rounded one by one although there is calibration data; GPTQ lets the remaining weights "
                   "of a row make up for each rounding, in the same bytes");
    (void)snprintf(change.basis, sizeof(change.basis),
                   "usually GPTQ leaves %.1f or less of the output error of rounding (docs/reports.md); not measured "
                   "on this model",
                   UNROUNDED_RATIO);
    (void)suggest_add(work, &change);
}

static void suggest_refinement(struct suggest_work *work, const char *method)
{
    struct suggest_set set = {work->space, 0};
    struct suggest_change change = {.set = &set};

    if (suggest_whole(work, "refine_rounds") != 0 || !work->from->calibrated) {
        return;
    }
    all_rows(work, method, &set);
    change.patch = suggest_patch_take("refine_rounds", json_integer(2));
    change.removed = suggest_set_loss(&set) * (1 - REFINED_RATIO);
    (void)snprintf(change.reason, sizeof(change.reason),
                   "codes and scales were not refined; two rounds move them one at a time to lower the output error, "
                   "in the same bytes");
    (void)snprintf(
        change.basis, sizeof(change.basis),
        "refinement never raises the error that it minimizes; it usually leaves about %.1f (docs/reports.md)",
        REFINED_RATIO);
    (void)suggest_add(work, &change);
}

/* The share of its error that the best range leaves of a row of which each grid covers the full range. */
static double search_ratio(const struct anatomy_row *row)
{
    /* The error of the best uniform grid of 2, 3 and 4 bits for normally distributed numbers of mean square 1. */
    static const double best[] = {[2] = 0.1188, [3] = 0.03744, [4] = 0.01154};

    if (row->bits < 2 || row->bits > 4 || !(row->full_range > 0) || isnan(row->square)) {
        return 1;
    }
    if (!(row->kurtosis >= KURTOSIS_LOW && row->kurtosis <= KURTOSIS_HIGH)) {
        return 1; /* outliers that carry much of the energy are not to be cut off */
    }
    return fmin(1, best[row->bits] * row->square / row->full_range);
}

/* The search of each group's range, where rounding takes the full range. */
static void suggest_search(struct suggest_work *work)
{
    struct suggest_set set = {work->space, 0};
    struct suggest_change change = {.set = &set};
    const char *search = suggest_text(work, "scale_search");
    bool full = json_is_false(json_object_get(work->quantization, "mse_search")) && strcmp(search, "auto") == 0;

    if (!full && strcmp(search, "minmax") != 0) {
        return;
    }
    for (size_t i = 0; i < work->rows.count; i++) {
        const struct anatomy_row *row = &work->rows.list[i];
        if (search_ratio(row) < 0.95) {
            set.list[set.count++] = row;
            change.removed += row->loss * (1 - search_ratio(row));
        }
    }
    change.patch = suggest_patch_take("scale_search", json_string("mse"));
    (void)snprintf(change.reason, sizeof(change.reason),
                   "each grid covers the extremes of its group; a search cuts them off where that lowers the error of "
                   "the other weights by more, in the same bytes");
    (void)snprintf(change.basis, sizeof(change.basis),
                   "the error of the best grid for normally distributed weights of the same mean square (0.12, 0.037, "
                   "0.012 of it in 2, 3, 4 bits) by full_range_mse");
    (void)suggest_add(work, &change);
}

/* --- inputs */

static void suggest_inputs(struct suggest_work *work)
{
    struct suggest_set set = {work->space, 0};
    struct suggest_change change = {.set = &set, .removed = NAN};
    bool fp8 = suggest_text(work, "activation_scheme")[0] != '\0';

    for (size_t i = 0; i < work->rows.count; i++) {
        if (work->rows.list[i].input_outlier) {
            set.list[set.count++] = &work->rows.list[i];
        }
    }
    if (set.count == 0) {
        return;
    }
    change.patch = fp8 ? suggest_patch_take("activation_scheme", json_string("dynamic"))
                       : suggest_patch_take("activation_dynamic", json_true());
    (void)snprintf(change.reason, sizeof(change.reason),
                   "a few large inputs determine the static scale of %zu modules; dynamic scales give every token its "
                   "own, at some cost of speed in the runtime",
                   set.count);
    (void)snprintf(change.basis, sizeof(change.basis),
                   "input_error, the part of the output error that static scales cause, goes; what dynamic scales "
                   "cause is not measured");
    (void)suggest_add(work, &change);
}

/* --- all */

static int by_key(const void *a, const void *b)
{
    double x = ((const struct suggest_item *)a)->key, y = ((const struct suggest_item *)b)->key;
    return (x < y) - (x > y);
}

static json_t *take_best(struct suggest_work *work)
{
    json_t *list = json_array();

    qsort(work->items, (size_t)work->count, sizeof(work->items[0]), by_key);
    for (int i = 0; i < work->count; i++) {
        if (i < SUGGEST_MAX) {
            json_array_append(list, work->items[i].object);
        }
        json_decref(work->items[i].object);
    }
    return list;
}

json_t *suggest_changes(const struct suggest *from)
{
    struct suggest_work work = {.from = from, .quantization = json_object_get(from->request, "quantization")};
    const char *method;

    if (anatomy_read(from->rows, &work.rows) != 0) {
        return NULL;
    }
    work.space = calloc(2 * work.rows.count + 1, sizeof(*work.space));
    if (work.space == NULL) {
        anatomy_deinit(&work.rows);
        return NULL;
    }
    if (anatomy_mean(&work.rows) >= ERROR_MIN) {
        method = sole_method(&work);
        suggest_tokens(&work);
        if (strcmp(method, "gptq") == 0 || (strcmp(method, "rtn") == 0 && from->calibrated)) {
            suggest_awq(&work, method);
        }
        suggest_gptq(&work, method);
        suggest_refinement(&work, method);
        suggest_search(&work);
        suggest_inputs(&work);
        suggest_grids(&work);
    }
    json_t *list = take_best(&work);
    free(work.space);
    anatomy_deinit(&work.rows);
    return list;
}
