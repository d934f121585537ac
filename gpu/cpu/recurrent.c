/* What goes along a sequence: causal convolution by column, the gated delta rule (Yang et al. 2024, arXiv 2412.06464),
 * the scan of Mamba 2 (Dao and Gu 2024, arXiv 2405.21060), and the gated norms that follow them.
 *
 * A recurrence is sequential over time. Its state [keys, values] of a head has columns that do not depend on each
 * other, so a task is one head of one sequence, and takes TOKENS tokens at a time: first what all columns need of them
 * (keys and queries of length 1, decays), then LANES columns after another, whose state stays in the first cache.
 * Memory is the state and those tokens, whatever the length. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define TOKENS 64
#define ROW_TILE 16
#define LENGTH_EPS 1e-6 /* what is added to the squares of a query and of a key */

/* --- convolution */

struct conv {
    const struct kernels *kernels;
    float *y;
    const float *x, *w, *bias; /* w: [width][cols]; bias: or NULL */
    int64_t rows, cols, width, length;
    bool silu;
};

static void conv_tile(void *ctx, int64_t task)
{
    const struct conv *job = ctx;

    for (int64_t r = task * ROW_TILE; r < task * ROW_TILE + tile_size(job->rows, ROW_TILE, task); r++) {
        int64_t before = r % job->length;
        float *y = job->y + r * job->cols;
        for (int64_t c = 0; c < job->cols; c++) {
            y[c] = job->bias != NULL ? job->bias[c] : 0.0f;
        }
        for (int64_t j = before < job->width - 1 ? job->width - 1 - before : 0; j < job->width; j++) {
            const float *x = job->x + (r - job->width + 1 + j) * job->cols, *w = job->w + j * job->cols;
            for (int64_t c = 0; c < job->cols; c++) {
                y[c] += w[c] * x[c];
            }
        }
        if (job->silu) {
            job->kernels->activate(y, y, false, NULL, job->cols, GPU_SILU);
        }
    }
}

int cpu_causal_conv(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *w,
                    const struct tensor *bias, int64_t length, bool silu)
{
    struct conv job = {.kernels = stream->device->kernels,
                       .y = y->data,
                       .x = x->data,
                       .bias = bias != NULL ? bias->data : NULL,
                       .rows = matrix_rows(x),
                       .cols = matrix_cols(x),
                       .width = matrix_cols(w),
                       .length = length,
                       .silu = silu};
    const float *from = w->data;

    TRY(scratch_reserve(stream, scratch_size(job.width * job.cols, sizeof(float)), 0));
    float *turned = scratch_shared(stream);
    for (int64_t c = 0; c < job.cols; c++) {
        for (int64_t j = 0; j < job.width; j++) {
            turned[j * job.cols + c] = from[c * job.width + j];
        }
    }
    job.w = turned;
    stream_run(stream, tiles_of(job.rows, ROW_TILE), conv_tile, &job);
    return 0;
}

/* --- recurrences */

struct recurrence {
    struct gpu_stream *stream;
    void (*step)(float *state, int64_t n, const float *q, const float *k, const float *v, float decay, float beta,
                 float *out);
    float *y;
    const float *x, *dt, *beta, *a_log, *dt_bias, *d; /* beta: of the delta rule; d: of a scan */
    int64_t length, heads, groups, keys, values;
    int64_t row;     /* columns of x, */
    int64_t q, k, v; /* and where a row's queries, keys and values begin */
    double dt_min, dt_max;
};

/* A task's memory. */
struct slice {
    float *state; /* [tiles][keys][LANES] */
    float *q, *k; /* [TOKENS][keys] */
    float *decay, *beta;
};

static size_t slice_bytes(const struct recurrence *job)
{
    return scratch_size(tiles_of(job->values, LANES) * LANES * job->keys + 2 * TOKENS * (job->keys + 1), sizeof(float));
}

static struct slice slice_of(const struct recurrence *job)
{
    struct slice s = {.state = scratch_slice(job->stream)};

    s.q = s.state + tiles_of(job->values, LANES) * LANES * job->keys;
    s.k = s.q + TOKENS * job->keys;
    s.decay = s.k + TOKENS * job->keys;
    s.beta = s.decay + TOKENS;
    return s;
}

static double softplus(double x)
{
    return x > 20 ? x : log1p(exp(x));
}

/* x as long as `length`. */
static void scale_to(const struct recurrence *job, float *to, const float *x, double length)
{
    double squares = job->stream->device->kernels->dot(x, x, job->keys);
    float factor = (float)(length / sqrt(squares + LENGTH_EPS));

    for (int64_t i = 0; i < job->keys; i++) {
        to[i] = x[i] * factor;
    }
}

static void gather_tokens(const struct recurrence *job, const struct slice *s, int64_t head, int64_t first,
                          int64_t count)
{
    int64_t at = head / (job->heads / job->groups) * job->keys;
    double rate = exp((double)job->a_log[head]);

    for (int64_t t = 0; t < count; t++) {
        const float *x = job->x + (first + t) * job->row;
        double dt = softplus((double)job->dt[(first + t) * job->heads + head] + (double)job->dt_bias[head]);
        if (job->beta != NULL) {
            scale_to(job, s->q + t * job->keys, x + job->q + at, 1 / sqrt((double)job->keys));
            scale_to(job, s->k + t * job->keys, x + job->k + at, 1);
            s->beta[t] = (float)(1 / (1 + exp(-(double)job->beta[(first + t) * job->heads + head])));
        } else {
            memcpy(s->q + t * job->keys, x + job->q + at, (size_t)job->keys * sizeof(float));
            memcpy(s->k + t * job->keys, x + job->k + at, (size_t)job->keys * sizeof(float));
            dt = dt < job->dt_min ? job->dt_min : dt > job->dt_max ? job->dt_max : dt;
            s->beta[t] = (float)dt;
        }
        s->decay[t] = (float)exp(-rate * dt);
    }
}

/* Columns of a tile over the gathered tokens. */
static void run_columns(const struct recurrence *job, const struct slice *s, int64_t head, int64_t first, int64_t count,
                        int64_t tile)
{
    int64_t at = head * job->values + tile * LANES;
    size_t bytes = (size_t)(tile_size(job->values, LANES, tile) < LANES ? tile_size(job->values, LANES, tile) : LANES) *
                   sizeof(float);
    float *state = s->state + tile * job->keys * LANES, v[LANES] = {0}, out[LANES];

    for (int64_t t = 0; t < count; t++) {
        memcpy(v, job->x + (first + t) * job->row + job->v + at, bytes);
        job->step(state, job->keys, s->q + t * job->keys, s->k + t * job->keys, v, s->decay[t], s->beta[t], out);
        for (int l = 0; job->d != NULL && l < LANES; l++) {
            out[l] += job->d[head] * v[l];
        }
        memcpy(job->y + (first + t) * job->heads * job->values + at, out, bytes);
    }
}

static void recurrence_task(void *ctx, int64_t task)
{
    const struct recurrence *job = ctx;
    const struct slice s = slice_of(job);
    int64_t head = task % job->heads, begin = task / job->heads * job->length, tiles = tiles_of(job->values, LANES);

    memset(s.state, 0, (size_t)(tiles * LANES * job->keys) * sizeof(float));
    for (int64_t t = 0; t < job->length; t += TOKENS) {
        int64_t count = tile_size(job->length, TOKENS, t / TOKENS);
        gather_tokens(job, &s, head, begin + t, count);
        for (int64_t tile = 0; tile < tiles; tile++) {
            run_columns(job, &s, head, begin + t, count, tile);
        }
    }
}

static int recurrence_run(struct recurrence *job, int64_t rows)
{
    TRY(scratch_reserve(job->stream, 0, slice_bytes(job)));
    stream_run(job->stream, rows / job->length * job->heads, recurrence_task, job);
    return 0;
}

int cpu_delta_rule(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *a,
                   const struct tensor *beta, const struct tensor *a_log, const struct tensor *dt_bias,
                   const struct gpu_delta *spec)
{
    int64_t keys = spec->key_heads * spec->key_dim;
    struct recurrence job = {.stream = stream,
                             .step = stream->device->kernels->delta_step,
                             .y = y->data,
                             .x = x->data,
                             .dt = a->data,
                             .beta = beta->data,
                             .a_log = a_log->data,
                             .dt_bias = dt_bias->data,
                             .length = spec->length,
                             .heads = spec->value_heads,
                             .groups = spec->key_heads,
                             .keys = spec->key_dim,
                             .values = spec->value_dim,
                             .row = matrix_cols(x),
                             .k = keys,
                             .v = 2 * keys};

    return recurrence_run(&job, matrix_rows(x));
}

int cpu_state_scan(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *dt,
                   const struct tensor *a_log, const struct tensor *dt_bias, const struct tensor *d,
                   const struct gpu_scan *spec)
{
    int64_t width = spec->heads * spec->head_dim;
    struct recurrence job = {.stream = stream,
                             .step = stream->device->kernels->scan_step,
                             .y = y->data,
                             .x = x->data,
                             .dt = dt->data,
                             .a_log = a_log->data,
                             .dt_bias = dt_bias->data,
                             .d = d->data,
                             .length = spec->length,
                             .heads = spec->heads,
                             .groups = spec->groups,
                             .keys = spec->state,
                             .values = spec->head_dim,
                             .row = matrix_cols(x),
                             .q = width + spec->groups * spec->state,
                             .k = width,
                             .dt_min = (double)spec->dt_min,
                             .dt_max = (double)spec->dt_max};

    return recurrence_run(&job, matrix_rows(x));
}

/* --- gated norms */

struct gated_norm {
    const struct kernels *kernels;
    float *y;
    const float *x, *gate, *weight;
    int64_t groups, size, weights; /* weights: how many groups have weights of their own */
    float eps;
    bool gate_first;
};

static double silu(float x)
{
    return (double)x / (1 + exp(-(double)x));
}

static void gated_norm_tile(void *ctx, int64_t task)
{
    const struct gated_norm *job = ctx;

    for (int64_t r = task * ROW_TILE; r < task * ROW_TILE + tile_size(job->groups, ROW_TILE, task); r++) {
        const float *x = job->x + r * job->size, *gate = job->gate + r * job->size;
        const float *weight = job->weight + r % job->weights * job->size;
        float *y = job->y + r * job->size;
        for (int64_t i = 0; i < job->size; i++) {
            y[i] = job->gate_first ? (float)((double)x[i] * silu(gate[i])) : x[i];
        }
        double mean = job->kernels->dot(y, y, job->size) / (double)job->size;
        float factor = (float)(1.0 / sqrt(mean + (double)job->eps));
        for (int64_t i = 0; i < job->size; i++) {
            float normed = y[i] * factor * weight[i];
            y[i] = job->gate_first ? normed : (float)((double)normed * silu(gate[i]));
        }
    }
}

int cpu_gated_norm(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *gate,
                   const struct tensor *weight, int64_t size, float eps, bool gate_first)
{
    struct gated_norm job = {.kernels = stream->device->kernels,
                             .y = y->data,
                             .x = x->data,
                             .gate = gate->data,
                             .weight = weight->data,
                             .groups = matrix_rows(x) * (matrix_cols(x) / size),
                             .size = size,
                             .weights = tensor_count(weight) / size,
                             .eps = eps,
                             .gate_first = gate_first};

    stream_run(stream, tiles_of(job.groups, ROW_TILE), gated_norm_tile, &job);
    return 0;
}
