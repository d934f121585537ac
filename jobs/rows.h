#pragma once
/* Report rows as JSON. */

#include "pipeline/report.h"

#include <jansson.h>

/* Column names in report order, NULL-terminated. Any thread. */
const char *const *rows_columns(void);
/* An array of one object a row; NULL: no memory. New reference. */
json_t *rows_json(const struct report_row *rows, int count);
/* A number of a row; NAN where it is null or not there. */
double rows_number(const json_t *row, const char *key);
/* Columns that rows do not have, since an earlier version stored them, become null. */
void rows_complete(json_t *rows);
/* Sums over rows for the report's "totals": weighted relative errors, bits per weight, counts. A mean is over the rows
 * that have the value, null where none has. New reference. */
json_t *rows_totals(const json_t *rows);
/* Tokens that output errors were measured on: the most that a row has; null where none was. New reference. */
json_t *rows_measured_tokens(const json_t *rows);
/* The five rows with the largest output_relative_mse (relative_mse where that is null): module and value. */
json_t *rows_worst(const json_t *rows);
