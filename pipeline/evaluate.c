/* Losses of both paths on the evaluation set: perplexity = exp(mean -log p) over positions 1..S-1 of every window, and
 * the mean KL(float || quantized) over the same positions, in nats. Logits exist for a bounded slice of rows only. */

#include "pipeline/evaluate.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "pipeline/block_restore.h"
#include "pipeline/experts.h"
#include "pipeline/memory_plan.h"
#include "pipeline/pass.h"
#include "pipeline/solve.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct slices {
    struct head head;
    struct tensor float_x, quant_x, float_logits, quant_logits;
    int32_t *targets;
    int64_t rows; /* of a slice */
};

/* After a failure slices_deinit is due, too. */
static int slices_init(struct run *run, struct slices *s)
{
    const struct gpu *gpu = run->p->gpu;
    const struct model_config *c = run->config;
    int64_t total = run->evaluation.batches.set->sequences * run->evaluation.batches.set->length;

    s->rows = memory_plan_logits(c, gpu->info.host_memory);
    s->rows = s->rows > total ? total : s->rows;
    const int64_t hidden[2] = {s->rows, c->hidden_size};
    const int64_t logits[2] = {s->rows, c->vocab_size};
    s->targets = malloc((size_t)s->rows * sizeof(int32_t));
    if (s->targets == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for targets");
    }
    TRY(head_load_output(run->p->model, gpu, run->stream, &s->head));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, hidden, &s->float_x));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, hidden, &s->quant_x));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, logits, &s->float_logits));
    return gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, logits, &s->quant_logits);
}

static void slices_deinit(struct run *run, struct slices *s)
{
    const struct gpu *gpu = run->p->gpu;
    head_deinit(&s->head, gpu);
    gpu_tensor_free(gpu, &s->float_x);
    gpu_tensor_free(gpu, &s->quant_x);
    gpu_tensor_free(gpu, &s->float_logits);
    gpu_tensor_free(gpu, &s->quant_logits);
    free(s->targets);
}

/* The token after each row; -1 at the end of a window, which predicts nothing. */
static void set_targets(const struct calibration_set *set, int64_t first, int64_t rows, int32_t *targets)
{
    for (int64_t i = 0; i < rows; i++) {
        int64_t at = first + i;
        targets[i] = (at + 1) % set->length == 0 ? -1 : set->ids[at + 1];
    }
}

static int slice_losses(struct run *run, struct slices *s, int64_t first, int64_t rows, struct gpu_nll *before,
                        struct gpu_nll *after)
{
    const struct gpu *gpu = run->p->gpu;
    struct tensor fx = tensor_rows(&s->float_x, 0, rows);
    struct tensor qx = tensor_rows(&s->quant_x, 0, rows);
    struct tensor fl = tensor_rows(&s->float_logits, 0, rows);
    struct tensor ql = tensor_rows(&s->quant_logits, 0, rows);

    set_targets(run->evaluation.batches.set, first, rows, s->targets);
    TRY(activations_read(run->evaluation.float_model, ACTIVATIONS_IN, first, &fx, gpu, run->stream));
    TRY(activations_read(run->evaluation.quantized, ACTIVATIONS_IN, first, &qx, gpu, run->stream));
    TRY(head_logits(&s->head, run->config, gpu, run->stream, &fx, &fl));
    TRY(head_logits(&s->head, run->config, gpu, run->stream, &qx, &ql));
    TRY(gpu->ops->nll(run->stream, before, &fl, NULL, s->targets));
    return gpu->ops->nll(run->stream, after, &ql, &fl, s->targets);
}

/* A path of a set through the open block. */
struct block_path {
    struct run *run;
    const struct microbatches *batches;
    struct activations *const *stores;
    enum pipeline_phase phase;
    const char *doing;
};

/* The set from the values `have` to the values `keep`, which are to be kept. */
static int path_pass(const struct block_path *path, const struct block *block, plan_set have, plan_set keep)
{
    struct run *run = path->run;
    plan_set steps = 0, used = 0, made = keep & ~have;

    TRY(pass_steps(block->plan, have, made, &steps, &used));
    for (int64_t i = 0; i < microbatches_count(path->batches); i++) {
        struct microbatch b = microbatches_at(path->batches, block->plan, i);
        TRY(run_tick(run, run->block_fraction, path->doing));
        pass_place(run, path->stores, &b, made);
        TRY(pass_run(run, path->stores, block, &b, steps, used));
        TRY(pass_write(run, path->stores, &b, made));
    }
    run_end_phase(run, path->phase, 0);
    return 0;
}

/* The values that a layer keeps for a step EXPERTS. */
static plan_set kept_for_experts(const struct plan *plan, int step)
{
    int g = 0;

    while (plan->groups[g].step != step || plan->groups[g].expert < 0) {
        g++;
    }
    return plan->groups[g].kept;
}

static int path_experts(const struct block_path *path, struct block *block, struct block_outputs *outputs, int step)
{
    struct run *run = path->run;
    const struct experts_input input = {.batches = path->batches,
                                        .stores = path->stores,
                                        .have = kept_for_experts(block->plan, step),
                                        .phase = path->phase,
                                        .share = run->block_fraction,
                                        .doing = path->doing};
    struct experts_turn turn = experts_begin(run, block, outputs, step);
    bool more = true;

    TRY(experts_next(&turn, &more));
    while (more) {
        TRY(experts_add(&turn, block, &input));
        TRY(experts_next(&turn, &more));
    }
    return 0;
}

static int path_forward(const struct block_path *path, struct block *block, struct block_outputs *outputs)
{
    const struct plan *plan = block->plan;
    plan_set have = plan->inputs;

    for (int s = 0; s < plan->step_count; s++) {
        if (plan->steps[s].kind == STEP_EXPERTS) {
            TRY(path_pass(path, block, have, kept_for_experts(plan, s)));
            TRY(path_experts(path, block, outputs, s));
            have = kept_for_experts(plan, s) | PLAN_BIT(plan->steps[s].out);
        }
    }
    return path_pass(path, block, have, PLAN_BIT(plan->output) | plan->given);
}

int evaluate_block(struct run *run, struct activations *store, struct block *block, struct block_outputs *outputs)
{
    struct activations *stores[PLAN_VALUES_MAX];
    const struct block_path path = {run, &run->evaluation.batches, stores, PHASE_EVALUATE, "evaluating"};
    int side = store == run->evaluation.float_model ? 0 : 1;

    memcpy(stores, run->evaluation.stores, sizeof(stores));
    memcpy(stores + PLAN_SHARED_STORE, run->evaluation.shared[side], sizeof(run->evaluation.shared[side]));
    stores[0] = store;
    return path_forward(&path, block, outputs);
}

int calibration_forward(struct run *run, struct activations *const *stores, struct block *block,
                        struct block_outputs *outputs)
{
    const struct block_path path = {run, &run->calibration, stores, PHASE_FORWARD, "calibrating"};

    return path_forward(&path, block, outputs);
}

/* Codes depend on the file alone, so what it does not say is not done before. */
int evaluate_quantized(struct run *run, struct block *block, struct block_outputs *outputs)
{
    const struct format *format = run->p->format;

    for (int i = 0; format->runtime_input != NULL && i < block->plan->module_count; i++) {
        struct qscheme scheme;
        if (module_solver(run, i, &scheme) != NULL) {
            block->modules[i].input = format->runtime_input(&scheme);
        }
    }
    return evaluate_block(run, run->evaluation.quantized, block, outputs);
}

static int saved_block_pass(struct run *run, struct activations *store, struct block *block,
                            struct block_outputs *outputs)
{
    bool quantized = store == run->evaluation.quantized;

    TRY(run_tick(run, 0.4, "evaluating"));
    TRY(block_load(run->p->model, run->block_index, run->p->gpu, run->stream, NULL, block));
    block_prefetch(run->p->model, run->block_index + 1);
    if (quantized) {
        TRY(block_restore(run, &run->checkpoint->blocks[run->block_index], block, outputs));
    }
    run_end_phase(run, PHASE_LOAD, 0);
    TRY(quantized ? evaluate_quantized(run, block, outputs) : evaluate_block(run, store, block, NULL));
    return activations_turn(store);
}

int evaluate_saved(struct run *run, struct activations *store)
{
    const struct gpu *gpu = run->p->gpu;

    TRY(microbatches_embed(&run->evaluation.batches, store, run->p->model, gpu, run->stream));
    for (int64_t i = 0; i < run->config->num_layers; i++) {
        struct block block = {0};
        struct block_outputs outputs = {.count = 0};
        run->block_index = i;
        int rc = saved_block_pass(run, store, &block, &outputs);
        block_deinit(&block, gpu);
        block_outputs_deinit(&outputs, gpu);
        TRY(rc);
    }
    return 0;
}

static int all_losses(struct run *run, struct slices *s, struct gpu_nll *before, struct gpu_nll *after)
{
    const struct calibration_set *set = run->evaluation.batches.set;
    int64_t total = set->sequences * set->length;

    TRY(slices_init(run, s));
    for (int64_t first = 0; first < total; first += s->rows) {
        int64_t rows = total - first < s->rows ? total - first : s->rows;
        TRY(run_tick(run, 0.3 * (double)first / (double)total, "evaluating"));
        TRY(slice_losses(run, s, first, rows, before, after));
    }
    return 0;
}

static int slice_divergences(struct run *run, struct slices *s, int64_t first, int64_t rows,
                             struct activations *const *streams, int count, struct gpu_nll *sums)
{
    const struct gpu *gpu = run->p->gpu;
    struct tensor fx = tensor_rows(&s->float_x, 0, rows);
    struct tensor fl = tensor_rows(&s->float_logits, 0, rows);
    struct tensor ql = tensor_rows(&s->quant_logits, 0, rows);

    set_targets(run->evaluation.batches.set, first, rows, s->targets);
    TRY(activations_read(run->evaluation.float_model, ACTIVATIONS_IN, first, &fx, gpu, run->stream));
    TRY(head_logits(&s->head, run->config, gpu, run->stream, &fx, &fl));
    for (int i = 0; i < count; i++) {
        struct tensor qx = tensor_rows(&s->quant_x, 0, rows);
        TRY(run_tick(run, 1.0, "evaluating"));
        TRY(activations_read(streams[i], ACTIVATIONS_IN, first, &qx, gpu, run->stream));
        TRY(head_logits(&s->head, run->config, gpu, run->stream, &qx, &ql));
        TRY(gpu->ops->nll(run->stream, &sums[i], &ql, &fl, s->targets));
    }
    return 0;
}

static int all_divergences(struct run *run, struct slices *s, struct activations *const *streams, int count,
                           struct gpu_nll *sums)
{
    const struct calibration_set *set = run->evaluation.batches.set;
    int64_t total = set->sequences * set->length;

    TRY(slices_init(run, s));
    for (int64_t first = 0; first < total; first += s->rows) {
        int64_t rows = total - first < s->rows ? total - first : s->rows;
        TRY(slice_divergences(run, s, first, rows, streams, count, sums));
    }
    return 0;
}

int evaluate_divergences(struct run *run, struct activations *const *streams, int count, double *kl)
{
    AUTO_FREE struct gpu_nll *sums = NULL;
    struct slices slices = {0};

    TRY(mem_array(&sums, (size_t)count + 1));
    int rc = all_divergences(run, &slices, streams, count, sums);
    slices_deinit(run, &slices);
    run_end_phase(run, PHASE_EVALUATE, 0);
    for (int i = 0; rc == 0 && i < count; i++) {
        kl[i] = sums[i].count > 0 ? sums[i].kl_sum / (double)sums[i].count : NAN;
    }
    return rc != 0 ? err_pass(rc, "divergences") : 0;
}

int evaluate_finish(struct run *run, struct evaluation_result *out)
{
    const struct calibration_set *set = run->evaluation.batches.set;
    struct slices slices = {0};
    struct gpu_nll before = {0};
    struct gpu_nll after = {0};

    int rc = all_losses(run, &slices, &before, &after);
    slices_deinit(run, &slices);
    if (rc != 0) {
        return err_pass(rc, "evaluate");
    }
    if (before.count == 0) {
        return err_raise(ERR_INSUFFICIENT_CALIBRATION, "the evaluation set predicts no token");
    }
    if (!isfinite(before.nll_sum)) {
        rc = err_raise(ERR_NON_FINITE_VALUE, "the model's own logits on the evaluation set are not finite");
        return err_set_hint(rc, "the checkpoint is damaged or overflows: check it in the program that it came from");
    }
    *out = (struct evaluation_result){
        .done = true,
        .perplexity_before = exp(before.nll_sum / (double)before.count),
        .perplexity_after = exp(after.nll_sum / (double)after.count),
        .kl_mean = after.kl_sum / (double)after.count,
        .top1_agreement = (double)after.agree / (double)after.count,
        .tokens = after.count,
        .sequences = set->sequences,
        .length = set->length,
    };
    if (!isfinite(after.nll_sum)) {
        rc = message_send_warning(
            run->sender, "evaluation_not_finite",
            "the quantized model's logits on the evaluation set are not finite: do not use this artifact");
    }
    return rc;
}
