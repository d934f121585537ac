/* Weights as a scale times an element of a fixed set: eight-bit floats and integers, and the sixteen levels of NF4.
 *
 * E4M3, E5M2 and INT8: the nearest of w / scale, ties to even, saturating. NF4: the nearest level of w * (1 / scale),
 * ties to the lower one, since the reference multiplies by the reciprocal (Dettmers et al. 2023, appendix E); where
 * that leaves the range of floats, the quotient. A largest magnitude has no order, so rows may be looked at in any. */

#include "gpu/cpu/internal.h"

#include <math.h>

#define CHUNK 16384 /* columns of a task, about */

struct tiles {
    const struct kernels *kernels;
    float *w, *scale; /* scale: per tensor, or the ranges of single rows */
    uint8_t *codes;
    const struct gpu_tiles *spec;
    int64_t rows, cols, groups; /* groups: tiles side by side */
    int64_t chunks, width;      /* tasks for a row; tiles of each */
    float middles[16];          /* of NF4, and one that is not used */
    float values[16];           /* of the codes of four bits */
};

/* The part of a row that a task has: tiles [first, end). */
struct part {
    int64_t row, first, end;
};

static struct part part_of(const struct tiles *job, int64_t task)
{
    int64_t first = task % job->chunks * job->width;

    return (struct part){task / job->chunks, first,
                         first + job->width < job->groups ? first + job->width : job->groups};
}

static struct tiles tiles_job(const struct gpu_stream *stream, const struct tensor *w, const struct gpu_tiles *spec)
{
    struct tiles job = {
        .kernels = stream->device->kernels, .w = w->data, .spec = spec, .rows = matrix_rows(w), .cols = matrix_cols(w)};

    job.groups = tiles_of(job.cols, spec->cols);
    job.width = spec->cols < CHUNK ? CHUNK / spec->cols : 1;
    job.chunks = tiles_of(job.groups, job.width);
    for (int i = 0; i < 15; i++) {
        job.middles[i] = (dtype_nf4_levels[i] + dtype_nf4_levels[i + 1]) / 2.0f;
    }
    for (int code = 0; code < 16; code++) {
        job.values[code] = dtype_decode(spec->element, (uint8_t)code);
    }
    return job;
}

static void range_part(void *ctx, int64_t task)
{
    const struct tiles *job = ctx;
    struct part part = part_of(job, task);

    for (int64_t g = part.first; g < part.end; g++) {
        const float *w = job->w + part.row * job->cols + g * job->spec->cols;
        int64_t count = tile_size(job->cols, job->spec->cols, g);
        job->scale[part.row * job->groups + g] = job->kernels->input_range(w, NULL, count);
    }
}

int cpu_tile_range(struct gpu_stream *stream, const struct tensor *max, const struct tensor *w,
                   const struct gpu_tiles *spec)
{
    struct tiles job = tiles_job(stream, w, spec);
    TRY(scratch_reserve(stream, scratch_size(job.rows * job.groups, sizeof(float)), 0));
    float *out = max->data;
    job.scale = scratch_shared(stream);
    stream_run(stream, job.rows * job.chunks, range_part, &job);
    for (int64_t i = 0; i < tensor_count(max); i++) {
        out[i] = 0;
    }
    for (int64_t n = 0; n < job.rows; n++) {
        float *tile = out + n / spec->rows * job.groups;
        for (int64_t g = 0; g < job.groups; g++) {
            float row = job.scale[n * job.groups + g];
            tile[g] = row > tile[g] ? row : tile[g];
        }
    }
    return 0;
}

static void encode_run(uint8_t *codes, const float *w, int64_t count, float scale, const struct tiles *job)
{
    float inverse = 1.0f / scale;

    if (job->spec->element != DTYPE_NF4) {
        job->kernels->encode_elements(codes, w, count, scale, job->spec->element);
    } else if (scale == 0 || !isfinite(inverse)) {
        for (int64_t i = 0; i < count; i++) {
            codes[i] = dtype_f32_to_nf4(scale == 0 ? 0.0f : w[i] / scale);
        }
    } else {
        job->kernels->encode_levels(codes, w, count, inverse, job->middles);
    }
}

static void encode_part(void *ctx, int64_t task)
{
    const struct tiles *job = ctx;
    struct part part = part_of(job, task);

    for (int64_t g = part.first; g < part.end; g++) {
        int64_t at = part.row * job->cols + g * job->spec->cols, count = tile_size(job->cols, job->spec->cols, g);
        float scale = job->scale[part.row / job->spec->rows * job->groups + g];
        encode_run(job->codes + at, job->w + at, count, scale, job);
    }
}

static void decode_part(void *ctx, int64_t task)
{
    const struct tiles *job = ctx;
    struct part part = part_of(job, task);

    for (int64_t g = part.first; g < part.end; g++) {
        int64_t at = part.row * job->cols + g * job->spec->cols, count = tile_size(job->cols, job->spec->cols, g);
        float scale = job->scale[part.row / job->spec->rows * job->groups + g];
        job->kernels->decode_elements(job->w + at, job->codes + at, count, scale, job->spec->element, job->values);
    }
}

static int run_tiles(struct gpu_stream *stream, void (*fn)(void *, int64_t), const struct tensor *codes,
                     const struct tensor *w, const struct tensor *scale, const struct gpu_tiles *spec)
{
    struct tiles job = tiles_job(stream, w, spec);

    job.codes = codes->data;
    job.scale = scale->data;
    stream_run(stream, job.rows * job.chunks, fn, &job);
    return 0;
}

int cpu_tile_encode(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w,
                    const struct tensor *scale, const struct gpu_tiles *spec)
{
    return run_tiles(stream, encode_part, codes, w, scale, spec);
}

int cpu_tile_decode(struct gpu_stream *stream, const struct tensor *w, const struct tensor *codes,
                    const struct tensor *scale, const struct gpu_tiles *spec)
{
    return run_tiles(stream, decode_part, codes, w, scale, spec);
}
