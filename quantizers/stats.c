/* What methods know of a group's inputs: H = (2/T) sum x x^T, per column max |x| and mean |x|, and a few inputs.
 *
 * Sums are single precision. Inputs are added in chunks of a fixed number of tokens, so that the order of a sum depends
 * on the inputs and the backend alone. Only the upper triangle of H grows; finish scales it and mirrors it once. */

#include "quantizers/quantizer.h"

#include "base/err.h"
#include "base/mem.h"

#include <stdlib.h>

#define CHUNK_TOKENS 2048 /* minimum; a backend with larger micro-batches is fast on larger chunks only */

static int stats_allocate(struct layer_stats *stats, const struct gpu *gpu)
{
    int64_t columns = stats->columns;

    if ((stats->flags & STATS_HESSIAN) != 0) {
        TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){columns, columns}, &stats->hessian));
    }
    if ((stats->flags & STATS_RANGE) != 0) {
        TRY(gpu_tensor_new(gpu, DTYPE_F32, 1, &columns, &stats->absmax));
        TRY(gpu_tensor_new(gpu, DTYPE_F32, 1, &columns, &stats->absmean));
    }
    if ((stats->flags & STATS_SAMPLE) != 0) {
        TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){STATS_SAMPLE_TOKENS, columns}, &stats->sample));
        stats->sample.shape[0] = 0;
    }
    return 0;
}

int stats_init(struct layer_stats *stats, unsigned flags, int64_t columns, const struct gpu *gpu)
{
    struct layer_stats made = {.flags = flags & ~(unsigned)(STATS_TARGET | STATS_SPREAD), .columns = columns};

    int rc = stats_allocate(&made, gpu);
    if (rc != 0) {
        stats_deinit(&made, gpu);
        return err_pass(rc, "statistics of %lld columns", (long long)columns);
    }
    *stats = made;
    return 0;
}

int stats_init_spread(struct layer_stats *stats, int64_t tokens, const struct gpu *gpu)
{
    TRY(input_sample_init(&stats->spread, tokens, stats->columns, gpu));
    stats->flags |= STATS_SPREAD;
    return 0;
}

int stats_init_target(struct layer_stats *stats, int64_t outputs, const struct gpu *gpu)
{
    const int64_t shape[2] = {outputs > 0 ? outputs : stats->columns, stats->columns};

    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, shape, &stats->target));
    stats->flags |= STATS_TARGET;
    stats->outputs = outputs;
    return 0;
}

int stats_add_target(struct layer_stats *stats, const struct gpu *gpu, struct gpu_stream *stream,
                     const struct tensor *x, const struct tensor *missing)
{
    return stats->outputs > 0 ? gpu->ops->cross(stream, &stats->target, missing, x)
                              : gpu->ops->cross(stream, &stats->target, x, missing);
}

/* Copy as many inputs of x as the sample still has space for. */
static int stats_add_sample(struct layer_stats *stats, const struct gpu *gpu, struct gpu_stream *stream,
                            const struct tensor *x)
{
    int64_t held = stats->sample.shape[0], left = STATS_SAMPLE_TOKENS - held;
    int64_t count = x->shape[0] < left ? x->shape[0] : left;

    if ((stats->flags & STATS_SAMPLE) == 0 || count == 0) {
        return 0;
    }
    stats->sample.shape[0] = held + count;
    struct tensor from = tensor_rows(x, 0, count), to = tensor_rows(&stats->sample, held, count);
    return gpu->ops->convert(stream, &to, &from);
}

int stats_add(struct layer_stats *stats, const struct gpu *gpu, struct gpu_stream *stream, const struct tensor *x)
{
    int64_t tokens = x->shape[0];
    int64_t chunk_tokens = gpu->info.batch_tokens > CHUNK_TOKENS ? gpu->info.batch_tokens : CHUNK_TOKENS;

    if (x->shape[1] != stats->columns) {
        return err_raise(ERR_INTERNAL, "inputs of %lld columns for statistics of %lld", (long long)x->shape[1],
                         (long long)stats->columns);
    }
    TRY(stats_add_sample(stats, gpu, stream, x));
    if ((stats->flags & STATS_SPREAD) != 0) {
        TRY(input_sample_add(&stats->spread, gpu, stream, x));
    }
    for (int64_t first = 0; first < tokens; first += chunk_tokens) {
        struct tensor chunk = tensor_rows(x, first, tokens - first < chunk_tokens ? tokens - first : chunk_tokens);
        if ((stats->flags & STATS_HESSIAN) != 0) {
            TRY(gpu->ops->gram(stream, &stats->hessian, &chunk));
        }
        if ((stats->flags & STATS_RANGE) != 0) {
            TRY(gpu->ops->column_stats(stream, &stats->absmax, &stats->absmean, &chunk));
        }
    }
    stats->tokens += tokens;
    return 0;
}

/* The sums of |x| become means. */
static int stats_finish_means(struct layer_stats *stats, const struct gpu *gpu, struct gpu_stream *stream)
{
    AUTO_FREE float *means = NULL;

    TRY(mem_buffer(&means, (size_t)stats->columns));
    TRY(gpu->ops->download(stream, means, stats->absmean.data, tensor_bytes(&stats->absmean)));
    for (int64_t i = 0; i < stats->columns; i++) {
        means[i] /= (float)stats->tokens;
    }
    return gpu_tensor_upload(gpu, stream, &stats->absmean, means);
}

int stats_finish(struct layer_stats *stats, const struct gpu *gpu, struct gpu_stream *stream)
{
    if (stats->tokens == 0) {
        return err_raise(ERR_INSUFFICIENT_CALIBRATION, "no calibration token came to an input of %lld columns",
                         (long long)stats->columns);
    }
    if ((stats->flags & STATS_HESSIAN) != 0) {
        TRY(gpu->ops->symmetrize(stream, &stats->hessian, 2.0 / (double)stats->tokens));
    }
    if ((stats->flags & STATS_TARGET) != 0) {
        TRY(gpu->ops->combine(stream, &stats->target, 2.0 / (double)stats->tokens, &stats->target, 0, NULL));
    }
    return (stats->flags & STATS_RANGE) != 0 ? stats_finish_means(stats, gpu, stream) : 0;
}

#define IDENTITY_ROWS 64 /* that are uploaded at once */

static int stats_set_identity(const struct tensor *h, const struct gpu *gpu, struct gpu_stream *stream)
{
    int64_t n = h->shape[1];
    AUTO_FREE float *rows = NULL;

    TRY(mem_array(&rows, IDENTITY_ROWS * (size_t)n));
    for (int64_t first = 0; first < n; first += IDENTITY_ROWS) {
        struct tensor part = tensor_rows(h, first, n - first < IDENTITY_ROWS ? n - first : IDENTITY_ROWS);
        for (int64_t i = 0; i < part.shape[0]; i++) {
            rows[i * n + first + i] = 1.0f;
        }
        TRY(gpu_tensor_upload(gpu, stream, &part, rows));
        for (int64_t i = 0; i < part.shape[0]; i++) {
            rows[i * n + first + i] = 0.0f;
        }
    }
    return 0;
}

int stats_shrink(struct layer_stats *stats, struct layer_stats *pooled, int64_t min_tokens, const struct gpu *gpu,
                 struct gpu_stream *stream)
{
    double own = (double)stats->tokens / (double)min_tokens;

    if ((stats->flags & STATS_HESSIAN) != 0) {
        TRY(stats->tokens == 0
                ? stats_set_identity(&pooled->hessian, gpu, stream)
                : gpu->ops->combine(stream, &pooled->hessian, own, &stats->hessian, 1 - own, &pooled->hessian));
    }
    struct layer_stats made = *pooled;
    made.tokens = stats->tokens;
    made.min_tokens = min_tokens;
    *pooled = *stats;
    *stats = made;
    return 0;
}

void stats_deinit(struct layer_stats *stats, const struct gpu *gpu)
{
    gpu_tensor_free(gpu, &stats->hessian);
    gpu_tensor_free(gpu, &stats->absmax);
    gpu_tensor_free(gpu, &stats->absmean);
    gpu_tensor_free(gpu, &stats->sample);
    input_sample_deinit(&stats->spread, gpu);
    gpu_tensor_free(gpu, &stats->target);
    *stats = (struct layer_stats){0};
}
