/* What methods know of a group's inputs: H = (2/T) sum x x^T, per column max |x| and mean |x|, and a few inputs.
 *
 * Sums are single precision. Inputs are added in chunks of a fixed number of tokens, so that the order of a sum depends
 * on the inputs and the backend alone. Only the upper triangle of H grows; finish scales it and mirrors it once. */

#include "quantizers/quantizer.h"

#include "base/err.h"

#include <stdlib.h>

#define CHUNK_TOKENS 2048 /* at least; a backend that wants larger micro-batches is fast on larger chunks only */

int stats_init(struct layer_stats *stats, unsigned flags, int64_t columns, const struct gpu *gpu)
{
    struct layer_stats made = {.flags = flags & ~(unsigned)(STATS_TARGET | STATS_SPREAD), .columns = columns};
    const int64_t square[2] = {columns, columns};
    int rc = 0;

    if ((flags & STATS_HESSIAN) != 0) {
        rc = gpu_tensor_new(gpu, DTYPE_F32, 2, square, &made.hessian);
    }
    if (rc == 0 && (flags & STATS_RANGE) != 0) {
        rc = gpu_tensor_new(gpu, DTYPE_F32, 1, &columns, &made.absmax);
        rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 1, &columns, &made.absmean);
    }
    if (rc == 0 && (flags & STATS_SAMPLE) != 0) {
        rc = gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){STATS_SAMPLE_TOKENS, columns}, &made.sample);
        made.sample.shape[0] = 0;
    }
    if (rc != 0) {
        stats_deinit(&made, gpu);
        return err_pass(rc, "statistics of %lld columns", (long long)columns);
    }
    *stats = made;
    return 0;
}

int stats_init_spread(struct layer_stats *stats, int64_t tokens, const struct gpu *gpu)
{
    int rc = input_sample_init(&stats->spread, tokens, stats->columns, gpu);

    stats->flags |= rc == 0 ? STATS_SPREAD : 0;
    return rc;
}

int stats_init_target(struct layer_stats *stats, int64_t outputs, const struct gpu *gpu)
{
    const int64_t shape[2] = {outputs > 0 ? outputs : stats->columns, stats->columns};

    int rc = gpu_tensor_new(gpu, DTYPE_F32, 2, shape, &stats->target);
    if (rc != 0) {
        return err_pass(rc, "targets of %lld columns", (long long)stats->columns);
    }
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

/* As many of x as there is room for. */
static int keep_sample(struct layer_stats *stats, const struct gpu *gpu, struct gpu_stream *stream,
                       const struct tensor *x)
{
    int64_t held = stats->sample.shape[0], room = STATS_SAMPLE_TOKENS - held;
    int64_t count = x->shape[0] < room ? x->shape[0] : room;

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
    int64_t most = gpu->info.batch_tokens > CHUNK_TOKENS ? gpu->info.batch_tokens : CHUNK_TOKENS;
    int rc = 0;

    if (x->shape[1] != stats->columns) {
        return err_raise(ERR_INTERNAL, "inputs of %lld columns for statistics of %lld", (long long)x->shape[1],
                         (long long)stats->columns);
    }
    rc = keep_sample(stats, gpu, stream, x);
    rc = rc != 0 || (stats->flags & STATS_SPREAD) == 0 ? rc : input_sample_add(&stats->spread, gpu, stream, x);
    for (int64_t first = 0; rc == 0 && first < tokens; first += most) {
        struct tensor chunk = tensor_rows(x, first, tokens - first < most ? tokens - first : most);
        if ((stats->flags & STATS_HESSIAN) != 0) {
            rc = gpu->ops->gram(stream, &stats->hessian, &chunk);
        }
        if (rc == 0 && (stats->flags & STATS_RANGE) != 0) {
            rc = gpu->ops->column_stats(stream, &stats->absmax, &stats->absmean, &chunk);
        }
    }
    if (rc == 0) {
        stats->tokens += tokens;
    }
    return rc;
}

/* The sums of |x| become means. */
static int finish_means(struct layer_stats *stats, const struct gpu *gpu, struct gpu_stream *stream)
{
    float *means = malloc((size_t)stats->columns * sizeof(*means));

    if (means == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld means", (long long)stats->columns);
    }
    int rc = gpu->ops->download(stream, means, stats->absmean.data, tensor_bytes(&stats->absmean));
    for (int64_t i = 0; rc == 0 && i < stats->columns; i++) {
        means[i] /= (float)stats->tokens;
    }
    rc = rc != 0 ? rc : gpu_tensor_upload(gpu, stream, &stats->absmean, means);
    free(means);
    return rc;
}

int stats_finish(struct layer_stats *stats, const struct gpu *gpu, struct gpu_stream *stream)
{
    int rc = 0;

    if (stats->tokens == 0) {
        return err_raise(ERR_INSUFFICIENT_CALIBRATION, "no calibration token came to an input of %lld columns",
                         (long long)stats->columns);
    }
    if ((stats->flags & STATS_HESSIAN) != 0) {
        rc = gpu->ops->symmetrize(stream, &stats->hessian, 2.0 / (double)stats->tokens);
    }
    if (rc == 0 && (stats->flags & STATS_TARGET) != 0) {
        rc = gpu->ops->combine(stream, &stats->target, 2.0 / (double)stats->tokens, &stats->target, 0, NULL);
    }
    if (rc == 0 && (stats->flags & STATS_RANGE) != 0) {
        rc = finish_means(stats, gpu, stream);
    }
    return rc;
}

#define IDENTITY_ROWS 64 /* that are uploaded at once */

static int set_identity(const struct tensor *h, const struct gpu *gpu, struct gpu_stream *stream)
{
    int64_t n = h->shape[1];
    float *rows = calloc(IDENTITY_ROWS * (size_t)n, sizeof(*rows));
    int rc = rows != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %d rows", IDENTITY_ROWS);

    for (int64_t first = 0; rc == 0 && first < n; first += IDENTITY_ROWS) {
        struct tensor part = tensor_rows(h, first, n - first < IDENTITY_ROWS ? n - first : IDENTITY_ROWS);
        for (int64_t i = 0; i < part.shape[0]; i++) {
            rows[i * n + first + i] = 1.0f;
        }
        rc = gpu_tensor_upload(gpu, stream, &part, rows);
        for (int64_t i = 0; i < part.shape[0]; i++) {
            rows[i * n + first + i] = 0.0f;
        }
    }
    free(rows);
    return rc;
}

int stats_shrink(struct layer_stats *stats, struct layer_stats *pooled, int64_t min_tokens, const struct gpu *gpu,
                 struct gpu_stream *stream)
{
    double own = (double)stats->tokens / (double)min_tokens;
    int rc = 0;

    if ((stats->flags & STATS_HESSIAN) != 0) {
        rc = stats->tokens == 0
                 ? set_identity(&pooled->hessian, gpu, stream)
                 : gpu->ops->combine(stream, &pooled->hessian, own, &stats->hessian, 1 - own, &pooled->hessian);
    }
    if (rc == 0) {
        struct layer_stats made = *pooled;
        made.tokens = stats->tokens;
        made.wanted_tokens = min_tokens;
        *pooled = *stats;
        *stats = made;
    }
    return rc;
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
