/* The gradient of attention (gpu/cpu/attention.c). With P the softmax, o = P v and s the scores after scale and cap:
 *
 *     dv = P^T do,  dP = do v^T,  ds_ij = P_ij (dP_ij - D_i),  D_i = sum_j P_ij dP_ij,
 *     dq = scale * (ds f) k,  dk = scale * (ds f)^T q,  f = 1 - (s / cap)^2 where there is a cap, else 1;
 *     a sink's logit: -sum_i P_i,sink D_i, P_i,sink being the weight that goes nowhere.
 *
 * P is computed again from q and k, Q_TILE queries at a time, so that nothing of the size of the scores is kept from
 * the forward pass. A task is the queries of all heads that share one key head of one sequence: it alone adds to that
 * head's dk and dv, tile by tile in order, so the sums need no parts. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define Q_TILE 64

struct attention_grad {
    struct gpu_stream *stream;
    const struct gpu_attention *spec;
    float *dq, *dk, *dv; /* or NULL */
    const float *d_out, *q, *k, *v;
    double *sinks; /* [sequences][heads], or NULL */
    int64_t span;  /* the largest number of keys that a tile of queries sees */
    int64_t q_stride, k_stride, v_stride, o_stride;
};

/* Queries [begin, begin + queries) of a sequence, of one head, and the keys from key0 on that they see. */
struct attention_grad_tile {
    int64_t sequence, head, kv_head;
    int64_t begin, queries, key0, keys;
    float *p, *ds, *capped; /* [queries][keys]; capped: or NULL */
};

/* Scores of row i become its softmax; *sink is the weight that a sink takes. */
static void attention_grad_weights(const struct attention_grad *job, const struct attention_grad_tile *tile, int64_t i,
                                   int64_t low, int64_t count, double *sink)
{
    const struct kernels *kernels = job->stream->device->kernels;
    struct gpu_attention spec = *job->spec;
    float *row = tile->p + i * tile->keys + low;

    if (tile->capped != NULL) {
        kernels->cap(row, count, spec.scale, spec.cap);
        memcpy(tile->capped + i * tile->keys + low, row, (size_t)count * sizeof(float));
        spec.scale = 1.0f;
    }
    double over = 0; /* e^this: what a sink adds to the sum */
    if (spec.sinks != NULL) {
        over =
            (double)((const float *)spec.sinks->data)[tile->head] - (double)(kernels->maximum(row, count) * spec.scale);
    }
    double sum = (double)kernels->softmax(row, count, spec.scale);
    float inverse = (float)(1 / (spec.sinks != NULL ? sum + exp(over) : sum));
    for (int64_t j = 0; j < count; j++) {
        row[j] *= inverse;
    }
    *sink = spec.sinks != NULL ? 1 / (1 + sum * exp(-over)) : 0;
}

/* P and ds of a tile; returns the tile's part of the sink's gradient. */
static double attention_grad_scores(const struct attention_grad *job, const struct attention_grad_tile *tile)
{
    const struct kernels *kernels = job->stream->device->kernels;
    const struct gpu_attention *spec = job->spec;
    int64_t dim = spec->head_dim, value_dim = gpu_value_dim(spec), keys = tile->keys;
    int64_t query_row = tile->sequence * spec->length + tile->begin;
    int64_t key_row = tile->sequence * spec->length + tile->key0;
    float inverse_cap = spec->cap > 0 ? 1.0f / spec->cap : 0.0f;
    double sink_sum = 0;

    blas_gemm(0, 1, (int)tile->queries, (int)keys, (int)dim, 1.0f,
              job->q + query_row * job->q_stride + tile->head * dim, (int)job->q_stride,
              job->k + key_row * job->k_stride + tile->kv_head * dim, (int)job->k_stride, 0.0f, tile->p, (int)keys);
    blas_gemm(0, 1, (int)tile->queries, (int)keys, (int)value_dim, 1.0f,
              job->d_out + query_row * job->o_stride + tile->head * value_dim, (int)job->o_stride,
              job->v + key_row * job->v_stride + tile->kv_head * value_dim, (int)job->v_stride, 0.0f, tile->ds,
              (int)keys);
    for (int64_t i = 0; i < tile->queries; i++) {
        int64_t low = attention_first(spec->window, spec->chunk, tile->begin + i) - tile->key0;
        int64_t high = tile->begin + i + 1 - tile->key0, count = high - low;
        float *p = tile->p + i * keys, *ds = tile->ds + i * keys;
        double sink;
        attention_grad_weights(job, tile, i, low, count, &sink);
        double mean = kernels->dot(p + low, ds + low, count);
        sink_sum -= sink * mean;
        kernels->softmax_grad(ds + low, p + low, tile->capped != NULL ? tile->capped + i * keys + low : NULL, count,
                              (float)mean, spec->scale, inverse_cap);
        memset(p, 0, (size_t)low * sizeof(float));
        memset(ds, 0, (size_t)low * sizeof(float));
        memset(p + high, 0, (size_t)(keys - high) * sizeof(float));
        memset(ds + high, 0, (size_t)(keys - high) * sizeof(float));
    }
    return sink_sum;
}

static double attention_grad_run_tile(const struct attention_grad *job, const struct attention_grad_tile *tile)
{
    const struct gpu_attention *spec = job->spec;
    int64_t dim = spec->head_dim, value_dim = gpu_value_dim(spec);
    int64_t query_row = tile->sequence * spec->length + tile->begin;
    int64_t key_row = tile->sequence * spec->length + tile->key0;
    int64_t q_at = query_row * job->q_stride + tile->head * dim, k_at = key_row * job->k_stride + tile->kv_head * dim;
    double sink = attention_grad_scores(job, tile);

    if (job->dq != NULL) {
        blas_gemm(0, 0, (int)tile->queries, (int)dim, (int)tile->keys, 1.0f, tile->ds, (int)tile->keys, job->k + k_at,
                  (int)job->k_stride, 1.0f, job->dq + q_at, (int)job->q_stride);
    }
    if (job->dk != NULL) {
        blas_gemm(1, 0, (int)tile->keys, (int)dim, (int)tile->queries, 1.0f, tile->ds, (int)tile->keys, job->q + q_at,
                  (int)job->q_stride, 1.0f, job->dk + k_at, (int)job->k_stride);
    }
    if (job->dv != NULL) {
        blas_gemm(1, 0, (int)tile->keys, (int)value_dim, (int)tile->queries, 1.0f, tile->p, (int)tile->keys,
                  job->d_out + query_row * job->o_stride + tile->head * value_dim, (int)job->o_stride, 1.0f,
                  job->dv + key_row * job->v_stride + tile->kv_head * value_dim, (int)job->v_stride);
    }
    return sink;
}

static void attention_grad_head(void *ctx, int64_t task)
{
    const struct attention_grad *job = ctx;
    const struct gpu_attention *spec = job->spec;
    int64_t shared = spec->heads / spec->kv_heads, size = Q_TILE * job->span;
    struct attention_grad_tile tile = {.sequence = task / spec->kv_heads, .kv_head = task % spec->kv_heads};

    tile.p = scratch_slice(job->stream);
    tile.ds = tile.p + size;
    tile.capped = spec->cap > 0 ? tile.ds + size : NULL;
    for (tile.head = tile.kv_head * shared; tile.head < (tile.kv_head + 1) * shared; tile.head++) {
        double sink = 0;
        for (int64_t t = 0; t < tiles_of(spec->length, Q_TILE); t++) {
            tile.begin = t * Q_TILE;
            tile.queries = tile_size(spec->length, Q_TILE, t);
            tile.key0 = attention_first(spec->window, spec->chunk, tile.begin);
            tile.keys = tile.begin + tile.queries - tile.key0;
            sink += attention_grad_run_tile(job, &tile);
        }
        if (job->sinks != NULL) {
            job->sinks[tile.sequence * spec->heads + tile.head] = sink;
        }
    }
}

int cpu_attention_grad(struct gpu_stream *stream, const struct tensor *dq, const struct tensor *dk,
                       const struct tensor *dv, const struct tensor *dsinks, const struct tensor *d_out,
                       const struct tensor *q, const struct tensor *k, const struct tensor *v,
                       const struct gpu_attention *spec)
{
    struct attention_grad job = {.stream = stream,
                                 .spec = spec,
                                 .dq = dq != NULL ? dq->data : NULL,
                                 .dk = dk != NULL ? dk->data : NULL,
                                 .dv = dv != NULL ? dv->data : NULL,
                                 .d_out = d_out->data,
                                 .q = q->data,
                                 .k = k->data,
                                 .v = v->data,
                                 .q_stride = matrix_cols(q),
                                 .k_stride = matrix_cols(k),
                                 .v_stride = matrix_cols(v),
                                 .o_stride = matrix_cols(d_out)};
    int64_t reach = attention_reach(spec->window, spec->chunk, spec->length);
    int64_t sinks = dsinks != NULL ? spec->sequences * spec->heads : 0;

    job.span = reach < spec->length - Q_TILE ? reach + Q_TILE : spec->length;
    TRY(scratch_reserve(stream, scratch_size(sinks, sizeof(double)),
                        scratch_size((spec->cap > 0 ? 3 : 2) * job.span * Q_TILE, sizeof(float))));
    job.sinks = dsinks != NULL ? scratch_shared(stream) : NULL;
    stream_run(stream, spec->sequences * spec->kv_heads, attention_grad_head, &job);
    for (int64_t head = 0; dsinks != NULL && head < spec->heads; head++) {
        float *d = (float *)dsinks->data + head;
        double sum = 0;
        for (int64_t s = 0; s < spec->sequences; s++) {
            sum += job.sinks[s * spec->heads + head];
        }
        *d = (float)((double)*d + sum);
    }
    return 0;
}
