#pragma once
/* A job's request from the options of a command: what submit sends, and plan asks about. */

#include "cli/jobgoal.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct jobrequest {
    const char *file, *name, *model, *format, *calibration, *evaluation, *device, *webhook, *budget;
    struct option_texts methods, set, metadata, gate, ladder, targets;
    int64_t bits, group_size, devices, samples, length, seed, priority, attempts, timeout;
    struct jobgoal goal; /* of method auto, which it implies where there is no other */
    bool model_free;
};

/* Rows of a command whose struct has one at offset `at`. */
#define JOBREQUEST_OPTIONS(at)                                                                                         \
    {"file",                                                                                                           \
     'f',                                                                                                              \
     OPTION_TEXT,                                                                                                      \
     "FILE",                                                                                                           \
     (at) + offsetof(struct jobrequest, file),                                                                         \
     .help = "Job file in YAML or JSON; \"-\" is standard input"},                                                     \
        {"model",                                                                                                      \
         'm',                                                                                                          \
         OPTION_TEXT,                                                                                                  \
         "MODEL",                                                                                                      \
         (at) + offsetof(struct jobrequest, model),                                                                    \
         .help = "Model: its id, its name, or file:PATH below a model root"},                                          \
        {"method",                                                                                                     \
         0,                                                                                                            \
         OPTION_TEXTS,                                                                                                 \
         "METHOD",                                                                                                     \
         (at) + offsetof(struct jobrequest, methods),                                                                  \
         .help = "Method; repeat for a list of stages; auto: what suits --goal and --accelerator best"},               \
        JOBGOAL_OPTIONS((at) + offsetof(struct jobrequest, goal)),                                                     \
        {"bits", 'b', OPTION_INT, "N", (at) + offsetof(struct jobrequest, bits), .help = "quantization.bits", 1, 64},  \
        {"group-size",                                                                                                 \
         'g',                                                                                                          \
         OPTION_INT,                                                                                                   \
         "N",                                                                                                          \
         (at) + offsetof(struct jobrequest, group_size),                                                               \
         .help = "quantization.group_size",                                                                            \
         -1,                                                                                                           \
         1000000},                                                                                                     \
        {"bits-per-weight",                                                                                            \
         0,                                                                                                            \
         OPTION_TEXT,                                                                                                  \
         "N",                                                                                                          \
         (at) + offsetof(struct jobrequest, budget),                                                                   \
         .help = "quantization.mixed_precision.bits_per_weight: a width for each linear, N bits on average at most"},  \
        {"set",                                                                                                        \
         0,                                                                                                            \
         OPTION_TEXTS,                                                                                                 \
         "NAME=VALUE",                                                                                                 \
         (at) + offsetof(struct jobrequest, set),                                                                      \
         .help = "Any other member: damp_percent=0.02 of quantization, output.max_shard_bytes=... of another object; " \
                 "repeatable"},                                                                                        \
        {"format", 0, OPTION_TEXT, "FORMAT", (at) + offsetof(struct jobrequest, format), .help = "output.format"},     \
        {"target",                                                                                                     \
         0,                                                                                                            \
         OPTION_TEXTS,                                                                                                 \
         "RUNTIME",                                                                                                    \
         (at) + offsetof(struct jobrequest, targets),                                                                  \
         .help = "A runtime that must load the artifact: vllm, vllm>=0.32, vllm==0.33.0; repeatable"},                 \
        {"tensor-parallel",                                                                                            \
         0,                                                                                                            \
         OPTION_INT,                                                                                                   \
         "N",                                                                                                          \
         (at) + offsetof(struct jobrequest, devices),                                                                  \
         .help = "output.tensor_parallel_size: devices that the targets divide the model over",                        \
         1,                                                                                                            \
         1024},                                                                                                        \
        {"model-free",                                                                                                 \
         0,                                                                                                            \
         OPTION_FLAG,                                                                                                  \
         NULL,                                                                                                         \
         (at) + offsetof(struct jobrequest, model_free),                                                               \
         .help = "Quantize from names and shapes alone (mode model_free), without calibration"},                       \
        {"calibration",                                                                                                \
         'c',                                                                                                          \
         OPTION_TEXT,                                                                                                  \
         "FILE",                                                                                                       \
         (at) + offsetof(struct jobrequest, calibration),                                                              \
         .help = "Calibration records: a local NDJSON file (\"-\": standard input), or file_... of the server"},       \
        {"num-samples",                                                                                                \
         0,                                                                                                            \
         OPTION_INT,                                                                                                   \
         "N",                                                                                                          \
         (at) + offsetof(struct jobrequest, samples),                                                                  \
         .help = "calibration.num_samples",                                                                            \
         1,                                                                                                            \
         INT64_MAX},                                                                                                   \
        {"sequence-length",                                                                                            \
         0,                                                                                                            \
         OPTION_INT,                                                                                                   \
         "N",                                                                                                          \
         (at) + offsetof(struct jobrequest, length),                                                                   \
         .help = "calibration.sequence_length",                                                                        \
         1,                                                                                                            \
         INT64_MAX},                                                                                                   \
        {"evaluation",                                                                                                 \
         0,                                                                                                            \
         OPTION_TEXT,                                                                                                  \
         "FILE|FRACTION",                                                                                              \
         (at) + offsetof(struct jobrequest, evaluation),                                                               \
         .help = "Evaluate on file_... of the server, or on this fraction of the calibration records"},                \
        {"gate",                                                                                                       \
         0,                                                                                                            \
         OPTION_TEXTS,                                                                                                 \
         "NAME=VALUE",                                                                                                 \
         (at) + offsetof(struct jobrequest, gate),                                                                     \
         .help = "Limit that the result must keep, such as max_perplexity_increase_ratio=0.03, or on_fail=warn; "      \
                 "repeatable"},                                                                                        \
        {"rung",                                                                                                       \
         0,                                                                                                            \
         OPTION_TEXTS,                                                                                                 \
         "NAME=VALUE,...",                                                                                             \
         (at) + offsetof(struct jobrequest, ladder),                                                                   \
         .help = "Members of quantization (or method) to try next where a limit is not kept; repeatable"},             \
        {"name", 'n', OPTION_TEXT, "NAME", (at) + offsetof(struct jobrequest, name), .help = "Name of the job"},       \
        {"metadata",                                                                                                   \
         0,                                                                                                            \
         OPTION_TEXTS,                                                                                                 \
         "KEY=VALUE",                                                                                                  \
         (at) + offsetof(struct jobrequest, metadata),                                                                 \
         .help = "Metadata for filters; repeatable"},                                                                  \
        {"device", 0, OPTION_TEXT, "DEVICE", (at) + offsetof(struct jobrequest, device), .help = "resources.device"},  \
        {"seed", 0, OPTION_INT, "N", (at) + offsetof(struct jobrequest, seed), .help = "Seed", 0, INT64_MAX},          \
        {"priority",         0,        OPTION_INT, "N", (at) + offsetof(struct jobrequest, priority),                  \
         .help = "Priority", -1000000, 1000000},                                                                       \
        {"max-attempts",                                                                                               \
         0,                                                                                                            \
         OPTION_INT,                                                                                                   \
         "N",                                                                                                          \
         (at) + offsetof(struct jobrequest, attempts),                                                                 \
         .help = "Attempts without progress",                                                                          \
         1,                                                                                                            \
         1000000},                                                                                                     \
        {"time-limit",                                                                                                 \
         0,                                                                                                            \
         OPTION_INT,                                                                                                   \
         "SECONDS",                                                                                                    \
         (at) + offsetof(struct jobrequest, timeout),                                                                  \
         .help = "timeout_seconds: the job's time limit",                                                              \
         1,                                                                                                            \
         INT64_MAX},                                                                                                   \
    {                                                                                                                  \
        "webhook", 0, OPTION_TEXT, "WEBHOOK", (at) + offsetof(struct jobrequest, webhook),                             \
            .help = "Webhook (wh_...) that is told of the job's end"                                                   \
    }

/* The body of the request. The options take precedence over the job file. New reference. */
int jobrequest_body(const struct jobrequest *options, json_t **body);
/* body's model by its id: a name is looked up. A URI becomes a registration within the job: it adds no model where the
 * folder has one already or the job is refused, and the body is the same when the command is repeated. */
int jobrequest_model(struct cli *cli, json_t *body);
/* The calibration records are those of a local file, or of standard input. */
bool jobrequest_is_local(const struct jobrequest *options);
