/* Scales, norms, biases and tables that are learned: a few numbers for each group or column, whose steps are made on
 * the host. An element is start + unit * moved, rounded as it is stored; `moved` has the momentum. */

#include "quantizers/learn.h"

#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ADAM_EPS 1e-8

static int vector_allocate(const struct tune_context *context, struct learn_vector *v)
{
    const int64_t count = (int64_t)v->count;

    TRY(mem_buffer(&v->start, v->count));
    TRY(mem_buffer(&v->best, v->count));
    TRY(mem_buffer(&v->host, v->count));
    TRY(mem_buffer(&v->unit, v->count));
    TRY(mem_array(&v->moved, v->count));
    TRY(mem_array(&v->m, v->count));
    TRY(mem_array(&v->v, v->count));
    return gpu_tensor_new(context->gpu, DTYPE_F32, v->device.rank, v->device.shape, &v->grad) != 0
               ? err_pass(ERR_GPU_OUT_OF_MEMORY, "gradients of %lld numbers", (long long)count)
               : 0;
}

int learn_vector_init(const struct tune_context *context, enum learn_kind kind, const struct tensor *device,
                      enum dtype dtype, bool of_rms, double offset, struct learn_vector *out)
{
    double sum = 0;

    *out = (struct learn_vector){
        .kind = kind, .device = *device, .count = (size_t)tensor_count(device), .dtype = dtype, .reach = INFINITY};
    TRY(vector_allocate(context, out));
    TRY(context->gpu->ops->download(context->stream, out->start, device->data, tensor_bytes(device)));
    memcpy(out->best, out->start, out->count * sizeof(*out->start));
    for (size_t i = 0; i < out->count; i++) {
        out->unit[i] = fabs((double)out->start[i]);
        sum += (out->start[i] + offset) * (out->start[i] + offset);
    }
    for (size_t i = 0; of_rms && i < out->count; i++) {
        out->unit[i] = sqrt(sum / (double)out->count);
    }
    return 0;
}

void learn_vector_deinit(const struct gpu *gpu, struct learn_vector *vector)
{
    gpu_tensor_free(gpu, &vector->grad);
    free(vector->start);
    free(vector->best);
    free(vector->host);
    free(vector->unit);
    free(vector->moved);
    free(vector->m);
    free(vector->v);
    *vector = (struct learn_vector){.count = 0};
}

int learn_vector_reset(const struct tune_context *context, struct learn_vector *vector)
{
    memset(vector->moved, 0, vector->count * sizeof(*vector->moved));
    memset(vector->m, 0, vector->count * sizeof(*vector->m));
    memset(vector->v, 0, vector->count * sizeof(*vector->v));
    return gpu_tensor_upload(context->gpu, context->stream, &vector->device, vector->start);
}

/* What moves an element by one step, before the rate. */
static double vector_direction(const struct learn_plan *plan, int64_t step, double gradient, double *m, double *v)
{
    *m = plan->beta1 * *m + (1 - plan->beta1) * gradient;
    if (plan->sign) {
        return *m > 0 ? 1 : *m < 0 ? -1 : 0;
    }
    *v = plan->beta2 * *v + (1 - plan->beta2) * gradient * gradient;
    double mean = *m / (1 - pow(plan->beta1, (double)step)), square = *v / (1 - pow(plan->beta2, (double)step));
    return mean / (sqrt(square) + ADAM_EPS);
}

/* As it is stored: a scale is never 0, and keeps its sign. */
static float vector_stored(const struct learn_vector *vector, size_t i)
{
    double value = vector->start[i] + vector->unit[i] * vector->moved[i];

    if (vector->moved[i] == 0) {
        return vector->start[i];
    }
    if (vector->kind != LEARN_SCALES) {
        return dtype_round((float)value, vector->dtype);
    }
    return copysignf(quant_store_scale((float)fabs(value), vector->dtype), vector->start[i]);
}

int learn_vector_step(const struct tune_context *context, const struct learn_plan *plan, double rate, int64_t step,
                      struct learn_vector *vector)
{
    if (vector->count == 0 || rate == 0) {
        return 0;
    }
    TRY(context->gpu->ops->download(context->stream, vector->host, vector->grad.data, tensor_bytes(&vector->grad)));
    for (size_t i = 0; i < vector->count; i++) {
        double gradient = vector->host[i] * vector->unit[i];
        double moved = vector->moved[i] - rate * vector_direction(plan, step, gradient, &vector->m[i], &vector->v[i]);
        vector->moved[i] = fmin(fmax(moved, -vector->reach), vector->reach);
        vector->host[i] = vector_stored(vector, i);
    }
    return gpu_tensor_upload(context->gpu, context->stream, &vector->device, vector->host);
}

int learn_vector_keep(const struct tune_context *context, struct learn_vector *vector)
{
    if (vector->count == 0) {
        return 0;
    }
    return context->gpu->ops->download(context->stream, vector->best, vector->device.data,
                                       tensor_bytes(&vector->device));
}

int learn_vector_restore(const struct tune_context *context, const struct learn_vector *vector)
{
    return vector->count == 0 ? 0 : gpu_tensor_upload(context->gpu, context->stream, &vector->device, vector->best);
}
