/* A block's linears (learn_linear.c) and vectors exist while it is open; between its visits the vectors' host halves
 * are set aside in the order in which they were made, which is that of the block's results, norms and modules. */

#include "quantizers/learn_model.h"

#include "quantizers/learn.h"

#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SCALE_REACH 0.5

/* What is learned of a block, without anything on the device. */
struct model_block {
    struct learn_vector *vectors;
    int count; /* 0: it was not open yet */
};

struct learn_model {
    struct learn_model_spec spec;
    struct learn_plan plan;
    struct model_block *blocks;

    /* the open block */
    struct tune_context context; /* block NULL: none is open */
    int64_t index;
    struct learn_parts parts;
};

int learn_model_new(const struct learn_model_spec *spec, struct learn_model **out)
{
    struct learn_model *model;

    TRY(mem_new(&model));
    model->spec = *spec;
    model->plan = (struct learn_plan){
        .beta1 = 0.9,
        .beta2 = 0.95,
        .rate = {[LEARN_SCALES] = spec->plan.scale_lr,
                 [LEARN_TABLES] = spec->plan.table_lr,
                 [LEARN_NORMS] = spec->plan.norm_lr,
                 [LEARN_BIASES] = spec->plan.bias_lr},
        .margin = 0, /* codes stay */
        .reach = INFINITY,
        .scale_reach = SCALE_REACH,
    };
    int rc = mem_array(&model->blocks, (size_t)spec->blocks);
    if (rc != 0) {
        free(model);
        return rc;
    }
    *out = model;
    return 0;
}

void learn_model_free(struct learn_model *model)
{
    if (model == NULL) {
        return;
    }
    learn_model_close(model);
    for (int64_t b = 0; b < model->spec.blocks; b++) {
        for (int i = 0; i < model->blocks[b].count; i++) {
            learn_vector_deinit(model->spec.gpu, &model->blocks[b].vectors[i]);
        }
        free(model->blocks[b].vectors);
    }
    free(model->blocks);
    free(model);
}

/* --- vectors between visits */

/* Number i of the open block's vectors; NULL: there are no more. Some learn nothing (count 0). */
static struct learn_vector *model_vector(const struct learn_model *model, int i)
{
    if (i < 2 * model->parts.linear_count) {
        struct learn_linear *linear = &model->parts.linears[i / 2];
        return i % 2 == 0 ? &linear->scales : &linear->tables;
    }
    i -= 2 * model->parts.linear_count;
    return i < model->parts.float_count ? &model->parts.floats[i] : NULL;
}

static int model_vectors(const struct learn_model *model)
{
    return 2 * model->parts.linear_count + model->parts.float_count;
}

/* What stays of a vector on the host goes from one to another, which loses its own. */
static void vector_pass(struct learn_vector *from, struct learn_vector *to)
{
    const struct tensor device = to->device, grad = to->grad;

    free(to->start);
    free(to->best);
    free(to->host);
    free(to->unit);
    free(to->moved);
    free(to->m);
    free(to->v);
    *to = *from;
    to->device = device;
    to->grad = grad;
    *from = (struct learn_vector){.device = from->device, .grad = from->grad};
}

static int vectors_resume(struct learn_model *model)
{
    const struct tune_context *c = &model->context;
    struct model_block *block = &model->blocks[model->index];
    struct learn_vector *vector;

    if (block->vectors == NULL) {
        for (int i = 0; (vector = model_vector(model, i)) != NULL; i++) {
            if (vector->count > 0) {
                memcpy(vector->host, vector->start, vector->count * sizeof(*vector->host));
            }
        }
        return mem_array(&block->vectors, (size_t)model_vectors(model) + 1);
    }
    if (block->count != model_vectors(model)) {
        return err_raise(ERR_INTERNAL, "block %lld has %d vectors now, %d before", (long long)model->index,
                         model_vectors(model), block->count);
    }
    for (int i = 0; (vector = model_vector(model, i)) != NULL; i++) {
        if (vector->count != block->vectors[i].count) {
            return err_raise(ERR_INTERNAL, "a vector of block %lld has another size now", (long long)model->index);
        }
        if (vector->count > 0) {
            vector_pass(&block->vectors[i], vector);
            TRY(gpu_tensor_upload(c->gpu, c->stream, &vector->device, vector->host));
        }
    }
    return 0;
}

static void vectors_suspend(struct learn_model *model)
{
    struct model_block *block = &model->blocks[model->index];
    struct learn_vector *vector;

    for (int i = 0; block->vectors != NULL && (vector = model_vector(model, i)) != NULL; i++) {
        if (vector->count > 0) {
            vector_pass(vector, &block->vectors[i]);
            block->vectors[i].device = block->vectors[i].grad = (struct tensor){.data = NULL};
        }
        block->count = i + 1;
    }
}

/* --- the open block */

int learn_model_open(struct learn_model *model, int64_t index, struct block *block, struct tune_module *modules,
                     int count)
{
    model->index = index;
    model->context = (struct tune_context){.gpu = model->spec.gpu,
                                           .stream = model->spec.stream,
                                           .float_dtype = model->spec.float_dtype,
                                           .block = block,
                                           .modules = modules,
                                           .count = count};
    TRY(learn_parts_init(&model->context, &model->plan, &model->parts));
    for (int i = 0; i < model->parts.linear_count; i++) {
        TRY(learn_linear_reset(&model->context, &model->plan, &model->parts.linears[i]));
    }
    TRY(vectors_resume(model));
    return learn_parts_apply(&model->context, &model->parts);
}

void learn_model_close(struct learn_model *model)
{
    if (model->context.block == NULL) {
        return;
    }
    vectors_suspend(model);
    learn_parts_deinit(model->spec.gpu, &model->parts);
    model->context = (struct tune_context){.block = NULL};
}

const struct block_grads *learn_model_grads(const struct learn_model *model)
{
    return &model->parts.grads;
}

int learn_model_step(struct learn_model *model, double share, int64_t step)
{
    return learn_parts_step(&model->context, &model->plan, share, step, &model->parts);
}

/* --- what is kept */

int learn_model_finish(struct learn_model *model, bool *changed)
{
    struct learn_vector *vector;

    *changed = false;
    for (int i = 0; (vector = model_vector(model, i)) != NULL; i++) {
        *changed = *changed || learn_vector_changed(vector);
    }
    return learn_parts_finish(&model->context, false, &model->parts);
}

void learn_model_keep(struct learn_model *model)
{
    for (int64_t b = 0; b < model->spec.blocks; b++) {
        for (int i = 0; i < model->blocks[b].count; i++) {
            struct learn_vector *vector = &model->blocks[b].vectors[i];
            if (vector->count > 0) {
                memcpy(vector->best, vector->host, vector->count * sizeof(*vector->best));
            }
        }
    }
}

void learn_model_return(struct learn_model *model)
{
    for (int64_t b = 0; b < model->spec.blocks; b++) {
        for (int i = 0; i < model->blocks[b].count; i++) {
            struct learn_vector *vector = &model->blocks[b].vectors[i];
            if (vector->count > 0) {
                memcpy(vector->host, vector->best, vector->count * sizeof(*vector->best));
            }
        }
    }
}
