/* Codebooks of one linear: memory, what their entries leave, and what that costs.
 *
 * The scale of a row is its root mean square, so vectors are of about unit size. A row of zeros has scale 0 and stays
 * exactly zero. */

#include "quantizers/codebooks.h"

#include "base/err.h"
#include "base/mem.h"
#include "gpu/scratch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int codebooks_upload(const struct codebooks *c, const struct tensor *to, const void *host)
{
    return gpu_tensor_upload(c->context->gpu, c->context->stream, to, host);
}

int codebooks_download(const struct codebooks *c, void *host, const struct tensor *from)
{
    return c->context->gpu->ops->download(c->context->stream, host, from->data, tensor_bytes(from));
}

int codebooks_check_group(int64_t in_group_size, int64_t cols)
{
    if (cols % in_group_size != 0) {
        int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS, "in_group_size %lld does not divide %lld inputs",
                           (long long)in_group_size, (long long)cols);
        (void)err_set_param(rc, "in_group_size");
        return err_set_hint(rc, "a smaller in_group_size");
    }
    return 0;
}

int codebooks_diagonal(const struct solve_context *context, const struct layer_stats *stats, float **out)
{
    AUTO_FREE float *diagonal = NULL;

    *out = NULL;
    if (stats == NULL || (stats->flags & STATS_HESSIAN) == 0) {
        return 0;
    }
    TRY(quant_diagonal(context, stats, &diagonal));
    for (int64_t j = 0; j < stats->columns; j++) {
        if (!isfinite(diagonal[j]) || diagonal[j] < 0) {
            int rc = err_raise(ERR_NON_FINITE_VALUE, "the Hessian's diagonal is %g at %lld", (double)diagonal[j],
                               (long long)j);
            return err_set_hint(rc, "the model's activations overflow on the calibration set; check both");
        }
    }
    *out = MOVE(diagonal);
    return 0;
}

/* Mean 1, so that sums stay in single precision's range; ones when there is none. */
static int codebooks_set_importance(struct codebooks *c, const float *importance)
{
    double sum = 0;
    AUTO_FREE float *values = NULL;

    TRY(mem_buffer(&values, (size_t)c->cols));
    for (int64_t j = 0; importance != NULL && j < c->cols; j++) {
        sum += (double)importance[j];
    }
    for (int64_t j = 0; j < c->cols; j++) {
        values[j] = sum > 0 ? (float)((double)importance[j] * (double)c->cols / sum) : 1.0f;
    }
    return codebooks_upload(c, &c->importance, values);
}

static int codebooks_set_scales(struct codebooks *c)
{
    enum dtype dtype = c->context->scale_dtype;
    float min = dtype_min_scale(dtype);

    TRY(c->context->gpu->ops->row_dot(c->context->stream, &c->scale, c->weight, c->weight));
    TRY(codebooks_download(c, c->host_rows, &c->scale));
    for (int64_t n = 0; n < c->rows; n++) {
        float norm = sqrtf(c->host_rows[n] / (float)c->cols), stored = dtype_round_finite(norm, dtype);
        c->host_rows[n] = norm > 0 && stored < min ? min : stored;
    }
    return codebooks_upload(c, &c->scale, c->host_rows);
}

static int codebooks_allocate(struct codebooks *c)
{
    const struct gpu *gpu = c->context->gpu;
    const int64_t shape[2] = {c->rows, c->cols};
    const int64_t entries[2] = {c->rows, c->groups * c->spec.codebooks};
    const int64_t tables[2] = {c->spec.codebooks * c->codes, c->spec.group_size};

    TRY(mem_buffer(&c->host_rows, (size_t)c->rows));
    TRY(gpu_tensor_new(gpu, DTYPE_U16, 2, entries, &c->entries));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, tables, &c->table));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, tables, &c->reduced));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 1, &c->rows, &c->scale));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 1, &c->rows, &c->rowwise));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 1, &c->cols, &c->importance));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, shape, &c->d));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, shape, &c->p));
    return gpu_tensor_new(gpu, DTYPE_F32, 2, shape, &c->q);
}

int codebooks_init(const struct solve_context *context, const struct linear_job *job, const struct gpu_codebook *spec,
                   const float *importance, struct codebooks *out)
{
    *out = (struct codebooks){.context = context,
                              .weight = job->weight,
                              .spec = *spec,
                              .rows = job->weight->shape[0],
                              .cols = job->weight->shape[1]};
    out->groups = out->cols / spec->group_size;
    out->codes = (int64_t)1 << spec->bits;
    out->size = spec->codebooks * out->codes * spec->group_size;
    TRY(quant_check_finite(context, job));
    TRY(codebooks_allocate(out));
    TRY(codebooks_set_importance(out, importance));
    return codebooks_set_scales(out);
}

void codebooks_deinit(struct codebooks *c)
{
    struct tensor *all[] = {&c->entries, &c->table,   &c->scale,   &c->d, &c->importance, &c->p,
                            &c->q,       &c->rowwise, &c->reduced, &c->o, &c->od,         &c->diagonal};

    for (size_t i = 0; c->context != NULL && i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(c->context->gpu, all[i]);
    }
    free(c->host_rows);
    *c = (struct codebooks){0};
}

int codebooks_residual(struct codebooks *c)
{
    const struct gpu_ops *ops = c->context->gpu->ops;

    TRY(ops->convert(c->context->stream, &c->d, c->weight));
    return ops->code_expand(c->context->stream, &c->d, &c->entries, &c->scale, &c->table, &c->spec, -1.0f, true);
}

int codebooks_loss(struct codebooks *c, const struct tensor *h, double *loss)
{
    const struct gpu_ops *ops = c->context->gpu->ops;
    double sum = 0;

    if (c->o.data != NULL) {
        TRY(codebooks_across(c, &c->d, h));
    } else if (h != NULL) {
        TRY(ops->multiply(c->context->stream, &c->q, &c->d, h));
    } else {
        TRY(ops->convert(c->context->stream, &c->q, &c->d));
        TRY(ops->scale(c->context->stream, &c->q, NULL, &c->importance));
    }
    TRY(ops->row_dot(c->context->stream, &c->rowwise, &c->d, &c->q));
    TRY(codebooks_download(c, c->host_rows, &c->rowwise));
    for (int64_t n = 0; n < c->rows; n++) {
        sum += (double)c->host_rows[n];
    }
    *loss = sum;
    return 0;
}

/* codebooks_allocate and, next to it, what codebooks_start has on the device. */
void codebooks_cost(const struct gpu_codebook *spec, const struct quant_shape *shape, int64_t iterations,
                    struct quant_cost *out)
{
    int64_t elements = shape->rows * shape->cols, vectors = elements / spec->group_size, books = spec->codebooks;
    int64_t codes = (int64_t)1 << spec->bits, tables = books * codes * spec->group_size;
    int64_t entries = vectors * (books + 1) * (int64_t)sizeof(uint16_t);
    int64_t sums = gpu_scratch_code_reduce(shape->threads, spec->group_size, spec->codebooks, spec->bits);
    int64_t search = gpu_scratch_code_search(shape->threads, shape->rows, shape->cols, spec->group_size,
                                             spec->codebooks, spec->bits);

    *out = (struct quant_cost){
        .solving = entries + (4 * elements + 2 * tables + 2 * shape->rows + shape->cols) * (int64_t)sizeof(float),
        .scratch = search > sums ? search : sums,
        .host = 2 * elements * (int64_t)sizeof(float) + 2 * entries,
        .operations = 2 * (double)(iterations * books) * (double)elements * (double)codes,
    };
}
