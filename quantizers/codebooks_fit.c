/* Least squares through the Hessian, and the end in the artifact's types.
 *
 * With codes fixed the loss tr(D H D^T), D = W - diag(s) A C, is a quadratic in the tables C. Its negative half
 * gradient is A^T diag(s) D H, and its operator applied to a direction P is A^T diag(s) (diag(s) A P) H: two passes
 * over the codes around one product with H. Conjugate gradients (Hestenes and Stiefel 1952) from the tables as they
 * are, preconditioned by the diagonal A^T (s^2 diag H), need nothing else, and lower the loss at every step; should
 * rounding ever raise it, the tables stay as they were. With tables fixed, each row's best scale is a ratio of two
 * products. */

#include "quantizers/codebooks.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STORE_SWEEPS 8  /* at most, over codes for the stored tables */
#define STORE_GAIN 1e-4 /* of the loss: less is not worth another sweep */
#define CG_ENOUGH 1e-9  /* of the first squared residual */
#define CG_DAMP 1e-6    /* of the preconditioner's largest element: vectors of no use stay where they are */

/* Vectors of the size of all tables, on the host. */
struct descent {
    float *tables, *residual, *direction, *image, *inverse;
};

/* out = A^T diag(s) x H. Uses q. */
static int gradient(struct codebooks *c, const struct tensor *x, const struct tensor *h, float *out)
{
    const struct gpu_ops *ops = c->context->gpu->ops;
    int rc = ops->multiply(c->context->stream, &c->q, x, h);

    rc = rc != 0 ? rc : ops->code_reduce(c->context->stream, &c->reduced, &c->q, &c->entries, &c->scale, &c->spec);
    return rc != 0 ? rc : codebooks_download(c, out, &c->reduced);
}

/* out = the operator on direction. Uses p and q. */
static int apply(struct codebooks *c, const struct tensor *h, const float *direction, float *out)
{
    const struct gpu_ops *ops = c->context->gpu->ops;
    int rc = codebooks_upload(c, &c->reduced, direction);

    rc = rc != 0
             ? rc
             : ops->code_expand(c->context->stream, &c->p, &c->entries, &c->scale, &c->reduced, &c->spec, 1.0f, false);
    return rc != 0 ? rc : gradient(c, &c->p, h, out);
}

/* 1 / (A^T (s^2 diag H)); the operator on ones would mix groups. The importance is diag H up to a factor. Uses q. */
static int precondition(struct codebooks *c, float *inverse)
{
    const struct gpu_ops *ops = c->context->gpu->ops;
    float most = 0;

    for (int64_t i = 0; i < c->size; i++) {
        inverse[i] = 1.0f / (float)c->spec.codebooks;
    }
    int rc = codebooks_upload(c, &c->reduced, inverse);
    rc = rc != 0
             ? rc
             : ops->code_expand(c->context->stream, &c->q, &c->entries, &c->scale, &c->reduced, &c->spec, 1.0f, false);
    rc = rc != 0 ? rc : ops->scale(c->context->stream, &c->q, NULL, &c->importance);
    rc = rc != 0 ? rc : ops->code_reduce(c->context->stream, &c->reduced, &c->q, &c->entries, &c->scale, &c->spec);
    rc = rc != 0 ? rc : codebooks_download(c, inverse, &c->reduced);
    for (int64_t i = 0; rc == 0 && i < c->size; i++) {
        most = inverse[i] > most ? inverse[i] : most;
    }
    for (int64_t i = 0; rc == 0 && i < c->size; i++) {
        inverse[i] = most > 0 ? 1.0f / (inverse[i] + (float)CG_DAMP * most) : 0.0f;
    }
    return rc;
}

static double weighted(const float *weight, const float *a, const float *b, int64_t count)
{
    double sum = 0;

    for (int64_t i = 0; i < count; i++) {
        sum += (weight != NULL ? (double)weight[i] : 1.0) * (double)a[i] * (double)b[i];
    }
    return sum;
}

static int descend(struct codebooks *c, const struct tensor *h, int steps, struct descent *v)
{
    double rz = weighted(v->inverse, v->residual, v->residual, c->size), first = rz;
    int rc = 0;

    for (int64_t i = 0; i < c->size; i++) {
        v->direction[i] = v->inverse[i] * v->residual[i];
    }
    for (int step = 0; rc == 0 && step < steps && rz > CG_ENOUGH * first; step++) {
        rc = apply(c, h, v->direction, v->image);
        double curve = rc == 0 ? weighted(NULL, v->direction, v->image, c->size) : 0, before = rz;
        if (!(curve > 0) || !isfinite(rz / curve)) {
            break;
        }
        float length = (float)(rz / curve);
        for (int64_t i = 0; i < c->size; i++) {
            v->tables[i] += length * v->direction[i];
            v->residual[i] -= length * v->image[i];
        }
        rz = weighted(v->inverse, v->residual, v->residual, c->size);
        float turn = (float)(rz / before);
        for (int64_t i = 0; i < c->size; i++) {
            v->direction[i] = v->inverse[i] * v->residual[i] + turn * v->direction[i];
        }
    }
    return rc;
}

/* The tables that are there become `next`, unless that loses more. old: host copy of what is there. */
static int accept(struct codebooks *c, const struct tensor *h, const struct tensor *to, const float *next,
                  const float *old, double *loss)
{
    double now = INFINITY;

    int rc = codebooks_upload(c, to, next);
    rc = rc != 0 ? rc : codebooks_residual(c);
    rc = rc != 0 ? rc : codebooks_loss(c, h, &now);
    if (rc == 0 && now <= *loss) {
        *loss = now;
        return 0;
    }
    rc = rc != 0 ? rc : codebooks_upload(c, to, old);
    return rc != 0 ? rc : codebooks_residual(c);
}

int codebooks_fit_tables(struct codebooks *c, const struct tensor *h, int steps, double *loss)
{
    size_t bytes = (size_t)c->size * sizeof(float);
    float *memory = malloc(bytes * 6);

    if (memory == NULL) {
        return codebooks_out_of_memory(c);
    }
    struct descent v = {memory, memory + c->size, memory + 2 * c->size, memory + 3 * c->size, memory + 4 * c->size};
    float *old = memory + 5 * c->size;
    int rc = codebooks_download(c, old, &c->table);
    rc = rc != 0 ? rc : precondition(c, v.inverse);
    rc = rc != 0 ? rc : gradient(c, &c->d, h, v.residual);
    if (rc == 0) {
        memcpy(v.tables, old, bytes);
        rc = descend(c, h, steps, &v);
    }
    rc = rc != 0 ? rc : accept(c, h, &c->table, v.tables, old, loss);
    free(memory);
    return rc;
}

int codebooks_fit_scales(struct codebooks *c, const struct tensor *h, double *loss)
{
    const struct gpu_ops *ops = c->context->gpu->ops;
    float *memory = malloc((size_t)c->rows * 3 * sizeof(float));

    if (memory == NULL) {
        return codebooks_out_of_memory(c);
    }
    float *old = memory, *next = memory + c->rows, *square = memory + 2 * c->rows;
    int rc = codebooks_download(c, old, &c->scale);
    rc =
        rc != 0 ? rc : ops->code_expand(c->context->stream, &c->p, &c->entries, NULL, &c->table, &c->spec, 1.0f, false);
    rc = rc != 0 ? rc : ops->multiply(c->context->stream, &c->q, &c->p, h);
    rc = rc != 0 ? rc : ops->row_dot(c->context->stream, &c->rowwise, &c->p, &c->q);
    rc = rc != 0 ? rc : codebooks_download(c, square, &c->rowwise);
    rc = rc != 0 ? rc : ops->row_dot(c->context->stream, &c->rowwise, c->weight, &c->q);
    rc = rc != 0 ? rc : codebooks_download(c, next, &c->rowwise);
    for (int64_t n = 0; rc == 0 && n < c->rows; n++) {
        float best = next[n] / square[n];
        next[n] = old[n] > 0 && best > 0 && isfinite(best) ? best : old[n];
    }
    rc = rc != 0 ? rc : accept(c, h, &c->scale, next, old, loss);
    free(memory);
    return rc;
}

static int round_tensor(const struct codebooks *c, const struct tensor *tensor)
{
    int64_t count = tensor_count(tensor);
    float *values = malloc(tensor_bytes(tensor));

    if (values == NULL) {
        return codebooks_out_of_memory(c);
    }
    int rc = codebooks_download(c, values, tensor);
    for (int64_t i = 0; rc == 0 && i < count; i++) {
        values[i] = codebooks_stored(values[i], c->context->scale_dtype);
    }
    rc = rc != 0 ? rc : codebooks_upload(c, tensor, values);
    free(values);
    return rc;
}

int codebooks_store(struct codebooks *c, const struct tensor *h)
{
    const struct gpu_ops *ops = c->context->gpu->ops;
    double loss = 0, gain = 0;

    int rc = round_tensor(c, &c->scale);
    rc = rc != 0 ? rc : round_tensor(c, &c->table);
    rc = rc != 0 ? rc : codebooks_residual(c);
    rc = rc != 0 ? rc : codebooks_loss(c, h, &loss);
    for (int sweep = 0; rc == 0 && sweep < STORE_SWEEPS && !codebooks_cover(c); sweep++) {
        rc = ops->code_search(c->context->stream, &c->entries, &c->d, &c->scale, &c->table, h,
                              h == NULL ? &c->importance : NULL, &c->spec, &gain);
        if (gain <= STORE_GAIN * loss) {
            break;
        }
        loss -= gain;
    }
    return rc != 0 ? rc : codebooks_residual(c);
}

int codebooks_take(const struct codebooks *c, const struct qscheme *scheme, struct linear_job *job)
{
    struct qtensor q = {0};

    int rc = qtensor_new(job->name, scheme, c->rows, c->cols, &q);
    rc = rc != 0 ? rc : codebooks_download(c, q.entries, &c->entries);
    rc = rc != 0 ? rc : codebooks_download(c, q.scales, &c->scale);
    rc = rc != 0 ? rc : codebooks_download(c, q.tables, &c->table);
    if (rc != 0) {
        qtensor_deinit(&q);
        return err_set_module(err_pass(rc, "take %s", job->name), job->name);
    }
    job->result = q;
    return 0;
}
