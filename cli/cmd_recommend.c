/* quantctl recommend: which ways to quantize a model lead to a goal, on a device, at a load. */

#include "base/err.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/jobgoal.h"
#include "cli/jobrequest.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define LINE_MAX_COLUMNS 100 /* of text that is read, however wide the terminal */
#define INDENT 14            /* of what stands next to a name */

struct recommend_options {
    const char *model, *save;
    struct jobgoal goal;
    int64_t choice;
    bool no_calibration;
};

#define AT(member) offsetof(struct recommend_options, member)

static const struct option_row recommend_options[] = {
    {"model", 'm', OPTION_TEXT, "MODEL", AT(model), .help = "Model: its id, its name, or file:PATH below a model root"},
    JOBGOAL_OPTIONS(AT(goal)),
    {"no-calibration", 0, OPTION_FLAG, NULL, AT(no_calibration),
     .help = "There are no calibration records: leave out what needs them"},
    {"save", 0, OPTION_TEXT, "FILE", AT(save),
     .help = "Write a way as a job file for quantctl submit -f; \"-\" is standard output, in place of the table"},
    {"choice", 0, OPTION_INT, "N", AT(choice), .help = "Which way --save writes; 1, the best, by default", 1, 100},
    {0},
};

/* --- lines */

/* Words of text, in lines that begin at column INDENT. */
static void recommend_text(const char *label, const char *text)
{
    int columns = print_columns(), used = INDENT;
    columns = columns > LINE_MAX_COLUMNS ? LINE_MAX_COLUMNS : columns;

    safe_printf(stdout, "%-*s", INDENT, label);
    while (*text != '\0') {
        size_t length = strcspn(text, " ");
        if (used > INDENT && used + 1 + (int)length > columns) {
            fprintf(stdout, "\n%*s", INDENT, "");
            used = INDENT;
        } else if (used > INDENT) {
            fputc(' ', stdout);
            used++;
        }
        safe_printf(stdout, "%.*s", (int)length, text);
        used += (int)length;
        text += length + strspn(text + length, " ");
    }
    fputc('\n', stdout);
}

/* Decimal units, as makers of accelerators state memory. */
static const char *gigabytes(const json_t *object, const char *key, char out[PRINT_SIZE])
{
    double bytes = json_number_value(json_object_get(object, key));

    snprintf(out, PRINT_SIZE, bytes < 1e9 ? "%.3g MB" : "%.3g GB", bytes / (bytes < 1e9 ? 1e6 : 1e9));
    return out;
}

static const char *speedup(const json_t *choice, const char *key, char out[PRINT_SIZE])
{
    const json_t *value = json_object_get(choice, key);

    if (!json_is_number(value)) {
        return "-";
    }
    snprintf(out, PRINT_SIZE, "%.1fx", json_number_value(value));
    return out;
}

static const char *yes_or_no(const json_t *object, const char *key)
{
    return json_is_true(json_object_get(object, key)) ? "yes" : "no";
}

/* --- parts */

static void print_load(const json_t *found)
{
    const json_t *device = json_object_get(found, "accelerator"), *plain = json_object_get(found, "float");
    char memory[PRINT_SIZE], total[PRINT_SIZE], weights[PRINT_SIZE], cache[PRINT_SIZE], text[400];
    long long batch = json_integer_value(json_object_get(found, "batch"));
    const char *runtime = print_text(found, "runtime");

    recommend_text("goal", print_text(found, "title"));
    recommend_text("", print_text(found, "note"));
    snprintf(text, sizeof(text), "%.80s with %s; %lld request%s at once, %lld tokens read and %lld written each; %.40s",
             print_text(device, "name"), gigabytes(device, "memory_bytes", memory), batch, batch == 1 ? "" : "s",
             (long long)json_integer_value(json_object_get(found, "prompt_tokens")),
             (long long)json_integer_value(json_object_get(found, "output_tokens")),
             strcmp(runtime, "any") == 0 ? "any runtime" : runtime);
    recommend_text("load", text);
    if (batch == 1 && strcmp(print_text(found, "goal"), "throughput") == 0) {
        recommend_text("", "How many requests the server answers at once (--batch) changes the order.");
    }
    snprintf(text, sizeof(text), "%s: weights %s, keys and values of the requests (the KV cache) %s; %s",
             gigabytes(plain, "total_bytes", total), gigabytes(plain, "weights_bytes", weights),
             gigabytes(plain, "kv_cache_bytes", cache),
             json_is_true(json_object_get(plain, "fits")) ? "it fits as it is" : "it does not fit");
    recommend_text("in 16 bits", text);
    recommend_text("bottleneck", print_text(plain, "explanation"));
    if (json_get_string(found, "fit_note") != NULL) {
        recommend_text("memory", print_text(found, "fit_note"));
    }
    if (json_get_string(found, "speed_note") != NULL) {
        recommend_text("speed", print_text(found, "speed_note"));
    }
}

static int print_ways(const json_t *choices)
{
    static const char *const titles[] = {">",      "way",      ">bits/weight", ">memory",   "fits",
                                         ">reply", ">reading", ">writing",     "loaded by", NULL};
    AUTO(table) struct table *table = table_new(titles);
    const json_t *choice, *runtime;
    size_t i, k;

    json_array_foreach(choices, i, choice)
    {
        char number[PRINT_SIZE], bits[PRINT_SIZE], memory[PRINT_SIZE], reply[PRINT_SIZE], reading[PRINT_SIZE],
            writing[PRINT_SIZE], runtimes[200] = "";
        json_array_foreach(json_object_get(choice, "runtimes"), k, runtime)
        {
            size_t used = strlen(runtimes);
            snprintf(runtimes + used, sizeof(runtimes) - used, "%s%s", k > 0 ? ", " : "",
                     json_is_string(runtime) ? json_string_value(runtime) : "");
        }
        snprintf(number, sizeof(number), "%zu", i + 1);
        bool weights = json_is_number(json_object_get(choice, "bits_per_weight"));
        TABLE_ROW(table, number, print_text(choice, "name"),
                  weights ? print_number(choice, "bits_per_weight", 3, bits) : "16",
                  gigabytes(choice, "total_bytes", memory), yes_or_no(choice, "fits"),
                  speedup(choice, "request_speedup", reply), speedup(choice, "prefill_speedup", reading),
                  speedup(choice, "decode_speedup", writing), runtimes);
    }
    TRY(table_print(table, stdout));
    recommend_text("",
                   "memory: of weights, keys and values. reply, reading (the prompt), writing (the answer): how many "
                   "times faster than 16 bits at most, a bound from the device's memory and arithmetic, not a "
                   "measurement; -: made to save memory, not time.");
    return 0;
}

static void print_reasons(const json_t *found)
{
    const json_t *item;
    char name[64];
    size_t i;

    json_array_foreach(json_object_get(found, "choices"), i, item)
    {
        snprintf(name, sizeof(name), "%zu", i + 1);
        fputc('\n', stdout);
        recommend_text(name, print_text(item, "name"));
        recommend_text("  why", print_text(item, "reason"));
        recommend_text("  kernels", print_text(item, "kernels"));
        if (json_get_string(item, "caution") != NULL) {
            recommend_text("  caution", print_text(item, "caution"));
        }
        if (json_object_get(json_object_get(item, "job"), "calibration") != NULL) {
            recommend_text("  needs", "calibration records: texts like those that the model will see");
        }
    }
    json_array_foreach(json_object_get(found, "left_out"), i, item)
    {
        char text[1200];
        snprintf(text, sizeof(text), "%.60s: %.1000s", print_text(item, "name"), print_text(item, "reason"));
        if (i == 0) {
            fputc('\n', stdout);
        }
        recommend_text(i == 0 ? "left out" : "", text);
    }
}

/* --- the job */

static int recommend_save(const json_t *found, const struct recommend_options *options)
{
    size_t count = json_array_size(json_object_get(found, "choices"));
    size_t at = options->choice == OPTION_UNSET ? 1 : (size_t)options->choice;
    const json_t *job = json_object_get(json_array_get(json_object_get(found, "choices"), at - 1), "job");

    if (job == NULL) {
        return err_raise(ERR_CONFIG, "--choice: there are %zu ways", count);
    }
    AUTO_FREE char *text = json_dumps(job, JSON_INDENT(2));
    if (text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job file");
    }
    if (strcmp(options->save, "-") == 0) {
        print_json(job);
        return 0;
    }
    int fd = open(options->save, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
    if (file == NULL) {
        const char *why = errno == EEXIST ? "it is there already" : strerror(errno);
        if (fd >= 0) {
            (void)close(fd);
        }
        return status_fail(STATUS_LOCAL, "cannot write %s: %s", options->save, why);
    }
    bool written = fprintf(file, "%s\n", text) > 0;
    return fclose(file) == 0 && written ? 0 : status_fail(STATUS_LOCAL, "cannot write %s", options->save);
}

/* As a word of a shell. */
static void print_argument(const char *option, const char *text)
{
    if (text == NULL) {
        return;
    }
    safe_printf(stdout, " %s ", option);
    if (text[0] != '\0' &&
        strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-./:") == strlen(text)) {
        safe_printf(stdout, "%s", text);
        return;
    }
    putchar('\'');
    for (const char *quote; (quote = strchr(text, '\'')) != NULL; text = quote + 1) {
        safe_printf(stdout, "%.*s'\\''", (int)(quote - text), text);
    }
    safe_printf(stdout, "%s'", text);
}

static void print_count(const char *option, int64_t value)
{
    if (value != OPTION_UNSET) {
        safe_printf(stdout, " %s %lld", option, (long long)value);
    }
}

/* The command that makes the way. */
static void print_next(const json_t *found, const struct recommend_options *options)
{
    size_t at = options->save != NULL && options->choice != OPTION_UNSET ? (size_t)options->choice : 1;
    const json_t *way = json_array_get(json_object_get(found, "choices"), at - 1);
    const struct jobgoal *goal = &options->goal;

    if (way == NULL) {
        safe_printf(stdout, "None of the ways of this goal can be taken: try another --goal or --runtime.\n");
        return;
    }
    if (options->save == NULL && !json_is_true(json_object_get(way, "fits"))) { /* --goal would be refused */
        safe_printf(stdout,
                    "None of the ways fits; to make one all the same: --choice N --save job.json, then quantctl "
                    "submit --file job.json.\n");
        return;
    }
    safe_printf(stdout, "To make %s (plan in place of submit: to see what that takes):\n", print_text(way, "name"));
    safe_printf(stdout, "  quantctl submit");
    if (options->save != NULL) {
        print_argument("--file", options->save);
    } else {
        print_argument("--model", options->model);
        print_argument("--goal", goal->goal);
        print_argument("--accelerator", goal->accelerator);
        print_argument("--runtime", goal->runtime);
        print_count("--batch", goal->batch);
        print_count("--prompt-tokens", goal->prompt_tokens);
        print_count("--output-tokens", goal->output_tokens);
    }
    safe_printf(stdout, "%s\n",
                json_object_get(json_object_get(way, "job"), "calibration") != NULL ? " --calibration FILE" : "");
    if (options->save == NULL) {
        safe_printf(stdout, "Another one: --choice N --save job.json, then quantctl submit --file job.json.\n");
    }
}

static int recommend_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct recommend_options *options = given;
    AUTO_JSON json_t *body = json_object();
    AUTO_JSON json_t *found = NULL;
    bool quiet = options->save != NULL && strcmp(options->save, "-") == 0;

    (void)count;
    (void)arguments;
    TRY(json_object_set_new(body, "model", json_string(options->model != NULL ? options->model : "")) != 0 ||
                options->model == NULL
            ? err_set_hint(err_raise(ERR_CONFIG, "which model?"), "--model with its id, its name, or file:PATH")
            : 0);
    TRY(jobgoal_members(&options->goal, body));
    if (options->no_calibration) {
        (void)json_object_set_new(body, "calibration", json_false());
    }
    TRY(jobrequest_model(cli, body));
    TRY(client_send(cli, "POST", "/v1/quantization/recommendations", body, &found));
    TRY(options->save != NULL ? recommend_save(found, options) : 0);
    if (quiet) {
        return 0;
    }
    if (cli->json) {
        print_json(found);
        return 0;
    }
    print_load(found);
    fputc('\n', stdout);
    TRY(json_array_size(json_object_get(found, "choices")) > 0 ? print_ways(json_object_get(found, "choices")) : 0);
    print_reasons(found);
    fputc('\n', stdout);
    print_next(found, options);
    return 0;
}

const struct command command_recommend = {
    .name = "recommend",
    .summary = "Say how to quantize a model for a goal, on a device",
    .details =
        "Ways to quantize, the best first: the memory that each needs, how much faster it can be at most, and why. A "
        "goal or an accelerator that the server does not know is refused with the list of those that it knows.\n\n"
        "  quantctl recommend -m tiny --goal throughput --accelerator h100-sxm --runtime vllm --batch 32",
    .options = recommend_options,
    .size = sizeof(struct recommend_options),
    .run = recommend_run,
};
