#include "base/metrics.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static const struct metrics_bounds bounds = {3, {0.5, 1, 2.5}};

START_TEST(the_text_of_each_type)
{
    static struct metrics_histogram histogram;
    const struct metrics_label labels[] = {{"path", "a\"b\\c\nd"}, {"code", "200"}, {NULL, NULL}};
    char *text = NULL;
    size_t size = 0;
    const double values[] = {0.5, 0.75, 3, -1, NAN, INFINITY};

    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        metrics_observe(&histogram, &bounds, values[i]);
    }
    FILE *out = open_memstream(&text, &size);
    metrics_family(out, "a_total", "counter", "What a is.");
    metrics_count(out, "a_total", labels, UINT64_MAX);
    metrics_family(out, "b", "gauge", "What b is.");
    metrics_number(out, "b", NULL, 1.5);
    metrics_number(out, "b", NULL, INFINITY);
    metrics_family(out, "c_seconds", "histogram", "What c is.");
    metrics_distribution(out, "c_seconds", labels + 1, &bounds, &histogram);
    metrics_distribution(out, "d_seconds", NULL, &bounds, &histogram);
    fclose(out);
    ck_assert_str_eq(text, "# HELP a_total What a is.\n# TYPE a_total counter\n"
                           "a_total{path=\"a\\\"b\\\\c\\nd\",code=\"200\"} 18446744073709551615\n"
                           "# HELP b What b is.\n# TYPE b gauge\nb 1.5\nb +Inf\n"
                           "# HELP c_seconds What c is.\n# TYPE c_seconds histogram\n"
                           "c_seconds_bucket{code=\"200\",le=\"0.5\"} 2\nc_seconds_bucket{code=\"200\",le=\"1\"} 3\n"
                           "c_seconds_bucket{code=\"200\",le=\"2.5\"} 3\nc_seconds_bucket{code=\"200\",le=\"+Inf\"} 4\n"
                           "c_seconds_sum{code=\"200\"} 3.25\nc_seconds_count{code=\"200\"} 4\n"
                           "d_seconds_bucket{le=\"0.5\"} 2\nd_seconds_bucket{le=\"1\"} 3\n"
                           "d_seconds_bucket{le=\"2.5\"} 3\nd_seconds_bucket{le=\"+Inf\"} 4\n"
                           "d_seconds_sum 3.25\nd_seconds_count 4\n");
    free(text);
}
END_TEST

static struct metrics_histogram shared;

static void *observe_many(void *unused)
{
    for (int i = 0; i < 20000; i++) {
        metrics_observe(&shared, &bounds, i % 4);
    }
    return unused;
}

START_TEST(no_value_of_any_thread_is_lost)
{
    pthread_t threads[4];

    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(pthread_create(&threads[i], NULL, observe_many, NULL), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
    }
    ck_assert_uint_eq(shared.buckets[0], 20000);
    ck_assert_uint_eq(shared.buckets[1], 20000);
    ck_assert_uint_eq(shared.buckets[2], 20000);
    ck_assert_uint_eq(shared.buckets[3], 20000);
    ck_assert_double_eq(shared.sum, 120000);
}
END_TEST

UNIT_MAIN("metrics", the_text_of_each_type, no_value_of_any_thread_is_lost)
