/* The text format: HELP and TYPE lines, then one line a sample. Whether it could be written is the stream's to say. */

#include "base/metrics.h"

#include <inttypes.h>
#include <math.h>

void metrics_observe(struct metrics_histogram *histogram, const struct metrics_bounds *bounds, double value)
{
    size_t bucket = 0;

    if (!isfinite(value)) {
        return;
    }
    while (bucket < bounds->count && value > bounds->upper[bucket]) {
        bucket++;
    }
    (void)atomic_fetch_add_explicit(&histogram->buckets[bucket], 1, memory_order_relaxed);
    double sum = atomic_load_explicit(&histogram->sum, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&histogram->sum, &sum, sum + value, memory_order_relaxed,
                                                  memory_order_relaxed)) {
        /* sum is the present one now */
    }
}

void metrics_family(FILE *out, const char *name, const char *type, const char *help)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_value(FILE *out, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '\n') {
            fputs("\\n", out);
        } else {
            if (*text == '\\' || *text == '"') {
                fputc('\\', out);
            }
            fputc(*text, out);
        }
    }
}

/* bound: the bucket's, or NULL. */
static void put_name(FILE *out, const char *name, const char *suffix, const struct metrics_label *labels,
                     const char *bound)
{
    const char *before = "{";

    fprintf(out, "%s%s", name, suffix);
    for (; labels != NULL && labels->name != NULL; labels++) {
        fprintf(out, "%s%s=\"", before, labels->name);
        put_value(out, labels->value);
        fputc('"', out);
        before = ",";
    }
    if (bound != NULL) {
        fprintf(out, "%sle=\"%s\"", before, bound);
        before = ",";
    }
    fputs(before[0] == ',' ? "} " : " ", out);
}

static void metrics_put_real(FILE *out, double value)
{
    if (isfinite(value)) {
        fprintf(out, "%.17g\n", value);
    } else {
        fputs(isnan(value) ? "NaN\n" : value > 0 ? "+Inf\n" : "-Inf\n", out);
    }
}

void metrics_count(FILE *out, const char *name, const struct metrics_label *labels, uint64_t value)
{
    put_name(out, name, "", labels, NULL);
    fprintf(out, "%" PRIu64 "\n", value);
}

void metrics_number(FILE *out, const char *name, const struct metrics_label *labels, double value)
{
    put_name(out, name, "", labels, NULL);
    metrics_put_real(out, value);
}

void metrics_distribution(FILE *out, const char *name, const struct metrics_label *labels,
                          const struct metrics_bounds *bounds, const struct metrics_histogram *histogram)
{
    uint64_t count = 0;

    for (size_t i = 0; i <= bounds->count; i++) { /* others may count meanwhile: the total is of what was read */
        char bound[32] = "+Inf";
        if (i < bounds->count) {
            (void)snprintf(bound, sizeof(bound), "%g", bounds->upper[i]);
        }
        count += atomic_load_explicit(&histogram->buckets[i], memory_order_relaxed);
        put_name(out, name, "_bucket", labels, bound);
        fprintf(out, "%" PRIu64 "\n", count);
    }
    put_name(out, name, "_sum", labels, NULL);
    metrics_put_real(out, atomic_load_explicit(&histogram->sum, memory_order_relaxed));
    put_name(out, name, "_count", labels, NULL);
    fprintf(out, "%" PRIu64 "\n", count);
}
