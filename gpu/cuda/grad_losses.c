/* Losses with their gradients: kernels leave one partial a tile or a token, which are added here, in order, in double.
 */

#include "gpu/cuda/cuda.h"
#include "gpu/cuda/launch_grad.h"

/* *loss = the sum of parts[count] of the device. */
static int grad_fetch_sum(struct gpu_stream *stream, const double *parts, int64_t count, double *loss)
{
    AUTO_FREE double *host = NULL;
    double sum = 0;

    TRY(mem_buffer(&host, (size_t)count + 1));
    TRY(memory_download(stream, host, parts, (size_t)count * sizeof(*host)));
    for (int64_t i = 0; i < count; i++) {
        sum += host[i];
    }
    *loss = sum;
    return 0;
}

int cuda_mse_grad(struct gpu_stream *stream, const struct tensor *dy, const struct tensor *y,
                  const struct tensor *target, double factor, double *loss)
{
    SCRATCH_SCOPE(stream);
    int64_t count = tensor_count(y), tiles = tiles_of(count, LAUNCH_MSE_TILE);

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, scratch_size(tiles, sizeof(double))));
    double *parts = scratch_take(stream, tiles, sizeof(double));
    TRY(cuda_ok(stream->device,
                launch_mse_grad(parts, dy != NULL ? dy->data : NULL, y->data, target->data, (float)(2 * factor), count,
                                stream->stream),
                "mse_grad"));
    return grad_fetch_sum(stream, parts, tiles, loss);
}

int cuda_kl_grad(struct gpu_stream *stream, const struct tensor *dlogits, const struct tensor *logits,
                 const struct tensor *teacher, double factor, double *loss)
{
    SCRATCH_SCOPE(stream);
    struct launch_softmax_loss job = {.dlogits = dlogits != NULL ? dlogits->data : NULL,
                                      .logits = logits->data,
                                      .teacher = teacher->data,
                                      .tokens = matrix_rows(logits),
                                      .vocabulary = matrix_cols(logits),
                                      .factor = factor};

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, scratch_size(job.tokens, sizeof(double))));
    job.parts = scratch_take(stream, job.tokens, sizeof(double));
    TRY(cuda_ok(stream->device, launch_softmax_loss(&job, stream->stream), "kl_grad"));
    return grad_fetch_sum(stream, job.parts, job.tokens, loss);
}

int cuda_nll_grad(struct gpu_stream *stream, const struct tensor *dlogits, const struct tensor *logits,
                  const int32_t *labels, double factor, double *loss)
{
    SCRATCH_SCOPE(stream);
    struct launch_softmax_loss job = {.dlogits = dlogits != NULL ? dlogits->data : NULL,
                                      .logits = logits->data,
                                      .tokens = matrix_rows(logits),
                                      .vocabulary = matrix_cols(logits),
                                      .factor = factor};

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, scratch_size(job.tokens, sizeof(double)) + scratch_size(job.tokens, sizeof(int32_t))));
    job.parts = scratch_take(stream, job.tokens, sizeof(double));
    int32_t *on_device = scratch_take(stream, job.tokens, sizeof(int32_t));
    TRY(memory_upload(stream, on_device, labels, (size_t)job.tokens * sizeof(int32_t)));
    job.labels = on_device;
    TRY(cuda_ok(stream->device, launch_softmax_loss(&job, stream->stream), "nll_grad"));
    return grad_fetch_sum(stream, job.parts, job.tokens, loss);
}
