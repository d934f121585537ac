/* quantctl compare: the reports of several jobs next to each other, their modules aligned by name. */

#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COMPARE_MAX 8

struct compare_options {
    const char *metric;
    int64_t limit;
};

#define AT(member) offsetof(struct compare_options, member)

static const struct option_row compare_options[] = {
    {"metric", 0, OPTION_TEXT, "COLUMN", AT(metric), .help = "Column of the report (default: " JOB_METRIC ")"},
    {"limit", 'n', OPTION_INT, "N", AT(limit), .help = "So many modules, those that differ most first (default: 20)", 0,
     1000000},
    {0},
};

struct compare {
    int jobs;
    const char *metric;
    json_t *reports[COMPARE_MAX];
    json_t *modules; /* module -> array of the metric, null where a job does not have it; owned */
};

static int align_modules(struct compare *compare)
{
    const json_t *row;
    size_t i;

    compare->modules = json_object();
    for (int job = 0; job < compare->jobs; job++) {
        json_array_foreach(json_object_get(compare->reports[job], "layers"), i, row)
        {
            const char *module = json_get_string(row, "module");
            json_t *value = json_object_get(row, compare->metric);
            json_t *values = module != NULL ? json_object_get(compare->modules, module) : NULL;
            if (module == NULL) {
                continue;
            }
            if (values == NULL) {
                values = json_array();
                for (int k = 0; k < compare->jobs; k++) {
                    (void)json_array_append_new(values, json_null());
                }
                (void)json_object_set_new(compare->modules, module, values);
            }
            (void)json_array_set_new(values, (size_t)job, json_is_number(value) ? json_incref(value) : json_null());
        }
    }
    return compare->modules != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the comparison");
}

static void summary_row(struct table *table, const struct compare *compare, const char *title, const char *object,
                        const char *key, int digits)
{
    char cells[COMPARE_MAX][PRINT_SIZE];
    const char *row[COMPARE_MAX + 1] = {title};

    for (int job = 0; job < compare->jobs; job++) {
        row[job + 1] = print_number(json_object_get(compare->reports[job], object), key, digits, cells[job]);
    }
    table_row(table, row);
}

static struct table *new_table(const struct compare *compare, const char *first)
{
    static const char *const names[COMPARE_MAX] = {">A", ">B", ">C", ">D", ">E", ">F", ">G", ">H"};
    const char *titles[COMPARE_MAX + 2] = {first};

    for (int job = 0; job < compare->jobs; job++) {
        titles[job + 1] = names[job];
    }
    return table_new(titles);
}

static int show_summary(const struct compare *compare)
{
    char method[JOB_METHOD_SIZE];

    for (int job = 0; job < compare->jobs; job++) {
        const json_t *report = compare->reports[job];
        const char *name = json_get_string(json_object_get(report, "request"), "name");
        safe_printf(stdout, "%c  %s  %s  %s  %s\n", 'A' + job, print_text(report, "job_id"), job_method(report, method),
                    print_text(report, "status"), name != NULL ? name : "");
    }
    putchar('\n');
    AUTO(table) struct table *table = new_table(compare, "");
    summary_row(table, compare, "bits/weight", "totals", "bits_per_weight", 5);
    summary_row(table, compare, "compression", "totals", "compression_ratio", 4);
    summary_row(table, compare, "perplexity before", "evaluation", "perplexity_before", 6);
    summary_row(table, compare, "perplexity after", "evaluation", "perplexity_after", 6);
    summary_row(table, compare, "mean KL", "evaluation", "kl_divergence_mean", 4);
    summary_row(table, compare, "mean weight error", "totals", "mean_relative_mse", 4);
    summary_row(table, compare, "mean output error", "totals", "mean_output_relative_mse", 4);
    summary_row(table, compare, "fallbacks", "totals", "fallbacks", 9);
    summary_row(table, compare, "seconds", "totals", "elapsed_seconds", 4);
    return table_print(table, stdout);
}

struct spread {
    const char *module;
    const json_t *values;
    double ratio; /* of the largest value to the smallest */
};

static int by_ratio(const void *a, const void *b)
{
    const struct spread *x = a, *y = b;

    if (x->ratio != y->ratio) {
        return x->ratio < y->ratio ? 1 : -1;
    }
    return strcmp(x->module, y->module);
}

static double ratio_of(const json_t *values)
{
    const json_t *value;
    double low = INFINITY, high = 0;
    size_t i;

    json_array_foreach(values, i, value)
    {
        double number = json_number_value(value);
        if (json_is_number(value) && number > 0) {
            low = number < low ? number : low;
            high = number > high ? number : high;
        }
    }
    return high > 0 ? high / low : 0;
}

static int show_modules(const struct compare *compare, size_t limit)
{
    AUTO_FREE struct spread *spreads = NULL;
    const char *module;
    json_t *values;
    size_t count = 0;

    TRY(mem_array(&spreads, json_object_size(compare->modules) + 1));
    json_object_foreach(compare->modules, module, values)
    {
        spreads[count++] = (struct spread){module, values, ratio_of(values)};
    }
    qsort(spreads, count, sizeof(*spreads), by_ratio);
    count = count < limit ? count : limit;
    if (count == 0) {
        return 0;
    }
    putchar('\n');
    safe_printf(stdout, "%s of the modules that differ most\n", compare->metric);
    AUTO(table) struct table *table = new_table(compare, "MODULE");
    for (size_t i = 0; i < count; i++) {
        char cells[COMPARE_MAX][PRINT_SIZE];
        const char *row[COMPARE_MAX + 1] = {spreads[i].module};
        for (int job = 0; job < compare->jobs; job++) {
            const json_t *value = json_array_get(spreads[i].values, (size_t)job);
            snprintf(cells[job], PRINT_SIZE, "%.2e", json_number_value(value));
            row[job + 1] = json_is_number(value) ? cells[job] : "-";
        }
        table_row(table, row);
    }
    return table_print(table, stdout);
}

static int compare_json(const struct compare *compare)
{
    AUTO_JSON json_t *answer = json_pack("{s:s,s:s,s:[],s:O}", "object", "quantization.comparison", "metric",
                                         compare->metric, "jobs", "modules", compare->modules);
    json_t *jobs = json_object_get(answer, "jobs");

    for (int job = 0; job < compare->jobs; job++) {
        const json_t *report = compare->reports[job];
        json_t *entry = json_object();
        static const char *const keys[] = {"job_id", "status", "method", "totals", "evaluation"};
        for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
            json_t *value = json_object_get(report, keys[i]);
            (void)json_object_set_new(entry, keys[i], value != NULL ? json_incref(value) : json_null());
        }
        (void)json_array_append_new(jobs, entry);
    }
    print_json(answer);
    return 0;
}

static int compare_all(struct cli *cli, struct compare *compare, const struct compare_options *options, char **jobs)
{
    for (int job = 0; job < compare->jobs; job++) {
        char path[CLIENT_PATH_MAX];
        TRY(job_path(path, sizeof(path), jobs[job], "/report"));
        TRY(client_get(cli, path, &compare->reports[job]));
    }
    for (int job = 0; options->metric == NULL && job < compare->jobs; job++) { /* one that all of them have */
        const char *metric = job_metric(json_object_get(compare->reports[job], "layers"));
        compare->metric = job == 0 || strcmp(metric, JOB_METRIC) != 0 ? metric : compare->metric;
    }
    TRY(align_modules(compare));
    if (cli->json) {
        return compare_json(compare);
    }
    TRY(show_summary(compare));
    return show_modules(compare, options->limit != OPTION_UNSET ? (size_t)options->limit : 20);
}

static int compare_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct compare_options *options = given;
    struct compare compare = {.jobs = count, .metric = options->metric};

    int rc = compare_all(cli, &compare, options, arguments);
    for (int job = 0; job < count; job++) {
        json_decref(compare.reports[job]);
    }
    json_decref(compare.modules);
    return rc;
}

const struct command command_compare = {
    .name = "compare",
    .arguments = "JOB JOB...",
    .summary = "Compare 2 to 8 jobs: totals, and the modules that differ most",
    .min = 2,
    .max = COMPARE_MAX,
    .options = compare_options,
    .size = sizeof(struct compare_options),
    .run = compare_run,
};
