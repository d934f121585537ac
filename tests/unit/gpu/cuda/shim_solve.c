/* The kernels of gpu/cuda as plain loops: grids, codes, factors, sweeps and what is lost. Arithmetic that chooses codes
 * is the kernels', operation by operation. */

#include "tests/unit/gpu/cuda/shim.h"

#include "gpu/cuda/launch.h"
#include "gpu/shared/grid.h"
#include "gpu/tensor.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define ENTER()                         \
    do {                                \
        cudaError_t rc_ = shim_enter(); \
        if (rc_ != cudaSuccess) {       \
            return (int)rc_;            \
        }                               \
        shim_flush();                   \
    } while (0)

#define LANES 16
#define MAGIC 0x1.8p23f

static struct grid_point grid_of(const struct launch_grid *spec, float low, float high)
{
    return grid_point(spec->bits, spec->sym, spec->scale_dtype, low, high);
}

static float power(float a, float p)
{
    int32_t bits, offset, exponent;
    float m, y;

    memcpy(&bits, &a, sizeof(bits));
    offset = bits - 0x3f3504f3;
    bits = (offset & 0x7fffff) + 0x3f3504f3;
    memcpy(&m, &bits, sizeof(m));
    float s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
    y = ((float)(offset >> 23) + s * ((s2 * 0.577078017f + 0.961796694f) * s2 + 2.885390082f)) * p;
    y = fminf(fmaxf(y, -126.0f), 126.0f);
    float shifted = y + MAGIC, f = y - (shifted - MAGIC);
    float q = f * 1.33335581e-3f + 9.61812911e-3f;
    q = q * f + 5.55041087e-2f;
    q = q * f + 2.40226507e-1f;
    q = q * f + 6.93147181e-1f;
    q = q * f + 1.0f;
    memcpy(&exponent, &shifted, sizeof(exponent));
    exponent = (int32_t)((uint32_t)(exponent + 127) << 23);
    memcpy(&y, &exponent, sizeof(y));
    return a > 0.0f ? q * y : 0.0f;
}

static float unit_of(float scale)
{
    int exponent;
    frexpf(scale, &exponent);
    return ldexpf(1.0f, exponent < 127 ? 1 - exponent : -126);
}

static float grid_error(const struct launch_grid *spec, const float *w, const float *importance,
                        struct grid_point point, float unit)
{
    float top = (float)((1 << spec->bits) - 1), scale = point.scale * unit, inverse = 1.0f / scale;
    float lanes[LANES] = {0}, next[LANES];
    static const int offsets[] = {8, 4, 1, 2};

    for (int64_t i = 0; i < spec->group; i++) {
        float x = w[i] * unit, r = rintf(fminf(fmaxf(x * inverse, -point.zero), top - point.zero));
        float e = fabsf(x - r * scale);
        float cost = spec->norm == 2.0f ? e * e : spec->norm == 3.0f ? e * e * e : power(e, spec->norm);
        lanes[i % LANES] += importance != NULL ? importance[i] * cost : cost;
    }
    for (int step = 0; step < 4; step++) {
        for (int lane = 0; lane < LANES; lane++) {
            next[lane] = lanes[lane] + lanes[lane ^ offsets[step]];
        }
        memcpy(lanes, next, sizeof(lanes));
    }
    return lanes[0];
}

static struct grid_point choose(const struct launch_grid *spec, const float *w, const float *importance)
{
    float low = 0, high = 0;

    for (int64_t i = 0; i < spec->group; i++) {
        low = fminf(low, w[i]);
        high = fmaxf(high, w[i]);
    }
    if (low == 0.0f && high == 0.0f) {
        return (struct grid_point){1.0f, spec->sym ? (float)(1 << (spec->bits - 1)) : 0.0f};
    }
    struct grid_point best = grid_of(spec, low, high);
    float unit = unit_of(best.scale), least = spec->mse ? grid_error(spec, w, importance, best, unit) : 0;
    for (int i = 1; spec->mse && i < spec->candidates; i++) {
        float p = (float)(1.0 - (double)(spec->signs ? i / 2 : i) / spec->steps);
        struct grid_point point = grid_of(spec, p * low, p * high);
        point.scale = spec->signs && i % 2 != 0 ? -point.scale : point.scale;
        float error = grid_error(spec, w, importance, point, unit);
        if (error < least) {
            least = error;
            best = point;
        }
    }
    return best;
}

int launch_grid(float *scale, float *zero, const float *w, const float *importance, const struct launch_grid *spec,
                cudaStream_t stream)
{
    int64_t groups = spec->cols / spec->group;

    ENTER();
    for (int64_t i = 0; i < spec->rows * groups; i++) {
        struct grid_point point =
            choose(spec, w + i * spec->group, importance != NULL ? importance + i % groups * spec->group : NULL);
        scale[i] = point.scale;
        zero[i] = point.zero;
    }
    return 0;
}

static float rounded(float x, float low, float high)
{
    return rintf(fminf(fmaxf(x, low), high));
}

int launch_round(uint8_t *codes, const float *w, const float *scale, const float *zero, const struct launch_grid *spec,
                 cudaStream_t stream)
{
    float top = (float)((1 << spec->bits) - 1);

    ENTER();
    for (int64_t i = 0; i < spec->rows * spec->cols; i++) {
        float z = zero[i / spec->group];
        codes[i] = (uint8_t)(rounded(w[i] / scale[i / spec->group], -z, top - z) + z);
    }
    return 0;
}

int launch_dequantize(float *w, const uint8_t *codes, const float *scale, const float *zero,
                      const struct launch_grid *spec, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < spec->rows * spec->cols; i++) {
        w[i] = scale[i / spec->group] * ((float)codes[i] - zero[i / spec->group]);
    }
    return 0;
}

int launch_factor_gather(float *to, const float *h, const int32_t *order, int64_t n, float damp, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) {
            int64_t row = order != NULL ? order[n - 1 - i] : n - 1 - i,
                    col = order != NULL ? order[n - 1 - j] : n - 1 - j;
            float value = h[row * n + col];
            value = i == j && value == 0.0f ? 1.0f : value;
            to[i * n + j] = j > i ? 0.0f : i == j ? value + damp : value;
        }
    }
    return 0;
}

int launch_reverse(float *a, int64_t count, cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < count / 2; i++) {
        float kept = a[i];
        a[i] = a[count - 1 - i];
        a[count - 1 - i] = kept;
    }
    return 0;
}

int launch_gather_columns(float *to, const float *w, const int32_t *order, int64_t rows, int64_t cols,
                          cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < rows * cols; i++) {
        to[i] = w[i / cols * cols + order[i % cols]];
    }
    return 0;
}

int launch_scatter_codes(uint8_t *codes, const uint8_t *from, const int32_t *order, int64_t rows, int64_t cols,
                         cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < rows * cols; i++) {
        codes[i / cols * cols + order[i % cols]] = from[i];
    }
    return 0;
}

int launch_scatter_columns(float *y, const float *from, const int32_t *order, int64_t rows, int64_t cols,
                           cudaStream_t stream)
{
    ENTER();
    for (int64_t i = 0; i < rows * cols; i++) {
        y[i / cols * cols + order[i % cols]] = from[i];
    }
    return 0;
}

static void sweep_row(const struct launch_sweep *s, int64_t row)
{
    float x[LAUNCH_SWEEP_COLS];
    const float *scale = s->scale + row * s->groups, *zero = s->levels == NULL ? s->zero + row * s->groups : NULL;
    double loss = 0;

    for (int i = 0; i < s->cols; i++) {
        x[i] = s->w[row * s->k + s->first + i];
    }
    for (int i = 0; i < s->cols; i++) {
        const float *u = s->u + (s->first + i) * s->k + s->first;
        int32_t group = s->only_group >= 0 ? s->only_group : s->group[s->first + i];
        int level = s->levels != NULL ? grid_nearest(x[i] / scale[group], s->levels, s->level_count) : 0;
        float r =
            s->levels != NULL ? s->levels[level] : rounded(x[i] / scale[group], -zero[group], s->top - zero[group]);
        float e = (x[i] - scale[group] * r) / u[i];
        for (int j = i + 1; j < s->cols; j++) {
            x[j] -= e * u[j];
        }
        s->codes[row * s->k + s->first + i] = (uint8_t)(s->levels != NULL ? (float)level : r + zero[group]);
        s->error[row * s->error_stride + i] = e;
        loss += (double)e * (double)e;
    }
    s->loss[row] += loss;
}

int launch_sweep(const struct launch_sweep *sweep, cudaStream_t stream)
{
    ENTER();
    for (int64_t row = 0; row < sweep->rows; row++) {
        sweep_row(sweep, row);
    }
    return 0;
}

static struct launch_residual_row residual_row(const float *w, const float *wq, const float *scale, const float *zero,
                                               const struct launch_grid *spec, int64_t row)
{
    struct launch_residual_row sum = {0};
    float top = (float)((1 << spec->bits) - 1);

    for (int64_t i = row * spec->cols; i < (row + 1) * spec->cols; i++) {
        double a = (double)w[i], b = (double)wq[i], error = a - b;
        if (!isfinite(a) || !isfinite(b)) {
            sum.nonfinite++;
            continue;
        }
        sum.error_sq += error * error;
        sum.weight_sq += a * a;
        sum.dot += a * b;
        sum.quant_sq += b * b;
        sum.max_abs = fmax(sum.max_abs, fabs(error));
        sum.weight_max = fmax(sum.weight_max, fabs(a));
        int64_t point = i / spec->group;
        float first = scale != NULL ? scale[point] * -zero[point] : -INFINITY;
        float last = scale != NULL ? scale[point] * (top - zero[point]) : INFINITY;
        if (w[i] < fminf(first, last) || w[i] > fmaxf(first, last)) {
            sum.clipped++;
            sum.clipped_sq += error * error;
        }
    }
    return sum;
}

int launch_residual(struct launch_residual_row *rows, const float *w, const float *wq, const float *scale,
                    const float *zero, const struct launch_grid *spec, cudaStream_t stream)
{
    ENTER();
    for (int64_t row = 0; row < spec->rows; row++) {
        rows[row] = residual_row(w, wq, scale, zero, spec, row);
    }
    return 0;
}
