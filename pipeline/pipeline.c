/* The block loop, true-sequential, in one incremental pass:
 *
 *   embed -> for each block: load -> evaluation forward (float) -> rewrite -> solve -> evaluation forward (quantized)
 *         -> checkpoint (qtensors, activations) -> commit -> ... -> head -> perplexity and KL
 *
 * Memory is one block of F32 weights, the stored bytes of the next, one Hessian and the activation budget; nothing
 * grows with the number of blocks. Every result depends on the request, the seed and the micro-batch (a function of
 * device and sequence length), never on memory or threads, so a resumed run ends in the same bytes. There is one
 * exception, of which the job warns: when a device runs out of memory, activations first move to the host, which
 * changes nothing, and then the micro-batch is halved. */

#include "pipeline/pipeline.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/log.h"
#include "models/block_reader.h"
#include "pipeline/block_pass.h"
#include "pipeline/cache_scales.h"
#include "pipeline/end_to_end.h"
#include "pipeline/evaluate.h"
#include "pipeline/generate.h"
#include "pipeline/memory_plan.h"
#include "pipeline/mixture.h"
#include "pipeline/moments.h"
#include "pipeline/reference.h"
#include "pipeline/rewrite.h"
#include "pipeline/run_stores.h"
#include "pipeline/sensitivity.h"
#include "pipeline/slices.h"
#include "pipeline/solve.h"
#include "pipeline/tune.h"
#include "pipeline/tuned.h"
#include "quantizers/sensitivity.h"

#include <stdio.h>
#include <string.h>

#define BATCH_TOKENS 2048 /* default when the backend states no preference */

static void close_run(struct run *run)
{
    const struct gpu *gpu = run->p->gpu;

    for (int i = 0; i < PLAN_VALUES_MAX; i++) {
        activations_free(run->stores[i]);
        activations_free(run->reference.stores[i]);
    }
    evaluation_close(run, &run->evaluation);
    reference_close(run);
    tuning_close(run);
    microbatches_deinit(&run->calibration, gpu);
    block_reader_free(run->reader);
    checkpoint_close(run->checkpoint);
    phase_clock_close(&run->clock);
    if (run->stream != NULL) {
        gpu->ops->stream_free(run->stream);
    }
}

/* The stores of the first block. */
static int embed_all(struct run *run)
{
    const struct pipeline *p = run->p;
    const struct {
        const struct microbatches *batches;
        struct activations *store;
    } all[] = {{&run->calibration, run->stores[0]},
               {&run->reference.batches, run->reference.stores[0]},
               {&run->calibration, tuning_store(run)},
               {&run->evaluation.batches, run->evaluation.kept ? NULL : run->evaluation.float_model},
               {&run->evaluation.batches, run->evaluation.quantized}};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        if (all[i].store != NULL) {
            TRY(microbatches_embed(all[i].batches, all[i].store, p->model, p->gpu, run->stream));
        }
    }
    return 0;
}

static void read_ahead(struct run *run, int64_t index)
{
    if (run->reader != NULL) {
        block_reader_start(run->reader, index, run->stream);
    } else {
        block_prefetch(run->p->model, index);
    }
}

/* Block `index` from its weights to its outputs, which are the caller's to release, like the block, also after a
 * failure. */
static int compute_block(struct run *run, int64_t index, struct block *block, struct block_outputs *outputs,
                         struct report_rows *rows)
{

    TRY(run_tick(run, 0.0, "loading"));
    if (slices_fit(run, index)) {
        block_prefetch(run->p->model, index + 1);
        return block_solve_slices(run, outputs, rows);
    }
    TRY(block_load(run->p->model, index, run->p->gpu, run->stream, run->reader, block));
    read_ahead(run, index + 1);
    run_end_phase(run, PHASE_LOAD, 0);
    if (run->evaluation.float_model != NULL && !run->evaluation.kept) {
        TRY(evaluate_block(run, run->evaluation.float_model, block, NULL));
    }
    TRY(block_analyse(run, block));
    TRY(tuning_begin(run, block));
    TRY(block_rewrite(run, block));
    TRY(block_solve(run, block, outputs, rows));
    TRY(block_keep_changes(run, block, outputs));
    run_end_phase(run, PHASE_CHECKPOINT, 0);
    return run->evaluation.quantized != NULL ? evaluate_quantized(run, block, outputs) : 0;
}

static int run_block(struct run *run, int64_t index)
{
    struct block_outputs outputs = {.count = 0};
    struct block block = {0};
    struct report_rows rows = {0};
    bool again = index < run->checkpoint->committed; /* its rows are, too */
    int64_t first_row = run->next_row;

    run->block_index = index;
    int rc = compute_block(run, index, &block, &outputs, &rows);
    block_deinit(&block, run->p->gpu);
    if (rc == 0) {
        const struct checkpoint_made made = {&outputs, &rows, &run->cache, &run->analysis, tuning_curve(run)};
        rc = checkpoint_block(run->checkpoint, index, &made, run->stream);
        run_end_phase(run, PHASE_CHECKPOINT, 0);
    }
    phase_clock_finish(&run->clock, &run->sender->times); /* a block's times are complete when it is said to be done */
    run->next_row = again ? first_row : run->next_row;
    block_outputs_deinit(&outputs, run->p->gpu);
    report_rows_deinit(&rows);
    cache_scales_deinit(&run->cache);
    analysis_rows_deinit(&run->analysis);
    tuned_clear(run);
    return rc;
}

static int64_t longest(const struct pipeline *p)
{
    int64_t calibration = p->calibration != NULL ? p->calibration->length : 1;
    int64_t evaluation = p->evaluation != NULL ? p->evaluation->length : 1;
    return calibration > evaluation ? calibration : evaluation;
}

/* What is left for activations after a block and its solve. */
static int64_t device_activations(const struct run *run)
{
    const struct pipeline *p = run->p;
    const struct memory_load load = {
        .recipe = p->recipe,
        .calibrates = p->calibration != NULL,
        .evaluates = p->evaluation != NULL,
        .sequences = p->calibration != NULL ? p->calibration->sequences : 0,
        .sequence_length = p->calibration != NULL ? p->calibration->length : 0,
        .longest = longest(p),
    };
    struct gpu_info info;

    if (p->gpu->info.host_memory || p->gpu->ops->device_info(p->gpu->device, &info) != 0) {
        return 0;
    }
    const struct memory_plan plan = memory_plan(&load, p->model, &info, run->batch_tokens);
    int64_t left = info.memory_free - memory_plan_rest(&plan);
    return left > 0 ? left : 0;
}

/* A thread of its own reads the next block where the device does not compute on the host's cores; elsewhere the
 * operating system reads ahead. A device that ran out of memory reads nothing ahead. */
static void open_reader(struct run *run)
{
    const struct pipeline *p = run->p;

    if (!model_is_bare(p->model) && !p->gpu->info.host_memory && run->keep_on_device &&
        block_reader_new(p->model, p->gpu, &run->reader) != 0) {
        log_err(LOG_INFO, "blocks are not read ahead", NULL);
    }
}

/* After a failure close_run is due, too. */
static int open_run(struct run *run, int64_t *first_block)
{
    const struct pipeline *p = run->p;
    const struct plans *plans = model_plans(p->model);

    TRY(p->gpu->ops->stream_new(p->gpu->device, &run->stream));
    run->budget.stream = run->stream;
    run->expert_bytes = recipe_tuner(p->recipe) != NULL ? INT64_MAX
                        : run->keep_on_device           ? memory_plan_experts(p->model, &p->gpu->info)
                                                        : 0;
    TRY(phase_clock_open(&run->clock, p->gpu, run->stream));
    TRY(checkpoint_open(run->checkpoint, p->gpu, !run->keep_on_device));
    open_reader(run);
    if (p->calibration != NULL) {
        TRY(microbatches_init(&run->calibration, p->calibration, plans, run->batch_tokens, p->gpu, run->stream));
        TRY(reference_open(run));
    }
    if (p->evaluation != NULL) {
        TRY(microbatches_init(&run->evaluation.batches, p->evaluation, plans, run->batch_tokens, p->gpu, run->stream));
    }
    run->budget.device_limit = run->keep_on_device ? device_activations(run) : 0;
    TRY(run_open_stores(run));
    TRY(tuning_open(run));
    tuning_add_stores(run);
    TRY(checkpoint_resume(run->checkpoint, first_block));
    if (*first_block == 0) {
        TRY(embed_all(run));
    }
    run_end_phase(run, PHASE_LOAD, 0);
    return 0;
}

/* A block that is being written is finished, even if the next one failed, unless the job was cancelled. */
static int end_blocks(struct run *run, int rc)
{
    struct err_record record;

    if (rc == 0) {
        return checkpoint_commit(run->checkpoint, true);
    }
    err_take(&record);
    if (rc == ERR_CANCELLED) {
        checkpoint_drop(run->checkpoint);
    }
    int last = checkpoint_commit(run->checkpoint, true);
    if (rc == ERR_GPU_OUT_OF_MEMORY && last != 0 && last != ERR_GPU_OUT_OF_MEMORY) {
        return last; /* using less memory would not help */
    }
    err_restore(&record);
    return rc;
}

static int run_blocks(struct run *run, struct evaluation_result *result)
{
    int64_t first_block = 0;
    TRY(mixture_measure(run));
    TRY(moments_pass(run));
    int rc = open_run(run, &first_block);

    for (int64_t i = first_block; rc == 0 && i < run->config->num_layers; i++) {
        rc = run_block(run, i);
    }
    rc = end_blocks(run, rc);
    run_end_phase(run, PHASE_CHECKPOINT, 0);
    rc = rc == 0 ? end_to_end_run(run) : rc;
    if (rc == 0 && run->evaluation.quantized != NULL) {
        run->blocks_done = true;
        rc = evaluate_finish(run, result);
        rc = rc == 0 && run->p->generation.prompts > 0 ? generate_compare(run, &result->generation) : rc;
        run_end_phase(run, PHASE_EVALUATE, 0);
        phase_clock_finish(&run->clock, &run->sender->times);
    }
    return rc;
}

/* Rows of a block of the table. */
static int list_sensitivities(struct run *run, const struct sensitivity_table *table, int64_t block)
{
    const struct sensitivity_candidate *list = run->p->recipe->candidates->list;

    for (int i = 0; i < table->count; i++) {
        const struct sensitivity_row *from = &table->rows[i];
        const struct sensitivity_candidate *candidate = &list[from->candidate];
        struct analysis_row *row = from->layer == block ? analysis_rows_add(&run->analysis) : NULL;
        if (row == NULL && from->layer == block) {
            return ERR_HOST_OUT_OF_MEMORY;
        }
        if (row == NULL) {
            continue;
        }
        row->layer = block;
        row->output_relative_mse = from->output_relative_mse;
        row->tokens = table->tokens;
        row->linear = (struct analysis_linear){.set = from->set,
                                               .bits = candidate->bits,
                                               .group_size = candidate->group_size,
                                               .parameters = from->parameters,
                                               .bits_per_weight = from->bits_per_weight,
                                               .relative_mse = from->relative_mse,
                                               .output_mse = from->output_mse,
                                               .kl = from->kl,
                                               .predicted = from->predicted,
                                               .measured = from->measured};
        snprintf(row->scheme, sizeof(row->scheme), "%s", candidate->name);
        snprintf(row->linear.module, sizeof(row->linear.module), "%s", from->module);
        snprintf(row->linear.method, sizeof(row->linear.method), "%s", candidate->method);
    }
    return 0;
}

/* Blocks without results, done one after another with their rows. */
static int report_sensitivities(struct run *run, const struct sensitivity_table *table)
{
    struct block_outputs outputs = {.count = 0};
    struct report_rows rows = {0};

    TRY(run->p->gpu->ops->stream_new(run->p->gpu->device, &run->stream));
    TRY(checkpoint_open(run->checkpoint, run->p->gpu, true));
    for (int64_t b = run->checkpoint->committed; b < run->config->num_layers; b++) {
        const struct checkpoint_made made = {&outputs, &rows, &run->cache, &run->analysis, NULL};
        run->block_index = b;
        int rc = list_sensitivities(run, table, b);
        rc = rc != 0 ? rc : checkpoint_block(run->checkpoint, b, &made, run->stream);
        analysis_rows_deinit(&run->analysis);
        TRY(rc);
    }
    return 0;
}

/* An analysis of the complete model: the pass, then blocks that hold nothing but their rows. */
static int measure_blocks(struct run *run)
{
    const struct sensitivity_params *params = run->p->recipe->stages[0].params;
    const struct sensitivity_request request = {.candidates = run->p->recipe->candidates,
                                                .max_tokens = params->max_tokens,
                                                .kl_tokens = params->kl_tokens,
                                                .max_streams = params->max_streams};
    struct sensitivity_table table;

    TRY(sensitivity_pass(run, &request, 0.95, &table));
    int rc = report_sensitivities(run, &table);
    sensitivity_table_deinit(&table);
    return rc;
}

/* Use less memory of a device that ran out of it. ERR_GPU_OUT_OF_MEMORY when nothing is left to reduce. */
static int reduce_memory(struct run *run)
{
    const char *device = run->p->gpu->info.id;
    char message[160];

    if (run->keep_on_device && !run->p->gpu->info.host_memory) {
        run->keep_on_device = false;
        if (run->budget.device_limit == 0) { /* no activations, but a block that was read ahead, and one's codes */
            log_warn("device out of memory, blocks are not read ahead any more", LOG_S("device", device));
            return 0;
        }
        log_warn("device out of memory, activations move to the host", LOG_S("device", device));
        snprintf(message, sizeof(message), "%s ran out of memory; activations moved to the host, with the same results",
                 device);
        return message_send_warning(run->sender, "activations_on_host", message);
    }
    if (run->batch_tokens / 2 < longest(run->p)) {
        return ERR_GPU_OUT_OF_MEMORY;
    }
    run->batch_tokens /= 2;
    log_warn("device out of memory, the micro-batch is halved", LOG_S("device", device),
             LOG_I("tokens", run->batch_tokens));
    snprintf(message, sizeof(message),
             "%s ran out of memory; from block %lld on the micro-batch has %lld tokens, which may round otherwise",
             device, (long long)run->checkpoint->committed, (long long)run->batch_tokens);
    return message_send_warning(run->sender, "micro_batch_halved", message);
}

int pipeline_run(const struct pipeline *pipeline)
{
    int64_t batch_tokens = pipeline->gpu->info.batch_tokens, before;
    struct evaluation_result result = {0};
    struct message_sender sender = {.p = pipeline};
    struct checkpoint checkpoint;
    struct run next = {
        .p = pipeline,
        .config = model_config(pipeline->model),
        .sender = &sender,
        .checkpoint = &checkpoint,
        .batch_tokens = batch_tokens > 0 ? batch_tokens : BATCH_TOKENS,
        .keep_on_device = true,
        .budget = {.limit = pipeline->host_memory_bytes, .gpu = pipeline->gpu},
    };
    int rc = checkpoint_init(&checkpoint, &sender, next.config->num_layers);
    bool more = rc == 0;

    (void)pipeline->gpu->ops->memory_peak(pipeline->gpu->device, true, &before); /* counted from here */
    while (more) {
        struct run run = next;
        run.next_row = checkpoint.rows;
        rc = recipe_measures(pipeline->recipe) ? measure_blocks(&run) : run_blocks(&run, &result);
        close_run(&run);
        more = false;
        if (rc == ERR_GPU_OUT_OF_MEMORY) {
            rc = reduce_memory(&run);
            more = rc == 0;
        }
        next.keep_on_device = run.keep_on_device;
        next.batch_tokens = run.batch_tokens;
    }
    rc = message_send_end(&sender, rc, &result);
    checkpoint_deinit(&checkpoint);
    return rc;
}
