/* Causal attention: o = softmax(q k^T * scale) v, per head, with grouped key/value heads, an optional window, chunks, a
 * cap of the scores, and sinks.
 *
 * A task is Q_TILE queries of one head of one sequence. Their scores against every visible key fit in the worker's
 * scratch, so the softmax is the plain one over full rows, between two sgemm products; the division by its sum comes
 * last, on the narrow output. Keys past a query or outside its window get weight zero. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define Q_TILE 64

struct attention {
    struct gpu_stream *stream;
    const struct gpu_attention *spec;
    float *o;
    const float *q, *k, *v;
    int64_t tiles, span; /* span: the largest number of keys that a tile of queries sees */
};

float attention_weights(const struct kernels *kernels, const struct gpu_attention *spec, int64_t head, float *scores,
                        int64_t count)
{
    float scale = spec->scale;

    if (spec->cap > 0) {
        kernels->cap(scores, count, scale, spec->cap);
        scale = 1.0f;
    }
    if (spec->sinks == NULL) {
        return kernels->softmax(scores, count, scale);
    }
    double sink = (double)((const float *)spec->sinks->data)[head];
    sink = exp(sink - (double)(kernels->maximum(scores, count) * scale));
    return (float)((double)kernels->softmax(scores, count, scale) + sink);
}

static void attention_tile(void *ctx, int64_t task)
{
    const struct attention *job = ctx;
    const struct gpu_attention *spec = job->spec;
    float *scores = scratch_slice(job->stream), sums[Q_TILE];
    int64_t tile = job->tiles - 1 - task % job->tiles; /* the longest first */
    int64_t head = task / job->tiles % spec->heads, sequence = task / job->tiles / spec->heads;
    int64_t kv_head = head / (spec->heads / spec->kv_heads), dim = spec->head_dim, value_dim = gpu_value_dim(spec);
    int64_t q_stride = spec->heads * dim, k_stride = spec->kv_heads * dim;
    int64_t o_stride = spec->heads * value_dim, v_stride = spec->kv_heads * value_dim;
    int64_t begin = tile * Q_TILE, queries = tile_size(spec->length, Q_TILE, tile);
    int64_t key0 = attention_first(spec->window, spec->chunk, begin), keys = begin + queries - key0;
    int64_t query_row = sequence * spec->length + begin, key_row = sequence * spec->length + key0;
    float *o = job->o + query_row * o_stride + head * value_dim;

    blas_gemm(0, 1, (int)queries, (int)keys, (int)dim, 1.0f, job->q + query_row * q_stride + head * dim, (int)q_stride,
              job->k + key_row * k_stride + kv_head * dim, (int)k_stride, 0.0f, scores, (int)keys);
    for (int64_t i = 0; i < queries; i++) {
        float *row = scores + i * keys;
        int64_t low = attention_first(spec->window, spec->chunk, begin + i) - key0, high = begin + i + 1 - key0;
        sums[i] = attention_weights(job->stream->device->kernels, spec, head, row + low, high - low);
        memset(row, 0, (size_t)low * sizeof(float));
        memset(row + high, 0, (size_t)(keys - high) * sizeof(float));
    }
    blas_gemm(0, 0, (int)queries, (int)value_dim, (int)keys, 1.0f, scores, (int)keys,
              job->v + key_row * v_stride + kv_head * value_dim, (int)v_stride, 0.0f, o, (int)o_stride);
    for (int64_t i = 0; i < queries; i++) {
        float *row = o + i * o_stride, inverse = 1.0f / sums[i];
        for (int64_t d = 0; d < value_dim; d++) {
            row[d] *= inverse;
        }
    }
}

int cpu_attention(struct gpu_stream *stream, const struct tensor *o, const struct tensor *q, const struct tensor *k,
                  const struct tensor *v, const struct gpu_attention *spec)
{
    struct attention job = {.stream = stream, .spec = spec, .o = o->data, .q = q->data, .k = k->data, .v = v->data};
    int64_t reach = attention_reach(spec->window, spec->chunk, spec->length);

    job.tiles = tiles_of(spec->length, Q_TILE);
    job.span = reach < spec->length - Q_TILE ? reach + Q_TILE : spec->length;
    TRY(scratch_reserve(stream, 0, scratch_size(job.span * Q_TILE, sizeof(float))));
    stream_run(stream, spec->sequences * spec->heads * job.tiles, attention_tile, &job);
    return 0;
}
