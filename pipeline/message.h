#pragma once
/* Messages of a run to its receiver. Plain data; what a message points to is valid during the receiver's call only,
 * except where answers come later (message_answer). */

#include "base/digest.h"
#include "base/err.h"
#include "pipeline/report.h"
#include "quantizers/analysis.h"
#include "quantizers/tune.h"

#include <stdbool.h>
#include <stdint.h>

enum pipeline_phase {
    PHASE_LOAD,
    PHASE_FORWARD,
    PHASE_STATISTICS,
    PHASE_SOLVE,
    PHASE_MEASURE,
    PHASE_EVALUATE,
    PHASE_CHECKPOINT,
    PHASE_EXPORT,
    PHASE_COUNT
};
extern const char *const pipeline_phase_names[PHASE_COUNT];

/* Seconds spent and floating point operations done, per phase. */
struct pipeline_times {
    double seconds[PHASE_COUNT];
    double flops[PHASE_COUNT];
};

/* Greedy continuations by the quantized model next to those by the float model, means over prompts. */
struct generation_result {
    int64_t prompts, prompt_tokens, tokens;     /* of a continuation; prompts 0: it was not asked for */
    double agreement;                           /* the share of a continuation before the first token that differs */
    double repetition_before, repetition_after; /* the share of its pairs of adjacent tokens that it had already */
};

struct evaluation_result {
    bool done;
    double perplexity_before, perplexity_after, kl_mean;
    double top1_agreement; /* the share of positions where both models have the same largest logit */
    struct generation_result generation;
    int64_t tokens; /* predicted positions */
    int64_t sequences, length;
};

/* Activations that were saved after a block. */
struct saved_activations {
    char store[16]; /* "calibration", "reference", "eval_float", "eval_quant", "tuning" */
    char file[64], sha256[DIGEST_HEX_SIZE];
};
#define SAVED_ACTIVATIONS_MAX 5

/* The version of a block's row with the files that it names. Raised when one of them changes its meaning. */
#define CHECKPOINT_VERSION 1

/* A finished block on disk, in the run's folder. */
struct saved_block {
    int64_t index, version;
    char file[64], sha256[DIGEST_HEX_SIZE];
    struct saved_activations activations[SAVED_ACTIVATIONS_MAX];
    int activation_count; /* 0: they were not saved after this block */
};

enum message_kind {
    MESSAGE_PROGRESS,   /* often */
    MESSAGE_BLOCK_DONE, /* a block's files are on disk; the receiver commits it */
    MESSAGE_WARNING,    /* for whoever submitted the job; the run continues */
    MESSAGE_FAILED,     /* the last one of a run that failed or was stopped */
    MESSAGE_DONE,       /* the last one of a run that succeeded */
    MESSAGE_COUNT
};

struct message_progress {
    double fraction;  /* of the blocks; beyond 1 during the evaluation at the end */
    int64_t block;    /* the open one; the number of blocks once all are done */
    const char *step; /* one of message_steps */
    struct tune_progress
        learning; /* in step "tuning" from the first step on; of the complete model's once all blocks are done */
};

struct message_block {
    struct saved_block saved;
    const struct report_row *rows;
    int row_count;
    const struct cache_scales *cache; /* of keys and values; count 0: there are none */
    const struct analysis_row *analysis;
    int analysis_count;
    const struct tune_curve *tuning; /* NULL, or not done: nothing was learned */
    bool again; /* the block is committed, and has another file now; tuning is then that of the complete model */
};

struct message_warning {
    char code[32];
    char text[992];
};

struct message {
    enum message_kind kind;
    struct pipeline_times times; /* of this run so far */
    int64_t device_peak_bytes;   /* the maximum of the device's memory in this run so far; 0: not counted */
    int64_t host_peak_bytes;     /* the maximum resident set of the process that runs, since it began */
    union {
        struct message_progress progress;
        struct message_block block;
        struct message_warning warning;
        struct err_record failure;
        struct evaluation_result done;
    };
};

/* NULL-terminated: "loading", "calibrating", "quantizing", "evaluating", "measuring", "tuning". */
extern const char *const message_steps[];

/* Takes a message. Nonzero stops the run, which ends with that code as its own failure. After a block is done,
 * ERR_INTERRUPTED means that it was committed and the run must stop at this boundary; any other code that it was not.
 * What is returned for the last message is ignored. */
typedef int (*message_receiver)(void *data, const struct message *message);

/* The answer to the MESSAGE_BLOCK_DONE that `receive` took last, for receivers that take one and commit it while the
 * run continues: what the message points to is then valid until the answer is given. wait: until there is one.
 * *answered: there is one, which the call returns, with this thread's error record; it is given once. Returns 0 without
 * one. */
typedef int (*message_answer)(void *data, bool wait, bool *answered);
