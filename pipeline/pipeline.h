#pragma once
/* The loop over blocks: embeddings in, quantized tensors, report rows and saved activations out, block by block.
 * A library that knows no store and no job: it is told what to do by struct pipeline, writes files into one folder, and
 * says everything else by messages (message.h). */

#include "formats/format.h"
#include "models/calibration.h"
#include "pipeline/message.h"
#include "pipeline/recipe.h"

/* Prompts are the beginnings of the evaluation set's first sequences. */
struct generation {
    int64_t prompts;               /* as many as there are sequences for; 0: generation is not asked for */
    int64_t prompt_tokens, tokens; /* of each; a prompt is no longer than a sequence */
};

struct pipeline {
    const struct recipe *recipe;
    const struct format *format; /* whose scale types results have */
    const struct model *model;
    const struct gpu *gpu;
    const char *directory;                     /* the run's own folder */
    const struct calibration_set *calibration; /* NULL = no calibration data */
    const struct calibration_set *evaluation;  /* NULL = no evaluation */
    struct generation generation;              /* needs an evaluation set */
    struct saved_activations float_model;      /* the float model's last activations of the evaluation set, which an
                                                  earlier run of the same model and set saved in `directory`; file "":
                                                  there are none */
    uint64_t seed;                             /* of every random choice */
    int64_t host_memory_bytes;                 /* activation budget */
    const struct saved_block *blocks;          /* committed ones of an earlier attempt, by index, all of them usable */
    int64_t block_count;
    int64_t rows_before; /* report rows already committed: numbering continues from here */
    message_receiver receive;
    message_answer answer; /* NULL: what `receive` returns for a block is its answer */
    void *receiver;
};

/* Run all blocks that are not yet committed, then evaluate; the last message says how that went, and so does the answer
 * with its record. ERR_SOURCE_CORRUPT when the checkpoint of an earlier attempt is damaged: clear it and call again.
 * The receiver is called on the caller's thread, and so is `answer`. */
int pipeline_run(const struct pipeline *pipeline);

/* How many of the committed blocks, from the first on, are complete and of this build's version. *usable is set
 * whatever the outcome. 0 when all are; ERR_SOURCE_CORRUPT or ERR_UNSUPPORTED (another version) says what is wrong with
 * the first one that is not; others: nobody could tell. */
int checkpoint_usable(const char *directory, const struct saved_block *blocks, int64_t count, int64_t *usable);
