/* A block's outputs go to disk while the next one computes, and the receiver commits them as soon as they are there,
 * while that one computes, too: the run asks for its answer where it ticks, and waits for it before it saves the next.
 * Activations are written only when that costs little next to the time since they were last written: on a fast device
 * with many tokens they are far larger than the outputs, and a disk would set the pace. A resume therefore goes back to
 * the last block with activations and runs the blocks after it again, which ends in the same bytes, without committing
 * them twice. */

#include "pipeline/checkpoint.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/ids.h"

#include <stdlib.h>
#include <string.h>

/* Writing, hashing and syncing together; slower disks only make the share larger. */
#define SAVE_BYTES_PER_SECOND 1e9
#define SAVE_SHARE 0.1        /* of the time may go into activations */
#define SAVE_FREE_SECONDS 0.1 /* what costs less is written after each block */

int checkpoint_init(struct checkpoint *checkpoint, const struct message_sender *sender, int64_t block_count)
{
    const struct pipeline *p = sender->p;
    size_t count = (size_t)(block_count > p->block_count ? block_count : p->block_count);

    *checkpoint = (struct checkpoint){
        .sender = sender, .block_count = block_count, .committed = p->block_count, .rows = p->rows_before};
    checkpoint->blocks = calloc(count, sizeof(*checkpoint->blocks));
    if (checkpoint->blocks == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the list of blocks");
    }
    for (int64_t i = 0; i < p->block_count; i++) {
        checkpoint->blocks[i] = p->blocks[i];
    }
    return 0;
}

void checkpoint_deinit(struct checkpoint *checkpoint)
{
    free(checkpoint->blocks);
    checkpoint->blocks = NULL;
}

int checkpoint_open(struct checkpoint *checkpoint, const struct gpu *gpu, bool waits)
{
    checkpoint->waits = waits;
    checkpoint->restarts = false;
    checkpoint->store_count = 0;
    checkpoint->saved_at = clock_monotonic_seconds();
    return block_writer_new(gpu, &checkpoint->writer);
}

void checkpoint_close(struct checkpoint *checkpoint)
{
    block_writer_free(checkpoint->writer);
    checkpoint->writer = NULL;
}

void checkpoint_add(struct checkpoint *checkpoint, const char *name, struct activations *store, bool evaluation)
{
    if (store != NULL) {
        checkpoint->stores[checkpoint->store_count++] = (struct checkpoint_store){name, store, evaluation};
    }
}

static const struct saved_activations *find_saved(const struct saved_block *block, const char *store)
{
    for (int i = 0; i < block->activation_count; i++) {
        if (strcmp(block->activations[i].store, store) == 0) {
            return &block->activations[i];
        }
    }
    return NULL;
}

static int check_block(const char *directory, const struct saved_block *block, int64_t index)
{
    struct qtensor_file *file;
    char path[600];

    if (block->version != CHECKPOINT_VERSION) {
        return err_raise(ERR_UNSUPPORTED, "block %lld was saved in version %lld, and this build reads %d",
                         (long long)index, (long long)block->version, CHECKPOINT_VERSION);
    }
    if (block->index != index || block->file[0] == '\0' || block->sha256[0] == '\0') {
        return err_raise(ERR_SOURCE_CORRUPT, "the checkpoint skips block %lld", (long long)index);
    }
    TRY(fs_path(path, sizeof(path), "%s/%s", directory, block->file));
    TRY(qtensor_file_open(path, block->sha256, &file));
    qtensor_file_close(file);
    return 0;
}

int checkpoint_usable(const char *directory, const struct saved_block *blocks, int64_t count, int64_t *usable)
{
    int rc = 0;

    *usable = 0;
    while (rc == 0 && *usable < count) {
        rc = check_block(directory, &blocks[*usable], *usable);
        *usable += rc == 0 ? 1 : 0;
    }
    return rc;
}

/* The stores as that block left them; ERR_NOT_FOUND: they are not on disk; ERR_SOURCE_CORRUPT: they are damaged. */
static int load_stores(struct checkpoint *checkpoint, const struct saved_block *block)
{
    bool more = block->index + 1 < checkpoint->block_count;
    int rc = 0;

    for (int i = 0; rc == 0 && i < checkpoint->store_count; i++) {
        const struct checkpoint_store *store = &checkpoint->stores[i];
        const struct saved_activations *saved = find_saved(block, store->name);
        if (!more && !store->evaluation) {
            continue;
        }
        rc = saved != NULL ? activations_load(store->store, saved->file, saved->sha256)
                           : err_raise(ERR_SOURCE_CORRUPT, "the checkpoint has no %s activations", store->name);
    }
    return rc;
}

/* Damaged activations count as missing: the run resumes after an earlier block that has some, or begins with the
 * embeddings. Missing ones do not indicate damage: they were removed when a later block was committed, and that block
 * was then dropped. */
int checkpoint_resume(struct checkpoint *checkpoint, int64_t *first_block)
{
    int64_t first = checkpoint->committed;
    char message[160];
    bool damaged = false;
    int rc = 0;

    if (checkpoint->restarts) {
        *first_block = 0;
        return 0;
    }
    for (; checkpoint->store_count > 0 && first > 0; first--) {
        const struct saved_block *block = &checkpoint->blocks[first - 1];
        if (block->activation_count == 0) {
            continue;
        }
        rc = load_stores(checkpoint, block);
        if (rc != ERR_SOURCE_CORRUPT && rc != ERR_NOT_FOUND) {
            break;
        }
        damaged = damaged || rc == ERR_SOURCE_CORRUPT;
    }
    rc = first == 0 ? 0 : rc;
    if (rc != 0) {
        return rc;
    }
    *first_block = first;
    if (!damaged) {
        return 0;
    }
    snprintf(message, sizeof(message),
             "saved activations were damaged; blocks %lld to %lld run again, with the same result", (long long)first,
             (long long)checkpoint->committed - 1);
    return message_send_warning(checkpoint->sender, "checkpoint_damaged", message);
}

static double save_cost(const struct checkpoint *checkpoint)
{
    double bytes = 0;

    for (int i = 0; i < checkpoint->store_count; i++) {
        bytes += (double)activations_bytes(checkpoint->stores[i].store);
    }
    return bytes / SAVE_BYTES_PER_SECOND;
}

static bool save_due(const struct checkpoint *checkpoint, int64_t index)
{
    double cost = save_cost(checkpoint);
    bool last = index + 1 == checkpoint->block_count;

    if (checkpoint->restarts) {
        return false;
    }
    return last || cost < SAVE_FREE_SECONDS || clock_monotonic_seconds() - checkpoint->saved_at > cost / SAVE_SHARE;
}

static int save_stores(struct checkpoint *checkpoint, struct saved_block *block)
{
    bool more = block->index + 1 < checkpoint->block_count;
    int rc = 0;

    for (int i = 0; rc == 0 && i < checkpoint->store_count; i++) {
        const struct checkpoint_store *store = &checkpoint->stores[i];
        struct saved_activations *saved = &block->activations[block->activation_count];
        if (!more && !store->evaluation) {
            continue;
        }
        rc = activations_commit(store->store, block->index, saved->file, saved->sha256);
        if (rc == 0) {
            snprintf(saved->store, sizeof(saved->store), "%s", store->name);
            block->activation_count++;
        }
    }
    checkpoint->saved_at = clock_monotonic_seconds();
    return rc;
}

static int turn_stores(struct checkpoint *checkpoint)
{
    for (int i = 0; i < checkpoint->store_count; i++) {
        TRY(activations_turn(checkpoint->stores[i].store));
    }
    return 0;
}

static void sweep_stores(struct checkpoint *checkpoint, const struct saved_block *block)
{
    for (int i = 0; i < checkpoint->store_count; i++) {
        const struct saved_activations *saved = find_saved(block, checkpoint->stores[i].name);
        (void)activations_sweep(checkpoint->stores[i].store, saved != NULL ? saved->file : NULL);
    }
}

static void close_pending(struct pending *pending)
{
    report_rows_deinit(&pending->rows);
    analysis_rows_deinit(&pending->analysis);
    cache_scales_deinit(&pending->cache);
    *pending = (struct pending){.open = false};
}

/* What the receiver did with it. */
static int end_pending(struct checkpoint *checkpoint, int rc)
{
    struct pending *pending = &checkpoint->pending;

    if (rc == 0) {
        checkpoint->blocks[pending->saved.index] = pending->saved;
        checkpoint->committed = pending->saved.index + 1;
        checkpoint->rows += pending->rows.count;
    }
    if (pending->activations_saved && (rc == 0 || rc == ERR_INTERRUPTED)) {
        sweep_stores(checkpoint, &pending->saved);
    }
    close_pending(pending);
    return rc;
}

static int send_pending(struct checkpoint *checkpoint)
{
    struct pending *pending = &checkpoint->pending;

    TRY(block_writer_wait(checkpoint->writer, pending->saved.sha256));
    const struct message_block block = {.saved = pending->saved,
                                        .rows = pending->rows.list,
                                        .row_count = pending->rows.count,
                                        .cache = &pending->cache,
                                        .analysis = pending->analysis.list,
                                        .analysis_count = pending->analysis.count,
                                        .tuning = &pending->tuning};
    TRY(message_send_block_done(checkpoint->sender, &block));
    pending->sent = true;
    return 0;
}

/* Files first, then the row that commits them, then the files of activations that they replace are removed. */
int checkpoint_commit(struct checkpoint *checkpoint, bool wait)
{
    struct pending *pending = &checkpoint->pending;
    bool answered = false;
    int rc = 0;

    if (!pending->open || !(pending->sent || wait || block_writer_ready(checkpoint->writer))) {
        return 0;
    }
    if (!pending->sent) {
        rc = send_pending(checkpoint);
    }
    if (rc == 0) {
        rc = message_block_answer(checkpoint->sender, wait, &answered);
    }
    return rc != 0 || answered ? end_pending(checkpoint, rc) : 0;
}

int checkpoint_replace(struct checkpoint *checkpoint, const struct saved_block *saved, const struct tune_curve *curve)
{
    const struct tune_curve none = {.done = false};
    const struct cache_scales cache = {.count = 0};
    const struct message_block block = {
        .saved = *saved, .cache = &cache, .tuning = curve != NULL ? curve : &none, .again = true};

    bool answered;

    int rc = message_send_block_done(checkpoint->sender, &block);
    rc = rc == 0 ? message_block_answer(checkpoint->sender, true, &answered) : rc;
    if (rc == 0) {
        checkpoint->blocks[saved->index] = *saved;
    }
    return rc;
}

void checkpoint_drop(struct checkpoint *checkpoint)
{
    bool answered;

    if (checkpoint->pending.sent) { /* the receiver reads it until then */
        (void)end_pending(checkpoint, message_block_answer(checkpoint->sender, true, &answered));
    } else if (checkpoint->pending.open) {
        close_pending(&checkpoint->pending);
    }
}

int checkpoint_block(struct checkpoint *checkpoint, int64_t index, const struct checkpoint_made *made,
                     struct gpu_stream *maker)
{
    char path[600];

    if (index < checkpoint->committed) {
        return turn_stores(checkpoint);
    }
    TRY(checkpoint_commit(checkpoint, true));
    struct pending pending = {.open = true,
                              .activations_saved = save_due(checkpoint, index),
                              .saved = {.index = index, .version = CHECKPOINT_VERSION}};
    snprintf(pending.saved.file, sizeof(pending.saved.file), "block-%05lld.safetensors", (long long)index);
    TRY(pending.activations_saved ? save_stores(checkpoint, &pending.saved) : turn_stores(checkpoint));
    TRY(fs_path(path, sizeof(path), "%s/%s", checkpoint->sender->p->directory, pending.saved.file));
    TRY(block_writer_start(checkpoint->writer, path, maker, made->outputs));
    pending.rows = *made->rows;
    pending.cache = *made->cache;
    pending.analysis = *made->analysis;
    if (made->tuning != NULL) {
        pending.tuning = *made->tuning;
    }
    *made->rows = (struct report_rows){0};
    *made->cache = (struct cache_scales){0};
    *made->analysis = (struct analysis_rows){0};
    checkpoint->pending = pending;
    return checkpoint->waits ? checkpoint_commit(checkpoint, true) : 0;
}
