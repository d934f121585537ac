#pragma once
/* What a job is for, from the options of a command: the members of "recommendation" of a job of method auto, and of
 * POST /v1/quantization/recommendations. */

#include "cli/command.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct jobgoal {
    const char *goal, *accelerator, *runtime;
    int64_t batch, prompt_tokens, output_tokens;
};

/* Rows of a command whose struct has one at offset `at`. */
#define JOBGOAL_OPTIONS(at)                                                                                    \
    {"goal",                                                                                                   \
     0,                                                                                                        \
     OPTION_TEXT,                                                                                              \
     "GOAL",                                                                                                   \
     (at) + offsetof(struct jobgoal, goal),                                                                    \
     .help = "What for: larger_model, lowest_bits, stable_int8, throughput, low_risk or adapter_training"},    \
        {"accelerator",                                                                                        \
         0,                                                                                                    \
         OPTION_TEXT,                                                                                          \
         "NAME",                                                                                               \
         (at) + offsetof(struct jobgoal, accelerator),                                                         \
         .help = "The device that will serve the artifact: rtx-4090, h100-sxm, ..., or its numbers as JSON"},  \
        {"runtime",                                                                                            \
         0,                                                                                                    \
         OPTION_TEXT,                                                                                          \
         "RUNTIME",                                                                                            \
         (at) + offsetof(struct jobgoal, runtime),                                                             \
         .help = "What will load the artifact: vllm, sglang, transformers, llama.cpp or mlx; any by default"}, \
        {"batch",                                                                                              \
         0,                                                                                                    \
         OPTION_INT,                                                                                           \
         "N",                                                                                                  \
         (at) + offsetof(struct jobgoal, batch),                                                               \
         .help = "Requests that are answered at once; 1 by default",                                           \
         1,                                                                                                    \
         INT64_MAX},                                                                                           \
        {"prompt-tokens",                                                                                      \
         0,                                                                                                    \
         OPTION_INT,                                                                                           \
         "N",                                                                                                  \
         (at) + offsetof(struct jobgoal, prompt_tokens),                                                       \
         .help = "Tokens of a request's prompt; 2048 by default",                                              \
         1,                                                                                                    \
         INT64_MAX},                                                                                           \
    {                                                                                                          \
        "output-tokens", 0, OPTION_INT, "N", (at) + offsetof(struct jobgoal, output_tokens),                   \
            .help = "Tokens of its answer; 256 by default", 0, INT64_MAX                                       \
    }

/* One of the options was given. */
bool jobgoal_given(const struct jobgoal *options);
/* The options that were given, as members of `object`. */
int jobgoal_members(const struct jobgoal *options, json_t *object);
