/* quantctl plan: what a job would take and make, before it is submitted. */

#include "base/err.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/jobrequest.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <string.h>

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
    char source[PRINT_SIZE], made[PRINT_SIZE], ratio[PRINT_SIZE], bits[PRINT_SIZE];

    if (!json_is_object(output)) {
        return;
    }
    if (!json_is_number(json_object_get(output, "artifact_bytes"))) {
        safe_printf(stdout, "artifact      none: the model, %s, is only measured\n",
                    plan_bytes(output, "source_bytes", source));
        return;
    }
    safe_printf(stdout, "artifact      %s: %s of %s (%s times smaller), %s bits per quantized weight\n",
                print_text(output, "format"), plan_bytes(output, "artifact_bytes", made),
                plan_bytes(output, "source_bytes", source), print_number(output, "compression_ratio", 3, ratio),
                print_number(output, "bits_per_weight", 4, bits));
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

static void print_time_taken(const json_t *time)
{
    char seconds[PRINT_SIZE];
    bool jobs = strcmp(print_text(time, "basis"), "jobs") == 0;

    if (json_is_object(time)) {
        safe_printf(stdout, "time          %s, %s\n",
                    print_seconds(json_number_value(json_object_get(time, "seconds")), seconds),
                    jobs ? "by the jobs that this machine has finished"
                         : "by a first measurement of this machine; once a job has finished, closer");
    }
}

static void print_memory(const json_t *memory)
{
    char least[PRINT_SIZE], most[PRINT_SIZE], left[PRINT_SIZE], process[PRINT_SIZE];
    char activations[PRINT_SIZE], budget[PRINT_SIZE];

    if (!json_is_object(memory)) {
        return;
    }
    safe_printf(stdout, "memory        %s: %s%s, at least %s; %s are free\n", print_text(memory, "device"),
                json_is_true(json_object_get(memory, "upper_bound")) ? "up to " : "",
                plan_bytes(memory, "expected_bytes", most), plan_bytes(memory, "minimum_bytes", least),
                plan_bytes(memory, "free_bytes", left));
    safe_printf(stdout, "              of the daemon's process %s at the peak\n",
                plan_bytes(memory, "host_expected_bytes", process));
    if (json_is_integer(json_object_get(memory, "activations_bytes"))) {
        safe_printf(stdout, "activations   %s, on disk beyond %s\n",
                    plan_bytes(memory, "activations_bytes", activations),
                    plan_bytes(memory, "activations_budget_bytes", budget));
    }
}

static void print_disk(const json_t *disk)
{
    char need[PRINT_SIZE], left[PRINT_SIZE], blocks[PRINT_SIZE], artifact[PRINT_SIZE];

    if (json_is_object(disk)) {
        double files = json_number_value(json_object_get(disk, "spilled_bytes")) +
                       json_number_value(json_object_get(disk, "saved_bytes"));
        char kept[PRINT_SIZE];
        safe_printf(stdout,
                    "disk          %s at the peak (finished blocks %s, artifact %s, activations %s); %s are free\n",
                    plan_bytes(disk, "needed_bytes", need), plan_bytes(disk, "blocks_bytes", blocks),
                    plan_bytes(disk, "artifact_bytes", artifact), print_bytes(files, kept),
                    plan_bytes(disk, "free_bytes", left));
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
        safe_printf(stdout, "problem       %s: %s\n", print_text(item, "param"), print_text(item, "detail"));
        if (hint != NULL) {
            safe_printf(stdout, "              %s\n", hint);
        }
    }
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
    TRY(client_send(cli, "POST", "/v1/quantization/estimates", body, &estimate));
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
        print_time_taken(json_object_get(estimate, "time"));
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
        "Takes the options of submit. Calibration records are not read: -c with any file says that there will be "
        "some. Exit status 4: the job could not run, for the "
        "reasons that are printed.\n\n"
        "  quantctl plan -m tiny --method gptq -b 4 -g 64 -c texts.ndjson",
    .options = plan_options,
    .size = sizeof(struct plan_options),
    .run = plan_run,
};
