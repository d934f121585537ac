/* Causal attention: o = softmax(q k^T * scale) v, per head, with grouped key/value heads and an optional window.
 *
 * A task is Q_TILE queries of one head of one sequence. Their scores against every visible key fit in the worker's
 * scratch, so the softmax is the plain one over full rows, between two sgemm products; the division by its sum comes
 * last, on the narrow output. Keys past a query or outside its window get weight zero. */

#include "gpu/cpu/internal.h"

#include <string.h>

#define Q_TILE 64

struct attention {
    struct gpu_stream *stream;
    const struct gpu_attention *spec;
    float *o;
    const float *q, *k, *v;
    int64_t tiles, span; /* span: the largest number of keys that a tile of queries sees */
};

static int64_t first_key(const struct gpu_attention *spec, int64_t position)
{
    int64_t first = spec->window > 0 ? position - spec->window + 1 : 0;
    return first > 0 ? first : 0;
}

static void attention_tile(void *ctx, int64_t task)
{
    const struct attention *job = ctx;
    const struct gpu_attention *spec = job->spec;
    float *scores = scratch_slice(job->stream), sums[Q_TILE];
    int64_t tile = job->tiles - 1 - task % job->tiles; /* the longest first */
    int64_t head = task / job->tiles % spec->heads, sequence = task / job->tiles / spec->heads;
    int64_t dim = spec->head_dim, q_stride = spec->heads * dim, kv_stride = spec->kv_heads * dim;
    int64_t begin = tile * Q_TILE, queries = tile_size(spec->length, Q_TILE, tile);
    int64_t key0 = first_key(spec, begin), keys = begin + queries - key0;
    int64_t kv_at = (sequence * spec->length + key0) * kv_stride + head / (spec->heads / spec->kv_heads) * dim;
    int64_t q_at = (sequence * spec->length + begin) * q_stride + head * dim;

    blas_gemm(0, 1, (int)queries, (int)keys, (int)dim, 1.0f, job->q + q_at, (int)q_stride, job->k + kv_at,
              (int)kv_stride, 0.0f, scores, (int)keys);
    for (int64_t i = 0; i < queries; i++) {
        float *row = scores + i * keys;
        int64_t low = first_key(spec, begin + i) - key0, high = begin + i + 1 - key0;
        sums[i] = job->stream->device->kernels->softmax(row + low, high - low, spec->scale);
        memset(row, 0, (size_t)low * sizeof(float));
        memset(row + high, 0, (size_t)(keys - high) * sizeof(float));
    }
    blas_gemm(0, 0, (int)queries, (int)dim, (int)keys, 1.0f, scores, (int)keys, job->v + kv_at, (int)kv_stride, 0.0f,
              job->o + q_at, (int)q_stride);
    for (int64_t i = 0; i < queries; i++) {
        float *row = job->o + q_at + i * q_stride, inverse = 1.0f / sums[i];
        for (int64_t d = 0; d < dim; d++) {
            row[d] *= inverse;
        }
    }
}

int cpu_attention(struct gpu_stream *stream, const struct tensor *o, const struct tensor *q, const struct tensor *k,
                  const struct tensor *v, const struct gpu_attention *spec)
{
    struct attention job = {.stream = stream, .spec = spec, .o = o->data, .q = q->data, .k = k->data, .v = v->data};
    job.tiles = tiles_of(spec->length, Q_TILE);
    job.span = spec->length;
    if (spec->window > 0 && spec->window < spec->length - Q_TILE) {
        job.span = spec->window + Q_TILE;
    }
    TRY(scratch_reserve(stream, 0, scratch_size(job.span * Q_TILE, sizeof(float))));
    stream_run(stream, spec->sequences * spec->heads * job.tiles, attention_tile, &job);
    return 0;
}
