#pragma once
/* Rows of JSON values as CSV (RFC 4180: CRLF, quotes doubled). */

#include <jansson.h>
#include <stddef.h>

/* Header line of `columns` (NULL-terminated), then one line a row; a missing or null member is empty. malloc'ed; NULL
 * when out of memory. */
char *csv_write(const char *const *columns, const json_t *rows, size_t *size);
