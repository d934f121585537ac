/* Keys and values as a quantized cache gives them back, and what that does to attention.
 *
 * Symmetric: code = x / scale to I8 or F8_E4M3, the scale given for each group of columns. Asymmetric: a tile of
 * `tokens` positions by `group_size` columns has its own minimum and step, step = (max - min) / (2^b - 1), both kept in
 * half precision; a tile of one value has step 0 and is stored exactly (Liu et al. 2024, KIVI, arXiv
 * 2402.02750, §3: keys by channel, group_size = 1; values by token, tokens = 1).
 *
 * The error of attention is measured as decoding meets it. Query t finds the keys before `floor(t/R)*R` and the values
 * before t-R quantized and everything newer in float, R being the recent window; with R = 0 all are quantized. Sums are
 * taken in double: along a query, then over the queries in order. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define Q_TILE 64
#define ROW_TILE 16

struct cache {
    const struct gpu_cache *spec;
    float *y;
    const float *x;
    int64_t rows, cols, tiles; /* tiles: of tokens in a sequence */
};

static void symmetric_tile(void *ctx, int64_t task)
{
    const struct cache *job = ctx;
    const struct gpu_cache *spec = job->spec;
    const float *scales = spec->scale->data;
    int64_t first = task * ROW_TILE * job->cols, count = tile_size(job->rows, ROW_TILE, task) * job->cols;

    for (int64_t at = first; at < first + count; at++) {
        job->y[at] = scaling_round(job->x[at], scales[at % job->cols / spec->group_size], spec->element);
    }
}

static float cache_half(float x)
{
    return dtype_round_finite(x, DTYPE_F16);
}

/* One group: `tokens` rows of `group_size` columns at x. */
static void round_group(const struct cache *job, int64_t at, int64_t tokens)
{
    float min = INFINITY, max = -INFINITY, top = (float)((1 << job->spec->bits) - 1);

    for (int64_t t = 0; t < tokens; t++) {
        const float *x = job->x + at + t * job->cols;
        for (int64_t i = 0; i < job->spec->group_size; i++) {
            min = fminf(min, x[i]);
            max = fmaxf(max, x[i]);
        }
    }
    float low = cache_half(min), step = cache_half((max - low) / top);
    for (int64_t t = 0; t < tokens; t++) {
        const float *x = job->x + at + t * job->cols;
        float *y = job->y + at + t * job->cols;
        for (int64_t i = 0; i < job->spec->group_size; i++) {
            float code = step > 0 ? fminf(fmaxf(rintf((x[i] - low) / step), 0.0f), top) : 0.0f;
            y[i] = code * step + low;
        }
    }
}

static void asymmetric_tile(void *ctx, int64_t task)
{
    const struct cache *job = ctx;
    const struct gpu_cache *spec = job->spec;
    int64_t sequence = task / job->tiles, tile = task % job->tiles;
    int64_t first = sequence * spec->length + tile * spec->tokens;
    int64_t tokens = tile_size(spec->length, spec->tokens, tile);

    for (int64_t col = 0; col < job->cols; col += spec->group_size) {
        round_group(job, first * job->cols + col, tokens);
    }
}

int cpu_quantize_cache(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                       const struct gpu_cache *spec)
{
    struct cache job = {.spec = spec, .y = y->data, .x = x->data, .rows = matrix_rows(x), .cols = matrix_cols(x)};
    if (spec->element != DTYPE_U8) {
        stream_run(stream, tiles_of(job.rows, ROW_TILE), symmetric_tile, &job);
        return 0;
    }
    job.tiles = tiles_of(spec->length, spec->tokens);
    stream_run(stream, job.rows / spec->length * job.tiles, asymmetric_tile, &job);
    return 0;
}

struct comparison {
    struct gpu_stream *stream;
    const struct gpu_attention *spec;
    const float *q, *k[2], *v[2]; /* [0] float, [1] quantized */
    int64_t recent, tiles, span;
    struct gpu_attention_error *parts; /* one a task */
};

/* A worker's piece of scratch. */
struct tile {
    float *scores[2], *split; /* [queries, keys] each */
    float *out[2];            /* [queries, value_dim] each */
    int64_t head, begin, queries, key0, keys, q_at, k_at, v_at, q_stride, k_stride, v_stride;
};

static int64_t cache_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t first_seen(const struct gpu_attention *spec, int64_t position)
{
    return attention_first(spec->window, spec->chunk, position);
}

/* How many of the keys, or values, that query t sees are quantized, counted from position 0. */
static int64_t frontier(const struct comparison *job, int64_t t, bool keys)
{
    if (job->recent == 0) {
        return t + 1;
    }
    int64_t end = keys ? t / job->recent * job->recent : t - job->recent;
    return end > 0 ? end : 0;
}

static struct tile tile_of(const struct comparison *job, int64_t task)
{
    const struct gpu_attention *spec = job->spec;
    int64_t number = task % job->tiles, head = task / job->tiles % spec->heads;
    int64_t sequence = task / job->tiles / spec->heads, dim = spec->head_dim, value_dim = gpu_value_dim(spec);
    int64_t kv_head = head / (spec->heads / spec->kv_heads);
    struct tile t = {.head = head,
                     .begin = number * Q_TILE,
                     .queries = tile_size(spec->length, Q_TILE, number),
                     .q_stride = spec->heads * dim,
                     .k_stride = spec->kv_heads * dim,
                     .v_stride = spec->kv_heads * value_dim};

    t.key0 = first_seen(spec, t.begin);
    t.keys = t.begin + t.queries - t.key0;
    t.q_at = (sequence * spec->length + t.begin) * t.q_stride + head * dim;
    t.k_at = (sequence * spec->length + t.key0) * t.k_stride + kv_head * dim;
    t.v_at = (sequence * spec->length + t.key0) * t.v_stride + kv_head * value_dim;
    float *slice = scratch_slice(job->stream);
    t.scores[0] = slice;
    t.scores[1] = slice + job->span * Q_TILE;
    t.split = slice + 2 * job->span * Q_TILE;
    t.out[0] = slice + 3 * job->span * Q_TILE;
    t.out[1] = t.out[0] + Q_TILE * value_dim;
    return t;
}

/* sum (a-b)^2 and sum a^2 of one row. */
static void cache_compare(const float *a, const float *b, int64_t count, double *error, double *signal)
{
    double e = 0, s = 0;

    for (int64_t i = 0; i < count; i++) {
        double difference = (double)a[i] - (double)b[i];
        e += difference * difference;
        s += (double)a[i] * (double)a[i];
    }
    *error += e;
    *signal += s;
}

/* Scores of row i to weights on both sides; after the frontier the quantized side has the float keys' scores. */
static void weigh_row(const struct comparison *job, const struct tile *t, int64_t i, struct gpu_attention_error *sum)
{
    int64_t position = t->begin + i, low = first_seen(job->spec, position) - t->key0, high = position + 1 - t->key0;
    int64_t edge = cache_min(frontier(job, position, true) - t->key0, high);
    float *row[2] = {t->scores[0] + i * t->keys, t->scores[1] + i * t->keys};

    edge = edge > low ? edge : low;
    memcpy(row[1] + edge, row[0] + edge, (size_t)(high - edge) * sizeof(float));
    cache_compare(row[0] + low, row[1] + low, high - low, &sum->score_error, &sum->score_signal);
    for (int side = 0; side < 2; side++) {
        float inverse =
            1.0f / attention_weights(job->stream->device->kernels, job->spec, t->head, row[side] + low, high - low);
        for (int64_t j = low; j < high; j++) {
            row[side][j] *= inverse;
        }
        memset(row[side], 0, (size_t)low * sizeof(float));
        memset(row[side] + high, 0, (size_t)(t->keys - high) * sizeof(float));
    }
    cache_compare(row[0] + low, row[1] + low, high - low, &sum->weight_error, &sum->weight_signal);
}

/* The part of row i's weights that falls on float values moves to `split`. */
static void split_row(const struct comparison *job, const struct tile *t, int64_t i)
{
    int64_t edge = frontier(job, t->begin + i, false) - t->key0;
    float *weights = t->scores[1] + i * t->keys, *split = t->split + i * t->keys;

    edge = edge < 0 ? 0 : cache_min(edge, t->keys);
    memset(split, 0, (size_t)edge * sizeof(float));
    memcpy(split + edge, weights + edge, (size_t)(t->keys - edge) * sizeof(float));
    memset(weights + edge, 0, (size_t)(t->keys - edge) * sizeof(float));
}

static void comparison_tile(void *ctx, int64_t task)
{
    const struct comparison *job = ctx;
    struct tile t = tile_of(job, task);
    struct gpu_attention_error sum = {0};
    int m = (int)t.queries, n = (int)t.keys, dim = (int)job->spec->head_dim, out = (int)gpu_value_dim(job->spec);

    for (int side = 0; side < 2; side++) {
        blas_gemm(0, 1, m, n, dim, 1.0f, job->q + t.q_at, (int)t.q_stride, job->k[side] + t.k_at, (int)t.k_stride, 0.0f,
                  t.scores[side], n);
    }
    for (int64_t i = 0; i < t.queries; i++) {
        weigh_row(job, &t, i, &sum);
        split_row(job, &t, i);
    }
    for (int side = 0; side < 2; side++) {
        blas_gemm(0, 0, m, out, n, 1.0f, t.scores[side], n, job->v[side] + t.v_at, (int)t.v_stride, 0.0f, t.out[side],
                  out);
    }
    blas_gemm(0, 0, m, out, n, 1.0f, t.split, n, job->v[0] + t.v_at, (int)t.v_stride, 1.0f, t.out[1], out);
    cache_compare(t.out[0], t.out[1], t.queries * out, &sum.output_error, &sum.output_signal);
    job->parts[task] = sum;
}

int cpu_attention_error(struct gpu_stream *stream, struct gpu_attention_error *out, const struct tensor *q,
                        const struct tensor *k, const struct tensor *v, const struct tensor *kq,
                        const struct tensor *vq, const struct gpu_attention *spec, int64_t recent)
{
    struct comparison job = {.stream = stream,
                             .spec = spec,
                             .q = q->data,
                             .k = {k->data, kq->data},
                             .v = {v->data, vq->data},
                             .recent = recent};
    job.tiles = tiles_of(spec->length, Q_TILE);
    int64_t reach = attention_reach(spec->window, spec->chunk, spec->length);
    job.span = reach < spec->length - Q_TILE ? reach + Q_TILE : spec->length;
    int64_t tasks = spec->sequences * spec->heads * job.tiles;
    TRY(scratch_reserve(stream, scratch_size(tasks, sizeof(*job.parts)),
                        scratch_size((3 * job.span + 2 * gpu_value_dim(spec)) * Q_TILE, sizeof(float))));
    job.parts = scratch_shared(stream);
    stream_run(stream, tasks, comparison_tile, &job);
    for (int64_t i = 0; i < tasks; i++) {
        out->score_error += job.parts[i].score_error;
        out->score_signal += job.parts[i].score_signal;
        out->weight_error += job.parts[i].weight_error;
        out->weight_signal += job.parts[i].weight_signal;
        out->output_error += job.parts[i].output_error;
        out->output_signal += job.parts[i].output_signal;
    }
    return 0;
}
