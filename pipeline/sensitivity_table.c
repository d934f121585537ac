/* The table of a sensitivity pass: how it is kept in the run's folder, and how well its predictions did. */

#include "pipeline/sensitivity.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SENSITIVITY_VERSION 1
#define SENSITIVITY_FILE_MAX ((size_t)256 << 20)

void sensitivity_table_deinit(struct sensitivity_table *table)
{
    free(table->rows);
    *table = (struct sensitivity_table){0};
}

static json_t *sensitivity_number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static double sensitivity_real(const json_t *value)
{
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static json_t *sensitivity_row_json(const struct sensitivity_row *row)
{
    return json_pack("[I, s, i, i, I, f, f, f, f, o, b, o]", (json_int_t)row->layer, row->module, row->set,
                     row->candidate, (json_int_t)row->parameters, row->bits_per_weight, row->relative_mse,
                     row->output_relative_mse, row->output_mse, sensitivity_number(row->kl), (int)row->measured,
                     sensitivity_number(row->predicted));
}

static bool sensitivity_row_read(const json_t *item, struct sensitivity_row *row)
{
    json_int_t layer, parameters;
    const json_t *kl, *predicted;
    const char *module;
    int measured;

    *row = (struct sensitivity_row){0};
    if (json_unpack((json_t *)item, "[I, s, i, i, I, F, F, F, F, o, b, o]", &layer, &module, &row->set, &row->candidate,
                    &parameters, &row->bits_per_weight, &row->relative_mse, &row->output_relative_mse, &row->output_mse,
                    &kl, &measured, &predicted) != 0 ||
        strlen(module) >= sizeof(row->module) || row->candidate < 0 || row->candidate >= SENSITIVITY_CANDIDATES_MAX) {
        return false;
    }
    row->layer = layer;
    row->parameters = parameters;
    row->measured = measured != 0;
    row->kl = sensitivity_real(kl);
    row->predicted = sensitivity_real(predicted);
    memcpy(row->module, module, strlen(module) + 1);
    return true;
}

int sensitivity_save(const char *directory, const char *key, int64_t blocks, const struct sensitivity_table *table)
{
    AUTO_JSON json_t *rows = json_array();
    AUTO_FREE char *text = NULL;
    char path[600];

    for (int i = 0; i < table->count; i++) {
        if (json_array_append_new(rows, sensitivity_row_json(&table->rows[i])) != 0) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a table of sensitivities");
        }
    }
    AUTO_JSON json_t *file = json_pack("{s:i, s:s, s:I, s:I, s:I, s:O?}", "version", SENSITIVITY_VERSION, "key", key,
                                       "blocks", (json_int_t)blocks, "tokens", (json_int_t)table->tokens, "kl_tokens",
                                       (json_int_t)table->kl_tokens, "rows", rows);
    text = file != NULL ? json_dumps(file, JSON_COMPACT) : NULL;
    if (text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a table of sensitivities");
    }
    TRY(fs_path(path, sizeof(path), "%s/%s", directory, SENSITIVITY_FILE));
    return fs_write_atomic(path, text, strlen(text));
}

static int sensitivity_unusable(void)
{
    return err_raise(ERR_NOT_FOUND, "there is no table of sensitivities for this request");
}

static int sensitivity_read_rows(const json_t *rows, struct sensitivity_table *table)
{
    size_t i;
    json_t *item;

    TRY(mem_array(&table->rows, json_array_size(rows) + 1));
    json_array_foreach((json_t *)rows, i, item)
    {
        if (!sensitivity_row_read(item, &table->rows[table->count++])) {
            return sensitivity_unusable();
        }
    }
    return 0;
}

int sensitivity_load(const char *directory, const char *key, int64_t *blocks, struct sensitivity_table *out)
{
    const struct json_budget budget = {.depth = 8, .memory = (size_t)4 << 30};
    struct sensitivity_table table = {0};
    AUTO_FREE char *text = NULL;
    AUTO_JSON json_t *file = NULL;
    char path[600];
    size_t size = 0;

    TRY(fs_path(path, sizeof(path), "%s/%s", directory, SENSITIVITY_FILE));
    if (fs_read_file(path, SENSITIVITY_FILE_MAX, &text, &size) != 0 ||
        json_parse_within(text, size, &budget, &file) != 0) {
        return sensitivity_unusable();
    }
    const char *made_under = json_get_string(file, "key");
    const json_t *rows = json_object_get(file, "rows");
    if (json_integer_value(json_object_get(file, "version")) != SENSITIVITY_VERSION || made_under == NULL ||
        strcmp(made_under, key) != 0 || !json_is_array(rows)) {
        return sensitivity_unusable();
    }
    int rc = sensitivity_read_rows(rows, &table);
    if (rc != 0) {
        sensitivity_table_deinit(&table);
        return rc;
    }
    table.tokens = json_integer_value(json_object_get(file, "tokens"));
    table.kl_tokens = json_integer_value(json_object_get(file, "kl_tokens"));
    *blocks = json_integer_value(json_object_get(file, "blocks"));
    *out = table;
    return 0;
}

static int sensitivity_ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The rank of each value among all, equals sharing the mean of theirs. */
static void sensitivity_ranks(const double *values, const double *sorted, int count, double *ranks)
{
    for (int i = 0; i < count; i++) {
        int below = 0, equal = 0;
        for (int k = 0; k < count; k++) {
            below += sorted[k] < values[i];
            equal += sorted[k] == values[i];
        }
        ranks[i] = below + 0.5 * (equal - 1);
    }
}

static double sensitivity_correlation(const double *x, const double *y, int count)
{
    double mean = 0.5 * (count - 1), xy = 0, xx = 0, yy = 0;

    for (int i = 0; i < count; i++) {
        xy += (x[i] - mean) * (y[i] - mean);
        xx += (x[i] - mean) * (x[i] - mean);
        yy += (y[i] - mean) * (y[i] - mean);
    }
    return xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : NAN;
}

struct sensitivity_law sensitivity_law(const struct sensitivity_table *table)
{
    struct sensitivity_law law = {.spearman = NAN, .median_log_error = NAN};
    double *values = calloc((size_t)table->count + 1, 5 * sizeof(*values));

    if (values == NULL) {
        return law;
    }
    double *kl = values, *predicted = kl + table->count, *sorted = predicted + table->count;
    double *kl_ranks = sorted + table->count, *predicted_ranks = kl_ranks + table->count;
    for (int i = 0; i < table->count; i++) {
        const struct sensitivity_row *row = &table->rows[i];
        if (row->measured && isfinite(row->predicted) && row->predicted > 0 && row->kl > 0) {
            kl[law.count] = row->kl;
            predicted[law.count++] = row->predicted;
        }
    }
    size_t size = (size_t)law.count * sizeof(*values);
    if (law.count >= 3) {
        memcpy(sorted, kl, size);
        qsort(sorted, (size_t)law.count, sizeof(*sorted), sensitivity_ascending);
        sensitivity_ranks(kl, sorted, law.count, kl_ranks);
        memcpy(sorted, predicted, size);
        qsort(sorted, (size_t)law.count, sizeof(*sorted), sensitivity_ascending);
        sensitivity_ranks(predicted, sorted, law.count, predicted_ranks);
        law.spearman = sensitivity_correlation(kl_ranks, predicted_ranks, law.count);
        for (int i = 0; i < law.count; i++) {
            sorted[i] = fabs(log(predicted[i] / kl[i]));
        }
        qsort(sorted, (size_t)law.count, sizeof(*sorted), sensitivity_ascending);
        law.median_log_error = 0.5 * (sorted[(law.count - 1) / 2] + sorted[law.count / 2]);
    }
    free(values);
    return law;
}
