/* What a run leaves on disk between blocks, and how another goes on from it.
 *
 * A block's results go to disk while the next one computes, and are committed as soon as they are there. Its chains are
 * written only when that costs little beside the time since they were last written: on a fast device with many tokens
 * they are far larger than the results, and a disk would set the pace. A resume therefore goes back to the last block
 * with chains and runs the blocks behind it again, which ends in the same bytes, without committing them twice. */

#include "pipeline/run.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/ids.h"

#include <stdlib.h>
#include <string.h>

/* Writing, hashing and syncing together; slower disks only make the share larger. */
#define CHAIN_BYTES_PER_SECOND 1e9
#define CHAIN_SHARE 0.1        /* of the time may go into chains */
#define CHAIN_FREE_SECONDS 0.1 /* what costs less is written after each block */

static int embed_all(struct run *run)
{
    int rc = 0;

    if (run->hidden != NULL) {
        rc = flow_embed(&run->calibration, run->hidden, run);
    }
    if (rc == 0 && run->reference_hidden != NULL) {
        rc = flow_embed(&run->reference, run->reference_hidden, run);
    }
    if (rc == 0 && run->eval_float != NULL) {
        rc = flow_embed(&run->evaluation, run->eval_float, run);
        rc = rc != 0 ? rc : flow_embed(&run->evaluation, run->eval_quant, run);
    }
    return rc;
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

static int load_chain(struct chain *chain, const char *name, const struct saved_block *block)
{
    const struct saved_activations *saved = find_saved(block, name);

    if (chain == NULL) {
        return 0;
    }
    return saved != NULL ? chain_load(chain, saved->file, saved->sha256)
                         : err_raise(ERR_SOURCE_CORRUPT, "the checkpoint has no %s activations", name);
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
    int rc = fs_path(path, sizeof(path), "%s/%s", directory, block->file);
    rc = rc != 0 ? rc : qtensor_file_open(path, block->sha256, &file);
    if (rc == 0) {
        qtensor_file_close(file);
    }
    return rc;
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

/* The chains that a resume needs. */
#define CHAIN_COUNT SAVED_ACTIVATIONS_MAX
struct saved {
    const char *name;
    struct chain *chain; /* NULL: the run has none */
    bool evaluation;     /* still wanted after the last block */
};

static void list_chains(const struct run *run, struct saved list[CHAIN_COUNT])
{
    const struct saved all[CHAIN_COUNT] = {
        {"calibration", run->hidden, false},
        {"reference", run->reference_hidden, false},
        {"eval_float", run->eval_float, true},
        {"eval_quant", run->eval_quant, true},
    };
    memcpy(list, all, sizeof(all));
}

static bool has_chains(const struct run *run)
{
    return run->hidden != NULL || run->eval_float != NULL;
}

/* The chains as the block before `first_block` left them; ERR_NOT_FOUND: they are not on disk; ERR_SOURCE_CORRUPT: they
 * are damaged. */
static int load_chains(struct run *run, const struct saved_block *block)
{
    struct saved list[CHAIN_COUNT];
    bool more = run->first_block < run->config->num_layers;
    int rc = 0;

    list_chains(run, list);
    for (int i = 0; rc == 0 && i < CHAIN_COUNT; i++) {
        rc = more || list[i].evaluation ? load_chain(list[i].chain, list[i].name, block) : 0;
    }
    return rc;
}

/* Damaged chains are like none: an earlier block has some, or the first one begins with the embeddings. Missing ones
 * are no sign of damage: they were removed when a later block was committed, and that block was then dropped. */
int checkpoint_resume(struct run *run)
{
    char message[160];
    bool damaged = false;
    int rc = 0;

    run->first_block = run->committed;
    run->chains_saved_at = clock_monotonic_seconds();
    if (!has_chains(run)) {
        return 0;
    }
    for (; run->first_block > 0; run->first_block--) {
        const struct saved_block *block = &run->blocks[run->first_block - 1];
        if (block->activation_count == 0) {
            continue;
        }
        rc = load_chains(run, block);
        if (rc != ERR_SOURCE_CORRUPT && rc != ERR_NOT_FOUND) {
            break;
        }
        damaged = damaged || rc == ERR_SOURCE_CORRUPT;
    }
    rc = run->first_block == 0 ? embed_all(run) : rc;
    if (rc != 0 || !damaged) {
        return rc;
    }
    snprintf(message, sizeof(message),
             "saved activations were damaged; blocks %lld to %lld run again, with the same result",
             (long long)run->first_block, (long long)run->committed - 1);
    return run_warn(run, "checkpoint_damaged", message);
}

static int commit_chain(struct chain *chain, const char *name, struct saved_block *block)
{
    struct saved_activations *saved = &block->activations[block->activation_count];

    if (chain == NULL) {
        return 0;
    }
    int rc = chain_commit(chain, block->index, saved->file, saved->sha256);
    if (rc == 0) {
        snprintf(saved->store, sizeof(saved->store), "%s", name);
        block->activation_count++;
    }
    return rc;
}

static void sweep_chain(struct chain *chain, const char *name, const struct saved_block *block)
{
    if (chain != NULL) {
        const struct saved_activations *saved = find_saved(block, name);
        (void)chain_sweep(chain, saved != NULL ? saved->file : NULL);
    }
}

static double chains_cost(const struct run *run)
{
    const struct model_config *c = run->config;
    double rows = 0;

    if (run->calibration.set != NULL) {
        double paths = run->reference_hidden != NULL ? 2 : 1;
        rows += paths * (double)(run->calibration.set->sequences * run->calibration.set->length);
    }
    if (run->eval_float != NULL) {
        rows += 2 * (double)(run->evaluation.set->sequences * run->evaluation.set->length);
    }
    return rows * (double)c->hidden_size * sizeof(float) / CHAIN_BYTES_PER_SECOND;
}

static bool chains_due(const struct run *run, int64_t index)
{
    double cost = chains_cost(run);
    bool last = index + 1 == run->config->num_layers;

    return last || cost < CHAIN_FREE_SECONDS || clock_monotonic_seconds() - run->chains_saved_at > cost / CHAIN_SHARE;
}

static int save_chains(struct run *run, struct saved_block *block)
{
    struct saved list[CHAIN_COUNT];
    bool more = block->index + 1 < run->config->num_layers;
    int rc = 0;

    list_chains(run, list);
    for (int i = 0; rc == 0 && i < CHAIN_COUNT; i++) {
        rc = more || list[i].evaluation ? commit_chain(list[i].chain, list[i].name, block) : 0;
    }
    run->chains_saved_at = clock_monotonic_seconds();
    return rc;
}

static int turn_chains(struct run *run)
{
    struct saved list[CHAIN_COUNT];
    int rc = 0;

    list_chains(run, list);
    for (int i = 0; rc == 0 && i < CHAIN_COUNT; i++) {
        rc = list[i].chain != NULL ? chain_turn(list[i].chain) : 0;
    }
    return rc;
}

static void sweep_chains(struct run *run, const struct saved_block *block)
{
    struct saved list[CHAIN_COUNT];

    list_chains(run, list);
    for (int i = 0; i < CHAIN_COUNT; i++) {
        sweep_chain(list[i].chain, list[i].name, block);
    }
}

static void close_pending(struct run *run)
{
    report_rows_deinit(&run->pending.rows);
    analysis_rows_deinit(&run->pending.analysis);
    cache_scales_deinit(&run->pending.cache);
    run->pending = (struct pending){.open = false};
}

/* Files first, then the row that makes them count, then the chain files that it replaces go. What this run knows of the
 * block is what another would read. */
static int commit_pending(struct run *run)
{
    struct pending *pending = &run->pending;

    int rc = results_wait(run->results, pending->saved.sha256);
    if (rc == 0) {
        const struct message_block block = {.saved = pending->saved,
                                            .rows = pending->rows.list,
                                            .row_count = pending->rows.count,
                                            .cache = &pending->cache,
                                            .analysis = pending->analysis.list,
                                            .analysis_count = pending->analysis.count};
        rc = run_block_done(run, &block);
    }
    if (rc == 0) {
        run->blocks[pending->saved.index] = pending->saved;
        run->committed = pending->saved.index + 1;
    }
    if (pending->activations_saved && (rc == 0 || rc == ERR_INTERRUPTED)) {
        sweep_chains(run, &pending->saved);
    }
    run->first_row = rc == 0 ? run->first_row : pending->first_row; /* its rows do not count either */
    close_pending(run);
    return rc;
}

int checkpoint_commit(struct run *run, bool wait)
{
    return run->pending.open && (wait || results_ready(run->results)) ? commit_pending(run) : 0;
}

void checkpoint_drop(struct run *run)
{
    if (run->pending.open) {
        close_pending(run);
    }
}

int checkpoint_block(struct run *run, int64_t index, struct block_items *items, struct report_rows *rows)
{
    char path[600];

    if (index < run->committed) {
        return turn_chains(run);
    }
    int rc = checkpoint_commit(run, true);
    if (rc != 0) {
        return rc;
    }
    struct pending pending = {.open = true,
                              .activations_saved = chains_due(run, index),
                              .first_row = run->first_row,
                              .saved = {.index = index, .version = CHECKPOINT_VERSION}};
    snprintf(pending.saved.file, sizeof(pending.saved.file), "block-%05lld.safetensors", (long long)index);
    rc = pending.activations_saved ? save_chains(run, &pending.saved) : turn_chains(run);
    rc = rc != 0 ? rc : fs_path(path, sizeof(path), "%s/%s", run->p->directory, pending.saved.file);
    rc = rc != 0 ? rc : results_start(run->results, path, run->stream, items);
    if (rc != 0) {
        return rc;
    }
    pending.rows = *rows;
    pending.cache = run->cache;
    pending.analysis = run->analysis;
    *rows = (struct report_rows){0};
    run->cache = (struct cache_scales){0};
    run->analysis = (struct analysis_rows){0};
    run->pending = pending;
    /* A device that ran out of memory keeps no codes beside the next block: whether it runs out again must not depend
     * on how fast a disk is. */
    return run->keep_on_device ? 0 : checkpoint_commit(run, true);
}
