/* Passes of the end-to-end phase: one block at a time is on the device, read from its file on each visit with what was
 * learned by then, and takes all sequences of a step, a lane after another. */

#include "pipeline/end_to_end_parts.h"

#include "base/err.h"
#include "base/mem.h"
#include "pipeline/solve.h"
#include "pipeline/tune.h"

#include <stdlib.h>
#include <string.h>

/* --- a block that is visited */

static int visit_experts(struct end_to_end *e, struct end_visit *v)
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

static int visit_modules(struct end_to_end *e, struct end_visit *v)
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

int end_visit_open(struct end_to_end *e, int64_t index, struct end_visit *v)
{
    struct run *run = e->run;

    run->block_index = index;
    TRY(block_load(run->p->model, index, run->p->gpu, run->stream, NULL, &v->block));
    TRY(block_restore(run, &run->checkpoint->blocks[index], &v->block, &v->outputs));
    TRY(visit_experts(e, v));
    TRY(visit_modules(e, v));
    return learn_model_open(e->model, index, &v->block, v->modules, v->count);
}

void end_visit_close(struct end_to_end *e, struct end_visit *v)
{
    learn_model_close(e->model);
    block_deinit(&v->block, e->run->p->gpu);
    block_outputs_deinit(&v->outputs, e->run->p->gpu);
    free(v->modules);
    *v = (struct end_visit){.count = 0};
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
    struct end_visit v = {.count = 0};
    int rc = end_visit_open(e, index, &v);

    for (int64_t first = 0; rc == 0 && first < count; first += e->batch) {
        const struct part p = part_at(e, first, count);
        rc = part_forward(e, &v.block, sequences, &p, false);
        if (rc == 0) {
            const struct tensor out = block_tape_value(e->tape, v.block.plan->output);
            rc = ops->convert(e->run->stream, &p.x, &out);
        }
    }
    end_visit_close(e, &v);
    return rc;
}

int end_backward(struct end_to_end *e, int64_t index, const int64_t *sequences, int64_t count, double share)
{
    const struct gpu_ops *ops = e->run->p->gpu->ops;
    struct end_visit v = {.count = 0};
    int rc = end_visit_open(e, index, &v);

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
    end_visit_close(e, &v);
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

int end_forward(struct end_to_end *e, const int64_t *sequences, int64_t count, bool backward, double *loss)
{
    double done = e->steps > 0 ? (double)e->step / (double)(e->steps + 1) : 0;

    TRY(parts_embed(e, sequences, count));
    for (int64_t b = 0; b < e->layers; b++) {
        TRY(run_tick(e->run, done, "tuning"));
        TRY(parts_forward(e, b, sequences, count));
    }
    return parts_loss(e, sequences, count, backward, loss);
}
