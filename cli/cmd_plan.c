/* quantctl plan: what a job would take and make, before it is submitted. */

#include "base/err.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/jobrequest.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"

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
    safe_printf(stdout, "artifact      %s: %s of %s (%s times smaller), %s bits per quantized weight\n",
                print_text(output, "format"), plan_bytes(output, "artifact_bytes", made),
                plan_bytes(output, "source_bytes", source), print_number(output, "compression_ratio", 3, ratio),
                print_number(output, "bits_per_weight", 4, bits));
}

static void print_memory(const json_t *memory)
{
    char least[PRINT_SIZE], most[PRINT_SIZE], left[PRINT_SIZE], activations[PRINT_SIZE], budget[PRINT_SIZE];

    if (!json_is_object(memory)) {
        return;
    }
    safe_printf(stdout, "memory        %s: up to %s, at least %s; %s are free\n", print_text(memory, "device"),
                plan_bytes(memory, "expected_bytes", most), plan_bytes(memory, "minimum_bytes", least),
                plan_bytes(memory, "free_bytes", left));
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
        safe_printf(stdout, "disk          %s: finished blocks %s, artifact %s; %s are free\n",
                    plan_bytes(disk, "needed_bytes", need), plan_bytes(disk, "blocks_bytes", blocks),
                    plan_bytes(disk, "artifact_bytes", artifact), plan_bytes(disk, "free_bytes", left));
    }
}

static void print_problems(const json_t *estimate)
{
    const json_t *item;
    size_t i;

    json_array_foreach(json_object_get(estimate, "warnings"), i, item)
    {
        safe_printf(stdout, "warning       %s\n", print_text(item, "message"));
    }
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
        if (json_is_object(json_object_get(estimate, "recommendation"))) {
            safe_printf(stdout, "method        %s\n", print_text(estimate, "method"));
            job_print_choice(json_object_get(estimate, "recommendation"));
        }
        print_output(estimate);
        print_memory(json_object_get(estimate, "memory"));
        print_disk(json_object_get(estimate, "disk"));
        print_problems(estimate);
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
