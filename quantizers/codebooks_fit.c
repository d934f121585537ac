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
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STORE_SWEEPS 8  /* maximum, over codes for the stored tables */
#define STORE_GAIN 1e-4 /* of the loss: less is not worth another sweep */
#define CG_ENOUGH 1e-9  /* of the first squared residual */
#define CG_DAMP 1e-6    /* of the preconditioner's largest element: unused vectors stay where they are */

/* Vectors of the size of all tables, on the host. */
struct descent {
    float *tables, *residual, *direction, *image, *inverse;
};

/* out = A^T diag(s) x H, with o of o x H. Uses q and od. */
static int codebooks_gradient(struct codebooks *c, const struct tensor *x, const struct tensor *h, float *out)
{
    const struct gpu_ops *ops = c->context->gpu->ops;

    TRY(c->o.data != NULL ? codebooks_across(c, x, h) : ops->multiply(c->context->stream, &c->q, x, h));
    TRY(ops->code_reduce(c->context->stream, &c->reduced, &c->q, &c->entries, &c->scale, &c->spec));
    return codebooks_download(c, out, &c->reduced);
}

/* out = the operator on direction. Uses p, q and od. */
static int codebooks_apply(struct codebooks *c, const struct tensor *h, const float *direction, float *out)
{
    const struct gpu_ops *ops = c->context->gpu->ops;

    TRY(codebooks_upload(c, &c->reduced, direction));
    TRY(ops->code_expand(c->context->stream, &c->p, &c->entries, &c->scale, &c->reduced, &c->spec, 1.0f, false));
    return codebooks_gradient(c, &c->p, h, out);
}

/* 1 / (A^T (s^2 diag H)), with o (s^2 diag O diag H); the operator on ones would mix groups. The importance is diag H
 * up to a factor. Uses q. */
static int codebooks_precondition(struct codebooks *c, float *inverse)
{
    const struct gpu_ops *ops = c->context->gpu->ops;
    float max = 0;

    for (int64_t i = 0; i < c->size; i++) {
        inverse[i] = 1.0f / (float)c->spec.codebooks;
    }
    TRY(codebooks_upload(c, &c->reduced, inverse));
    TRY(ops->code_expand(c->context->stream, &c->q, &c->entries, &c->scale, &c->reduced, &c->spec, 1.0f, false));
    TRY(ops->scale(c->context->stream, &c->q, c->o.data != NULL ? &c->diagonal : NULL, &c->importance));
    TRY(ops->code_reduce(c->context->stream, &c->reduced, &c->q, &c->entries, &c->scale, &c->spec));
    TRY(codebooks_download(c, inverse, &c->reduced));
    for (int64_t i = 0; i < c->size; i++) {
        max = inverse[i] > max ? inverse[i] : max;
    }
    for (int64_t i = 0; i < c->size; i++) {
        inverse[i] = max > 0 ? 1.0f / (inverse[i] + (float)CG_DAMP * max) : 0.0f;
    }
    return 0;
}

static double codebooks_dot(const float *weight, const float *a, const float *b, int64_t count)
{
    double sum = 0;

    for (int64_t i = 0; i < count; i++) {
        sum += (weight != NULL ? (double)weight[i] : 1.0) * (double)a[i] * (double)b[i];
    }
    return sum;
}

static int codebooks_descend(struct codebooks *c, const struct tensor *h, int steps, struct descent *v)
{
    double rz = codebooks_dot(v->inverse, v->residual, v->residual, c->size), first = rz;

    for (int64_t i = 0; i < c->size; i++) {
        v->direction[i] = v->inverse[i] * v->residual[i];
    }
    for (int step = 0; step < steps && rz > CG_ENOUGH * first; step++) {
        TRY(codebooks_apply(c, h, v->direction, v->image));
        double curve = codebooks_dot(NULL, v->direction, v->image, c->size), before = rz;
        if (!(curve > 0) || !isfinite(rz / curve)) {
            break;
        }
        float length = (float)(rz / curve);
        for (int64_t i = 0; i < c->size; i++) {
            v->tables[i] += length * v->direction[i];
            v->residual[i] -= length * v->image[i];
        }
        rz = codebooks_dot(v->inverse, v->residual, v->residual, c->size);
        float turn = (float)(rz / before);
        for (int64_t i = 0; i < c->size; i++) {
            v->direction[i] = v->inverse[i] * v->residual[i] + turn * v->direction[i];
        }
    }
    return 0;
}

/* The tables that are there become `next`, unless that loses more. old: host copy of what is there. */
static int codebooks_accept(struct codebooks *c, const struct tensor *h, const struct tensor *to, const float *next,
                            const float *old, double *loss)
{
    double now = INFINITY;

    TRY(codebooks_upload(c, to, next));
    TRY(codebooks_residual(c));
    TRY(codebooks_loss(c, h, &now));
    if (now <= *loss) {
        *loss = now;
        return 0;
    }
    TRY(codebooks_upload(c, to, old));
    return codebooks_residual(c);
}

int codebooks_fit_tables(struct codebooks *c, const struct tensor *h, int steps, double *loss)
{
    AUTO_FREE float *memory = NULL;

    TRY(mem_buffer(&memory, (size_t)c->size * 6));
    struct descent v = {memory, memory + c->size, memory + 2 * c->size, memory + 3 * c->size, memory + 4 * c->size};
    float *old = memory + 5 * c->size;
    TRY(codebooks_download(c, old, &c->table));
    TRY(codebooks_precondition(c, v.inverse));
    TRY(codebooks_gradient(c, &c->d, h, v.residual));
    memcpy(v.tables, old, (size_t)c->size * sizeof(float));
    TRY(codebooks_descend(c, h, steps, &v));
    return codebooks_accept(c, h, &c->table, v.tables, old, loss);
}

int codebooks_fit_scales(struct codebooks *c, const struct tensor *h, double *loss)
{
    const struct gpu_ops *ops = c->context->gpu->ops;
    AUTO_FREE float *memory = NULL;

    if (c->o.data != NULL) {
        return 0;
    }
    TRY(mem_buffer(&memory, (size_t)c->rows * 3));
    float *old = memory, *next = memory + c->rows, *square = memory + 2 * c->rows;
    TRY(codebooks_download(c, old, &c->scale));
    TRY(ops->code_expand(c->context->stream, &c->p, &c->entries, NULL, &c->table, &c->spec, 1.0f, false));
    TRY(ops->multiply(c->context->stream, &c->q, &c->p, h));
    TRY(ops->row_dot(c->context->stream, &c->rowwise, &c->p, &c->q));
    TRY(codebooks_download(c, square, &c->rowwise));
    TRY(ops->row_dot(c->context->stream, &c->rowwise, c->weight, &c->q));
    TRY(codebooks_download(c, next, &c->rowwise));
    for (int64_t n = 0; n < c->rows; n++) {
        float best = next[n] / square[n];
        next[n] = old[n] > 0 && best > 0 && isfinite(best) ? best : old[n];
    }
    return codebooks_accept(c, h, &c->scale, next, old, loss);
}

static int codebooks_round_tensor(const struct codebooks *c, const struct tensor *tensor)
{
    int64_t count = tensor_count(tensor);
    AUTO_FREE float *values = NULL;

    TRY(mem_buffer(&values, (size_t)count));
    TRY(codebooks_download(c, values, tensor));
    for (int64_t i = 0; i < count; i++) {
        values[i] = dtype_round_finite(values[i], c->context->scale_dtype);
    }
    return codebooks_upload(c, tensor, values);
}

int codebooks_search(struct codebooks *c, const struct tensor *h, double *gain)
{
    if (c->o.data != NULL) {
        return codebooks_search_both(c, h, gain);
    }
    return c->context->gpu->ops->code_search(c->context->stream, &c->entries, &c->d, &c->scale, &c->table, h,
                                             h == NULL ? &c->importance : NULL, &c->spec, gain);
}

int codebooks_store(struct codebooks *c, const struct tensor *h)
{
    double loss = 0, gain = 0;

    TRY(codebooks_round_tensor(c, &c->scale));
    TRY(codebooks_round_tensor(c, &c->table));
    TRY(codebooks_residual(c));
    TRY(codebooks_loss(c, h, &loss));
    for (int sweep = 0; sweep < STORE_SWEEPS && !codebooks_cover(c); sweep++) {
        TRY(codebooks_search(c, h, &gain));
        if (gain <= STORE_GAIN * loss) {
            break;
        }
        loss -= gain;
    }
    return codebooks_residual(c);
}

int codebooks_take(const struct codebooks *c, const struct qscheme *scheme, struct linear_job *job)
{
    AUTO(qtensor) struct qtensor q = {0};

    TRY(qtensor_new(job->name, scheme, c->rows, c->cols, &q));
    TRY(codebooks_download(c, q.entries, &c->entries));
    TRY(codebooks_download(c, q.scales, &c->scale));
    TRY(codebooks_download(c, q.tables, &c->table));
    job->result = qtensor_move(&q);
    return 0;
}
