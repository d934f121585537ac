/* The kernels of gpu/cuda/descend.cu as plain loops, decision by decision. */

#include "tests/unit/gpu/cuda/shim.h"

#include "gpu/cuda/launch.h"
#include "gpu/tensor.h"

#include <math.h>
#include <stdbool.h>

#define ENTER()                         \
    do {                                \
        cudaError_t rc_ = shim_enter(); \
        if (rc_ != cudaSuccess) {       \
            return (int)rc_;            \
        }                               \
        shim_flush();                   \
    } while (0)

int launch_descend_ones(float *ones, const float *h, int64_t k, int64_t size, cudaStream_t stream)
{
    ENTER();
    for (int64_t j = 0; j < k; j++) {
        double sum = 0;
        for (int64_t i = 0; i < size; i++) {
            sum += (double)h[j * k + j / size * size + i];
        }
        ones[j] = (float)sum;
    }
    return 0;
}

int launch_descend_open(const struct launch_descend *job, int64_t group, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < job->rows * job->size; i++) {
        int64_t row = i / job->size, at = row * job->k + group * job->size + i % job->size;
        job->moves[at] = 0.0f;
        job->levels[i] = (float)job->codes[at] - job->zero[row * job->groups + group];
    }
    return 0;
}

static double move_scale(const struct launch_descend *job, int64_t row, int64_t group)
{
    const float *levels = job->levels + row * job->size, *curves = job->curves + row * job->size;
    float *g = job->g + row * job->k + group * job->size, *moves = job->moves + row * job->k + group * job->size;
    float *scale = &job->scale[row * job->groups + group];
    double curve = 0, slope = 0;

    for (int64_t j = 0; j < job->size; j++) {
        curve += (double)levels[j] * (double)curves[j];
        slope += (double)levels[j] * (double)g[j];
    }
    float best = curve > 0 ? dtype_round((float)((double)*scale + slope / curve), job->scale_dtype) : 0.0f;
    double t = (double)best - (double)*scale, gain = t * (2 * slope - t * curve);
    if (!isfinite(best) || best == 0.0f || (best > 0.0f) != (*scale > 0.0f) || !(gain > 0)) {
        return 0;
    }
    for (int64_t j = 0; j < job->size; j++) {
        moves[j] += (float)t * levels[j];
        g[j] -= (float)t * curves[j];
    }
    *scale = best;
    return gain;
}

static void take_zero(const struct launch_descend *job, int64_t at, int64_t first, int step, float t)
{
    for (int64_t j = 0; j < job->size; j++) {
        int code = job->codes[at + j] + step;
        bool dead = job->h[(first + j) * (job->k + 1)] == 0.0f;
        job->moves[at + j] += t;
        job->g[at + j] -= t * job->ones[first + j];
        job->codes[at + j] = dead && code >= 0 && code <= (int)job->top ? (uint8_t)code : job->codes[at + j];
    }
}

static double move_zero(const struct launch_descend *job, int64_t row, int64_t group)
{
    int64_t first = group * job->size, at = row * job->k + first, point = row * job->groups + group;
    float scale = job->scale[point], zero = job->zero[point];
    double slope = 0, curve = 0;

    for (int64_t j = 0; j < job->size; j++) {
        slope += (double)job->g[at + j];
        curve += (double)job->ones[first + j];
    }
    for (int step = -1; step <= 1; step += 2) {
        float t = -(float)step * scale;
        double gain = (double)t * (2 * slope - (double)t * curve);
        if (gain > 0 && zero + (float)step >= 0.0f && zero + (float)step <= job->top) {
            take_zero(job, at, first, step, t);
            job->zero[point] = zero + (float)step;
            return gain;
        }
    }
    return 0;
}

int launch_descend_points(const struct launch_descend *job, int64_t group, cudaStream_t stream)
{
    ENTER();
    for (int64_t row = 0; row < job->rows; row++) {
        double gain = move_scale(job, row, group);
        job->gain[row] += gain + (job->sym ? 0 : move_zero(job, row, group));
    }
    return 0;
}

/* Returns by how much the row's error falls. */
static double move_codes(const struct launch_descend *job, float *steps, int64_t row, int64_t first, int cols)
{
    float scale = job->scale[row * job->groups + first / job->size], *g = job->g + row * job->k + first;
    uint8_t *codes = job->codes + row * job->k + first;
    double gained = 0;

    for (int j = 0; j < cols; j++) {
        const float *h = job->h + (first + j) * job->k + first;
        float old = (float)codes[j], next = fminf(fmaxf(rintf(old + g[j] / (h[j] * scale)), 0.0f), job->top);
        float t = scale * (next - old);
        double gain = (double)t * (2 * (double)g[j] - (double)t * (double)h[j]);
        bool moves = h[j] > 0.0f && gain > 0;
        steps[j] = moves ? t : 0.0f;
        for (int i = 0; moves && i < cols; i++) {
            g[i] -= t * h[i];
        }
        codes[j] = moves ? (uint8_t)next : codes[j];
        job->moves[row * job->k + first + j] += steps[j];
        gained += moves ? gain : 0;
    }
    return gained;
}

int launch_descend_codes(const struct launch_descend *job, float *steps, int64_t first, int cols, cudaStream_t stream)
{
    ENTER();
    for (int64_t row = 0; row < job->rows; row++) {
        job->gain[row] += move_codes(job, steps + row * cols, row, first, cols);
    }
    return 0;
}
