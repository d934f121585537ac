/* Losses with their gradients: squared error, KL divergence from a teacher, and log-likelihood of labels.
 *
 * Each task's part of a loss is summed in double in a fixed order, and the parts are added in the order of their
 * numbers. */

#include "gpu/cpu/internal.h"

#include <math.h>

#define FLAT_TILE 16384
#define TOKEN_TILE 4

static double losses_sum(const double *parts, int64_t count)
{
    double sum = 0;

    for (int64_t i = 0; i < count; i++) {
        sum += parts[i];
    }
    return sum;
}

struct mse_grad {
    const struct kernels *kernels;
    float *dy; /* or NULL */
    const float *y, *target;
    int64_t count;
    float factor;
    double *parts; /* [tasks] */
};

static void mse_grad_tile(void *ctx, int64_t task)
{
    const struct mse_grad *job = ctx;
    int64_t at = task * FLAT_TILE;

    job->parts[task] = job->kernels->mse_grad(job->dy != NULL ? job->dy + at : NULL, job->y + at, job->target + at,
                                              tile_size(job->count, FLAT_TILE, task), job->factor);
}

int cpu_mse_grad(struct gpu_stream *stream, const struct tensor *dy, const struct tensor *y,
                 const struct tensor *target, double factor, double *loss)
{
    struct mse_grad job = {.kernels = stream->device->kernels,
                           .dy = dy != NULL ? dy->data : NULL,
                           .y = y->data,
                           .target = target->data,
                           .count = tensor_count(y),
                           .factor = (float)(2 * factor)};
    int64_t tasks = tiles_of(job.count, FLAT_TILE);

    TRY(scratch_reserve(stream, scratch_size(tasks, sizeof(double)), 0));
    job.parts = scratch_shared(stream);
    stream_run(stream, tasks, mse_grad_tile, &job);
    *loss = losses_sum(job.parts, tasks);
    return 0;
}

struct softmax_loss {
    const struct kernels *kernels;
    float *dlogits;                /* or NULL */
    const float *logits, *teacher; /* teacher: or NULL */
    const int32_t *labels;         /* where there is none */
    int64_t tokens, vocabulary;
    double factor;
    double *parts; /* [tokens] */
};

/* KL(r || x) = sum p_r ((r - max_r) - (x - max_x)) - log sum_r + log sum_x. */
static double softmax_loss_kl(const struct softmax_loss *job, int64_t t)
{
    const struct kernels *kernels = job->kernels;
    int64_t n = job->vocabulary;
    const float *x = job->logits + t * n, *r = job->teacher + t * n;
    float x_max = kernels->maximum(x, n), r_max = kernels->maximum(r, n);
    double x_sum = kernels->exp_sum(x, n, x_max), r_sum = kernels->exp_sum(r, n, r_max);

    if (job->dlogits != NULL) {
        kernels->exp_grad(job->dlogits + t * n, x, r, n, x_max, r_max, (float)(job->factor / x_sum),
                          (float)(job->factor / r_sum));
    }
    return kernels->exp_dot(r, x, n, r_max, x_max) / r_sum - log(r_sum) + log(x_sum);
}

static double softmax_loss_nll(const struct softmax_loss *job, int64_t t)
{
    const struct kernels *kernels = job->kernels;
    int64_t n = job->vocabulary, label = job->labels[t];
    const float *x = job->logits + t * n;

    if (label < 0) {
        return 0;
    }
    float max = kernels->maximum(x, n);
    double sum = kernels->exp_sum(x, n, max);
    if (job->dlogits != NULL) {
        float *d = job->dlogits + t * n;
        kernels->exp_grad(d, x, NULL, n, max, 0, (float)(job->factor / sum), 0);
        d[label] -= (float)job->factor;
    }
    return log(sum) - ((double)x[label] - (double)max);
}

static void softmax_loss_tile(void *ctx, int64_t task)
{
    const struct softmax_loss *job = ctx;

    for (int64_t t = task * TOKEN_TILE; t < task * TOKEN_TILE + tile_size(job->tokens, TOKEN_TILE, task); t++) {
        job->parts[t] = job->teacher != NULL ? softmax_loss_kl(job, t) : softmax_loss_nll(job, t);
    }
}

static int softmax_loss_run(struct gpu_stream *stream, struct softmax_loss *job, double *loss)
{
    TRY(scratch_reserve(stream, scratch_size(job->tokens, sizeof(double)), 0));
    job->parts = scratch_shared(stream);
    stream_run(stream, tiles_of(job->tokens, TOKEN_TILE), softmax_loss_tile, job);
    *loss = losses_sum(job->parts, job->tokens);
    return 0;
}

int cpu_kl_grad(struct gpu_stream *stream, const struct tensor *dlogits, const struct tensor *logits,
                const struct tensor *teacher, double factor, double *loss)
{
    struct softmax_loss job = {.kernels = stream->device->kernels,
                               .dlogits = dlogits != NULL ? dlogits->data : NULL,
                               .logits = logits->data,
                               .teacher = teacher->data,
                               .tokens = matrix_rows(logits),
                               .vocabulary = matrix_cols(logits),
                               .factor = factor};

    return softmax_loss_run(stream, &job, loss);
}

int cpu_nll_grad(struct gpu_stream *stream, const struct tensor *dlogits, const struct tensor *logits,
                 const int32_t *labels, double factor, double *loss)
{
    struct softmax_loss job = {.kernels = stream->device->kernels,
                               .dlogits = dlogits != NULL ? dlogits->data : NULL,
                               .logits = logits->data,
                               .labels = labels,
                               .tokens = matrix_rows(logits),
                               .vocabulary = matrix_cols(logits),
                               .factor = factor};

    return softmax_loss_run(stream, &job, loss);
}
