/* Factors moved between what produces a site's inputs and what reads them (SmoothQuant, Xiao et al. 2022, eq. 3; AWQ,
 * Lin et al. 2023, §3.2): X W^T = (X / s) (W s)^T.
 *
 * A norm is stored in the checkpoint's own type, so the quotient is rounded to it first and the consumers take up
 * exactly what the stored norm lost: the function is kept to the rounding of one product. The rows of v and up are
 * quantized or stored later, like any weight. */

#include "models/block.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int64_t block_site_columns(const struct model_config *config, enum site site)
{
    return site == SITE_OUTPUT ? config->num_heads * config->head_dim
           : site == SITE_DOWN ? config->intermediate_size
                               : config->hidden_size;
}

bool block_can_fold(const struct block *block, enum site site)
{
    return site != SITE_OUTPUT || block->config->num_heads == block->config->num_kv_heads;
}

/* norm = round(norm / factor); factors become what was really taken out. */
static int fold_norm(struct block *block, enum norm_role role, float *factors, int64_t count, enum dtype dtype,
                     const struct gpu *gpu, struct gpu_stream *stream)
{
    struct tensor *norm = &block->norms[role];
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
    block->changed_norms[role] = true;
    return rc;
}

/* Rows of a linear and of its bias, divided. */
static int fold_rows(struct block *block, enum linear_role role, const float *factors, int64_t count,
                     const struct gpu *gpu, struct gpu_stream *stream)
{
    float *inverse = malloc((size_t)count * sizeof(*inverse));
    struct tensor rows = {0};

    if (inverse == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld factors", (long long)count);
    }
    for (int64_t j = 0; j < count; j++) {
        inverse[j] = 1.0f / factors[j];
    }
    int rc = gpu_tensor_from_host(gpu, stream, DTYPE_F32, 1, &count, inverse, &rows);
    rc = rc != 0 ? rc : gpu->ops->scale(stream, &block->linears[role], &rows, NULL);
    if (rc == 0 && block->biases[role].data != NULL) {
        struct tensor bias = tensor_2d(block->biases[role].data, DTYPE_F32, 1, count);
        rc = gpu->ops->scale(stream, &bias, NULL, &rows);
    }
    gpu_tensor_free(gpu, &rows);
    free(inverse);
    block->changed_linears[role] = true;
    return rc;
}

static int scale_consumers(struct block *block, enum site site, const float *factors, int64_t count,
                           const struct gpu *gpu, struct gpu_stream *stream)
{
    struct tensor cols = {0};
    int rc = gpu_tensor_from_host(gpu, stream, DTYPE_F32, 1, &count, factors, &cols);

    for (int role = 0; rc == 0 && role < LINEAR_COUNT; role++) {
        if (arch_linear_site[role] == site) {
            rc = gpu->ops->scale(stream, &block->linears[role], NULL, &cols);
            block->changed_linears[role] = true;
        }
    }
    gpu_tensor_free(gpu, &cols);
    return rc;
}

int block_fold(struct block *block, enum site site, const float *factors, enum dtype dtype, const struct gpu *gpu,
               struct gpu_stream *stream)
{
    int64_t count = block_site_columns(block->config, site);
    int rc = 0;

    if (!block_can_fold(block, site)) {
        return err_raise(ERR_INTERNAL, "the inputs of site %d have no producer of their own", (int)site);
    }
    float *taken = malloc((size_t)count * sizeof(*taken));
    if (taken == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld factors", (long long)count);
    }
    memcpy(taken, factors, (size_t)count * sizeof(*taken));
    for (int64_t j = 0; rc == 0 && j < count; j++) {
        if (!(factors[j] > 0) || !isfinite(factors[j])) {
            rc = err_raise(ERR_INTERNAL, "factor %lld of site %d is %g", (long long)j, (int)site, (double)factors[j]);
        }
    }
    if (rc == 0 && (site == SITE_ATTENTION || site == SITE_MLP)) {
        rc = fold_norm(block, site == SITE_MLP ? NORM_MLP : NORM_ATTENTION, taken, count, dtype, gpu, stream);
    } else if (rc == 0) {
        rc = fold_rows(block, site == SITE_DOWN ? LINEAR_UP : LINEAR_V, taken, count, gpu, stream);
    }
    rc = rc != 0 ? rc : scale_consumers(block, site, taken, count, gpu, stream);
    free(taken);
    return rc != 0 ? err_pass(rc, "fold block %lld site %d", (long long)block->index, (int)site) : 0;
}
