/* The block loop (methods.md §0, true-sequential, one incremental pass):
 *
 *   embed -> for each block: load -> evaluation forward (float) -> rewrite -> solve -> evaluation forward (quantized)
 *         -> checkpoint (qtensors, chains) -> commit -> ... -> head -> perplexity and KL
 *
 * Memory is one block of F32 weights, the stored bytes of the next, one Hessian and the activation budget; nothing
 * grows with the number of blocks. Every result depends on the request, the seed and the micro-batch (a function of
 * device and sequence length), never on memory or threads, so a resumed run ends in the same bytes. The one exception
 * is said aloud: a device that runs out of memory first gives up keeping activations, which changes nothing, and then
 * halves the micro-batch. */

#include "pipeline/memory_plan.h"
#include "pipeline/run.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/ids.h"
#include "base/log.h"
#include "models/block_reader.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define BATCH_TOKENS 2048 /* of a backend that has no wish */

/* What every message says beside its own. */
static void fill_message(const struct run *run, struct message *message)
{
    const struct gpu *gpu = run->p->gpu;
    struct err_record record; /* what the caller has to say is not lost to this */
    struct rusage usage = {0};

    message->times = run->times;
    err_take(&record);
    if (gpu->ops->memory_peak(gpu->device, false, &message->device_peak_bytes) != 0) {
        message->device_peak_bytes = 0;
    }
    err_restore(&record);
    (void)getrusage(RUSAGE_SELF, &usage);
    message->host_peak_bytes = (int64_t)usage.ru_maxrss * 1024;
}

static int send(const struct run *run, struct message *message)
{
    fill_message(run, message);
    return run->p->receive(run->p->receiver, message);
}

int run_tick(struct run *run, double share, const char *step)
{
    run->block_fraction = share;
    double blocks = (double)run->config->num_layers;
    double done = ((double)run->block_index + share) / blocks;
    struct message message = {.kind = MESSAGE_PROGRESS,
                              .progress = {.fraction = 0.95 * done, .block = run->block_index, .step = step}};

    int rc = checkpoint_commit(run, false);
    return rc != 0 ? rc : send(run, &message);
}

int run_warn(struct run *run, const char *code, const char *text)
{
    struct message message = {.kind = MESSAGE_WARNING};

    snprintf(message.warning.code, sizeof(message.warning.code), "%s", code);
    snprintf(message.warning.text, sizeof(message.warning.text), "%s", text);
    return send(run, &message);
}

int run_block_done(struct run *run, const struct message_block *block)
{
    struct message message = {.kind = MESSAGE_BLOCK_DONE, .block = *block};

    int rc = send(run, &message);
    (void)malloc_trim(0); /* a block's worth of freed memory goes back, so that peaks do not add up */
    return rc;
}

void run_charge(struct run *run, enum pipeline_phase phase, double *mark, double flops)
{
    struct err_record record; /* of a phase that failed: what comes after it says less */

    /* A device works on its own: what it was told in a phase belongs to that phase. An error shows at the next call. */
    err_take(&record);
    (void)run->p->gpu->ops->stream_sync(run->stream);
    err_restore(&record);
    double now = clock_monotonic_seconds();
    run->times.seconds[phase] += now - *mark;
    run->times.flops[phase] += flops;
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
    if (rc == 0 && run->reference.set != NULL) {
        rc = new_chain(run, "reference", &run->reference, c->hidden_size, &run->reference_hidden);
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
    chain_free(run->reference_hidden);
    chain_free(run->eval_float);
    chain_free(run->eval_quant);
    flow_deinit(&run->reference, run->p->gpu);
    flow_deinit(&run->calibration, run->p->gpu);
    flow_deinit(&run->evaluation, run->p->gpu);
    block_reader_free(run->reader);
    results_free(run->results);
    if (run->stream != NULL) {
        run->p->gpu->ops->stream_free(run->stream);
    }
}

static void read_ahead(struct run *run, int64_t index)
{
    if (run->reader != NULL) {
        block_reader_start(run->reader, index, run->stream);
    } else {
        block_prefetch(run->p->model, index);
    }
}

/* The evaluation set sees inputs as the runtime rounds them of its own accord; the calibration set does not, so that
 * codes depend on nothing that the file does not say. The block is not used again. */
static int evaluate_quantized(struct run *run, struct block *block)
{
    const struct format *format = run->p->format;

    for (int role = 0; format->runtime_input != NULL && role < LINEAR_COUNT; role++) {
        struct qscheme scheme;
        if (site_solver(run, (enum linear_role)role, &scheme) != NULL) {
            block->inputs[role] = format->runtime_input(&scheme);
        }
    }
    return flow_forward(&run->evaluation, run->eval_quant, block, run);
}

static int run_block(struct run *run, int64_t index)
{
    struct block_items items = {.count = 0};
    struct block block = {0};
    struct report_rows rows = {0};
    double mark = clock_monotonic_seconds();

    bool again = index < run->committed; /* its rows are, too */
    run->first_row = run->next_row;
    run->block_index = index;
    int rc = run_tick(run, 0.0, "loading");
    rc = rc != 0 ? rc : block_load_read(run->p->model, index, run->p->gpu, run->stream, run->reader, &block);
    if (rc == 0) {
        read_ahead(run, index + 1);
    }
    run_charge(run, PHASE_LOAD, &mark, 0);
    if (rc == 0 && run->eval_float != NULL) {
        rc = flow_forward(&run->evaluation, run->eval_float, &block, run);
        run_charge(run, PHASE_EVALUATE, &mark, 0);
    }
    rc = rc != 0 ? rc : sites_analyse(run, &block);
    rc = rc != 0 ? rc : sites_rewrite(run, &block);
    rc = rc != 0 ? rc : sites_solve(run, &block, &items, &rows);
    rc = rc != 0 ? rc : sites_keep_changes(run, &block, &items);
    mark = clock_monotonic_seconds();
    if (rc == 0 && run->eval_quant != NULL) {
        rc = evaluate_quantized(run, &block);
        run_charge(run, PHASE_EVALUATE, &mark, 0);
    }
    block_deinit(&block, run->p->gpu);
    if (rc == 0) {
        rc = checkpoint_block(run, index, &items, &rows);
        run_charge(run, PHASE_CHECKPOINT, &mark, 0);
    }
    run->next_row = again ? run->first_row : run->next_row;
    run->first_row = rc == 0 ? run->next_row : run->first_row;
    block_items_deinit(&items, run->p->gpu);
    report_rows_deinit(&rows);
    cache_scales_deinit(&run->cache);
    analysis_rows_deinit(&run->analysis);
    return rc;
}

static int64_t longest(const struct pipeline *p)
{
    int64_t calibration = p->calibration != NULL ? p->calibration->length : 1;
    int64_t evaluation = p->evaluation != NULL ? p->evaluation->length : 1;
    return calibration > evaluation ? calibration : evaluation;
}

/* What is left for activations once a block and its solve have their place. */
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

/* A thread of its own reads the next block where the device computes by itself; where it would take cores from the
 * computation, the system reads ahead. A device that ran out of memory keeps nothing that it could do without. */
static void open_reader(struct run *run)
{
    const struct pipeline *p = run->p;

    if (!p->gpu->info.host_memory && run->keep_on_device && block_reader_new(p->model, p->gpu, &run->reader) != 0) {
        log_err(LOG_INFO, "blocks are not read ahead", NULL);
    }
}

static int open_run(struct run *run)
{
    const struct pipeline *p = run->p;
    int rc = p->gpu->ops->stream_new(p->gpu->device, &run->stream);

    run->budget.stream = run->stream;
    rc = rc != 0 ? rc : results_new(p->gpu, &run->results);
    if (rc == 0) {
        open_reader(run);
    }
    if (rc == 0 && p->calibration != NULL) {
        rc = flow_init(&run->calibration, p->calibration, run);
    }
    if (rc == 0 && p->calibration != NULL) {
        rc = reference_open(run);
    }
    if (rc == 0 && p->evaluation != NULL) {
        rc = flow_init(&run->evaluation, p->evaluation, run);
    }
    if (rc == 0 && run->keep_on_device) {
        run->budget.device_limit = device_activations(run);
    }
    rc = rc != 0 ? rc : open_chains(run);
    return rc != 0 ? rc : checkpoint_resume(run);
}

/* A block that is on its way to disk is done, whatever became of the next one; unless nobody wants it any more. */
static int end_blocks(struct run *run, int rc)
{
    struct err_record record;

    if (rc == 0) {
        return checkpoint_commit(run, true);
    }
    err_take(&record);
    if (rc == ERR_CANCELLED) {
        checkpoint_drop(run);
    }
    int last = checkpoint_commit(run, true);
    if (rc == ERR_GPU_OUT_OF_MEMORY && last != 0 && last != ERR_GPU_OUT_OF_MEMORY) {
        return last; /* asking for less would not help */
    }
    err_restore(&record);
    return rc;
}

static int run_blocks(struct run *run, struct evaluation_result *result)
{
    int rc = open_run(run);

    for (int64_t i = run->first_block; rc == 0 && i < run->config->num_layers; i++) {
        rc = run_block(run, i);
    }
    rc = end_blocks(run, rc);
    if (rc == 0 && run->eval_quant != NULL) {
        double mark = clock_monotonic_seconds();
        run->block_index = run->config->num_layers;
        rc = evaluate_finish(run, result);
        run_charge(run, PHASE_EVALUATE, &mark, 0);
    }
    return rc;
}

/* Ask less of a device that ran out of memory. ERR_GPU_OUT_OF_MEMORY when there is nothing left to give up. */
static int ask_less(struct run *run)
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
        return run_warn(run, "activations_on_host", message);
    }
    if (run->batch_tokens / 2 < longest(run->p)) {
        return ERR_GPU_OUT_OF_MEMORY;
    }
    run->batch_tokens /= 2;
    log_warn("device out of memory, the micro-batch is halved", LOG_S("device", device),
             LOG_I("tokens", run->batch_tokens));
    snprintf(message, sizeof(message),
             "%s ran out of memory; from block %lld on the micro-batch has %lld tokens, which may round otherwise",
             device, (long long)run->committed, (long long)run->batch_tokens);
    return run_warn(run, "micro_batch_halved", message);
}

/* The last message. */
static int end_run(struct run *run, int rc, const struct evaluation_result *result)
{
    struct message message = {.kind = MESSAGE_DONE, .done = *result};

    if (rc != 0) {
        message.kind = MESSAGE_FAILED;
        message.failure = *err_last();
        message.failure.code = rc;
    }
    (void)send(run, &message);
    if (rc != 0) {
        err_restore(&message.failure);
    }
    return rc;
}

static int open_blocks(const struct pipeline *pipeline, struct run *run)
{
    size_t count =
        (size_t)(run->config->num_layers > pipeline->block_count ? run->config->num_layers : pipeline->block_count);
    run->blocks = calloc(count, sizeof(*run->blocks));
    if (run->blocks == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the list of blocks");
    }
    for (int64_t i = 0; i < pipeline->block_count; i++) {
        run->blocks[i] = pipeline->blocks[i];
    }
    run->committed = pipeline->block_count;
    return 0;
}

int pipeline_run(const struct pipeline *pipeline)
{
    int64_t batch_tokens = pipeline->gpu->info.batch_tokens, before;
    struct evaluation_result result = {0};
    struct run next = {
        .p = pipeline,
        .config = model_config(pipeline->model),
        .batch_tokens = batch_tokens > 0 ? batch_tokens : BATCH_TOKENS,
        .keep_on_device = true,
        .budget = {.limit = pipeline->host_memory_bytes, .gpu = pipeline->gpu},
        .next_row = pipeline->rows_before,
        .first_row = pipeline->rows_before,
    };
    int rc = open_blocks(pipeline, &next);
    bool more = rc == 0;

    (void)pipeline->gpu->ops->memory_peak(pipeline->gpu->device, true, &before); /* counted from here */
    while (more) {
        struct run run = next;
        rc = run_blocks(&run, &result);
        close_run(&run);
        more = false;
        if (rc == ERR_GPU_OUT_OF_MEMORY) {
            rc = ask_less(&run);
            more = rc == 0;
        }
        next.next_row = next.first_row = run.first_row; /* of the block that did not end */
        next.keep_on_device = run.keep_on_device;
        next.batch_tokens = run.batch_tokens;
        next.committed = run.committed;
        next.times = run.times;
    }
    rc = end_run(&next, rc, &result);
    free(next.blocks);
    return rc;
}
