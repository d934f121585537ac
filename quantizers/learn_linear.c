/* A linear that learns: the latents and scales of an integer grid.
 *
 * A latent is a weight in units of its scale, and its code is the latent rounded. It begins between the solver's code
 * and the float weight: without a step the codes are the solver's, steps do not undo at once what the solver chose, and
 * latents that it moved far do not begin at one distance from where their codes change, to change all in the same step.
 * A code depends on its latent alone, so the artifact has the codes of the last forward pass whatever the scale is
 * rounded to. */

#include "quantizers/learn.h"

#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <string.h>

#define ADAM_EPS 1e-8

static bool linear_on_grid(const struct qtensor *q)
{
    return q->scheme.kind == QTENSOR_INT && q->row_groups == q->rows;
}

bool learn_linear_can(const struct learn_plan *plan, const struct qtensor *result)
{
    if (linear_on_grid(result)) {
        return plan->rate[LEARN_LATENTS] > 0 || plan->rate[LEARN_SCALES] > 0;
    }
    return learn_tables_can(plan, result);
}

/* The latents that stand for the solver's codes, on the host. */
static int latents_of(const struct tune_context *context, const struct learn_plan *plan, const struct qtensor *q,
                      const struct tensor *weight, float *latents)
{
    int64_t group = q->cols / q->groups;
    float most = (float)plan->margin;

    TRY(context->gpu->ops->download(context->stream, latents, weight->data, tensor_bytes(weight)));
    for (int64_t n = 0; n < q->rows; n++) {
        for (int64_t k = 0; k < q->cols; k++) {
            int64_t at = n * q->cols + k, g = n * q->groups + k / group;
            float code = (float)q->codes[at] - (float)q->zeros[g], scaled = latents[at] / q->scales[g];
            float away = isfinite(scaled) ? scaled - code : 0;
            latents[at] = code + (plan->exact ? fminf(fmaxf(away, -most), most) : most * away / (0.5f + fabsf(away)));
        }
    }
    return 0;
}

static int set_latents(const struct tune_context *context, const struct learn_plan *plan, struct learn_linear *linear)
{
    const struct qtensor *q = linear->module->result;
    AUTO_FREE float *latents = NULL;

    TRY(mem_buffer(&latents, (size_t)q->rows * (size_t)q->cols));
    TRY(latents_of(context, plan, q, linear->module->weight, latents));
    TRY(gpu_tensor_upload(context->gpu, context->stream, &linear->latent, latents));
    return linear->center.data != NULL ? gpu_tensor_upload(context->gpu, context->stream, &linear->center, latents) : 0;
}

static int grid_upload(const struct tune_context *context, struct learn_linear *linear)
{
    const struct qtensor *q = linear->module->result;
    const int64_t groups[2] = {q->rows, q->groups};
    size_t count = (size_t)q->rows * (size_t)q->groups;
    AUTO_FREE float *zeros = NULL;

    TRY(mem_buffer(&zeros, count));
    for (size_t i = 0; i < count; i++) {
        zeros[i] = q->zeros[i];
    }
    TRY(gpu_tensor_from_host(context->gpu, context->stream, DTYPE_F32, 2, groups, q->scales, &linear->scale));
    return gpu_tensor_from_host(context->gpu, context->stream, DTYPE_F32, 2, groups, zeros, &linear->zero);
}

static int grid_init(const struct tune_context *context, const struct learn_plan *plan, struct learn_linear *linear)
{
    const struct qtensor *q = linear->module->result;
    const struct gpu *gpu = context->gpu;
    const int64_t shape[2] = {q->rows, q->cols};
    bool learns = plan->rate[LEARN_LATENTS] > 0, first = learns && plan->beta1 > 0, second = learns && !plan->sign;

    linear->grid = quant_scheme_grid(&q->scheme);
    linear->grid.group_size = q->cols / q->groups;
    TRY(grid_upload(context, linear));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, shape, &linear->latent));
    TRY(learns && isfinite(plan->reach) ? gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, shape, &linear->center) : 0);
    TRY(learns ? gpu_tensor_uninitialized(gpu, DTYPE_U8, 2, shape, &linear->codes) : 0);
    TRY(first ? gpu_tensor_new(gpu, DTYPE_F32, 2, shape, &linear->m) : 0);
    TRY(second ? gpu_tensor_new(gpu, DTYPE_F32, 2, shape, &linear->v) : 0);
    if (plan->rate[LEARN_SCALES] > 0) {
        TRY(learn_vector_init(context, LEARN_SCALES, &linear->scale, q->scheme.scale_dtype, false, 0, &linear->scales));
        linear->scales.reach = plan->scale_reach;
    }
    return 0;
}

int learn_linear_init(const struct tune_context *context, const struct learn_plan *plan,
                      const struct tune_module *module, struct learn_linear *out)
{
    const struct qtensor *q = module->result;

    *out = (struct learn_linear){.module = module, .weight = &context->block->modules[module->module].weight};
    TRY(gpu_tensor_new(context->gpu, DTYPE_F32, 2, (const int64_t[]){q->rows, q->cols}, &out->grad));
    return linear_on_grid(q) ? grid_init(context, plan, out) : learn_tables_init(context, plan, out);
}

void learn_linear_deinit(const struct gpu *gpu, struct learn_linear *linear)
{
    struct tensor *const owned[] = {&linear->grad,  &linear->latent, &linear->center, &linear->m,       &linear->v,
                                    &linear->scale, &linear->zero,   &linear->codes,  &linear->entries, &linear->table};

    for (size_t i = 0; i < sizeof(owned) / sizeof(owned[0]); i++) {
        gpu_tensor_free(gpu, owned[i]);
    }
    learn_vector_deinit(gpu, &linear->scales);
    learn_vector_deinit(gpu, &linear->tables);
}

int learn_linear_reset(const struct tune_context *context, const struct learn_plan *plan, struct learn_linear *linear)
{
    const struct gpu_ops *ops = context->gpu->ops;

    if (linear->latent.data != NULL) {
        TRY(set_latents(context, plan, linear));
    }
    if (linear->m.data != NULL) {
        TRY(ops->fill_zero(context->stream, linear->m.data, tensor_bytes(&linear->m)));
    }
    if (linear->v.data != NULL) {
        TRY(ops->fill_zero(context->stream, linear->v.data, tensor_bytes(&linear->v)));
    }
    TRY(linear->scales.count > 0 ? learn_vector_reset(context, &linear->scales) : 0);
    return linear->tables.count > 0 ? learn_vector_reset(context, &linear->tables) : 0;
}

int learn_linear_apply(const struct tune_context *context, const struct learn_linear *linear)
{
    return linear->latent.data != NULL
               ? context->gpu->ops->fake_round(context->stream, linear->weight, NULL, &linear->latent, &linear->scale,
                                               &linear->zero, &linear->grid)
               : learn_tables_apply(context, linear);
}

static int latents_step(const struct tune_context *context, const struct learn_plan *plan, double share, int64_t step,
                        const struct tensor *gradient, struct learn_linear *linear)
{
    const struct gpu_ops *ops = context->gpu->ops;
    const struct gpu_adamw adam = {.lr = share * plan->rate[LEARN_LATENTS],
                                   .beta1 = plan->beta1,
                                   .beta2 = plan->beta2,
                                   .eps = ADAM_EPS,
                                   .factor = 1,
                                   .step = step};

    if (!plan->sign) {
        return ops->adamw(context->stream, &linear->latent, &linear->m, &linear->v, gradient, &adam);
    }
    if (linear->m.data != NULL) {
        TRY(ops->combine(context->stream, &linear->m, plan->beta1, &linear->m, 1 - plan->beta1, gradient));
    }
    return ops->sign_step(context->stream, &linear->latent, linear->m.data != NULL ? &linear->m : gradient,
                          linear->center.data != NULL ? &linear->center : NULL, adam.lr, -plan->reach, plan->reach);
}

static int grid_step(const struct tune_context *context, const struct learn_plan *plan, double share, int64_t step,
                     const struct tensor *scratch, struct learn_linear *linear)
{
    const struct qtensor *q = linear->module->result;
    const struct gpu_ops *ops = context->gpu->ops;
    const struct tensor gradient = tensor_2d(scratch->data, DTYPE_F32, q->rows, q->cols);
    bool latents = plan->rate[LEARN_LATENTS] > 0, scales = linear->scales.count > 0;

    if (latents) {
        TRY(ops->fill_zero(context->stream, gradient.data, tensor_bytes(&gradient)));
    }
    if (scales) {
        TRY(ops->fill_zero(context->stream, linear->scales.grad.data, tensor_bytes(&linear->scales.grad)));
    }
    TRY(ops->fake_round_grad(context->stream, latents ? &gradient : NULL, scales ? &linear->scales.grad : NULL, NULL,
                             &linear->grad, &linear->latent, &linear->scale, &linear->zero, &linear->grid));
    if (latents) {
        TRY(latents_step(context, plan, share, step, &gradient, linear));
    }
    return learn_vector_step(context, plan, share * plan->rate[LEARN_SCALES], step, &linear->scales);
}

int learn_linear_step(const struct tune_context *context, const struct learn_plan *plan, double share, int64_t step,
                      const struct tensor *scratch, struct learn_linear *linear)
{
    return linear->latent.data != NULL ? grid_step(context, plan, share, step, scratch, linear)
                                       : learn_tables_step(context, plan, share, step, scratch, linear);
}

int learn_linear_keep(const struct tune_context *context, struct learn_linear *linear)
{
    if (linear->codes.data != NULL) {
        TRY(context->gpu->ops->fake_round(context->stream, NULL, &linear->codes, &linear->latent, &linear->scale,
                                          &linear->zero, &linear->grid));
    }
    TRY(learn_vector_keep(context, &linear->scales));
    return learn_vector_keep(context, &linear->tables);
}

/* The codes of the smallest loss, or the solver's, as they are on the device then. */
static int grid_codes(const struct tune_context *context, bool changed, struct learn_linear *linear)
{
    struct qtensor *q = linear->module->result;
    const int64_t shape[2] = {q->rows, q->cols};

    if (linear->codes.data == NULL) {
        TRY(gpu_tensor_uninitialized(context->gpu, DTYPE_U8, 2, shape, &linear->codes));
    } else if (changed) {
        return context->gpu->ops->download(context->stream, q->codes, linear->codes.data, tensor_bytes(&linear->codes));
    }
    return gpu_tensor_upload(context->gpu, context->stream, &linear->codes, q->codes);
}

int learn_linear_finish(const struct tune_context *context, bool changed, struct learn_linear *linear)
{
    struct qtensor *q = linear->module->result;

    if (linear->latent.data == NULL) {
        return learn_tables_finish(context, linear);
    }
    TRY(grid_codes(context, changed, linear));
    TRY(learn_vector_restore(context, &linear->scales));
    if (linear->scales.count > 0) {
        memcpy(q->scales, linear->scales.best, linear->scales.count * sizeof(*q->scales));
    }
    return context->gpu->ops->dequantize(context->stream, linear->weight, &linear->codes, &linear->scale, &linear->zero,
                                         &linear->grid);
}
