#pragma once
/* What a run saves on disk between blocks, and how another resumes from it. Knows blocks by their files and
 * activations by their stores, and nothing of what is computed. Thread of the run. */

#include "pipeline/activations.h"
#include "pipeline/block_writer.h"
#include "pipeline/message_sender.h"

/* A finished block that is being written: what is committed once its file is complete. */
struct pending {
    bool open;
    bool sent; /* its file is complete, and the receiver has not answered yet */
    bool activations_saved;
    struct saved_block saved; /* without its digest until then */
    struct report_rows rows;
    struct cache_scales cache;
    struct analysis_rows analysis;
    struct tune_curve tuning;
};

struct checkpoint {
    const struct message_sender *sender;
    int64_t block_count; /* of the model */
    struct saved_block *blocks;
    int64_t committed; /* blocks, from the first on */
    int64_t rows;      /* report rows of these */

    /* of an attempt at the run */
    bool waits;    /* a block is on disk before the next one begins */
    bool restarts; /* activations are not saved: blocks need more than those of the stores that there are */
    struct block_writer *writer;
    struct pending pending;
    double saved_at; /* monotonic seconds: when activations were saved */
    struct checkpoint_store {
        const char *name;
        struct activations *store;
        bool evaluation; /* used after the last block */
    } stores[SAVED_ACTIVATIONS_MAX];
    int store_count;
};

/* With what an earlier attempt at the job has committed. */
int checkpoint_init(struct checkpoint *checkpoint, const struct message_sender *sender, int64_t block_count);
void checkpoint_deinit(struct checkpoint *checkpoint);
/* Begin an attempt at the run, without stores; end it, dropping a block that is being written. */
int checkpoint_open(struct checkpoint *checkpoint, const struct gpu *gpu, bool waits);
void checkpoint_close(struct checkpoint *checkpoint);
/* A store that a resume needs; name: static text. */
void checkpoint_add(struct checkpoint *checkpoint, const char *name, struct activations *store, bool evaluation);
/* Load the stores as the committed blocks left them, or an earlier block. *first_block: the first one to run,
 * after the last whose activations are on disk; 0: there are none, and the stores are as they were. */
int checkpoint_resume(struct checkpoint *checkpoint, int64_t *first_block);
/* A block is done, `made` after its rows, cache and analysis, which are taken over with its outputs: its stores go to
 * disk when it is time, and the outputs on a thread of their own, after all that is queued on `maker`. The block before
 * is committed first. A block that was committed by an earlier attempt and only ran again for its activations is not
 * committed again. */
struct checkpoint_made {
    struct block_outputs *outputs;
    struct report_rows *rows;
    struct cache_scales *cache;
    struct analysis_rows *analysis;
    const struct tune_curve *tuning; /* NULL: none; copied */
};
int checkpoint_block(struct checkpoint *checkpoint, int64_t index, const struct checkpoint_made *made,
                     struct gpu_stream *maker);
/* A committed block has another file: the receiver commits that. curve: of what was learned last on the complete model,
 * NULL: not with this block. */
int checkpoint_replace(struct checkpoint *checkpoint, const struct saved_block *saved, const struct tune_curve *curve);
/* Have the block that is being written committed if its file is complete, and hear whether it was; neither waits for
 * the file nor for the receiver. wait: for both. */
int checkpoint_commit(struct checkpoint *checkpoint, bool wait);
/* Drop the block that is being written, unless the receiver has it already. */
void checkpoint_drop(struct checkpoint *checkpoint);
