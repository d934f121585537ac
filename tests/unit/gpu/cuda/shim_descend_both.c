/* The kernels of gpu/cuda/descend_both.cu as plain loops, decision by decision. */

#include "tests/unit/gpu/cuda/shim.h"

#include "gpu/cuda/launch.h"
#include "gpu/tensor.h"

#include <math.h>

#define ENTER()                         \
    do {                                \
        cudaError_t rc_ = shim_enter(); \
        if (rc_ != cudaSuccess) {       \
            return (int)rc_;            \
        }                               \
        shim_flush();                   \
    } while (0)

int launch_both_start(const struct launch_both *job, const float *target, float *to, cudaStream_t stream)
{
    ENTER();
    for (int64_t row = 0; row < job->n; row++) {
        for (int64_t j = 0; j < job->k; j++) {
            int64_t at = row * job->k + j, point = row * job->groups + j / job->size;
            to[j * job->n + row] = target[at] - job->scale[point] * ((float)job->codes[at] - job->zero[point]);
        }
    }
    return 0;
}

int launch_both_levels(const struct launch_both *job, int64_t group, cudaStream_t stream)
{
    ENTER();
    for (int64_t at = 0; at < job->size * job->n; at++) {
        int64_t i = at % job->n, j = at / job->n;
        job->levels[at] = (float)job->codes[i * job->k + group * job->size + j] - job->zero[i * job->groups + group];
    }
    return 0;
}

static double shim_both_dot(const struct launch_both *job, const float *a, int64_t i, const float *b, int64_t p)
{
    double sum = 0;

    for (int64_t j = 0; j < job->size; j++) {
        sum += (double)a[j * job->n + i] * (double)b[j * job->n + p];
    }
    return sum;
}

static float shim_both_scale(const struct launch_both *job, int64_t i, int64_t group, double slope, double curve)
{
    float *scale = &job->scale[i * job->groups + group];
    float best = curve > 0 ? dtype_round((float)((double)*scale + slope / curve), job->scale_dtype) : 0.0f;
    double t = (double)best - (double)*scale, gain = t * (2 * slope - t * curve);

    if (!isfinite(best) || best == 0.0f || (best > 0.0f) != (*scale > 0.0f) || !(gain > 0)) {
        return 0.0f;
    }
    *scale = best;
    *job->gain += gain;
    return (float)t;
}

int launch_both_scales(const struct launch_both *job, int64_t group, int64_t first, int count, cudaStream_t stream)
{
    float by[LAUNCH_BOTH_ROWS];
    ENTER();
    for (int64_t r = 0; r < count; r++) {
        int64_t i = first + r;
        double slope = shim_both_dot(job, job->levels, i, job->g, i);
        for (int64_t p = 0; p < r; p++) {
            slope -= by[p] == 0.0f ? 0
                                   : (double)by[p] * (double)job->o[(first + p) * job->n + i] *
                                         shim_both_dot(job, job->levels, i, job->curves, first + p);
        }
        double curve = (double)job->o[i * (job->n + 1)] * shim_both_dot(job, job->levels, i, job->curves, i);
        by[r] = shim_both_scale(job, i, group, slope, curve);
    }
    for (int64_t j = 0; j < job->size; j++) {
        for (int64_t r = 0; r < count; r++) {
            job->levels[j * job->n + first + r] *= by[r];
            job->curves[j * job->n + first + r] *= by[r];
        }
    }
    return 0;
}

static float shim_both_code(const struct launch_both *job, int64_t i, int64_t j, float slope)
{
    float curve = job->o[i * (job->n + 1)] * job->h[j * (job->k + 1)];
    float scale = job->scale[i * job->groups + j / job->size];
    uint8_t *code = &job->codes[i * job->k + j];
    float old = (float)*code, best = rintf(old + slope / (curve * scale));

    best = best > 0.0f ? best : 0.0f;
    best = best < job->top ? best : job->top;
    float t = scale * (best - old);
    double gain = (double)t * (2 * (double)slope - (double)t * (double)curve);
    if (!(curve > 0.0f) || !(gain > 0)) {
        return 0.0f;
    }
    *code = (uint8_t)best;
    *job->gain += gain;
    return t;
}

int launch_both_column(const struct launch_both *job, int64_t j, const float *g, float *lost, cudaStream_t stream)
{
    float own = job->h[j * (job->k + 1)];
    ENTER();
    for (int64_t i = 0; i < job->n; i++) {
        lost[i] = 0.0f;
    }
    for (int64_t i = 0; own > 0.0f && i < job->n; i++) {
        float t = shim_both_code(job, i, j, g[i] - own * lost[i]);
        for (int64_t p = 0; t != 0.0f && p < job->n; p++) {
            lost[p] += t * job->o[i * job->n + p];
        }
    }
    return 0;
}

int launch_both_follow(const struct launch_both *job, int64_t j, float *g, const float *lost, int later,
                       cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < job->n; i++) {
        job->m[j * job->n + i] -= lost[i];
        for (int c = 1; c <= later; c++) {
            g[c * job->n + i] -= job->h[j * job->k + j + c] * lost[i];
        }
    }
    return 0;
}
