/* The linear map from codebooks to weights, W^ = diag(scale) A C with A the 0/1 matrix that codes are, and its adjoint:
 * all that least squares in the codebooks needs. Sums over rows are cut into a fixed number of slices, each summed in
 * double in the order of rows, and the slices are added in their order. */

#include "gpu/cpu/internal.h"

#include <string.h>

#define ROW_TILE 32
#define CHUNK 1024
#define REDUCE_SLICES 8

struct expand {
    float *y;
    const uint16_t *entries;
    const float *scale, *table;
    int64_t rows, cols, groups, g, codes;
    int books;
    float alpha;
    bool add;
};

static void expand_row(const struct expand *job, int64_t n)
{
    float v[GPU_CODE_GROUP_MAX], s = job->scale != NULL ? job->scale[n] : 1.0f;

    for (int64_t i = 0; i < job->groups; i++) {
        const uint16_t *codes = job->entries + (n * job->groups + i) * job->books;
        float *y = job->y + n * job->cols + i * job->g;
        memset(v, 0, sizeof(v));
        for (int64_t book = 0; book < job->books; book++) {
            const float *vector = job->table + (book * job->codes + codes[book]) * job->g;
            for (int64_t a = 0; a < job->g; a++) {
                v[a] += vector[a];
            }
        }
        for (int64_t a = 0; a < job->g; a++) {
            float value = job->alpha * (s * v[a]);
            y[a] = job->add ? y[a] + value : value;
        }
    }
}

static void expand_tile(void *ctx, int64_t task)
{
    const struct expand *job = ctx;

    for (int64_t n = task * ROW_TILE; n < task * ROW_TILE + tile_size(job->rows, ROW_TILE, task); n++) {
        expand_row(job, n);
    }
}

int cpu_code_expand(struct gpu_stream *stream, const struct tensor *y, const struct tensor *entries,
                    const struct tensor *scale, const struct tensor *table, const struct gpu_codebook *spec,
                    float alpha, bool add)
{
    struct expand job = {.y = y->data,
                         .entries = entries->data,
                         .scale = scale != NULL ? scale->data : NULL,
                         .table = table->data,
                         .rows = matrix_rows(y),
                         .cols = matrix_cols(y),
                         .g = spec->group_size,
                         .books = spec->codebooks,
                         .alpha = alpha,
                         .add = add};

    job.groups = job.cols / job.g;
    job.codes = (int64_t)1 << spec->bits;
    stream_run(stream, tiles_of(job.rows, ROW_TILE), expand_tile, &job);
    return 0;
}

struct reduce {
    float *out;
    double *parts; /* [REDUCE_SLICES][books * codes * g] */
    const uint16_t *entries;
    const float *p, *scale;
    int64_t rows, cols, groups, g, codes, slice, size;
    int books;
};

static void reduce_slice(void *ctx, int64_t task)
{
    const struct reduce *job = ctx;
    double *part = job->parts + task * job->size;

    memset(part, 0, (size_t)job->size * sizeof(*part));
    for (int64_t n = task * job->slice; n < (task + 1) * job->slice && n < job->rows; n++) {
        float s = job->scale != NULL ? job->scale[n] : 1.0f;
        for (int64_t i = 0; i < job->groups; i++) {
            const uint16_t *codes = job->entries + (n * job->groups + i) * job->books;
            const float *p = job->p + n * job->cols + i * job->g;
            for (int64_t book = 0; book < job->books; book++) {
                double *to = part + (book * job->codes + codes[book]) * job->g;
                for (int64_t a = 0; a < job->g; a++) {
                    to[a] += (double)(s * p[a]);
                }
            }
        }
    }
}

static void reduce_sum(void *ctx, int64_t task)
{
    const struct reduce *job = ctx;

    for (int64_t at = task * CHUNK; at < task * CHUNK + tile_size(job->size, CHUNK, task); at++) {
        double sum = 0;
        for (int64_t i = 0; i < REDUCE_SLICES; i++) {
            sum += job->parts[i * job->size + at];
        }
        job->out[at] = (float)sum;
    }
}

int cpu_code_reduce(struct gpu_stream *stream, const struct tensor *out, const struct tensor *p,
                    const struct tensor *entries, const struct tensor *scale, const struct gpu_codebook *spec)
{
    struct reduce job = {.out = out->data,
                         .entries = entries->data,
                         .p = p->data,
                         .scale = scale != NULL ? scale->data : NULL,
                         .rows = matrix_rows(p),
                         .cols = matrix_cols(p),
                         .g = spec->group_size,
                         .books = spec->codebooks};
    job.groups = job.cols / job.g;
    job.codes = (int64_t)1 << spec->bits;
    job.size = job.books * job.codes * job.g;
    job.slice = tiles_of(job.rows, REDUCE_SLICES);
    TRY(scratch_reserve(stream, scratch_size(REDUCE_SLICES * job.size, sizeof(double)), 0));
    job.parts = scratch_shared(stream);
    stream_run(stream, REDUCE_SLICES, reduce_slice, &job);
    stream_run(stream, tiles_of(job.size, CHUNK), reduce_sum, &job);
    return 0;
}

struct row_dot {
    const struct kernels *kernels;
    const float *a, *b;
    int64_t rows, cols;
    float *out;
};

static void dot_tile(void *ctx, int64_t task)
{
    const struct row_dot *job = ctx;

    for (int64_t n = task * ROW_TILE; n < task * ROW_TILE + tile_size(job->rows, ROW_TILE, task); n++) {
        job->out[n] = (float)job->kernels->dot(job->a + n * job->cols, job->b + n * job->cols, job->cols);
    }
}

int cpu_row_dot(struct gpu_stream *stream, const struct tensor *out, const struct tensor *a, const struct tensor *b)
{
    struct row_dot job = {.kernels = stream->device->kernels,
                          .a = a->data,
                          .b = b->data,
                          .rows = matrix_rows(a),
                          .cols = matrix_cols(a),
                          .out = out->data};

    stream_run(stream, tiles_of(job.rows, ROW_TILE), dot_tile, &job);
    return 0;
}
