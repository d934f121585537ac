#pragma once
/* What the tests of gpu/ share: a CPU device with a stream, tensors filled from a seed. Tests of the CPU
 * backend read and write tensor memory directly. */

#include "gpu/gpu.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

struct rig {
    struct gpu gpu;
    struct gpu_stream *stream;
    const struct gpu_ops *ops;
};

static inline void rig_open(struct rig *rig, int threads)
{
    memset(rig, 0, sizeof(*rig));
    ck_assert_rc_ok(gpu_open("cpu", threads, &rig->gpu));
    rig->ops = rig->gpu.ops;
    ck_assert_rc_ok(rig->ops->stream_new(rig->gpu.device, &rig->stream));
}

static inline void rig_close(struct rig *rig)
{
    rig->ops->stream_free(rig->stream);
    gpu_close(&rig->gpu);
}

static inline struct tensor rig_tensor(struct rig *rig, enum dtype dtype, int64_t rows, int64_t cols)
{
    struct tensor tensor;
    ck_assert_rc_ok(gpu_tensor_new(&rig->gpu, dtype, 2, (const int64_t[]){rows, cols}, &tensor));
    return tensor;
}

static inline float *floats(const struct tensor *tensor)
{
    return tensor->data;
}

static inline uint8_t *bytes(const struct tensor *tensor)
{
    return tensor->data;
}

/* splitmix64 */
static inline uint64_t random_bits(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Uniform in (-1, 1). */
static inline float random_unit(uint64_t *state)
{
    return (float)((double)(int64_t)random_bits(state) * 0x1p-63);
}

/* Close to normal: the sum of four. */
static inline float random_normal(uint64_t *state)
{
    return 0.87f * (random_unit(state) + random_unit(state) + random_unit(state) + random_unit(state));
}

static inline struct tensor rig_random(struct rig *rig, int64_t rows, int64_t cols, uint64_t seed)
{
    struct tensor tensor = rig_tensor(rig, DTYPE_F32, rows, cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        floats(&tensor)[i] = random_normal(&seed);
    }
    return tensor;
}

/* Activations whose columns lean on each other and differ in size, as a layer's do: what makes GPTQ worth its work. */
static inline struct tensor rig_correlated(struct rig *rig, int64_t tokens, int64_t n, uint64_t seed)
{
    struct tensor x = rig_tensor(rig, DTYPE_F32, tokens, n);
    for (int64_t t = 0; t < tokens; t++) {
        float common = random_normal(&seed), drift = 0;
        for (int64_t j = 0; j < n; j++) {
            drift = 0.9f * drift + 0.4f * random_normal(&seed);
            floats(&x)[t * n + j] = (drift + 0.5f * common) * (j % 17 == 3 ? 4.0f : 1.0f);
        }
    }
    return x;
}

/* h = 2/T x^T x. */
static inline struct tensor rig_hessian(struct rig *rig, const struct tensor *x)
{
    struct tensor h = rig_tensor(rig, DTYPE_F32, x->shape[1], x->shape[1]);
    ck_assert_rc_ok(rig->ops->gram(rig->stream, &h, x));
    ck_assert_rc_ok(rig->ops->symmetrize(rig->stream, &h, 2.0 / (double)x->shape[0]));
    return h;
}

#define ck_assert_near(a, b, tolerance)                                                                              \
    do {                                                                                                             \
        double near_a_ = (a), near_b_ = (b), near_t_ = (tolerance);                                                  \
        ck_assert_msg(fabs(near_a_ - near_b_) <= near_t_, "%s = %.9g, %s = %.9g, more than %.3g apart", #a, near_a_, \
                      #b, near_b_, near_t_);                                                                         \
    } while (0)
