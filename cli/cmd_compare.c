/* quantctl compare: several jobs next to each other, as the server aligns their modules. */

#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/print.h"
#include "cli/safe.h"

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
    {"metric", 0, OPTION_TEXT, "COLUMN", AT(metric), .help = "Column of the modules (default: " JOB_METRIC ")"},
    {"limit", 'n', OPTION_INT, "N", AT(limit), .help = "So many modules, those that differ most first (default: 20)", 0,
     1000000},
    {0},
};

/* The server's answer: {"jobs": [...], "modules": [{"module", "values": [one for each job, or null]}]}. */
struct compare {
    size_t jobs;
    const json_t *heads, *modules;
    const char *metric;
};

static const json_t *compared_value(const struct compare *compare, const json_t *module, size_t job)
{
    return json_object_get(json_array_get(json_object_get(module, "values"), job), compare->metric);
}

/* Whether a job has a number in the column, of any module. */
static bool has_metric(const struct compare *compare, size_t job)
{
    const json_t *module;
    size_t i;

    json_array_foreach(compare->modules, i, module)
    {
        if (json_is_number(compared_value(compare, module, job))) {
            return true;
        }
    }
    return false;
}

/* The column that was asked for, or one that all jobs have. */
static int choose_metric(struct compare *compare, const char *asked)
{
    size_t with = 0;

    compare->metric = asked != NULL ? asked : JOB_METRIC;
    for (size_t job = 0; job < compare->jobs; job++) {
        with += has_metric(compare, job);
    }
    if (asked == NULL) {
        compare->metric = with == compare->jobs ? JOB_METRIC : JOB_METRIC_WEIGHTS;
        return 0;
    }
    return with > 0 || json_array_size(compare->modules) == 0
               ? 0
               : err_set_hint(err_raise(ERR_CONFIG, "the comparison has no numbers in the column \"%.80s\"", asked),
                              "quantctl compare --json shows the columns");
}

static void summary_row(struct table *table, const struct compare *compare, const char *title, const char *object,
                        const char *key, int digits)
{
    char cells[COMPARE_MAX][PRINT_SIZE];
    const char *row[COMPARE_MAX + 1] = {title};

    for (size_t job = 0; job < compare->jobs; job++) {
        const json_t *head = json_array_get(compare->heads, job);
        row[job + 1] = print_number(json_object_get(head, object), key, digits, cells[job]);
    }
    table_row(table, row);
}

static struct table *new_table(const struct compare *compare, const char *first)
{
    static const char *const names[COMPARE_MAX] = {">A", ">B", ">C", ">D", ">E", ">F", ">G", ">H"};
    const char *titles[COMPARE_MAX + 2] = {first};

    for (size_t job = 0; job < compare->jobs; job++) {
        titles[job + 1] = names[job];
    }
    return table_new(titles);
}

static int show_summary(const struct compare *compare)
{
    char method[JOB_METHOD_SIZE];

    for (size_t job = 0; job < compare->jobs; job++) {
        const json_t *head = json_array_get(compare->heads, job);
        const char *name = json_get_string(head, "name");
        safe_printf(stdout, "%c  %s  %s  %s  %s\n", 'A' + (int)job, print_text(head, "id"), job_method(head, method),
                    print_text(head, "status"), name != NULL ? name : "");
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
    const json_t *module;
    double ratio; /* of the largest value to the smallest */
};

static int by_ratio(const void *a, const void *b)
{
    const struct spread *x = a, *y = b;

    if (x->ratio != y->ratio) {
        return x->ratio < y->ratio ? 1 : -1;
    }
    return strcmp(print_text(x->module, "module"), print_text(y->module, "module"));
}

static double ratio_of(const struct compare *compare, const json_t *module)
{
    double low = INFINITY, high = 0;

    for (size_t job = 0; job < compare->jobs; job++) {
        const json_t *value = compared_value(compare, module, job);
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
    const json_t *module;
    size_t count;

    TRY(mem_array(&spreads, json_array_size(compare->modules) + 1));
    json_array_foreach(compare->modules, count, module)
    {
        spreads[count] = (struct spread){module, ratio_of(compare, module)};
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
        const char *row[COMPARE_MAX + 1] = {print_text(spreads[i].module, "module")};
        for (size_t job = 0; job < compare->jobs; job++) {
            const json_t *value = compared_value(compare, spreads[i].module, job);
            snprintf(cells[job], PRINT_SIZE, "%.2e", json_number_value(value));
            row[job + 1] = json_is_number(value) ? cells[job] : "-";
        }
        table_row(table, row);
    }
    return table_print(table, stdout);
}

/* The route's path, of jobs whose ids are well formed. */
static int compare_path(char *out, size_t size, int count, char **jobs)
{
    char ids[CLIENT_PATH_MAX] = "", checked[CLIENT_PATH_MAX];

    for (int i = 0; i < count; i++) {
        TRY(job_path(checked, sizeof(checked), jobs[i], ""));
        TRY(http_escape(ids, sizeof(ids), i > 0 ? "," : "", ","));
        TRY(http_escape(ids, sizeof(ids), jobs[i], ""));
    }
    snprintf(out, size, "/v1/quantization/compare");
    return client_query(out, size, "jobs", ids);
}

static int compare_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct compare_options *options = given;
    AUTO_JSON json_t *answer = NULL;
    char path[CLIENT_PATH_MAX];

    TRY(compare_path(path, sizeof(path), count, arguments));
    TRY(client_get(cli, path, &answer));
    if (cli->json) {
        print_json(answer);
        return 0;
    }
    struct compare compare = {
        .jobs = (size_t)count, .heads = json_object_get(answer, "jobs"), .modules = json_object_get(answer, "modules")};
    TRY(choose_metric(&compare, options->metric));
    TRY(show_summary(&compare));
    return show_modules(&compare, options->limit != OPTION_UNSET ? (size_t)options->limit : 20);
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
