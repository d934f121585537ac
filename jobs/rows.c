/* Report rows as JSON: as they are stored and shown, and what they add up to. */

#include "jobs/rows.h"

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define COLUMNS_MAX 63

static const char *columns[COLUMNS_MAX + 1];
static pthread_once_t columns_once = PTHREAD_ONCE_INIT;

static void list_columns(void)
{
    for (size_t i = 0; report_columns[i].name != NULL && i < COLUMNS_MAX; i++) {
        columns[i] = report_columns[i].name;
    }
}

const char *const *rows_columns(void)
{
    (void)pthread_once(&columns_once, list_columns);
    return columns;
}

static json_t *rows_value(const struct report_row *row, const struct report_column *column)
{
    const char *at = (const char *)row + column->offset;
    int64_t number;
    double real;

    switch (column->type) {
    case REPORT_TEXT:
        return at[0] != '\0' ? json_string(at) : json_null();
    case REPORT_REAL:
        memcpy(&real, at, sizeof(real));
        return isfinite(real) ? json_real(real) : json_null();
    case REPORT_INT:
    case REPORT_COUNT:
    case REPORT_FLAG:
        break;
    }
    memcpy(&number, at, sizeof(number));
    if (column->type != REPORT_INT && number < 0) {
        return json_null();
    }
    return column->type == REPORT_FLAG ? json_boolean(number != 0) : json_integer((json_int_t)number);
}

json_t *rows_json(const struct report_row *rows, int count)
{
    json_t *list = json_array();

    for (int i = 0; list != NULL && i < count; i++) {
        json_t *row = json_object();
        for (const struct report_column *column = report_columns; column->name != NULL; column++) {
            json_object_set_new(row, column->name, rows_value(&rows[i], column));
        }
        if (json_array_append_new(list, row) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

void rows_complete(json_t *rows)
{
    size_t i;
    json_t *row;

    json_array_foreach(rows, i, row)
    {
        for (const struct report_column *column = report_columns; column->name != NULL; column++) {
            if (json_object_get(row, column->name) == NULL) {
                json_object_set_new(row, column->name, json_null());
            }
        }
    }
}

double rows_number(const json_t *row, const char *key)
{
    const json_t *value = json_object_get(row, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static double rows_member(const json_t *row, const char *key)
{
    return json_number_value(json_object_get(row, key));
}

/* The mean of a member over the rows that have it, by their parameters; null where none has. */
static json_t *rows_mean(const json_t *rows, const char *key)
{
    double sum = 0;
    double parameters = 0;
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)rows, i, row)
    {
        if (json_is_number(json_object_get(row, key))) {
            double n = rows_member(row, "parameters");
            sum += n * rows_member(row, key);
            parameters += n;
        }
    }
    return parameters > 0 ? json_real(sum / parameters) : json_null();
}

json_t *rows_measured_tokens(const json_t *rows)
{
    json_int_t most = 0;
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)rows, i, row)
    {
        json_int_t tokens = json_integer_value(json_object_get(row, "tokens"));
        bool measured = json_is_number(json_object_get(row, "output_relative_mse"));
        most = measured && tokens > most ? tokens : most;
    }
    return most > 0 ? json_integer(most) : json_null();
}

json_t *rows_totals(const json_t *rows)
{
    double parameters = 0;
    double seconds = 0;
    int fallbacks = 0;
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)rows, i, row)
    {
        parameters += rows_member(row, "parameters");
        seconds += rows_member(row, "seconds");
        fallbacks += json_is_string(json_object_get(row, "fallback"));
    }
    return json_pack("{s:I, s:I, s:o, s:o, s:o, s:f, s:i}", "modules", (json_int_t)json_array_size(rows),
                     "parameters_quantized", (json_int_t)parameters, "bits_per_weight",
                     rows_mean(rows, "bits_per_weight"), "mean_relative_mse", rows_mean(rows, "relative_mse"),
                     "mean_output_relative_mse", rows_mean(rows, "output_relative_mse"), "solve_seconds", seconds,
                     "fallbacks", fallbacks);
}

static double badness(const json_t *row)
{
    const json_t *output = json_object_get(row, "output_relative_mse");
    return json_is_number(output) ? json_number_value(output) : rows_member(row, "relative_mse");
}

static int worse(const void *a, const void *b)
{
    double x = badness(*(json_t *const *)a);
    double y = badness(*(json_t *const *)b);
    return x < y ? 1 : x > y ? -1 : 0;
}

json_t *rows_worst(const json_t *rows)
{
    size_t count = json_array_size(rows);
    json_t **sorted = calloc(count + 1, sizeof(*sorted));
    json_t *worst = json_array();

    for (size_t i = 0; sorted != NULL && i < count; i++) {
        sorted[i] = json_array_get(rows, i);
    }
    if (sorted != NULL) {
        qsort(sorted, count, sizeof(*sorted), worse);
    }
    for (size_t i = 0; sorted != NULL && i < count && i < 5; i++) {
        json_array_append_new(worst,
                              json_pack("{s:O, s:O, s:O}", "module", json_object_get(sorted[i], "module"),
                                        "relative_mse", json_object_get(sorted[i], "relative_mse"),
                                        "output_relative_mse", json_object_get(sorted[i], "output_relative_mse")));
    }
    free(sorted);
    return worst;
}
