/* quantctl report: the errors of a job, layer by layer. */

#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/bar.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/print.h"
#include "cli/report_advice.h"
#include "cli/report_learning.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REPORT_WORST 10
#define REPORT_BLOCKS_MAX 100000

struct report_options {
    const char *metric, *sort, *module;
    int64_t worst, apply;
    bool csv, all;
};

#define AT(member) offsetof(struct report_options, member)

static const struct option_row report_options[] = {
    {"csv", 0, OPTION_FLAG, NULL, AT(csv), .help = "All rows and columns as the server's CSV"},
    {"all", 'a', OPTION_FLAG, NULL, AT(all), .help = "Every module in the table, in the order of the model"},
    {"worst", 'n', OPTION_INT, "N", AT(worst), .help = "So many modules with the largest errors (default: 10)", 0,
     1000000},
    {"metric", 0, OPTION_TEXT, "COLUMN", AT(metric),
     .help = "Column that orders the modules and makes the bars (default: " JOB_METRIC ")"},
    {"sort", 0, OPTION_TEXT, "[-]COLUMN", AT(sort), .help = "Order of --csv, as the route takes it"},
    {"module", 0, OPTION_TEXT, "PATTERN", AT(module), .help = "Only these modules of --csv, as the route takes it"},
    {"apply", 0, OPTION_INT, "N", AT(apply), .help = "The job's request with suggestion N, a job file for submit", 0,
     1000000},
    {0},
};

/* --- CSV, byte by byte as the route has it */

static int write_out(void *context, const char *data, size_t size)
{
    return fwrite(data, 1, size, stdout) == size
               ? 0
               : status_fail(STATUS_LOCAL, "cannot write to standard output: %s", strerror(errno));
}

static int report_csv(struct cli *cli, const char *job, const struct report_options *options)
{
    char path[CLIENT_PATH_MAX];
    static const char *const headers[] = {"Accept: text/csv", NULL};

    TRY(job_path(path, sizeof(path), job, "/layers"));
    TRY(options->sort != NULL ? client_query(path, sizeof(path), "sort", options->sort) : 0);
    TRY(options->module != NULL ? client_query(path, sizeof(path), "module", options->module) : 0);
    return client_call(cli, &(struct http_call){.method = "GET", .path = path, .headers = headers, .take = write_out},
                       NULL);
}

/* --- for people */

static double value_of(const json_t *row, const char *metric)
{
    const json_t *value = json_object_get(row, metric);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static void show_head(const json_t *report)
{
    const json_t *totals = json_object_get(report, "totals"), *evaluation = json_object_get(report, "evaluation");
    char a[PRINT_SIZE], b[PRINT_SIZE], method[JOB_METHOD_SIZE];

    safe_printf(stdout, "job           %s, %s, %s\n", print_text(report, "job_id"), job_method(report, method),
                print_text(report, "status"));
    if (json_is_object(evaluation)) {
        safe_printf(stdout, "perplexity    %s before, %s after\n", print_number(evaluation, "perplexity_before", 6, a),
                    print_number(evaluation, "perplexity_after", 6, b));
        safe_printf(stdout, "mean KL       %s nats\n", print_number(evaluation, "kl_divergence_mean", 4, a));
    }
    job_print_gate(json_object_get(report, "gate"));
    if (json_number_value(json_object_get(totals, "artifact_bytes")) > 0) {
        safe_printf(stdout, "bits/weight   %s\n", print_number(totals, "bits_per_weight", 5, a));
        safe_printf(stdout, "size          %s of %s\n",
                    print_bytes(json_number_value(json_object_get(totals, "artifact_bytes")), a),
                    print_bytes(json_number_value(json_object_get(totals, "source_bytes")), b));
    }
    if (json_is_object(totals)) {
        safe_printf(stdout, "time          %s\n",
                    print_seconds(json_number_value(json_object_get(totals, "elapsed_seconds")), a));
        safe_printf(stdout, "fallbacks     %s\n", print_number(totals, "fallbacks", 9, a));
    }
}

static void show_warnings(const json_t *report)
{
    const json_t *warning;
    size_t i;

    json_array_foreach(json_object_get(report, "warnings"), i, warning)
    {
        safe_printf(stdout, "warning       %s (%s)\n", print_text(warning, "message"), print_text(warning, "code"));
    }
}

/* One bar a block: the mean of the metric over its modules. */
static int show_bars(const json_t *layers, const char *metric)
{
    AUTO_FREE double *sums = NULL;
    AUTO_FREE int64_t *counts = NULL;
    const json_t *row;
    int64_t blocks = 0;
    double low = INFINITY, high = 0;
    size_t i;

    json_array_foreach(layers, i, row)
    {
        int64_t layer = -1;
        (void)json_get_int(row, "layer", 0, REPORT_BLOCKS_MAX - 1, &layer);
        blocks = layer >= blocks ? layer + 1 : blocks;
    }
    TRY(mem_array(&sums, (size_t)blocks + 1));
    TRY(mem_array(&counts, (size_t)blocks + 1));
    json_array_foreach(layers, i, row)
    {
        int64_t layer = -1;
        double value = value_of(row, metric);
        if (json_get_int(row, "layer", 0, REPORT_BLOCKS_MAX - 1, &layer) == 1 && isfinite(value)) {
            sums[layer] += value;
            counts[layer]++;
        }
    }
    for (int64_t block = 0; block < blocks; block++) {
        sums[block] = counts[block] > 0 ? sums[block] / (double)counts[block] : 0;
        low = sums[block] > 0 && sums[block] < low ? sums[block] : low;
        high = sums[block] > high ? sums[block] : high;
    }
    if (!(high > 0)) {
        return 0;
    }
    putchar('\n');
    safe_printf(stdout, "mean %s of each block (logarithmic axis from %.1e)\n", metric, low / 2);
    for (int64_t block = 0; block < blocks; block++) {
        char bar[BAR_SIZE];
        safe_printf(stdout, "%5" PRId64 "  %.2e  %s\n", block, sums[block],
                    bar_log(sums[block], low / 2, high, print_columns() - 24, bar_unicode(), bar));
    }
    return 0;
}

struct ranked {
    const json_t *row;
    double value;
};

static int by_value(const void *a, const void *b)
{
    double x = ((const struct ranked *)a)->value, y = ((const struct ranked *)b)->value;

    if (isnan(x) || isnan(y)) {
        return isnan(x) - isnan(y); /* those without a value come last */
    }
    return x < y ? 1 : x > y ? -1 : 0;
}

static bool has_fallback(const json_t *row)
{
    return json_is_string(json_object_get(row, "fallback"));
}

/* Columns after the module's name; those that say the same of each row are left out. */
struct columns {
    const char *metric; /* NULL: one of the others */
    bool fallback;
};

static struct table *report_table(const struct columns *columns)
{
    const char *titles[] = {"MODULE",   "METHOD",   ">BITS", ">GROUP", ">WEIGHT ERR", ">OUTPUT ERR",
                            ">SQNR dB", ">SECONDS", NULL,    NULL,     NULL};
    size_t count = 8;

    if (columns->metric != NULL) {
        titles[count++] = columns->metric;
    }
    if (columns->fallback) {
        titles[count] = "FALLBACK";
    }
    return table_new(titles);
}

static void report_add_row(struct table *table, const json_t *row, const struct columns *columns)
{
    static const char *const keys[] = {"bits", "group_size", "relative_mse", JOB_METRIC, "sqnr_db", "seconds"};
    char numbers[6][PRINT_SIZE], own[PRINT_SIZE];
    const char *cells[10] = {print_text(row, "module"), print_text(row, "method")};
    size_t count = 2;

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        cells[count++] = print_number(row, keys[i], i < 2 ? 9 : 3, numbers[i]);
    }
    if (columns->metric != NULL) {
        cells[count++] = print_number(row, columns->metric, 4, own);
    }
    if (columns->fallback) {
        cells[count] = has_fallback(row) ? print_text(row, "fallback") : "-";
    }
    table_row(table, cells);
}

static int show_rows(const json_t *layers, const char *metric, size_t count, bool ordered)
{
    static const char *const shown[] = {"relative_mse", JOB_METRIC, "sqnr_db", "seconds"};
    AUTO_FREE struct ranked *ranked = NULL;
    struct columns columns = {.metric = metric};
    const json_t *row;
    size_t i;

    for (i = 0; i < sizeof(shown) / sizeof(shown[0]); i++) {
        columns.metric = strcmp(shown[i], metric) == 0 ? NULL : columns.metric;
    }
    TRY(mem_array(&ranked, json_array_size(layers)));
    json_array_foreach(layers, i, row)
    {
        ranked[i] = (struct ranked){row, value_of(row, metric)};
    }
    if (ordered) {
        qsort(ranked, i, sizeof(*ranked), by_value);
    }
    count = count < json_array_size(layers) ? count : json_array_size(layers);
    for (i = 0; i < count; i++) {
        columns.fallback = columns.fallback || has_fallback(ranked[i].row);
    }
    AUTO(table) struct table *table = report_table(&columns);
    for (i = 0; i < count; i++) {
        report_add_row(table, ranked[i].row, &columns);
    }
    return table_print(table, stdout);
}

static const char *default_metric(const json_t *layers)
{
    const json_t *row;
    size_t i;

    json_array_foreach(layers, i, row)
    {
        if (json_is_number(json_object_get(row, JOB_METRIC))) {
            return JOB_METRIC;
        }
    }
    return JOB_METRIC_WEIGHTS;
}

/* --- an analysis of linears: what each costs under each scheme, the most first */

static int show_schemes(const json_t *schemes)
{
    AUTO(table)
    struct table *table =
        table_new((const char *[]){"SCHEME", ">BITS/WEIGHT", ">OUTPUT ERR", ">KL OF ALL", "WORST", ">KL", NULL});
    const json_t *row;
    size_t i;

    json_array_foreach(schemes, i, row)
    {
        char bits[PRINT_SIZE], error[PRINT_SIZE], total[PRINT_SIZE], worst[PRINT_SIZE];
        table_row(table, (const char *[]){print_text(row, "scheme"), print_number(row, "bits_per_weight", 4, bits),
                                          print_number(row, "mean_output_relative_mse", 3, error),
                                          print_number(row, "total_kl", 3, total), print_text(row, "worst_module"),
                                          print_number(row, "worst_kl", 3, worst)});
    }
    return table_print(table, stdout);
}

static int show_linears(const json_t *analysis, bool all, size_t count)
{
    const json_t *rows = json_object_get(analysis, "rows"), *row;
    AUTO_FREE struct ranked *ranked = NULL;
    size_t i, total = json_array_size(rows);

    TRY(mem_array(&ranked, total + 1));
    json_array_foreach(rows, i, row)
    {
        ranked[i] = (struct ranked){row, value_of(row, "kl")};
    }
    qsort(ranked, total, sizeof(*ranked), by_value);
    TRY(show_schemes(json_object_get(analysis, "schemes")));
    putchar('\n');
    puts(all ? "linears by kl, the effect on the logits of quantizing one alone" : "linears with the largest kl");
    AUTO(table)
    struct table *table =
        table_new((const char *[]){"MODULE", "SCHEME", ">BITS/WEIGHT", ">OUTPUT ERR", ">KL", "KL IS", NULL});
    for (i = 0; i < total && (all || i < count); i++) {
        char bits[PRINT_SIZE], error[PRINT_SIZE], kl[PRINT_SIZE];
        row = ranked[i].row;
        table_row(table, (const char *[]){print_text(row, "module"), print_text(row, "scheme"),
                                          print_number(row, "bits_per_weight", 4, bits),
                                          print_number(row, JOB_METRIC, 3, error), print_number(row, "kl", 3, kl),
                                          json_is_true(json_object_get(row, "measured")) ? "measured" : "predicted"});
    }
    return table_print(table, stdout);
}

static int show_report(const json_t *report, const struct report_options *options)
{
    const json_t *layers = json_object_get(report, "layers"), *error = json_object_get(report, "error");
    const char *metric = options->metric != NULL ? options->metric : default_metric(layers);
    size_t count = options->worst != OPTION_UNSET ? (size_t)options->worst : REPORT_WORST;

    show_head(report);
    show_warnings(report);
    if (json_is_object(error)) {
        safe_printf(stdout, "error         %s (%s)\n", print_text(error, "message"), print_text(error, "code"));
    }
    const json_t *analysis = json_object_get(report, "analysis");
    if (json_object_get(json_array_get(json_object_get(analysis, "rows"), 0), "module") != NULL) {
        putchar('\n');
        return show_linears(analysis, options->all, count);
    }
    if (json_array_size(layers) == 0) {
        return 0;
    }
    if (options->metric != NULL && json_object_get(json_array_get(layers, 0), metric) == NULL) {
        return err_set_hint(err_raise(ERR_CONFIG, "the report has no column \"%.80s\"", metric),
                            "quantctl report --csv shows the columns");
    }
    TRY(show_bars(layers, metric));
    if (options->all || count > 0) {
        putchar('\n');
        safe_printf(stdout, "%s%s\n", options->all ? "modules" : "modules with the largest ",
                    options->all ? "" : metric);
        TRY(show_rows(layers, metric, options->all ? json_array_size(layers) : count, !options->all));
    }
    TRY(report_learning_show(report));
    report_advice_show(report);
    return 0;
}

static int report_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct report_options *options = given;
    AUTO_JSON json_t *report = NULL;
    char path[CLIENT_PATH_MAX];

    if (!options->csv && (options->sort != NULL || options->module != NULL)) {
        return err_set_hint(err_raise(ERR_CONFIG, "--%s belongs to --csv", options->sort != NULL ? "sort" : "module"),
                            "--metric COLUMN orders the table, --all shows every module");
    }
    if (options->csv) {
        return report_csv(cli, arguments[0], options);
    }
    TRY(job_path(path, sizeof(path), arguments[0], "/report"));
    TRY(client_get(cli, path, &report));
    if (options->apply != OPTION_UNSET) {
        return report_advice_apply(report, options->apply);
    }
    if (cli->json) {
        print_json(report);
        return 0;
    }
    return show_report(report, options);
}

const struct command command_report = {
    .name = "report",
    .arguments = "JOB",
    .summary = "Show a job's errors: a chart of its blocks and its worst modules",
    .min = 1,
    .max = 1,
    .options = report_options,
    .size = sizeof(struct report_options),
    .run = report_run,
};
