/* Factors moved between what produces a group's input and what reads it (SmoothQuant, Xiao et al. 2022, eq. 3; AWQ,
 * Lin et al. 2023, §3.2): X W^T = (X / s) (W s)^T.
 *
 * A norm is stored in the checkpoint's own type, so the quotient is rounded to it first and the consumers take up
 * exactly what the stored norm lost: the function is kept to the rounding of one product, and of the norm's bias where
 * it has one. The rows of a module are quantized or stored later, like any weight.
 *
 * Experts come and go (block_load_module): their factors are remembered, and given to them each time. */

#include "models/block_internal.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The bias of a norm, divided by what its weight lost. */
static int fold_norm_bias(const struct tensor *tensor, const float *factors, int64_t count, enum dtype dtype,
                          const struct gpu *gpu, struct gpu_stream *stream)
{
    AUTO_FREE float *bias = NULL;

    TRY(mem_buffer(&bias, (size_t)count));
    TRY(gpu->ops->download(stream, bias, tensor->data, (size_t)count * sizeof(*bias)));
    for (int64_t j = 0; j < count; j++) {
        bias[j] = factors[j] != 1.0f ? dtype_round(bias[j] / factors[j], dtype) : bias[j];
    }
    return gpu_tensor_upload(gpu, stream, tensor, bias);
}

/* norm = round(norm / factor), or round((1 + norm) / factor - 1) where the norm's factor is 1 + weight; factors become
 * what was really taken out. */
static int fold_norm(struct block *block, int index, float *factors, int64_t count, enum dtype dtype,
                     const struct gpu *gpu, struct gpu_stream *stream)
{
    struct block_norm *norm = &block->norms[index];
    float offset = block->plan->norms[index].unit_offset ? 1.0f : 0.0f;
    AUTO_FREE float *weight = NULL;

    TRY(mem_buffer(&weight, (size_t)count));
    TRY(gpu->ops->download(stream, weight, norm->weight.data, (size_t)count * sizeof(*weight)));
    for (int64_t j = 0; j < count; j++) {
        float whole = offset + weight[j], stored = dtype_round(whole / factors[j] - offset, dtype);
        float left = offset + stored, taken = whole / left;
        bool usable = whole != 0 && left != 0 && isfinite(left) && isfinite(taken) && taken > 0;
        factors[j] = usable ? taken : 1.0f;
        weight[j] = usable ? stored : weight[j];
    }
    norm->changed = true;
    TRY(gpu_tensor_upload(gpu, stream, &norm->weight, weight));
    return norm->bias.data != NULL ? fold_norm_bias(&norm->bias, factors, count, dtype, gpu, stream) : 0;
}

/* Factors for the rows of a module and of its bias, or for its columns. */
static int scale_module(struct block *block, int index, bool by_rows, const struct tensor *factors,
                        const struct gpu *gpu, struct gpu_stream *stream)
{
    struct block_module *module = &block->modules[index];

    TRY(gpu->ops->scale(stream, &module->weight, by_rows ? factors : NULL, by_rows ? NULL : factors));
    if (by_rows && module->bias.data != NULL) {
        struct tensor bias = tensor_2d(module->bias.data, DTYPE_F32, 1, tensor_count(factors));
        TRY(gpu->ops->scale(stream, &bias, NULL, factors));
    }
    return 0;
}

/* An expert's module is going to be loaded again. */
static int fold_remember(struct block *block, int module, bool rows, const float *factors, int64_t count)
{
    struct block_factors *made = NULL;

    TRY(mem_uninitialized(&made, 1, sizeof(*made) + (size_t)count * sizeof(*factors)));
    *made = (struct block_factors){.next = block->factors, .module = module, .rows = rows, .count = count};
    memcpy(made->factors, factors, (size_t)count * sizeof(*factors));
    block->factors = made;
    return 0;
}

/* On the device and on the host, for each module that takes them up. */
static int change_module(struct block *block, int index, bool by_rows, const struct tensor *factors, const float *host,
                         const struct gpu *gpu, struct gpu_stream *stream)
{
    struct block_module *module = &block->modules[index];

    module->changed = true;
    if (block->plan->modules[index].expert >= 0) {
        TRY(fold_remember(block, index, by_rows, host, tensor_count(factors)));
    }
    return module->weight.data == NULL ? 0 : scale_module(block, index, by_rows, factors, gpu, stream);
}

int block_apply_factors(struct block *block, int module, const struct gpu *gpu, struct gpu_stream *stream)
{
    const struct block_factors *done = NULL, *next;

    do { /* the oldest of those that are left */
        next = NULL;
        for (const struct block_factors *f = block->factors; f != done; f = f->next) {
            next = f->module == module ? f : next;
        }
        if (next != NULL) {
            AUTO_TENSOR(factors, gpu);
            TRY(gpu_tensor_from_host(gpu, stream, DTYPE_F32, 1, &next->count, next->factors, &factors));
            TRY(scale_module(block, module, next->rows, &factors, gpu, stream));
        }
        done = next;
    } while (next != NULL);
    return 0;
}

void block_free_factors(struct block *block)
{
    while (block->factors != NULL) {
        struct block_factors *next = block->factors->next;
        free(block->factors);
        block->factors = next;
    }
}

/* The rows of a module, or those that fold->rows says, divided. */
static int fold_rows(struct block *block, const struct plan_fold *fold, const float *factors, int64_t count,
                     const struct gpu *gpu, struct gpu_stream *stream)
{
    const struct plan_select *which = &fold->rows;
    int64_t all = block->plan->modules[fold->module].rows;
    AUTO_FREE float *inverse = NULL;
    AUTO_TENSOR(rows, gpu);

    TRY(mem_buffer(&inverse, (size_t)all));
    for (int64_t n = 0; n < all; n++) {
        inverse[n] = 1.0f;
    }
    for (int64_t j = 0; j < count; j++) {
        int64_t n = which->stride == 0 ? j : j / which->count * which->stride + which->first + j % which->count;
        inverse[n] = 1.0f / factors[j];
    }
    TRY(gpu_tensor_from_host(gpu, stream, DTYPE_F32, 1, &all, inverse, &rows));
    return change_module(block, fold->module, true, &rows, inverse, gpu, stream);
}

static int scale_readers(struct block *block, const struct plan_group *group, const float *factors,
                         const struct gpu *gpu, struct gpu_stream *stream)
{
    AUTO_TENSOR(cols, gpu);

    TRY(gpu_tensor_from_host(gpu, stream, DTYPE_F32, 1, &group->columns, factors, &cols));
    for (int i = 0; i < block->plan->module_count; i++) {
        if (plan_reads(block->plan, group, i)) {
            TRY(change_module(block, i, false, &cols, factors, gpu, stream));
        }
    }
    return 0;
}

/* factors become what the producer really lost. */
static int move_factors(struct block *block, const struct plan_group *group, float *factors, enum dtype dtype,
                        const struct gpu *gpu, struct gpu_stream *stream)
{
    int64_t count = group->columns;

    if (group->fold.kind == FOLD_NORM) {
        TRY(fold_norm(block, group->fold.norm, factors, count, dtype, gpu, stream));
    } else {
        TRY(fold_rows(block, &group->fold, factors, count, gpu, stream));
    }
    return scale_readers(block, group, factors, gpu, stream);
}

int block_fold(struct block *block, const struct plan_group *group, const float *factors, enum dtype dtype,
               const struct gpu *gpu, struct gpu_stream *stream)
{
    int64_t count = group->columns;
    AUTO_FREE float *taken = NULL;

    if (group->fold.kind == FOLD_NONE) {
        return err_raise(ERR_INTERNAL, "nothing takes up factors of value %d", group->input);
    }
    for (int64_t j = 0; j < count; j++) {
        if (!(factors[j] > 0) || !isfinite(factors[j])) {
            return err_raise(ERR_INTERNAL, "factor %lld of value %d is %g", (long long)j, group->input,
                             (double)factors[j]);
        }
    }
    TRY(mem_buffer(&taken, (size_t)count));
    memcpy(taken, factors, (size_t)count * sizeof(*taken));
    int rc = move_factors(block, group, taken, dtype, gpu, stream);
    return rc != 0 ? err_pass(rc, "fold value %d of block %lld", group->input, (long long)block->index) : 0;
}
