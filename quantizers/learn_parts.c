/* What learns of a block: its linears, and the vectors of its norms and of its linears' biases, with the gradients that
 * a backward pass adds to. */

#include "quantizers/learn.h"

#include "base/err.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

static int parts_add_float(const struct tune_context *context, const struct learn_plan *plan, enum learn_kind kind,
                           const struct tensor *tensor, double offset, struct tensor *grad, struct learn_parts *parts)
{
    if (tensor->data == NULL || plan->rate[kind] == 0) {
        return 0;
    }
    struct learn_vector *vector = &parts->floats[parts->float_count++];
    TRY(learn_vector_init(context, kind, tensor, context->float_dtype, true, offset, vector));
    *grad = vector->grad;
    return 0;
}

static int parts_add_floats(const struct tune_context *context, const struct learn_plan *plan,
                            struct learn_parts *parts)
{
    const struct block *block = context->block;
    const struct plan *layer = block->plan;

    for (int i = 0; i < layer->norm_count; i++) {
        struct block_norm_grad *grad = &parts->grads.norms[i];
        double offset = layer->norms[i].unit_offset ? 1 : 0;
        TRY(parts_add_float(context, plan, LEARN_NORMS, &block->norms[i].weight, offset, &grad->weight, parts));
        TRY(parts_add_float(context, plan, LEARN_NORMS, &block->norms[i].bias, 0, &grad->bias, parts));
    }
    for (int i = 0; i < context->count; i++) {
        int module = context->modules[i].module;
        TRY(parts_add_float(context, plan, LEARN_BIASES, &block->modules[module].bias, 0,
                            &parts->grads.modules[module].bias, parts));
    }
    return 0;
}

static int parts_add_linears(const struct tune_context *context, const struct learn_plan *plan,
                             struct learn_parts *parts)
{
    for (int i = 0; i < context->count; i++) {
        const struct tune_module *module = &context->modules[i];
        if (module->learns && learn_linear_can(plan, module->result)) {
            struct learn_linear *linear = &parts->linears[parts->linear_count++];
            TRY(learn_linear_init(context, plan, module, linear));
            parts->grads.modules[module->module].weight = linear->grad;
        }
    }
    return 0;
}

int learn_parts_init(const struct tune_context *context, const struct learn_plan *plan, struct learn_parts *out)
{
    const struct plan *layer = context->block->plan;
    int64_t largest = 1;

    *out = (struct learn_parts){.linear_count = 0};
    for (int i = 0; i < context->count; i++) {
        int64_t elements = context->modules[i].result->rows * context->modules[i].result->cols;
        largest = elements > largest ? elements : largest;
    }
    TRY(mem_array(&out->linears, (size_t)context->count + 1));
    TRY(mem_array(&out->floats, (size_t)(2 * layer->norm_count + context->count) + 1));
    TRY(mem_array(&out->grads.modules, (size_t)layer->module_count + 1));
    TRY(mem_array(&out->grads.norms, (size_t)layer->norm_count + 1));
    TRY(parts_add_linears(context, plan, out));
    TRY(parts_add_floats(context, plan, out));
    return gpu_tensor_uninitialized(context->gpu, DTYPE_F32, 1, &largest, &out->scratch);
}

void learn_parts_deinit(const struct gpu *gpu, struct learn_parts *parts)
{
    for (int i = 0; i < parts->linear_count; i++) {
        learn_linear_deinit(gpu, &parts->linears[i]);
    }
    for (int i = 0; i < parts->float_count; i++) {
        learn_vector_deinit(gpu, &parts->floats[i]);
    }
    gpu_tensor_free(gpu, &parts->scratch);
    free(parts->linears);
    free(parts->floats);
    free(parts->grads.modules);
    free(parts->grads.norms);
    *parts = (struct learn_parts){.linear_count = 0};
}

int learn_parts_apply(const struct tune_context *context, const struct learn_parts *parts)
{
    for (int i = 0; i < parts->linear_count; i++) {
        TRY(learn_linear_apply(context, &parts->linears[i]));
    }
    return 0;
}

int learn_parts_step(const struct tune_context *context, const struct learn_plan *plan, double share, int64_t step,
                     struct learn_parts *parts)
{
    for (int i = 0; i < parts->linear_count; i++) {
        TRY(learn_linear_step(context, plan, share, step, &parts->scratch, &parts->linears[i]));
    }
    for (int i = 0; i < parts->float_count; i++) {
        struct learn_vector *vector = &parts->floats[i];
        TRY(learn_vector_step(context, plan, share * plan->rate[vector->kind], step, vector));
    }
    return 0;
}

bool learn_vector_changed(const struct learn_vector *vector)
{
    return vector->count > 0 && memcmp(vector->start, vector->best, vector->count * sizeof(*vector->best)) != 0;
}

/* A norm or a bias that is not as it was is stored with the block. */
static void parts_mark(const struct block *block, const struct learn_vector *vector)
{
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

int learn_parts_finish(const struct tune_context *context, bool changed, struct learn_parts *parts)
{
    for (int i = 0; i < parts->linear_count; i++) {
        TRY(learn_linear_finish(context, changed, &parts->linears[i]));
    }
    for (int i = 0; i < parts->float_count; i++) {
        TRY(learn_vector_restore(context, &parts->floats[i]));
        if (learn_vector_changed(&parts->floats[i])) {
            parts_mark(context->block, &parts->floats[i]);
        }
    }
    return 0;
}
