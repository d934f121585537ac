/* quantctl plan: what a job would take and make, before it is submitted. */

#include "base/bytes.h"
#include "base/err.h"
#include "base/json.h"
#include "base/records.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/jobrequest.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct plan_options {
    struct jobrequest request;
};

static const struct option_row plan_options[] = {JOBREQUEST_OPTIONS(offsetof(struct plan_options, request)), {0}};

static const char *plan_bytes(const json_t *object, const char *key, char out[PRINT_SIZE])
{
    const json_t *value = json_object_get(object, key);

    return json_is_number(value) ? print_bytes(json_number_value(value), out) : "-";
}

static void print_output(const json_t *estimate)
{
    const json_t *output = json_object_get(estimate, "output");
    char source[PRINT_SIZE], made[PRINT_SIZE], number[PRINT_SIZE], ratio[PRINT_SIZE], bits[PRINT_SIZE];
    bool smaller = json_number_value(json_object_get(output, "compression_ratio")) > 1;

    if (!json_is_object(output)) {
        return;
    }
    if (!json_is_number(json_object_get(output, "artifact_bytes"))) {
        safe_printf(stdout, "artifact      none: the model, %s, is only measured\n",
                    plan_bytes(output, "source_bytes", source));
        return;
    }
    snprintf(ratio, sizeof(ratio), "%.30s times smaller", print_number(output, "compression_ratio", 3, number));
    safe_printf(stdout, "artifact      %s: %s of %s (%s), %s bits per quantized weight\n", print_text(output, "format"),
                plan_bytes(output, "artifact_bytes", made), plan_bytes(output, "source_bytes", source),
                smaller ? ratio : "not smaller", print_number(output, "bits_per_weight", 4, bits));
}

/* Sizes of one line, in one unit. */
struct plan_line {
    struct bytes_unit unit;
};

static struct plan_line plan_line_of(const json_t *object, const char *const *keys)
{
    double sizes[8];
    size_t count = 0;

    for (; keys[count] != NULL && count < sizeof(sizes) / sizeof(sizes[0]); count++) {
        sizes[count] = json_number_value(json_object_get(object, keys[count]));
    }
    return (struct plan_line){bytes_unit_of(sizes, count)};
}

static const char *line_bytes(const struct plan_line *line, const json_t *object, const char *key, char out[BYTES_SIZE])
{
    const json_t *value = json_object_get(object, key);

    return json_is_number(value) ? bytes_in(&line->unit, json_number_value(value), out) : "-";
}

static void print_sets(const json_t *sets)
{
    char sequences[PRINT_SIZE], length[PRINT_SIZE], evaluation[PRINT_SIZE];
    bool known = json_is_true(json_object_get(sets, "known"));

    if (json_integer_value(json_object_get(sets, "sequences")) == 0) {
        return;
    }
    /* num_samples: a file may have fewer */
    safe_printf(stdout, "calibration   %s %s sequences of %s tokens", known ? "up to" : "about",
                print_value(json_object_get(sets, "sequences"), sequences),
                print_value(json_object_get(sets, "sequence_length"), length));
    if (json_integer_value(json_object_get(sets, "evaluation_sequences")) > 0) {
        safe_printf(stdout, ", and %s more for evaluation",
                    print_value(json_object_get(sets, "evaluation_sequences"), evaluation));
    }
    safe_printf(stdout, known ? "; with fewer records all figures are smaller\n" : "\n");
}

static void print_time_taken(const json_t *time, const json_t *body)
{
    char seconds[PRINT_SIZE];
    const json_t *gate = json_object_get(json_object_get(body, "evaluation"), "gate");
    bool jobs = strcmp(print_text(time, "basis"), "jobs") == 0;

    if (json_is_object(time)) {
        safe_printf(stdout, "time          %s%s, %s\n",
                    print_seconds(json_number_value(json_object_get(time, "seconds")), seconds),
                    json_array_size(json_object_get(gate, "ladder")) > 0 ? " for the first rung of the ladder" : "",
                    jobs ? "by the jobs that this machine has finished"
                         : "by a first measurement of this machine; once a job has finished, closer");
    }
}

static void print_memory(const json_t *memory)
{
    static const char *const device_keys[] = {"expected_bytes", "minimum_bytes", "free_bytes", "host_expected_bytes",
                                              NULL};
    static const char *const kept_keys[] = {"activations_bytes", "activations_budget_bytes", NULL};
    const struct plan_line device = plan_line_of(memory, device_keys), kept = plan_line_of(memory, kept_keys);
    char least[BYTES_SIZE], most[BYTES_SIZE], left[BYTES_SIZE], process[BYTES_SIZE];
    char activations[BYTES_SIZE], budget[BYTES_SIZE];

    if (!json_is_object(memory)) {
        return;
    }
    (void)line_bytes(&device, memory, "expected_bytes", most);
    (void)line_bytes(&device, memory, "minimum_bytes", least);
    safe_printf(stdout, "memory        buffers on %s: %s%s", print_text(memory, "device"),
                json_is_true(json_object_get(memory, "upper_bound")) ? "up to " : "", most);
    if (strcmp(most, least) != 0) {
        safe_printf(stdout, ", at least %s", least);
    }
    safe_printf(stdout, "; %s are free\n", line_bytes(&device, memory, "free_bytes", left));
    safe_printf(stdout, "              the daemon's process: %s at the peak\n",
                line_bytes(&device, memory, "host_expected_bytes", process));
    if (json_is_integer(json_object_get(memory, "activations_bytes"))) {
        safe_printf(stdout, "activations   %s, on disk beyond %s\n",
                    line_bytes(&kept, memory, "activations_bytes", activations),
                    line_bytes(&kept, memory, "activations_budget_bytes", budget));
    }
}

static void print_disk(const json_t *disk)
{
    static const char *const keys[] = {"needed_bytes", "blocks_bytes", "artifact_bytes", "free_bytes", NULL};
    const struct plan_line line = plan_line_of(disk, keys);
    char need[BYTES_SIZE], left[BYTES_SIZE], blocks[BYTES_SIZE], artifact[BYTES_SIZE], kept[BYTES_SIZE];

    if (json_is_object(disk)) {
        double files = json_number_value(json_object_get(disk, "spilled_bytes")) +
                       json_number_value(json_object_get(disk, "saved_bytes"));
        safe_printf(stdout,
                    "disk          %s at the peak (finished blocks %s, artifact %s, activations %s); %s are free\n",
                    line_bytes(&line, disk, "needed_bytes", need), line_bytes(&line, disk, "blocks_bytes", blocks),
                    line_bytes(&line, disk, "artifact_bytes", artifact), bytes_in(&line.unit, files, kept),
                    line_bytes(&line, disk, "free_bytes", left));
    }
}

/* The phases of a report that a phase of memory is made of. */
static const struct {
    const char *phase, *parts[4];
} plan_phases[] = {
    {"loading", {"load"}},
    {"calibrating", {"forward", "hessian"}},
    {"quantizing", {"solve", "measure", "checkpoint"}},
    {"evaluating", {"evaluate"}},
    {"packing", {"export", "other"}},
};

static double phase_seconds(const json_t *time, const char *phase)
{
    const json_t *seconds = json_object_get(time, "phases");
    double sum = 0;

    for (size_t i = 0; i < sizeof(plan_phases) / sizeof(plan_phases[0]); i++) {
        for (int k = 0; strcmp(plan_phases[i].phase, phase) == 0 && k < 4 && plan_phases[i].parts[k] != NULL; k++) {
            sum += json_number_value(json_object_get(seconds, plan_phases[i].parts[k]));
        }
    }
    return sum;
}

/* Memory and time of each phase. */
static int print_phases(const json_t *memory, const json_t *time)
{
    AUTO(table)
    struct table *table = table_new((const char *const[]){"PHASE", ">DEVICE MEMORY", ">PROCESS MEMORY", ">TIME", NULL});
    double process = json_number_value(json_object_get(memory, "process_bytes"));
    char device[PRINT_SIZE], host[PRINT_SIZE], seconds[PRINT_SIZE];
    size_t i;
    json_t *phase;

    if (!json_is_object(memory)) {
        return 0;
    }
    json_array_foreach(json_object_get(memory, "phases"), i, phase)
    {
        const char *name = print_text(phase, "phase");
        (void)plan_bytes(phase, "device_bytes", device);
        print_bytes(process + json_number_value(json_object_get(phase, "host_bytes")), host);
        TABLE_ROW(table, name, device, host,
                  json_is_object(time) ? print_seconds(phase_seconds(time, name), seconds) : "-");
    }
    safe_printf(stdout, "\n");
    return table_print(table, stdout);
}

static void print_warnings(const json_t *estimate)
{
    const json_t *item;
    size_t i;

    json_array_foreach(json_object_get(estimate, "warnings"), i, item)
    {
        safe_printf(stdout, "warning       %s\n", print_text(item, "message"));
    }
}

/* Before all figures: why the job would be refused. */
static void print_problems(const json_t *estimate)
{
    const json_t *item;
    size_t i;

    json_array_foreach(json_object_get(estimate, "problems"), i, item)
    {
        const char *hint = json_get_string(item, "hint");
        const char *param = json_get_string(item, "param");
        safe_printf(stdout, "problem       %s%s%s\n", param != NULL ? param : "",
                    param != NULL && param[0] != '\0' ? ": " : "", print_text(item, "detail"));
        if (hint != NULL) {
            safe_printf(stdout, "              %s\n", hint);
        }
    }
}

/* Sequences that a local calibration file makes; -1: there is no such file. */
static int64_t plan_file_sequences(const char *path, const json_t *body, int64_t length, double text_bytes)
{
    const json_t *packing = json_object_get(json_object_get(body, "calibration"), "packing");
    AUTO_FILE FILE *file = fopen(path, "rbe");
    AUTO_FREE char *head = malloc(RECORDS_HEAD);
    struct stat found;

    if (file == NULL || head == NULL || fstat(fileno(file), &found) != 0 || !S_ISREG(found.st_mode)) {
        return -1;
    }
    size_t size = fread(head, 1, RECORDS_HEAD, file);
    return records_sequences(head, size, found.st_size, length, !json_is_false(packing), text_bytes);
}

/* The server knows nothing of a stream that is still to come: where the file that would be sent has fewer sequences
 * than were asked for, or all were, the request says how many. true: it does now. */
static bool plan_count_records(const char *path, json_t *body, const json_t *estimate)
{
    const json_t *sets = json_object_get(estimate, "sets");
    int64_t length = json_integer_value(json_object_get(sets, "sequence_length"));
    json_t *calibration = json_object_get(body, "calibration");

    if (path == NULL || length <= 0 || !json_is_true(json_object_get(calibration, "stream"))) {
        return false;
    }
    const json_t *evaluation = json_object_get(body, "evaluation");
    bool known = json_is_true(json_object_get(sets, "known"));
    int64_t asked = json_integer_value(json_object_get(sets, "sequences"));
    if (!json_is_string(json_object_get(evaluation, "file_id"))) { /* else held back of these */
        asked += json_integer_value(json_object_get(sets, "evaluation_sequences"));
    }
    int64_t there = plan_file_sequences(path, body, length, known ? RECORDS_TEXT_BYTES_LEAST : RECORDS_TEXT_BYTES);
    if (there < 0 || (known && there >= asked)) {
        return false;
    }
    /* of a set that none can be made of, the smallest there is */
    return json_object_set_new(calibration, "num_samples", json_integer(there > 1 ? there : 1)) == 0;
}

static int plan_ask(struct cli *cli, const char *file, json_t *body, json_t **estimate)
{
    TRY(client_send(cli, "POST", "/v1/quantization/estimates", body, estimate));
    if (!plan_count_records(file, body, *estimate)) {
        return 0;
    }
    json_decref(*estimate);
    *estimate = NULL;
    return client_send(cli, "POST", "/v1/quantization/estimates", body, estimate);
}

static int plan_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct plan_options *options = given;
    AUTO_JSON json_t *body = NULL;
    AUTO_JSON json_t *estimate = NULL;

    (void)count;
    (void)arguments;
    TRY(jobrequest_body(&options->request, &body));
    TRY(jobrequest_model(cli, body));
    TRY(plan_ask(cli, options->request.calibration, body, &estimate));
    if (cli->json) {
        print_json(estimate);
    } else {
        print_problems(estimate);
        if (json_is_object(json_object_get(estimate, "recommendation"))) {
            safe_printf(stdout, "method        %s\n", print_text(estimate, "method"));
            job_print_choice(json_object_get(estimate, "recommendation"));
        }
        print_output(estimate);
        print_sets(json_object_get(estimate, "sets"));
        print_time_taken(json_object_get(estimate, "time"), body);
        print_memory(json_object_get(estimate, "memory"));
        print_disk(json_object_get(estimate, "disk"));
        print_warnings(estimate);
        TRY(print_phases(json_object_get(estimate, "memory"), json_object_get(estimate, "time")));
    }
    return json_is_true(json_object_get(estimate, "possible")) ? 0 : status_shown(STATUS_REFUSED);
}

const struct command command_plan = {
    .name = "plan",
    .summary = "Estimate what a job would take and make, without submitting it",
    .details =
        "Takes the options of submit. Of a local calibration file the first megabyte is read, to see how many "
        "sequences it "
        "makes; -c with any other name says that there will be some. Exit status 4: the job could not run, for the "
        "reasons that are printed.\n\n"
        "  quantctl plan -m tiny --method gptq -b 4 -g 64 -c texts.ndjson",
    .options = plan_options,
    .size = sizeof(struct plan_options),
    .run = plan_run,
};
