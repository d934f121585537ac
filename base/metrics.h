#pragma once
/* Numbers for monitoring, and their text for Prometheus (text format 0.0.4).
 *
 * Counters and histograms are atomics that any thread raises without a lock, from the start of the process. Zeroed ones
 * are valid, so that a layer has its own as static variables and writes them when it is asked to. */

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define METRICS_BOUNDS_MAX 16

typedef _Atomic uint64_t metrics_counter;

/* Upper bounds of the buckets, ascending; a last bucket holds what is larger than all of them. */
struct metrics_bounds {
    size_t count;
    double upper[METRICS_BOUNDS_MAX];
};

struct metrics_histogram {
    metrics_counter buckets[METRICS_BOUNDS_MAX + 1]; /* each value counts in one of them */
    _Atomic double sum;
};

/* A value that is not finite is not counted: it would make the sum useless from then on. */
void metrics_observe(struct metrics_histogram *histogram, const struct metrics_bounds *bounds, double value);

/* Labels of a sample; name NULL ends them. A label's values are few: templates, methods, states, never ids. */
struct metrics_label {
    const char *name, *value;
};

/* type: "counter", "gauge" or "histogram". Its samples follow. */
void metrics_family(FILE *out, const char *name, const char *type, const char *help);
void metrics_count(FILE *out, const char *name, const struct metrics_label *labels, uint64_t value);
void metrics_number(FILE *out, const char *name, const struct metrics_label *labels, double value);
/* All samples of one histogram. */
void metrics_distribution(FILE *out, const char *name, const struct metrics_label *labels,
                          const struct metrics_bounds *bounds, const struct metrics_histogram *histogram);
