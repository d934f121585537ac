/* Codebooks of one linear: memory, what their entries leave, and what that costs.
 *
 * The scale of a row is its root mean square, so vectors are of about unit size. A row of zeros has scale 0 and stays
 * exactly zero. */

#include "quantizers/codebooks.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

float codebooks_stored(float value, enum dtype dtype)
{
    return dtype_round_finite(value, dtype);
}

int codebooks_out_of_memory(const struct codebooks *c)
{
    return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the codebooks of a [%lld, %lld] weight", (long long)c->rows,
                     (long long)c->cols);
}

int codebooks_upload(const struct codebooks *c, const struct tensor *to, const void *host)
{
    return gpu_tensor_upload(c->context->gpu, c->context->stream, to, host);
}

int codebooks_download(const struct codebooks *c, void *host, const struct tensor *from)
{
    return c->context->gpu->ops->download(c->context->stream, host, from->data, tensor_bytes(from));
}

int codebooks_diagonal(const struct solve_context *context, const struct layer_stats *stats, float **out)
{
    *out = NULL;
    if (stats == NULL || (stats->flags & STATS_HESSIAN) == 0) {
        return 0;
    }
    float *diagonal = malloc((size_t)stats->columns * sizeof(*diagonal));
    if (diagonal == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a diagonal of %lld", (long long)stats->columns);
    }
    int rc = context->gpu->ops->diagonal(context->stream, diagonal, &stats->hessian);
    for (int64_t j = 0; rc == 0 && j < stats->columns; j++) {
        if (!isfinite(diagonal[j]) || diagonal[j] < 0) {
            rc = err_raise(ERR_NON_FINITE_VALUE, "the Hessian's diagonal is %g at %lld", (double)diagonal[j],
                           (long long)j);
            (void)err_set_hint(rc, "the model's activations overflow on the calibration set; check both");
        }
    }
    if (rc != 0) {
        free(diagonal);
        return rc;
    }
    *out = diagonal;
    return 0;
}

/* Mean 1, so that sums stay in single precision's range; ones when there is none. */
static int set_importance(struct codebooks *c, const float *importance)
{
    double sum = 0;
    float *values = malloc((size_t)c->cols * sizeof(*values));

    if (values == NULL) {
        return codebooks_out_of_memory(c);
    }
    for (int64_t j = 0; importance != NULL && j < c->cols; j++) {
        sum += (double)importance[j];
    }
    for (int64_t j = 0; j < c->cols; j++) {
        values[j] = sum > 0 ? (float)((double)importance[j] * (double)c->cols / sum) : 1.0f;
    }
    int rc = codebooks_upload(c, &c->importance, values);
    free(values);
    return rc;
}

static int set_scales(struct codebooks *c)
{
    enum dtype dtype = c->context->scale_dtype;
    float least = dtype_least_scale(dtype);
    int rc = c->context->gpu->ops->row_dot(c->context->stream, &c->scale, c->weight, c->weight);

    rc = rc != 0 ? rc : codebooks_download(c, c->host_rows, &c->scale);
    for (int64_t n = 0; rc == 0 && n < c->rows; n++) {
        float norm = sqrtf(c->host_rows[n] / (float)c->cols), stored = codebooks_stored(norm, dtype);
        c->host_rows[n] = norm > 0 && stored < least ? least : stored;
    }
    return rc != 0 ? rc : codebooks_upload(c, &c->scale, c->host_rows);
}

static int allocate(struct codebooks *c)
{
    const struct gpu *gpu = c->context->gpu;
    const int64_t shape[2] = {c->rows, c->cols};
    const int64_t entries[2] = {c->rows, c->groups * c->spec.codebooks};
    const int64_t tables[2] = {c->spec.codebooks * c->codes, c->spec.group_size};

    c->host_rows = malloc((size_t)c->rows * sizeof(*c->host_rows));
    int rc =
        c->host_rows == NULL ? codebooks_out_of_memory(c) : gpu_tensor_new(gpu, DTYPE_U16, 2, entries, &c->entries);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 2, tables, &c->table);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 2, tables, &c->reduced);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 1, &c->rows, &c->scale);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 1, &c->rows, &c->rowwise);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 1, &c->cols, &c->importance);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 2, shape, &c->d);
    rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 2, shape, &c->p);
    return rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 2, shape, &c->q);
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
    int rc = quant_check_finite(context, job);
    rc = rc != 0 ? rc : allocate(out);
    rc = rc != 0 ? rc : set_importance(out, importance);
    return rc != 0 ? rc : set_scales(out);
}

void codebooks_deinit(struct codebooks *c)
{
    struct tensor *all[] = {&c->entries, &c->table, &c->scale,   &c->d,      &c->importance,
                            &c->p,       &c->q,     &c->rowwise, &c->reduced};

    for (size_t i = 0; c->context != NULL && i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(c->context->gpu, all[i]);
    }
    free(c->host_rows);
    *c = (struct codebooks){0};
}

int codebooks_residual(struct codebooks *c)
{
    const struct gpu_ops *ops = c->context->gpu->ops;
    int rc = ops->convert(c->context->stream, &c->d, c->weight);

    return rc != 0
               ? rc
               : ops->code_expand(c->context->stream, &c->d, &c->entries, &c->scale, &c->table, &c->spec, -1.0f, true);
}

int codebooks_loss(struct codebooks *c, const struct tensor *h, double *loss)
{
    const struct gpu_ops *ops = c->context->gpu->ops;
    double sum = 0;
    int rc;

    if (h != NULL) {
        rc = ops->multiply(c->context->stream, &c->q, &c->d, h);
    } else {
        rc = ops->convert(c->context->stream, &c->q, &c->d);
        rc = rc != 0 ? rc : ops->scale(c->context->stream, &c->q, NULL, &c->importance);
    }
    rc = rc != 0 ? rc : ops->row_dot(c->context->stream, &c->rowwise, &c->d, &c->q);
    rc = rc != 0 ? rc : codebooks_download(c, c->host_rows, &c->rowwise);
    for (int64_t n = 0; rc == 0 && n < c->rows; n++) {
        sum += (double)c->host_rows[n];
    }
    if (rc == 0) {
        *loss = sum;
    }
    return rc;
}
