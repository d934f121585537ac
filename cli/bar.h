#pragma once
/* Bars and strips of characters for a terminal. */

#include <stdbool.h>
#include <stddef.h>

#define BAR_MAX 200                /* cells */
#define BAR_SIZE (BAR_MAX * 3 + 1) /* bytes of a text of so many cells */

/* "#####-----": fraction (0..1, anything else is brought there) of width cells. */
const char *bar_fill(double fraction, int width, char out[BAR_SIZE]);
/* A bar of value on a logarithmic axis from low to high, in eighths of a cell where unicode is true; nothing for a
 * value that is not positive. Not padded. */
const char *bar_log(double value, double low, double high, int width, bool unicode, char out[BAR_SIZE]);
/* One cell for each value, its height on a logarithmic axis over all of them; '.' for one that is not positive (not
 * there yet). More values than width share cells, by the largest. */
const char *bar_strip(const double *values, size_t count, int width, bool unicode, char out[BAR_SIZE]);
/* Can standard output show block elements: does the environment's locale use UTF-8? */
bool bar_unicode(void);
