/* The end-to-end phase (EfficientQAT: Chen et al. 2024, arXiv 2407.11062, section 3.3): what is stored next to the
 * codes learns through the complete model, whose teacher is the float model.
 *
 *   x_0 = embed -> x_b+1 = block_b(x_b), each x_b kept -> KL(float head || head), dL/dx_L
 *   -> for b = L-1 .. 0: block_b once more from x_b, back to dL/dx_b, a step of what block b has
 *
 * One block is on the device at a time, read from its file on each visit with what was learned by then, so memory is
 * one block with its tape and the batch's hidden states. A step takes all its lanes (tune_lane) through a block before
 * the next one. Sequences that are held out decide which epoch is kept.
 *
 * The new files of all blocks are written next to the old ones, then a list of both, at once; only then blocks are
 * committed with the new ones, one by one. Without the list nothing has happened, and a run begins the phase again;
 * with it, it commits what is left. */

#include "pipeline/end_to_end.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/ids.h"
#include "base/mem.h"
#include "base/random.h"
#include "pipeline/end_list.h"
#include "pipeline/end_to_end_parts.h"
#include "pipeline/evaluate.h"
#include "pipeline/memory_plan.h"
#include "pipeline/rewrite.h"
#include "pipeline/tune.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LAST_SHARE 0.05 /* of the rates */
#define HELD_OUT 16     /* one sequence in so many, */
#define HELD_MIN 4      /* of these at least, */
#define HELD_SHARE 2    /* and at most one in so many */

/* --- epochs */

/* The mean over the held-out sequences, some at a time. */
static int model_loss(struct end_to_end *e, double *loss)
{
    double sum = 0;

    for (int64_t first = 0; first < e->held; first += e->plan.batch) {
        int64_t count = e->held - first < e->plan.batch ? e->held - first : e->plan.batch;
        double part = 0;
        TRY(end_forward(e, e->order + first, count, false, &part));
        sum += part * (double)count;
    }
    *loss = sum / (double)e->held;
    return 0;
}

static double step_share(const struct end_to_end *e, int64_t step)
{
    return e->share * tune_decay(true, LAST_SHARE, (double)(step - 1) / (double)e->steps);
}

static int model_step(struct end_to_end *e, const int64_t *sequences, double *loss)
{
    TRY(end_forward(e, sequences, e->plan.batch, true, loss));
    e->run->learning = (struct tune_progress){
        .step = e->step, .steps = e->steps, .rate = step_share(e, e->step), .loss = *loss, .first = e->curve.first};
    for (int64_t b = e->layers - 1; isfinite(*loss) && b >= 0; b--) {
        TRY(run_tick(e->run, (double)e->step / (double)(e->steps + 1), "tuning"));
        TRY(end_backward(e, b, sequences, e->plan.batch, step_share(e, e->step)));
    }
    return 0;
}

static int epoch_measure(struct end_to_end *e)
{
    struct tune_curve *c = &e->curve;

    TRY(model_loss(e, &c->last));
    if (c->count < TUNE_POINTS_MAX) {
        c->points[c->count++] = (struct tune_point){.step = e->step, .lr = step_share(e, e->step), .loss = c->last};
    }
    e->diverged = !isfinite(c->last);
    if (!e->diverged && c->last < c->best) {
        c->best = c->last;
        c->best_step = e->step;
        learn_model_keep(e->model);
    }
    return 0;
}

/* All epochs, or those before a loss that is not finite. */
static int model_epochs(struct end_to_end *e, uint64_t *seed)
{
    int64_t *learned = e->order + e->first, batches = e->learned / e->plan.batch;

    for (int64_t epoch = 0; epoch < e->plan.epochs && !e->diverged; epoch++) {
        random_shuffle(learned, e->learned, seed);
        for (int64_t i = 0; i < batches && !e->diverged; i++) {
            double loss = 0;
            e->step++;
            TRY(model_step(e, learned + i * e->plan.batch, &loss));
            e->diverged = !isfinite(loss);
        }
        TRY(e->diverged ? 0 : epoch_measure(e));
    }
    return 0;
}

static int model_new(struct end_to_end *e)
{
    struct run *run = e->run;
    const struct learn_model_spec spec = {.gpu = run->p->gpu,
                                          .stream = run->stream,
                                          .float_dtype = model_dtype(run->p->model),
                                          .plan = e->plan,
                                          .blocks = e->layers};

    learn_model_free(e->model);
    e->model = NULL;
    return learn_model_new(&spec, &e->model);
}

/* Once more from what the files have, where the first steps led nowhere. */
static int model_learn(struct end_to_end *e, uint64_t seed)
{
    struct tune_curve *c = &e->curve;

    TRY(model_loss(e, &c->first));
    c->best = c->last = c->first;
    if (!isfinite(c->first)) {
        tune_note(c, "the model's loss is not finite: nothing was learned");
        return 0;
    }
    learn_model_keep(e->model);
    TRY(model_epochs(e, &seed));
    if (e->diverged && c->best_step == 0) {
        tune_note(c, "the loss was not finite at step %lld: again at half the rates", (long long)e->step);
        e->share = 0.5;
        e->diverged = false;
        e->step = c->count = 0;
        TRY(model_new(e));
        TRY(model_epochs(e, &seed));
    }
    if (e->diverged) {
        tune_note(c, "the loss was not finite at step %lld: %s kept", (long long)e->step,
                  c->best_step > 0 ? "an earlier epoch was" : "what was solved was");
    }
    return 0;
}

/* --- files */

/* Not the one that the block has: it may have learned once by a list that this version does not read. */
static void new_file(const struct saved_block *block, char out[64])
{
    snprintf(out, 64, "block-%05lld-e2e.safetensors", (long long)block->index);
    if (strcmp(out, block->file) == 0) {
        snprintf(out, 64, "block-%05lld-e2e-again.safetensors", (long long)block->index);
    }
}

/* A float tensor that the file had before is not in it twice. */
static void merge_tensors(struct block_outputs *outputs, int before)
{
    for (int i = outputs->count - 1; i >= before; i--) {
        int old = block_outputs_find(outputs, outputs->list[i].name);
        if (old < before) {
            struct qtensor made = outputs->list[i];
            outputs->list[i] = outputs->list[old];
            outputs->list[old] = made;
            outputs->count--;
            qtensor_deinit(&outputs->list[i]);
            outputs->list[i] = outputs->list[outputs->count];
        }
    }
}

static int block_write(struct end_to_end *e, int64_t index, const char *file, char sha256[DIGEST_HEX_SIZE])
{
    struct end_visit v = {.count = 0};
    char path[600];
    bool changed;

    TRY(fs_path(path, sizeof(path), "%s/%s", e->run->p->directory, file));
    int rc = end_visit_open(e, index, &v);
    int before = v.outputs.count;
    rc = rc != 0 ? rc : learn_model_finish(e->model, &changed);
    rc = rc != 0 ? rc : block_keep_changes(e->run, &v.block, &v.outputs);
    if (rc == 0) {
        merge_tensors(&v.outputs, before);
        rc = qtensor_save(path, v.outputs.list, v.outputs.count, v.outputs.spill, sha256);
    }
    end_visit_close(e, &v);
    return rc;
}

/* Files of all blocks, then the list of them. */
static int end_write(struct end_to_end *e)
{
    struct end_list list = {.curve = e->curve, .count = e->layers};
    int rc = mem_array(&list.blocks, (size_t)e->layers);

    for (int64_t b = 0; rc == 0 && b < e->layers; b++) {
        struct end_list_block *block = &list.blocks[b];
        memcpy(block->before, e->run->checkpoint->blocks[b].sha256, DIGEST_HEX_SIZE);
        new_file(&e->run->checkpoint->blocks[b], block->file);
        rc = block_write(e, b, block->file, block->after);
    }
    rc = rc != 0 ? rc : end_list_write(e->run->p->directory, &list);
    end_list_deinit(&list);
    return rc;
}

/* Whether the list is of these blocks, each with its old file or its new one. */
static bool end_list_fits(const struct run *run, const struct end_list *list)
{
    if (list->count != run->config->num_layers) {
        return false;
    }
    for (int64_t b = 0; b < list->count; b++) {
        const char *now = run->checkpoint->blocks[b].sha256;
        if (strcmp(now, list->blocks[b].before) != 0 && strcmp(now, list->blocks[b].after) != 0) {
            return false;
        }
    }
    return true;
}

/* *fits: there is a list of these blocks; end_list_deinit is due in any case. */
static int end_read(const struct run *run, struct end_list *list, bool *fits)
{
    bool found;

    TRY(end_list_read(run->p->directory, list, &found));
    *fits = found && end_list_fits(run, list);
    if (found && !*fits) {
        end_list_deinit(list);
    }
    return 0;
}

/* Commit the blocks that still have their old files. The last one's row has the curve. */
static int end_commit(struct run *run, const struct end_list *list)
{
    for (int64_t b = 0; b < list->count; b++) {
        const struct end_list_block *block = &list->blocks[b];
        struct saved_block saved = run->checkpoint->blocks[b];
        char old[600];
        if (strcmp(saved.file, block->file) == 0) {
            continue;
        }
        TRY(fs_path(old, sizeof(old), "%s/%s", run->p->directory, saved.file));
        memcpy(saved.file, block->file, sizeof(saved.file));
        memcpy(saved.sha256, block->after, sizeof(saved.sha256));
        TRY(checkpoint_replace(run->checkpoint, &saved, b + 1 == list->count ? &list->curve : NULL));
        (void)unlink(old); /* the job's folder goes in the end */
    }
    return 0;
}

/* --- the phase */

int64_t end_to_end_held(int64_t sequences)
{
    int64_t held = sequences / HELD_OUT > HELD_MIN ? sequences / HELD_OUT : HELD_MIN;

    held = held < sequences / HELD_SHARE ? held : sequences / HELD_SHARE;
    return held > 0 ? held : 1;
}

static int end_init(struct end_to_end *e)
{
    struct run *run = e->run;
    const struct calibration_set *set = run->calibration.set;
    const struct block_tape_spec tape = {
        .plans = model_plans(run->p->model), .sequences = e->batch, .length = e->length, .rounds = true};
    int64_t chunk = memory_plan_logits(run->config, run->p->gpu->info.host_memory);

    e->held = end_to_end_held(set->sequences);
    e->first = set->sequences > 1 ? e->held : 0;
    e->learned = set->sequences - e->first;
    if (e->plan.batch > e->learned) {
        e->plan.batch = e->learned;
        tune_note(&e->curve, "batches have %lld sequences: the calibration set has no more", (long long)e->learned);
    }
    e->curve.bytes = block_tape_bytes(&tape);
    e->steps = e->plan.epochs * (e->learned / e->plan.batch);
    int64_t tokens = e->plan.batch * e->length;
    TRY(mem_buffer(&e->order, (size_t)set->sequences));
    TRY(model_new(e));
    TRY(head_load_embedding(run->p->model, run->p->gpu, run->stream, &e->head));
    TRY(head_load_output(run->p->model, run->p->gpu, run->stream, &e->head));
    TRY(head_tape_new(run->config, chunk, true, run->p->gpu, run->stream, &e->head_tape));
    TRY(gpu_tensor_uninitialized(run->p->gpu, DTYPE_F32, 2, (const int64_t[]){tokens, e->hidden}, &e->x));
    TRY(gpu_tensor_uninitialized(run->p->gpu, DTYPE_F32, 2, (const int64_t[]){e->batch * e->length, e->hidden},
                                 &e->teacher));
    return activations_new(run->p->directory, "end-to-end", e->layers * tokens, e->hidden, &run->budget, &e->inputs);
}

static void end_deinit(struct end_to_end *e)
{
    const struct gpu *gpu = e->run->p->gpu;

    activations_free(e->inputs);
    gpu_tensor_free(gpu, &e->x);
    gpu_tensor_free(gpu, &e->teacher);
    head_tape_free(e->head_tape);
    head_deinit(&e->head, gpu);
    learn_model_free(e->model);
    free(e->order);
}

static int end_learn(struct end_to_end *e)
{
    struct run *run = e->run;
    const struct calibration_set *set = run->calibration.set;
    double started = clock_monotonic_seconds();
    uint64_t seed = run->p->seed ^ 0x2545f4914f6cdd1du;

    TRY(end_init(e));
    for (int64_t i = 0; i < set->sequences; i++) {
        e->order[i] = i;
    }
    random_shuffle(e->order, set->sequences, &seed);
    TRY(model_learn(e, seed));
    learn_model_return(e->model);
    e->curve.done = true;
    e->curve.steps = e->step;
    e->curve.sequences = e->learned;
    e->curve.held_out = e->first;
    e->curve.seconds = clock_monotonic_seconds() - started;
    return end_write(e);
}

/* The evaluation set once more through the blocks as they are now. */
static int end_evaluate(struct run *run)
{
    return run->evaluation.quantized != NULL ? evaluate_saved(run, run->evaluation.quantized) : 0;
}

int end_to_end_run(struct run *run)
{
    struct end_to_end e = {.run = run,
                           .share = 1,
                           .layers = run->config->num_layers,
                           .length = run->calibration.set != NULL ? run->calibration.set->length : 0,
                           .hidden = run->config->hidden_size};
    struct end_list list = {.count = 0};
    bool there;

    if (e.length == 0 || !recipe_end_to_end(run->p->recipe, &e.plan)) {
        return 0;
    }
    run->blocks_done = true;
    TRY(end_read(run, &list, &there));
    if (!there) {
        e.tape = tuning_tape(run, &e.batch);
        int rc = end_learn(&e);
        run->learning = (struct tune_progress){.steps = 0};
        end_deinit(&e);
        run_end_phase(run, PHASE_SOLVE, 0);
        TRY(rc != 0 ? err_pass(rc, "end to end") : 0);
        TRY(end_read(run, &list, &there));
    }
    if (!there) {
        return err_raise(ERR_STORAGE, "the list of what end_to_end made cannot be read");
    }
    int rc = end_commit(run, &list);
    end_list_deinit(&list);
    return rc != 0 ? rc : end_evaluate(run);
}
