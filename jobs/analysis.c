/* Notes of finished blocks, gathered for the report. A mean or worst value over blocks is null as soon as one block's
 * is: a number that leaves the worst out would mislead. */

#include "jobs/analysis.h"

#include "jobs/rows.h"
#include "pipeline/sensitivity.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

json_t *analysis_scales(const json_t *blocks)
{
    json_t *list = json_array();
    size_t i;
    json_t *block;

    json_array_foreach((json_t *)blocks, i, block)
    {
        json_t *note = json_object_get(json_object_get(block, "notes"), "kv_cache");
        if (note != NULL) {
            json_array_append(list, note);
        }
    }
    if (json_array_size(list) == 0) {
        json_decref(list);
        return json_null();
    }
    return list;
}

static json_t *summarize(const json_t *rows, const json_t *first)
{
    const char *scheme = json_string_value(json_object_get(first, "scheme"));
    json_t *worst = NULL;
    double sum = 0, most = -1;
    int count = 0, missing = 0;
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)rows, i, row)
    {
        const char *name = json_string_value(json_object_get(row, "scheme"));
        const json_t *error = json_object_get(row, "output_relative_mse");
        if (scheme == NULL || name == NULL || strcmp(name, scheme) != 0) {
            continue;
        }
        double value = json_number_value(error);
        bool known = json_is_number(error);
        sum += value;
        count++;
        missing += !known;
        if (!known || (missing == 0 && value > most)) {
            most = value;
            worst = json_object_get(row, "layer");
        }
    }
    bool whole = count > 0 && missing == 0;
    return json_pack("{s:O, s:O, s:o, s:o, s:O?}", "scheme", json_object_get(first, "scheme"), "bits_per_value",
                     json_object_get(first, "bits_per_value"), "mean_output_relative_mse",
                     whole ? json_real(sum / count) : json_null(), "worst_output_relative_mse",
                     whole ? json_real(most) : json_null(), "worst_layer", worst);
}

/* One candidate over all linears. */
static json_t *summarize_linears(const json_t *rows, const json_t *first)
{
    const json_t *scheme = json_object_get(first, "scheme");
    double bits = 0, parameters = 0, kl = 0, error = 0, most = -1;
    json_t *worst = NULL;
    int count = 0, measured = 0;
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)rows, i, row)
    {
        if (!json_equal(json_object_get(row, "scheme"), scheme)) {
            continue;
        }
        double weights = rows_number(row, "parameters"), own = rows_number(row, "kl");
        parameters += weights;
        bits += weights * rows_number(row, "bits_per_weight");
        error += weights * rows_number(row, "output_relative_mse");
        kl += own;
        count++;
        measured += json_is_true(json_object_get(row, "measured"));
        if (own > most) {
            most = own;
            worst = json_object_get(row, "module");
        }
    }
    return json_pack("{s:O, s:O, s:O, s:O, s:f, s:f, s:f, s:f, s:O?, s:i, s:i}", "scheme", scheme, "method",
                     json_object_get(first, "method"), "bits", json_object_get(first, "bits"), "group_size",
                     json_object_get(first, "group_size"), "bits_per_weight", bits / parameters,
                     "mean_output_relative_mse", error / parameters, "total_kl", kl, "worst_kl", most, "worst_module",
                     worst, "linears", count, "measured", measured);
}

/* What predictions were worth where both they and measurements are there. */
static json_t *analysis_predictions(const json_t *rows)
{
    struct sensitivity_table table = {.rows = calloc(json_array_size(rows) + 1, sizeof(*table.rows))};
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)(table.rows != NULL ? rows : NULL), i, row)
    {
        table.rows[table.count++] = (struct sensitivity_row){
            .kl = rows_number(row, "kl"),
            .predicted = rows_number(row, "predicted_kl"),
            .measured = json_is_true(json_object_get(row, "measured")),
        };
    }
    const struct sensitivity_law law = sensitivity_law(&table);
    sensitivity_table_deinit(&table);
    bool known = isfinite(law.spearman) && isfinite(law.median_log_error);
    return json_pack("{s:i, s:o, s:o}", "rows", law.count, "spearman", known ? json_real(law.spearman) : json_null(),
                     "median_ratio", known ? json_real(exp(law.median_log_error)) : json_null());
}

static bool analysis_lists(const json_t *schemes, const json_t *name)
{
    size_t i;
    json_t *scheme;

    json_array_foreach((json_t *)schemes, i, scheme)
    {
        if (json_equal(json_object_get(scheme, "scheme"), name)) {
            return true;
        }
    }
    return false;
}

/* Takes rows. */
static json_t *report_linears(json_t *rows)
{
    json_t *schemes = json_array();
    size_t i;
    json_t *row;

    json_array_foreach(rows, i, row)
    {
        if (!analysis_lists(schemes, json_object_get(row, "scheme"))) {
            json_array_append_new(schemes, summarize_linears(rows, row));
        }
    }
    return json_pack("{s:o, s:o, s:o}", "rows", rows, "schemes", schemes, "predictions", analysis_predictions(rows));
}

json_t *analysis_report(const json_t *blocks)
{
    json_t *rows = json_array(), *schemes;
    size_t i;
    json_t *item;

    json_array_foreach((json_t *)blocks, i, item)
    {
        json_t *note = json_object_get(json_object_get(item, "notes"), "analysis");
        if (note != NULL) {
            json_array_extend(rows, note);
        }
    }
    if (json_object_get(json_array_get(rows, 0), "module") != NULL) {
        return report_linears(rows);
    }
    schemes = json_array();
    const json_t *first = json_object_get(json_array_get(rows, 0), "layer");
    json_array_foreach(rows, i, item)
    {
        if (json_equal(json_object_get(item, "layer"), first)) {
            json_array_append_new(schemes, summarize(rows, item));
        }
    }
    if (json_array_size(rows) == 0) {
        json_decref(rows);
        json_decref(schemes);
        return json_null();
    }
    return json_pack("{s:o, s:o}", "rows", rows, "schemes", schemes);
}
