/* Quantized caches, and what they do to attention: tiles of queries of as many heads of one key head as the scratch
 * allows, on both sides. Products are F32, since what is measured are small differences. */

#include "gpu/cuda/cuda.h"

#define SCORES_BYTES ((int64_t)512 << 20)
#define QUERY_TILE 1024

int cuda_quantize_cache(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                        const struct gpu_cache *spec)
{
    TRY(cuda_begin(stream->device));
    const struct launch_cache cache = {.element = spec->element,
                                       .bits = spec->bits,
                                       .rows = matrix_rows(x),
                                       .cols = matrix_cols(x),
                                       .group_size = spec->group_size,
                                       .tokens = spec->tokens,
                                       .length = spec->length};
    int status = spec->element != DTYPE_U8
                     ? launch_cache_symmetric(y->data, x->data, spec->scale->data, &cache, stream->stream)
                     : launch_cache_asymmetric(y->data, x->data, &cache, stream->stream);
    return cuda_ok(stream->device, status, "quantize_cache");
}

struct comparison {
    struct gpu_stream *stream;
    const struct gpu_attention *spec;
    const float *q, *k[2], *v[2]; /* [0] plain, [1] quantized */
    int64_t recent;
    float *scores[2], *split; /* [heads, queries, keys] each; weights later */
    float *out[2];            /* [heads, queries, value_dim] each */
    struct launch_attention_part *parts, *total;
};

/* Heads [head, head + count) of one key head: scores = q k^T of one side. */
static int comparison_scores(const struct comparison *job, int side, int64_t q_at, int64_t k_at,
                             const struct launch_attention_error *tile)
{
    int64_t dim = job->spec->head_dim;
    const struct gemm gemm = {.trans_b = true,
                              .m = tile->queries,
                              .n = tile->keys,
                              .k = dim,
                              .alpha = 1.0f,
                              .a = job->q + q_at,
                              .b = job->k[side] + k_at,
                              .c = job->scores[side],
                              .lda = job->spec->heads * dim,
                              .ldb = job->spec->kv_heads * dim,
                              .ldc = tile->keys,
                              .count = tile->heads,
                              .stride_a = dim,
                              .stride_c = tile->queries * tile->keys};

    return gemm_run(job->stream, &gemm);
}

/* out = weights v, or out += that. */
static int comparison_outputs(const struct comparison *job, const float *weights, const float *v, float *out,
                              float beta, const struct launch_attention_error *tile)
{
    int64_t dim = gpu_value_dim(job->spec);
    const struct gemm gemm = {.m = tile->queries,
                              .n = dim,
                              .k = tile->keys,
                              .alpha = 1.0f,
                              .beta = beta,
                              .a = weights,
                              .b = v,
                              .c = out,
                              .lda = tile->keys,
                              .ldb = job->spec->kv_heads * dim,
                              .ldc = dim,
                              .count = tile->heads,
                              .stride_a = tile->queries * tile->keys,
                              .stride_c = tile->queries * dim};

    return gemm_run(job->stream, &gemm);
}

static int compare_tile(const struct comparison *job, int64_t q_at, int64_t k_at, int64_t v_at,
                        const struct launch_attention_error *tile)
{
    cudaStream_t on = job->stream->stream;
    int64_t rows = tile->heads * tile->queries;

    for (int side = 0; side < 2; side++) {
        TRY(comparison_scores(job, side, q_at, k_at, tile));
    }
    TRY(cuda_ok(job->stream->device,
                launch_attention_weigh(job->parts, job->scores[0], job->scores[1], job->split, tile, on),
                "attention_error"));
    for (int side = 0; side < 2; side++) {
        TRY(comparison_outputs(job, job->scores[side], job->v[side] + v_at, job->out[side], 0.0f, tile));
    }
    if (job->recent != 0) {
        TRY(comparison_outputs(job, job->split, job->v[0] + v_at, job->out[1], 1.0f, tile));
    }
    return cuda_ok(
        job->stream->device,
        launch_attention_outputs(job->total, job->parts, job->out[0], job->out[1], rows, gpu_value_dim(job->spec), on),
        "attention_error");
}

/* The heads of one key head, `max` at once. */
static int compare_heads(const struct comparison *job, int64_t sequence, int64_t kv_head, int64_t max)
{
    const struct gpu_attention *spec = job->spec;
    int64_t shared = spec->heads / spec->kv_heads, dim = spec->head_dim;
    int64_t kv_row = sequence * spec->length * spec->kv_heads + kv_head;
    const float *sinks = spec->sinks != NULL ? (const float *)spec->sinks->data + kv_head * shared : NULL;

    for (int64_t head = 0; head < shared; head += max) {
        for (int64_t first = 0; first < spec->length; first += QUERY_TILE) {
            int64_t left = spec->length - first;
            struct launch_attention_error tile = {.heads = shared - head < max ? shared - head : max,
                                                  .queries = left < QUERY_TILE ? left : QUERY_TILE,
                                                  .first = first,
                                                  .window = spec->window,
                                                  .chunk = spec->chunk,
                                                  .recent = job->recent,
                                                  .scale = spec->scale,
                                                  .cap = spec->cap,
                                                  .sinks = sinks != NULL ? sinks + head : NULL};
            tile.keys = first + tile.queries;
            int64_t q_at = ((sequence * spec->length + first) * spec->heads + kv_head * shared + head) * dim;
            TRY(compare_tile(job, q_at, kv_row * dim, kv_row * gpu_value_dim(spec), &tile));
        }
    }
    return 0;
}

/* Scratch for `heads` heads at once, and a total of nothing. */
static int comparison_prepare(struct comparison *job, int64_t heads)
{
    struct gpu_stream *stream = job->stream;
    int64_t tile = job->spec->length < QUERY_TILE ? job->spec->length : QUERY_TILE, rows = heads * tile;
    int64_t scores = rows * job->spec->length, out = rows * gpu_value_dim(job->spec);

    TRY(scratch_reserve(stream, 3 * scratch_size(scores, sizeof(float)) + 2 * scratch_size(out, sizeof(float)) +
                                    scratch_size(rows, sizeof(*job->parts)) + scratch_size(1, sizeof(*job->total))));
    job->scores[0] = scratch_take(stream, scores, sizeof(float));
    job->scores[1] = scratch_take(stream, scores, sizeof(float));
    job->split = scratch_take(stream, scores, sizeof(float));
    job->out[0] = scratch_take(stream, out, sizeof(float));
    job->out[1] = scratch_take(stream, out, sizeof(float));
    job->parts = scratch_take(stream, rows, sizeof(*job->parts));
    job->total = scratch_take(stream, 1, sizeof(*job->total));
    return memory_fill_zero(stream, job->total, sizeof(*job->total));
}

int cuda_attention_error(struct gpu_stream *stream, struct gpu_attention_error *out, const struct tensor *q,
                         const struct tensor *k, const struct tensor *v, const struct tensor *kq,
                         const struct tensor *vq, const struct gpu_attention *spec, int64_t recent)
{
    SCRATCH_SCOPE(stream);
    struct comparison job = {.stream = stream,
                             .spec = spec,
                             .q = q->data,
                             .k = {k->data, kq->data},
                             .v = {v->data, vq->data},
                             .recent = recent};
    struct launch_attention_part total;

    TRY(cuda_begin(stream->device));
    if (spec->length == 0) {
        return 0;
    }
    int64_t tile = spec->length < QUERY_TILE ? spec->length : QUERY_TILE, shared = spec->heads / spec->kv_heads;
    int64_t max = SCORES_BYTES / (3 * tile * spec->length * (int64_t)sizeof(float));
    max = max < 1 ? 1 : max < shared ? max : shared;
    TRY(comparison_prepare(&job, max));
    for (int64_t i = 0; i < spec->sequences * spec->kv_heads; i++) {
        TRY(compare_heads(&job, i / spec->kv_heads, i % spec->kv_heads, max));
    }
    TRY(memory_download(stream, &total, job.total, sizeof(total)));
    out->score_error += total.score_error;
    out->score_signal += total.score_signal;
    out->weight_error += total.weight_error;
    out->weight_signal += total.weight_signal;
    out->output_error += total.output_error;
    out->output_signal += total.output_signal;
    return 0;
}
