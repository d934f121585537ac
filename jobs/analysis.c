/* Notes of finished blocks, gathered for the report. A mean or worst value over blocks is null as soon as one block's
 * is: a number that leaves the worst out would mislead. */

#include "jobs/analysis.h"

#include <stdbool.h>
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

json_t *analysis_report(const json_t *blocks)
{
    json_t *rows = json_array(), *schemes = json_array();
    size_t i;
    json_t *item;

    json_array_foreach((json_t *)blocks, i, item)
    {
        json_t *note = json_object_get(json_object_get(item, "notes"), "analysis");
        if (note != NULL) {
            json_array_extend(rows, note);
        }
    }
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
