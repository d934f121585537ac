#pragma once
/* The only loop over blocks: embeddings in, quantized tensors, report rows and chain tensors out, block by block. */

#include "base/digest.h"
#include "models/calibration.h"
#include "pipeline/spec.h"

#include <jansson.h>
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

struct evaluation_result {
    bool done;
    double perplexity_before, perplexity_after, kl_mean;
    int64_t tokens; /* predicted positions */
    int64_t sequences, length;
};

/* How the runner and the pipeline talk: checks and news. Every hook may stop the run by returning nonzero. */
struct pipeline_hooks {
    void *data;
    /* Often: cancelled, draining, out of time? fraction of the whole run in [0, 1]; the open block, or the
     * number of blocks once all are done; what it is at: "loading", "calibrating", "quantizing", "evaluating". */
    int (*tick)(void *data, double fraction, int64_t block, const char *step);
    /* A block is on disk: commit it with its rows. chains: {"calibration":{"file","sha256"},...}; notes: what the
     * report says of it beside its rows, {"kv_cache":{...},"analysis":[...]}, each where there is such a thing. May
     * return ERR_INTERRUPTED after committing, to stop at this boundary. */
    int (*block_done)(void *data, int64_t index, const char *file, const char *sha256, const json_t *chains,
                      const json_t *notes, const json_t *rows);
    /* Something that whoever submitted the job should know, and that the run has dealt with. */
    int (*notice)(void *data, const char *code, const char *message);
};

/* The version of a block's row with the files that it names. Raised when one of them changes its meaning. */
#define CHECKPOINT_VERSION 1

/* How many of the committed blocks, from the first on, are whole and of this build's version. *usable is set whatever
 * the outcome. 0 when all are; ERR_SOURCE_CORRUPT or ERR_UNSUPPORTED (another version) says what is wrong with the
 * first one that is not; others: nobody could tell. */
int checkpoint_usable(const char *directory, const json_t *blocks, size_t *usable);

struct pipeline {
    const struct job_spec *spec;
    const struct model *model;
    const struct gpu *gpu;
    const char *directory;                     /* the job's own folder */
    const struct calibration_set *calibration; /* NULL = no calibration data */
    const struct calibration_set *evaluation;  /* NULL = no evaluation */
    int64_t host_memory_bytes;                 /* activation budget */
    const json_t *blocks;  /* committed blocks of an earlier attempt, by index, all of them usable; may be empty */
    int64_t layers_before; /* rows already committed: numbering goes on from here */
    struct pipeline_hooks hooks;
    struct pipeline_times *times; /* added to */
};

/* Run all blocks that are not yet committed, then evaluate. ERR_SOURCE_CORRUPT when the checkpoint of an earlier
 * attempt is damaged: clear it and call again. */
int pipeline_run(const struct pipeline *pipeline, struct evaluation_result *evaluation);
