/* Factors moved between what produces a group's input and what reads it (SmoothQuant, Xiao et al. 2022, eq. 3; AWQ,
 * Lin et al. 2023, §3.2): X W^T = (X / s) (W s)^T.
 *
 * A norm is stored in the checkpoint's own type, so the quotient is rounded to it first and the consumers take up
 * exactly what the stored norm lost: the function is kept to the rounding of one product. The rows of a module
 * are quantized or stored later, like any weight. */

#include "models/block.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* norm = round(norm / factor); factors become what was really taken out. */
static int fold_norm(struct block *block, int index, float *factors, int64_t count, enum dtype dtype,
                     const struct gpu *gpu, struct gpu_stream *stream)
{
    struct tensor *norm = &block->norms[index].weight;
    float *weight = malloc((size_t)count * sizeof(*weight));

    if (weight == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a norm of %lld", (long long)count);
    }
    int rc = gpu->ops->download(stream, weight, norm->data, (size_t)count * sizeof(*weight));
    for (int64_t j = 0; rc == 0 && j < count; j++) {
        float stored = dtype_round(weight[j] / factors[j], dtype);
        bool usable = weight[j] != 0 && stored != 0 && isfinite(stored) && isfinite(weight[j] / stored);
        factors[j] = usable ? weight[j] / stored : 1.0f;
        weight[j] = usable ? stored : weight[j];
    }
    rc = rc != 0 ? rc : gpu_tensor_upload(gpu, stream, norm, weight);
    free(weight);
    block->norms[index].changed = true;
    return rc;
}

/* Rows of a module and of its bias, divided. */
static int fold_rows(struct block *block, int index, const float *factors, int64_t count, const struct gpu *gpu,
                     struct gpu_stream *stream)
{
    struct block_module *module = &block->modules[index];
    float *inverse = malloc((size_t)count * sizeof(*inverse));
    struct tensor rows = {0};

    if (inverse == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld factors", (long long)count);
    }
    for (int64_t j = 0; j < count; j++) {
        inverse[j] = 1.0f / factors[j];
    }
    int rc = gpu_tensor_from_host(gpu, stream, DTYPE_F32, 1, &count, inverse, &rows);
    rc = rc != 0 ? rc : gpu->ops->scale(stream, &module->weight, &rows, NULL);
    if (rc == 0 && module->bias.data != NULL) {
        struct tensor bias = tensor_2d(module->bias.data, DTYPE_F32, 1, count);
        rc = gpu->ops->scale(stream, &bias, NULL, &rows);
    }
    gpu_tensor_free(gpu, &rows);
    free(inverse);
    module->changed = true;
    return rc;
}

static int scale_readers(struct block *block, const struct plan_group *group, const float *factors,
                         const struct gpu *gpu, struct gpu_stream *stream)
{
    struct tensor cols = {0};
    int rc = gpu_tensor_from_host(gpu, stream, DTYPE_F32, 1, &group->columns, factors, &cols);

    for (int i = 0; rc == 0 && i < block->plan->module_count; i++) {
        if (plan_reads(block->plan, group, i)) {
            rc = gpu->ops->scale(stream, &block->modules[i].weight, NULL, &cols);
            block->modules[i].changed = true;
        }
    }
    gpu_tensor_free(gpu, &cols);
    return rc;
}

int block_fold(struct block *block, const struct plan_group *group, const float *factors, enum dtype dtype,
               const struct gpu *gpu, struct gpu_stream *stream)
{
    int64_t count = group->columns;
    int rc = 0;

    if (group->fold.kind == FOLD_NONE) {
        return err_raise(ERR_INTERNAL, "nothing takes up factors of value %d", group->input);
    }
    float *taken = malloc((size_t)count * sizeof(*taken));
    if (taken == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld factors", (long long)count);
    }
    memcpy(taken, factors, (size_t)count * sizeof(*taken));
    for (int64_t j = 0; rc == 0 && j < count; j++) {
        if (!(factors[j] > 0) || !isfinite(factors[j])) {
            rc = err_raise(ERR_INTERNAL, "factor %lld of value %d is %g", (long long)j, group->input,
                           (double)factors[j]);
        }
    }
    if (rc == 0 && group->fold.kind == FOLD_NORM) {
        rc = fold_norm(block, group->fold.norm, taken, count, dtype, gpu, stream);
    } else if (rc == 0) {
        rc = fold_rows(block, group->fold.module, taken, count, gpu, stream);
    }
    rc = rc != 0 ? rc : scale_readers(block, group, taken, gpu, stream);
    free(taken);
    return rc != 0 ? err_pass(rc, "fold value %d of block %lld", group->input, (long long)block->index) : 0;
}
