/* Scale and zero of each group of weights refined by half-quadratic splitting (Badri and Shaji 2023, HQQ): the grid
 * that minimizes sum |w - wq|^0.7, which weighs the many small errors more than a few large ones.
 *
 *   d = w - s (q - z), q the codes of w on the grid
 *   e = sign(d) max(0, |d| - |d|^(p-1) / beta), the error that is let be
 *   z = mean(q - (w - e) / s), then s by least squares of w - e on q - z
 *
 * in units of the first scale, so that the result does not depend on the weights' unit. The reference keeps a real zero
 * point and leaves the scale alone. Here zero points are integers, as integer formats store them, and between integer
 * zero points only the scale can improve, so it is fitted too. Rounds continue, beta growing, while mean |d| shrinks;
 * the best grid is kept, the first one being the caller's. */

#include "gpu/cpu/internal.h"

#include <math.h>

#define ROUNDS 20
#define NORM 0.7f
#define BETA 10.0f
#define BETA_GROWTH 1.01f

struct hqq {
    struct gpu_stream *stream;
    const struct gpu_grid *spec;
    float *scale, *zero;
    const float *w;
    int64_t cols, groups;
    float top;
};

/* What d has beyond what is counted, both in units. */
static float kept_error(float d, float beta)
{
    float size = fabsf(d), rest = size > 0.0f ? size - powf(size, NORM - 1.0f) / beta : 0.0f;

    return rest > 0.0f ? copysignf(rest, d) : 0.0f;
}

/* The next grid from the codes of this one; codes and d = (w - wq) / unit are given. False when there is none. */
static bool hqq_advance(const struct hqq *job, const float *w, const uint8_t *codes, float *d, float unit, float beta,
                        struct grid_point *point)
{
    int64_t g = job->spec->group_size;
    double mean = 0, dot = 0, square = 0;

    for (int64_t i = 0; i < g; i++) {
        d[i] = w[i] - kept_error(d[i], beta) * unit; /* what the codes should stand for */
        mean += (double)codes[i] - (double)d[i] / (double)point->scale;
    }
    float zero = rintf((float)(mean / (double)g));
    zero = zero < 0.0f ? 0.0f : zero > job->top ? job->top : zero;
    for (int64_t i = 0; i < g; i++) {
        double step = (double)codes[i] - (double)zero;
        dot += step * (double)d[i];
        square += step * step;
    }
    float scale = square > 0 ? dtype_round((float)(dot / square), job->spec->scale_dtype) : 0.0f;
    if (!(scale > 0.0f) || isinf(scale) || (scale == point->scale && zero == point->zero)) {
        return false;
    }
    *point = (struct grid_point){scale, zero};
    return true;
}

static struct grid_point hqq_refine(const struct hqq *job, const float *w, struct grid_point first, float *d,
                                    uint8_t *codes)
{
    const struct kernels *kernels = job->stream->device->kernels;
    int64_t g = job->spec->group_size;
    struct grid_point best = first, point = first;
    float beta = BETA;
    double min = INFINITY;

    for (int round = 0; round < ROUNDS; round++) {
        double lost = 0;
        kernels->round(codes, w, g, point.scale, point.zero, job->top);
        kernels->dequantize(d, codes, g, point.scale, point.zero);
        for (int64_t i = 0; i < g; i++) {
            d[i] = w[i] - d[i];
            lost += (double)fabsf(d[i]);
            d[i] /= first.scale;
        }
        if (!(lost < min)) {
            break;
        }
        min = lost;
        best = point;
        if (!hqq_advance(job, w, codes, d, first.scale, beta, &point)) {
            break;
        }
        beta *= BETA_GROWTH;
    }
    return best;
}

static void hqq_row(void *ctx, int64_t row)
{
    const struct hqq *job = ctx;
    int64_t g = job->spec->group_size;
    float *d = scratch_slice(job->stream);
    uint8_t *codes = (uint8_t *)(d + g);

    for (int64_t i = 0; i < job->groups; i++) {
        int64_t at = row * job->groups + i;
        const struct grid_point first = {job->scale[at], job->zero[at]};
        struct grid_point point = hqq_refine(job, job->w + row * job->cols + i * g, first, d, codes);
        job->scale[at] = point.scale;
        job->zero[at] = point.zero;
    }
}

int cpu_hqq(struct gpu_stream *stream, const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
            const struct gpu_grid *spec)
{
    struct hqq job = {.stream = stream,
                      .spec = spec,
                      .scale = scale->data,
                      .zero = zero->data,
                      .w = w->data,
                      .cols = matrix_cols(w),
                      .top = (float)((1 << spec->bits) - 1)};

    TRY(scratch_reserve(stream, 0, scratch_size(spec->group_size, sizeof(float)) + scratch_size(spec->group_size, 1)));
    job.groups = job.cols / spec->group_size;
    stream_run(stream, matrix_rows(w), hqq_row, &job);
    return 0;
}
