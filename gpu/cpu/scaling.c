/* Scaling of rows and columns, and inputs as a runtime's quantizer leaves them.
 *
 * INT8: q = clamp(rne(x / s), -127, 127); E4M3: the nearest of x / s, saturating. Both divide, as runtimes do. A
 * dynamic scale is the group's largest magnitude over 127 or 448; outlier columns neither count nor change (LLM.int8(),
 * Dettmers et al. 2022, §3.2). Where a runtime stores the scale in half precision, codes are made by the exact one and
 * multiplied by the stored one. scaling_round is what the vectors of kernels_input.inc compute, one value at a time. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <string.h>

#define ROW_TILE 16

struct scaling {
    float *w;
    const float *rows, *cols;
    int64_t count, width;
};

static void scale_tile(void *ctx, int64_t task)
{
    const struct scaling *job = ctx;

    for (int64_t n = task * ROW_TILE; n < task * ROW_TILE + tile_size(job->count, ROW_TILE, task); n++) {
        float *w = job->w + n * job->width, row = job->rows != NULL ? job->rows[n] : 1.0f;
        for (int64_t k = 0; k < job->width; k++) {
            w[k] *= job->cols != NULL ? row * job->cols[k] : row;
        }
    }
}

int cpu_scale(struct gpu_stream *stream, const struct tensor *w, const struct tensor *rows, const struct tensor *cols)
{
    struct scaling job = {w->data, rows != NULL ? rows->data : NULL, cols != NULL ? cols->data : NULL, matrix_rows(w),
                          matrix_cols(w)};

    stream_run(stream, tiles_of(job.count, ROW_TILE), scale_tile, &job);
    return 0;
}

struct input {
    float *y;
    const float *x, *outliers;
    const struct gpu_input *spec;
    const struct kernels *kernels;
    int64_t rows, cols, group_size;
};

/* The code of x as a number. */
static float code_of(float x, float scale, enum dtype element)
{
    if (element == DTYPE_F8_E4M3) {
        return dtype_e4m3_to_f32(dtype_f32_to_e4m3(x / scale));
    }
    return fminf(fmaxf(rintf(x / scale), -127.0f), 127.0f);
}

float scaling_round(float x, float scale, enum dtype element)
{
    return code_of(x, scale, element) * scale;
}

static void input_tile(void *ctx, int64_t task)
{
    const struct input *job = ctx;
    const struct gpu_input *spec = job->spec;
    const struct kernels *kernels = job->kernels;
    float largest = (float)dtype_max(spec->element);
    int64_t first = task * ROW_TILE, end = first + tile_size(job->rows, ROW_TILE, task);
    int64_t groups = tiles_of(job->cols, job->group_size);

    for (int64_t k = first * groups; k < end * groups; k++) {
        int64_t at = k / groups * job->cols + k % groups * job->group_size,
                count = tile_size(job->cols, job->group_size, k % groups);
        const float *outliers = job->outliers != NULL ? job->outliers + at % job->cols : NULL;
        float scale = spec->dynamic ? kernels->input_range(job->x + at, outliers, count) / largest : spec->scale;
        float stored = spec->half ? dtype_round(scale, DTYPE_F16) : scale;
        if (scale == 0.0f) {
            memmove(job->y + at, job->x + at, (size_t)count * sizeof(float));
        } else if (spec->element == DTYPE_F8_E4M3) {
            kernels->input_e4m3(job->y + at, job->x + at, outliers, count, scale, stored);
        } else {
            kernels->input_int8(job->y + at, job->x + at, outliers, count, scale, stored);
        }
    }
}

int cpu_quantize_input(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                       const struct tensor *outliers, const struct gpu_input *spec)
{
    struct input job = {.y = y->data,
                        .x = x->data,
                        .outliers = outliers != NULL ? outliers->data : NULL,
                        .spec = spec,
                        .kernels = stream->device->kernels,
                        .rows = matrix_rows(x),
                        .cols = matrix_cols(x)};

    job.group_size = spec->dynamic && spec->group_size > 0 ? spec->group_size : job.cols;
    stream_run(stream, tiles_of(job.rows, ROW_TILE), input_tile, &job);
    return 0;
}
