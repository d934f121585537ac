/* The block loop (methods.md §0, true-sequential, one incremental pass):
 *
 *   embed -> for each block: load -> evaluation forward (float) -> rewrite -> solve -> evaluation forward (quantized)
 *         -> checkpoint (qtensors, chains) -> commit -> ... -> head -> perplexity and KL
 *
 * Memory is one block of F32 weights, one Hessian and the activation budget; nothing grows with the number of blocks.
 * Every result depends on the request, the seed and the micro-batch (a function of the sequence length), never on
 * memory or threads, so a resumed run ends in the same bytes. */

#include "jobs/run.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/ids.h"
#include "base/log.h"

#include <stdlib.h>
#include <string.h>

const char *const pipeline_phase_names[PHASE_COUNT] = {
    [PHASE_LOAD] = "load",
    [PHASE_FORWARD] = "forward",
    [PHASE_STATISTICS] = "hessian",
    [PHASE_SOLVE] = "solve",
    [PHASE_MEASURE] = "measure",
    [PHASE_EVALUATE] = "evaluate",
    [PHASE_CHECKPOINT] = "checkpoint",
    [PHASE_EXPORT] = "export",
};

int run_tick(struct run *run, double share, const char *phase)
{
    run->block_fraction = share;
    double blocks = (double)run->config->num_layers;
    double done = ((double)run->block_index + share) / blocks;
    return run->p->hooks.tick(run->p->hooks.data, 0.95 * done, phase);
}

void run_charge(struct run *run, enum pipeline_phase phase, double *mark, double flops)
{
    double now = clock_monotonic_seconds();
    run->p->times->seconds[phase] += now - *mark;
    run->p->times->flops[phase] += flops;
    *mark = now;
}

static int new_chain(struct run *run, const char *name, const struct flow *flow, int64_t width, struct chain **out)
{
    return chain_new(run->p->directory, name, flow->set->sequences * flow->set->length, width, &run->budget, out);
}

static int open_chains(struct run *run)
{
    const struct model_config *c = run->config;
    int rc = 0;

    if (run->calibration.set != NULL) {
        rc = new_chain(run, "calibration", &run->calibration, c->hidden_size, &run->hidden);
        rc = rc != 0 ? rc : new_chain(run, "attention", &run->calibration, c->num_heads * c->head_dim, &run->attention);
        rc = rc != 0 ? rc : new_chain(run, "mlp", &run->calibration, c->intermediate_size, &run->mlp);
    }
    if (rc == 0 && run->evaluation.set != NULL) {
        rc = new_chain(run, "eval_float", &run->evaluation, c->hidden_size, &run->eval_float);
        rc = rc != 0 ? rc : new_chain(run, "eval_quant", &run->evaluation, c->hidden_size, &run->eval_quant);
    }
    return rc;
}

static void close_run(struct run *run)
{
    chain_free(run->hidden);
    chain_free(run->attention);
    chain_free(run->mlp);
    chain_free(run->eval_float);
    chain_free(run->eval_quant);
    flow_deinit(&run->calibration, run->p->gpu);
    flow_deinit(&run->evaluation, run->p->gpu);
    if (run->stream != NULL) {
        run->p->gpu->ops->stream_free(run->stream);
    }
}

static int embed_all(struct run *run)
{
    int rc = 0;

    if (run->hidden != NULL) {
        rc = flow_embed(&run->calibration, run->hidden, run);
    }
    if (rc == 0 && run->eval_float != NULL) {
        rc = flow_embed(&run->evaluation, run->eval_float, run);
        rc = rc != 0 ? rc : flow_embed(&run->evaluation, run->eval_quant, run);
    }
    return rc;
}

static int load_chain(struct chain *chain, const char *name, const json_t *chains)
{
    if (chain == NULL) {
        return 0;
    }
    const json_t *entry = json_object_get(chains, name);
    const char *file = json_string_value(json_object_get(entry, "file"));
    const char *sha256 = json_string_value(json_object_get(entry, "sha256"));
    if (file == NULL || sha256 == NULL) {
        return err_raise(ERR_SOURCE_CORRUPT, "the checkpoint has no %s activations", name);
    }
    return chain_load(chain, file, sha256);
}

/* Go on behind the last committed block: its files must be there, whole. */
static int resume(struct run *run)
{
    size_t count = json_array_size(run->p->blocks);

    if (count == 0) {
        return embed_all(run);
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *block = json_array_get(run->p->blocks, i);
        struct qtensor_file *file;
        char path[600];
        const char *name = json_string_value(json_object_get(block, "file"));
        const char *sha256 = json_string_value(json_object_get(block, "sha256"));
        if (json_integer_value(json_object_get(block, "index")) != (json_int_t)i || name == NULL || sha256 == NULL) {
            return err_raise(ERR_SOURCE_CORRUPT, "the checkpoint skips block %zu", i);
        }
        int rc = fs_path(path, sizeof(path), "%s/%s", run->p->directory, name);
        rc = rc != 0 ? rc : qtensor_file_open(path, sha256, &file);
        if (rc != 0) {
            return err_raise(ERR_SOURCE_CORRUPT, "checkpoint file %s is damaged: %s", name, err_last()->message);
        }
        qtensor_file_close(file);
    }
    const json_t *chains = json_object_get(json_array_get(run->p->blocks, count - 1), "chains");
    int rc = (int64_t)count < run->config->num_layers ? load_chain(run->hidden, "calibration", chains) : 0;
    rc = rc != 0 ? rc : load_chain(run->eval_float, "eval_float", chains);
    rc = rc != 0 ? rc : load_chain(run->eval_quant, "eval_quant", chains);
    run->first_block = (int64_t)count;
    return rc;
}

static int commit_chain(struct chain *chain, const char *name, int64_t block, json_t *chains)
{
    char file[64];
    char sha256[DIGEST_HEX_SIZE];

    if (chain == NULL) {
        return 0;
    }
    int rc = chain_commit(chain, block, file, sha256);
    if (rc == 0 && json_object_set_new(chains, name, json_pack("{s:s, s:s}", "file", file, "sha256", sha256)) != 0) {
        rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the checkpoint row");
    }
    return rc;
}

static void sweep_chain(struct chain *chain, const char *name, const json_t *chains)
{
    if (chain != NULL) {
        const char *keep = json_string_value(json_object_get(json_object_get(chains, name), "file"));
        (void)chain_sweep(chain, keep);
    }
}

/* Files first, then the row that makes them count, then the last block's chain files go. */
static int checkpoint(struct run *run, int64_t index, const struct block_items *items, const json_t *rows)
{
    char file[64];
    char path[600];
    char sha256[DIGEST_HEX_SIZE];

    snprintf(file, sizeof(file), "block-%05lld.safetensors", (long long)index);
    int rc = fs_path(path, sizeof(path), "%s/%s", run->p->directory, file);
    rc = rc != 0 ? rc : qtensor_save(path, items->list, items->count, sha256);
    json_t *chains = json_object();
    if (rc == 0 && index + 1 < run->config->num_layers) {
        rc = commit_chain(run->hidden, "calibration", index, chains);
    }
    rc = rc != 0 ? rc : commit_chain(run->eval_float, "eval_float", index, chains);
    rc = rc != 0 ? rc : commit_chain(run->eval_quant, "eval_quant", index, chains);
    if (rc == 0) {
        rc = run->p->hooks.block_done(run->p->hooks.data, index, file, sha256, chains, rows);
    }
    if (rc == 0 || rc == ERR_INTERRUPTED) {
        sweep_chain(run->hidden, "calibration", chains);
        sweep_chain(run->eval_float, "eval_float", chains);
        sweep_chain(run->eval_quant, "eval_quant", chains);
    }
    json_decref(chains);
    return rc;
}

static int run_block(struct run *run, int64_t index)
{
    struct block_items items = {.count = 0};
    struct block block = {0};
    json_t *rows = json_array();
    double mark = clock_monotonic_seconds();

    run->block_index = index;
    int rc = run_tick(run, 0.0, "loading");
    rc = rc != 0 ? rc : block_load(run->p->model, index, run->p->gpu, run->stream, &block);
    run_charge(run, PHASE_LOAD, &mark, 0);
    if (rc == 0 && run->eval_float != NULL) {
        rc = flow_forward(&run->evaluation, run->eval_float, &block, run);
        run_charge(run, PHASE_EVALUATE, &mark, 0);
    }
    rc = rc != 0 ? rc : sites_rewrite(run, &block);
    rc = rc != 0 ? rc : sites_solve(run, &block, &items, rows);
    rc = rc != 0 ? rc : sites_keep_changes(run, &block, &items);
    mark = clock_monotonic_seconds();
    if (rc == 0 && run->eval_quant != NULL) {
        rc = flow_forward(&run->evaluation, run->eval_quant, &block, run);
        run_charge(run, PHASE_EVALUATE, &mark, 0);
    }
    block_deinit(&block, run->p->gpu);
    if (rc == 0) {
        rc = checkpoint(run, index, &items, rows);
        run_charge(run, PHASE_CHECKPOINT, &mark, 0);
    }
    block_items_deinit(&items);
    json_decref(rows);
    return rc;
}

int pipeline_run(const struct pipeline *pipeline, struct evaluation_result *evaluation)
{
    struct run run = {
        .p = pipeline,
        .config = model_config(pipeline->model),
        .budget = {.limit = pipeline->host_memory_bytes},
        .next_row = pipeline->layers_before,
    };
    struct evaluation_result result = {0};

    int rc = pipeline->gpu->ops->stream_new(pipeline->gpu->device, &run.stream);
    if (rc == 0 && pipeline->calibration != NULL) {
        rc = flow_init(&run.calibration, pipeline->calibration, &run);
    }
    if (rc == 0 && pipeline->evaluation != NULL) {
        rc = flow_init(&run.evaluation, pipeline->evaluation, &run);
    }
    rc = rc != 0 ? rc : open_chains(&run);
    rc = rc != 0 ? rc : resume(&run);
    for (int64_t i = run.first_block; rc == 0 && i < run.config->num_layers; i++) {
        rc = run_block(&run, i);
    }
    if (rc == 0 && run.eval_quant != NULL) {
        double mark = clock_monotonic_seconds();
        run.block_index = run.config->num_layers;
        rc = evaluate_finish(&run, &result);
        run_charge(&run, PHASE_EVALUATE, &mark, 0);
    }
    close_run(&run);
    if (rc == 0) {
        *evaluation = result;
    }
    return rc;
}
