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
#include "pipeline/block_restore.h"
#include "pipeline/evaluate.h"
#include "pipeline/memory_plan.h"
#include "pipeline/rewrite.h"
#include "pipeline/solve.h"
#include "pipeline/tune.h"
#include "quantizers/learn_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LIST_FILE "end-to-end.list"
#define LAST_SHARE 0.05 /* of the rates */
#define HELD_OUT 16     /* one sequence in so many, */
#define HELD_MIN 4      /* of these at least, */
#define HELD_SHARE 2    /* and at most one in so many */

struct end_to_end {
    struct run *run;
    struct tune_model_plan plan;
    int64_t layers, length, hidden;
    struct learn_model *model;
    struct block_tape *tape;
    int64_t batch; /* sequences of the tape */
    struct head head;
    struct head_tape *head_tape;
    struct activations *inputs; /* [layers, the step's tokens]: of each block */
    struct tensor x, teacher;   /* F32 [the step's tokens, hidden]; [a lane's, hidden] */
    int64_t *order; /* sequences: those that are held out, then from `first` on the others; of one sequence the same */
    int64_t held, first, learned, steps, step;
    struct tune_curve curve;
};

/* The files of a block before and after. */
struct replaced {
    char before[DIGEST_HEX_SIZE], after[DIGEST_HEX_SIZE];
};

/* --- a block that is visited */

struct visit {
    struct block block;
    struct block_outputs outputs;
    struct tune_module *modules;
    int count;
};

static int visit_experts(struct end_to_end *e, struct visit *v)
{
    struct run *run = e->run;
    char name[PLAN_NAME_MAX];

    for (int i = 0; i < v->block.plan->module_count; i++) {
        struct block_module *module = &v->block.modules[i];
        if (v->block.plan->modules[i].expert < 0 || module->weight.data != NULL) {
            continue;
        }
        TRY(block_load_module(run->p->model, run->p->gpu, run->stream, &v->block, i));
        model_module_name(run->p->model, run->block_index, i, name);
        int solved = block_outputs_find(&v->outputs, name);
        if (solved >= 0) {
            gpu_tensor_free(run->p->gpu, &module->weight);
            TRY(solved_weight(run, &v->outputs, solved, &module->weight));
        }
    }
    return 0;
}

static int visit_modules(struct end_to_end *e, struct visit *v)
{
    TRY(mem_array(&v->modules, (size_t)v->outputs.count + 1));
    for (int i = 0; i < v->outputs.count; i++) {
        struct qtensor *result = &v->outputs.list[i];
        int64_t layer;
        if (result->scheme.kind == QTENSOR_DENSE) {
            continue;
        }
        int module = model_find_module(e->run->p->model, result->name, &layer);
        v->modules[v->count++] = (struct tune_module){
            .module = module, .result = result, .weight = &v->block.modules[module].weight, .learns = true};
    }
    return 0;
}

/* The block as learned by now. visit_close is due after a failure, too. */
static int visit_open(struct end_to_end *e, int64_t index, struct visit *v)
{
    struct run *run = e->run;

    run->block_index = index;
    TRY(block_load(run->p->model, index, run->p->gpu, run->stream, NULL, &v->block));
    TRY(block_restore(run, &run->checkpoint->blocks[index], &v->block, &v->outputs));
    TRY(visit_experts(e, v));
    TRY(visit_modules(e, v));
    return learn_model_open(e->model, index, &v->block, v->modules, v->count);
}

static void visit_close(struct end_to_end *e, struct visit *v)
{
    learn_model_close(e->model);
    block_deinit(&v->block, e->run->p->gpu);
    block_outputs_deinit(&v->outputs, e->run->p->gpu);
    free(v->modules);
    *v = (struct visit){.count = 0};
}

/* --- passes of some sequences */

struct part {
    int64_t first, count; /* of the pass's sequences: a lane */
    struct tensor x;      /* its rows */
};

static struct part part_at(const struct end_to_end *e, int64_t first, int64_t count)
{
    int64_t size = count - first < e->batch ? count - first : e->batch;

    return (struct part){first, size, tensor_rows(&e->x, first * e->length, size * e->length)};
}

static int part_ids(const struct end_to_end *e, const int64_t *sequences, const struct part *p, int32_t **out)
{
    const int32_t *ids = e->run->calibration.set->ids;

    TRY(mem_buffer(out, (size_t)(p->count * e->length)));
    for (int64_t i = 0; i < p->count; i++) {
        memcpy(*out + i * e->length, ids + sequences[p->first + i] * e->length, (size_t)e->length * sizeof(**out));
    }
    return 0;
}

/* The block's values from its input, in the tape. */
static int part_forward(struct end_to_end *e, const struct block *block, const int64_t *sequences, const struct part *p,
                        bool back)
{
    struct run *run = e->run;
    AUTO_FREE int32_t *ids = NULL;

    TRY(part_ids(e, sequences, p, &ids));
    TRY(block_tape_begin(e->tape, block->plan, p->count, ids));
    const struct tensor input = block_tape_value(e->tape, 0);
    int64_t row = block->index * (e->x.shape[0]) + p->first * e->length;
    if (back) {
        TRY(activations_read(e->inputs, ACTIVATIONS_OUT, row, &input, run->p->gpu, run->stream));
    } else {
        TRY(run->p->gpu->ops->convert(run->stream, &input, &p->x));
        TRY(activations_write(e->inputs, row, &input, run->p->gpu, run->stream));
    }
    return block_tape_forward(block, e->tape);
}

static int parts_forward(struct end_to_end *e, int64_t index, const int64_t *sequences, int64_t count)
{
    const struct gpu_ops *ops = e->run->p->gpu->ops;
    struct visit v = {.count = 0};
    int rc = visit_open(e, index, &v);

    for (int64_t first = 0; rc == 0 && first < count; first += e->batch) {
        const struct part p = part_at(e, first, count);
        rc = part_forward(e, &v.block, sequences, &p, false);
        if (rc == 0) {
            const struct tensor out = block_tape_value(e->tape, v.block.plan->output);
            rc = ops->convert(e->run->stream, &p.x, &out);
        }
    }
    visit_close(e, &v);
    return rc;
}

/* Back from dL/dx of its output, in x, to that of its input, and a step of what it has. */
static int parts_backward(struct end_to_end *e, int64_t index, const int64_t *sequences, int64_t count, double share)
{
    const struct gpu_ops *ops = e->run->p->gpu->ops;
    struct visit v = {.count = 0};
    int rc = visit_open(e, index, &v);

    for (int64_t first = 0; rc == 0 && first < count; first += e->batch) {
        const struct part p = part_at(e, first, count);
        rc = part_forward(e, &v.block, sequences, &p, true);
        if (rc != 0) {
            break;
        }
        const struct tensor out = block_tape_gradient(e->tape, v.block.plan->output);
        const struct tensor in = block_tape_gradient(e->tape, 0);
        rc = ops->convert(e->run->stream, &out, &p.x);
        rc = rc != 0 ? rc : block_tape_backward(&v.block, e->tape, learn_model_grads(e->model), PLAN_BIT(0));
        rc = rc != 0 ? rc : ops->convert(e->run->stream, &p.x, &in);
    }
    rc = rc != 0 ? rc : learn_model_step(e->model, share, e->step);
    visit_close(e, &v);
    return rc;
}

static int parts_embed(struct end_to_end *e, const int64_t *sequences, int64_t count)
{
    struct run *run = e->run;

    for (int64_t first = 0; first < count; first += e->batch) {
        const struct part p = part_at(e, first, count);
        AUTO_FREE int32_t *ids = NULL;
        TRY(part_ids(e, sequences, &p, &ids));
        TRY(head_embed(&e->head, run->config, run->p->gpu, run->stream, &p.x, ids, e->length));
    }
    return 0;
}

/* The mean KL of a token; x becomes its gradient where backward. */
static int parts_loss(struct end_to_end *e, const int64_t *sequences, int64_t count, bool backward, double *loss)
{
    struct run *run = e->run;
    double tokens = (double)(count * e->length), sum = 0;

    for (int64_t first = 0; first < count; first += e->batch) {
        const struct part p = part_at(e, first, count);
        const struct tensor teacher = tensor_rows(&e->teacher, 0, p.count * e->length);
        for (int64_t i = 0; i < p.count; i++) {
            const struct tensor rows = tensor_rows(&teacher, i * e->length, e->length);
            TRY(activations_read(tuning_store(run), ACTIVATIONS_IN, sequences[first + i] * e->length, &rows,
                                 run->p->gpu, run->stream));
        }
        const struct head_loss kl = {.teacher = &e->head, .hidden = &teacher, .factor = 1 / tokens};
        TRY(head_backward(&e->head, e->head_tape, &p.x, &kl, backward ? &p.x : NULL, NULL, &sum));
    }
    *loss = sum / tokens;
    return 0;
}

/* From the embedding to the loss. */
static int forward_pass(struct end_to_end *e, const int64_t *sequences, int64_t count, bool backward, double *loss)
{
    double done = e->steps > 0 ? (double)e->step / (double)(e->steps + 1) : 0;

    TRY(parts_embed(e, sequences, count));
    for (int64_t b = 0; b < e->layers; b++) {
        TRY(run_tick(e->run, done, "tuning"));
        TRY(parts_forward(e, b, sequences, count));
    }
    return parts_loss(e, sequences, count, backward, loss);
}

/* --- epochs */

/* The mean over the held-out sequences, some at a time. */
static int model_loss(struct end_to_end *e, double *loss)
{
    double sum = 0;

    for (int64_t first = 0; first < e->held; first += e->plan.batch) {
        int64_t count = e->held - first < e->plan.batch ? e->held - first : e->plan.batch;
        double part = 0;
        TRY(forward_pass(e, e->order + first, count, false, &part));
        sum += part * (double)count;
    }
    *loss = sum / (double)e->held;
    return 0;
}

static double step_share(const struct end_to_end *e, int64_t step)
{
    return tune_decay(true, LAST_SHARE, (double)(step - 1) / (double)e->steps);
}

static int model_step(struct end_to_end *e, const int64_t *sequences, double *loss)
{
    TRY(forward_pass(e, sequences, e->plan.batch, true, loss));
    e->run->learning = (struct tune_progress){
        .step = e->step, .steps = e->steps, .rate = step_share(e, e->step), .loss = *loss, .first = e->curve.first};
    for (int64_t b = e->layers - 1; isfinite(*loss) && b >= 0; b--) {
        TRY(run_tick(e->run, (double)e->step / (double)(e->steps + 1), "tuning"));
        TRY(parts_backward(e, b, sequences, e->plan.batch, step_share(e, e->step)));
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
    if (isfinite(c->last) && c->last < c->best) {
        c->best = c->last;
        c->best_step = e->step;
        learn_model_keep(e->model);
    }
    return 0;
}

static int model_epochs(struct end_to_end *e, uint64_t seed)
{
    int64_t *learned = e->order + e->first, batches = e->learned / e->plan.batch;

    TRY(model_loss(e, &e->curve.first));
    e->curve.best = e->curve.first;
    if (!isfinite(e->curve.first)) {
        snprintf(e->curve.note, sizeof(e->curve.note), "the model's loss is not finite: nothing was learned");
        return 0;
    }
    learn_model_keep(e->model);
    for (int64_t epoch = 0; epoch < e->plan.epochs; epoch++) {
        double loss = 0;
        random_shuffle(learned, e->learned, &seed);
        for (int64_t i = 0; i < batches; i++) {
            e->step++;
            TRY(model_step(e, learned + i * e->plan.batch, &loss));
            if (!isfinite(loss)) {
                snprintf(e->curve.note, sizeof(e->curve.note),
                         "the loss was not finite at step %lld: what was kept is "
                         "of an earlier epoch",
                         (long long)e->step);
                return 0;
            }
        }
        TRY(epoch_measure(e));
    }
    return 0;
}

/* --- files */

static void new_file(int64_t index, char out[64])
{
    snprintf(out, 64, "block-%05lld-e2e.safetensors", (long long)index);
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

static int block_write(struct end_to_end *e, int64_t index, char sha256[DIGEST_HEX_SIZE])
{
    struct visit v = {.count = 0};
    char file[64], path[600];
    bool changed;

    new_file(index, file);
    TRY(fs_path(path, sizeof(path), "%s/%s", e->run->p->directory, file));
    int rc = visit_open(e, index, &v);
    int before = v.outputs.count;
    rc = rc != 0 ? rc : learn_model_finish(e->model, &changed);
    rc = rc != 0 ? rc : block_keep_changes(e->run, &v.block, &v.outputs);
    if (rc == 0) {
        merge_tensors(&v.outputs, before);
        rc = qtensor_save(path, v.outputs.list, v.outputs.count, v.outputs.spill, sha256);
    }
    visit_close(e, &v);
    return rc;
}

static size_t end_list_bytes(int64_t layers)
{
    return sizeof(struct tune_curve) + (size_t)layers * sizeof(struct replaced) + DIGEST_HEX_SIZE;
}

static int end_list_write(struct end_to_end *e)
{
    size_t size = end_list_bytes(e->layers);
    char path[600];
    AUTO_FREE char *data = NULL;

    TRY(mem_array(&data, size));
    struct replaced *list = (struct replaced *)(data + sizeof(e->curve));
    for (int64_t b = 0; b < e->layers; b++) {
        memcpy(list[b].before, e->run->checkpoint->blocks[b].sha256, DIGEST_HEX_SIZE);
        TRY(block_write(e, b, list[b].after));
    }
    memcpy(data, &e->curve, sizeof(e->curve));
    digest_bytes(data, size - DIGEST_HEX_SIZE, data + size - DIGEST_HEX_SIZE);
    TRY(fs_path(path, sizeof(path), "%s/%s", e->run->p->directory, LIST_FILE));
    return fs_write_atomic(path, data, size);
}

/* Whether the list is of these blocks, each with its old file or its new one. */
static bool end_list_fits(const struct checkpoint *checkpoint, const char *data, size_t size, int64_t layers)
{
    char digest[DIGEST_HEX_SIZE];

    if (size != end_list_bytes(layers)) {
        return false;
    }
    digest_bytes(data, size - DIGEST_HEX_SIZE, digest);
    if (memcmp(digest, data + size - DIGEST_HEX_SIZE, DIGEST_HEX_SIZE) != 0) {
        return false;
    }
    const struct replaced *list = (const struct replaced *)(data + sizeof(struct tune_curve));
    for (int64_t b = 0; b < layers; b++) {
        const char *now = checkpoint->blocks[b].sha256;
        if (strcmp(now, list[b].before) != 0 && strcmp(now, list[b].after) != 0) {
            return false;
        }
    }
    return true;
}

/* data NULL: there is no list of these blocks. */
static int end_list_read(const struct run *run, char **data)
{
    char path[600];
    char *read = NULL;
    size_t size = 0;

    TRY(fs_path(path, sizeof(path), "%s/%s", run->p->directory, LIST_FILE));
    int rc = access(path, F_OK) == 0 ? fs_read_file(path, end_list_bytes(run->config->num_layers), &read, &size) : 0;
    if (rc == 0 && read != NULL && end_list_fits(run->checkpoint, read, size, run->config->num_layers)) {
        *data = read;
        return 0;
    }
    free(read);
    return rc;
}

/* Commit the blocks that still have their old files. The last one's row has the curve. */
static int end_list_commit(struct run *run, const char *data)
{
    const struct replaced *list = (const struct replaced *)(data + sizeof(struct tune_curve));
    int64_t layers = run->config->num_layers;
    struct tune_curve curve;

    memcpy(&curve, data, sizeof(curve));
    for (int64_t b = 0; b < layers; b++) {
        struct saved_block saved = run->checkpoint->blocks[b];
        char old[600];
        new_file(b, saved.file);
        if (strcmp(saved.file, run->checkpoint->blocks[b].file) == 0) {
            continue;
        }
        memcpy(saved.sha256, list[b].after, sizeof(saved.sha256));
        TRY(fs_path(old, sizeof(old), "%s/%s", run->p->directory, run->checkpoint->blocks[b].file));
        TRY(checkpoint_replace(run->checkpoint, &saved, b + 1 == layers ? &curve : NULL));
        (void)unlink(old); /* the job's folder goes in the end */
    }
    return 0;
}

/* --- the phase */

static int end_init(struct end_to_end *e)
{
    struct run *run = e->run;
    const struct calibration_set *set = run->calibration.set;
    const struct learn_model_spec spec = {.gpu = run->p->gpu,
                                          .stream = run->stream,
                                          .float_dtype = model_dtype(run->p->model),
                                          .plan = e->plan,
                                          .blocks = e->layers};
    const struct block_tape_spec tape = {
        .plans = model_plans(run->p->model), .sequences = e->batch, .length = e->length, .rounds = true};
    int64_t chunk = memory_plan_logits(run->config, run->p->gpu->info.host_memory);

    e->held = set->sequences / HELD_OUT > HELD_MIN ? set->sequences / HELD_OUT : HELD_MIN;
    e->held = e->held > set->sequences / HELD_SHARE ? set->sequences / HELD_SHARE : e->held;
    e->held = e->held > 0 ? e->held : 1;
    e->first = set->sequences > 1 ? e->held : 0;
    e->learned = set->sequences - e->first;
    if (e->plan.batch > e->learned) {
        e->plan.batch = e->learned;
        snprintf(e->curve.note, sizeof(e->curve.note), "batches have %lld sequences: the calibration set has no more",
                 (long long)e->learned);
    }
    e->curve.bytes = block_tape_bytes(&tape);
    e->steps = e->plan.epochs * (e->learned / e->plan.batch);
    int64_t tokens = e->plan.batch * e->length;
    TRY(mem_buffer(&e->order, (size_t)set->sequences));
    TRY(learn_model_new(&spec, &e->model));
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
    TRY(model_epochs(e, seed));
    learn_model_return(e->model);
    e->curve.done = true;
    e->curve.steps = e->step;
    e->curve.sequences = e->learned;
    e->curve.held_out = e->first;
    e->curve.seconds = clock_monotonic_seconds() - started;
    return end_list_write(e);
}

/* The evaluation set once more through the blocks as they are now. */
static int end_evaluate(struct run *run)
{
    return run->evaluation.quantized != NULL ? evaluate_saved(run, run->evaluation.quantized) : 0;
}

int end_to_end_run(struct run *run)
{
    struct end_to_end e = {.run = run,
                           .layers = run->config->num_layers,
                           .length = run->calibration.set != NULL ? run->calibration.set->length : 0,
                           .hidden = run->config->hidden_size};
    AUTO_FREE char *list = NULL;

    if (e.length == 0 || !recipe_end_to_end(run->p->recipe, &e.plan)) {
        return 0;
    }
    run->blocks_done = true;
    TRY(end_list_read(run, &list));
    if (list == NULL) {
        e.tape = tuning_tape(run, &e.batch);
        int rc = end_learn(&e);
        run->learning = (struct tune_progress){.steps = 0};
        end_deinit(&e);
        run_end_phase(run, PHASE_SOLVE, 0);
        TRY(rc != 0 ? err_pass(rc, "end to end") : 0);
        TRY(end_list_read(run, &list));
    }
    if (list == NULL) {
        return err_raise(ERR_STORAGE, "the list of what end_to_end made cannot be read");
    }
    TRY(end_list_commit(run, list));
    return end_evaluate(run);
}
