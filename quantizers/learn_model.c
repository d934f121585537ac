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
    struct learn_linear *linears;
    struct learn_vector *floats; /* of norms and biases */
    int linear_count, float_count;
    struct block_grads grads;
    struct tensor scratch; /* F32: as the largest linear */
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
    if (i < 2 * model->linear_count) {
        struct learn_linear *linear = &model->linears[i / 2];
        return i % 2 == 0 ? &linear->scales : &linear->tables;
    }
    i -= 2 * model->linear_count;
    return i < model->float_count ? &model->floats[i] : NULL;
}

static int model_vectors(const struct learn_model *model)
{
    return 2 * model->linear_count + model->float_count;
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

static int model_add_float(struct learn_model *model, enum learn_kind kind, const struct tensor *tensor, double offset,
                           struct tensor *grad)
{
    if (tensor->data == NULL || model->plan.rate[kind] == 0) {
        return 0;
    }
    struct learn_vector *vector = &model->floats[model->float_count++];
    TRY(learn_vector_init(&model->context, kind, tensor, model->spec.float_dtype, true, offset, vector));
    *grad = vector->grad;
    return 0;
}

static int model_add_floats(struct learn_model *model)
{
    const struct block *block = model->context.block;
    const struct plan *plan = block->plan;

    for (int i = 0; i < plan->norm_count; i++) {
        struct block_norm_grad *grad = &model->grads.norms[i];
        TRY(model_add_float(model, LEARN_NORMS, &block->norms[i].weight, plan->norms[i].unit_offset ? 1 : 0,
                            &grad->weight));
        TRY(model_add_float(model, LEARN_NORMS, &block->norms[i].bias, 0, &grad->bias));
    }
    for (int i = 0; i < model->context.count; i++) {
        int module = model->context.modules[i].module;
        TRY(model_add_float(model, LEARN_BIASES, &block->modules[module].bias, 0, &model->grads.modules[module].bias));
    }
    return 0;
}

static int model_add_linears(struct learn_model *model)
{
    const struct tune_context *c = &model->context;

    for (int i = 0; i < c->count; i++) {
        const struct tune_module *module = &c->modules[i];
        if (learn_linear_can(&model->plan, module->result)) {
            struct learn_linear *linear = &model->linears[model->linear_count++];
            TRY(learn_linear_init(c, &model->plan, module, linear));
            TRY(learn_linear_reset(c, &model->plan, linear));
            model->grads.modules[module->module].weight = linear->grad;
        }
    }
    return 0;
}

static int model_reserve(struct learn_model *model)
{
    const struct tune_context *c = &model->context;
    const struct plan *plan = c->block->plan;
    int64_t largest = 1;

    for (int i = 0; i < c->count; i++) {
        int64_t elements = c->modules[i].result->rows * c->modules[i].result->cols;
        largest = elements > largest ? elements : largest;
    }
    TRY(mem_array(&model->linears, (size_t)c->count + 1));
    TRY(mem_array(&model->floats, (size_t)(2 * plan->norm_count + c->count) + 1));
    TRY(mem_array(&model->grads.modules, (size_t)plan->module_count));
    TRY(mem_array(&model->grads.norms, (size_t)plan->norm_count + 1));
    return gpu_tensor_uninitialized(c->gpu, DTYPE_F32, 1, &largest, &model->scratch);
}

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
    TRY(model_reserve(model));
    TRY(model_add_linears(model));
    TRY(model_add_floats(model));
    TRY(vectors_resume(model));
    for (int i = 0; i < model->linear_count; i++) {
        TRY(learn_linear_apply(&model->context, &model->linears[i]));
    }
    return 0;
}

void learn_model_close(struct learn_model *model)
{
    const struct gpu *gpu = model->spec.gpu;

    if (model->context.block == NULL) {
        return;
    }
    vectors_suspend(model);
    for (int i = 0; i < model->linear_count; i++) {
        learn_linear_deinit(gpu, &model->linears[i]);
    }
    for (int i = 0; i < model->float_count; i++) {
        learn_vector_deinit(gpu, &model->floats[i]);
    }
    free(model->linears);
    free(model->floats);
    free(model->grads.modules);
    free(model->grads.norms);
    gpu_tensor_free(gpu, &model->scratch);
    model->linears = NULL;
    model->floats = NULL;
    model->grads = (struct block_grads){.modules = NULL};
    model->linear_count = model->float_count = 0;
    model->context = (struct tune_context){.block = NULL};
}

const struct block_grads *learn_model_grads(const struct learn_model *model)
{
    return &model->grads;
}

int learn_model_step(struct learn_model *model, double share, int64_t step)
{
    const struct tune_context *c = &model->context;

    for (int i = 0; i < model->linear_count; i++) {
        TRY(learn_linear_step(c, &model->plan, share, step, &model->scratch, &model->linears[i]));
    }
    for (int i = 0; i < model->float_count; i++) {
        struct learn_vector *vector = &model->floats[i];
        TRY(learn_vector_step(c, &model->plan, share * model->plan.rate[vector->kind], step, vector));
    }
    return 0;
}

/* --- what is kept */

static bool vector_changed(const struct learn_vector *vector)
{
    return vector->count > 0 && memcmp(vector->start, vector->best, vector->count * sizeof(*vector->best)) != 0;
}

static void model_mark(const struct learn_model *model, const struct learn_vector *vector)
{
    const struct block *block = model->context.block;

    for (int n = 0; n < block->plan->norm_count; n++) {
        struct block_norm *norm = &block->norms[n];
        norm->changed = norm->changed || norm->weight.data == vector->device.data ||
                        (norm->bias.data != NULL && norm->bias.data == vector->device.data);
    }
    for (int m = 0; m < block->plan->module_count; m++) {
        struct block_module *module = &block->modules[m];
        module->changed = module->changed || (module->bias.data != NULL && module->bias.data == vector->device.data);
    }
}

int learn_model_finish(struct learn_model *model, bool *changed)
{
    struct learn_vector *vector;

    *changed = false;
    for (int i = 0; (vector = model_vector(model, i)) != NULL; i++) {
        *changed = *changed || vector_changed(vector);
    }
    for (int i = 0; i < model->linear_count; i++) {
        TRY(learn_linear_finish(&model->context, false, &model->linears[i]));
    }
    for (int i = 0; i < model->float_count; i++) {
        TRY(learn_vector_restore(&model->context, &model->floats[i]));
        if (vector_changed(&model->floats[i])) {
            model_mark(model, &model->floats[i]);
        }
    }
    return 0;
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
