#pragma once
/* What the kernels share: warp and block sums of one fixed order, type conversion, launch arithmetic. */

#include "gpu/cuda/launch.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define WARP 32
#define FULL_MASK 0xffffffffu

static inline unsigned blocks_of(int64_t count, int64_t size)
{
    return (unsigned)((count + size - 1) / size);
}

#ifdef __CUDACC__
/* Every kernel is started by this, so that tests can run kernels without a device: their emulator has a `launch` and a
 * `dynamic_shared` of its own. */
template <typename... P, typename... A>
static inline void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                          A... arguments)
{
    kernel<<<grid, block, shared, stream>>>(arguments...);
}

/* The block's dynamic shared memory, of which the launch gave sizeof(T) bytes. */
template <typename T> static __device__ inline T *dynamic_shared(void)
{
    extern __shared__ __align__(16) char memory[];
    return (T *)memory;
}
#endif

/* A grid-stride loop copes with any count, so the grid is bounded. */
static inline unsigned flat_blocks(int64_t count, int threads)
{
    int64_t blocks = (count + threads - 1) / threads;
    return (unsigned)(blocks < 1 ? 1 : blocks > 65536 ? 65536 : blocks);
}

template <typename T> __device__ inline T warp_sum(T value)
{
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(FULL_MASK, value, offset);
    }
    return value;
}

template <typename T> __device__ inline T warp_max(T value)
{
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        T other = __shfl_xor_sync(FULL_MASK, value, offset);
        value = other > value ? other : value;
    }
    return value;
}

/* All threads get the result. blockDim.x is a multiple of 32, at most 1024; shared holds 32 values. */
template <typename T> __device__ inline T block_sum(T value, T *shared)
{
    value = warp_sum(value);
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        shared[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    T sum = 0;
    for (unsigned i = 0; i < blockDim.x / WARP; i++) {
        sum += shared[i];
    }
    return sum;
}

template <typename T> __device__ inline T block_max(T value, T *shared)
{
    value = warp_max(value);
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        shared[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    T max = shared[0];
    for (unsigned i = 1; i < blockDim.x / WARP; i++) {
        max = shared[i] > max ? shared[i] : max;
    }
    return max;
}

/* This thread's place among those for which `counted` is true, in order; *total = how many there are. All threads of
 * the block, a multiple of 32, call it; counts holds one value for each warp. */
__device__ inline int block_rank(bool counted, int *counts, int *total)
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, rank = counted ? 1 : 0, at = 0, all = 0;

    for (int offset = 1; offset < WARP; offset *= 2) {
        int before = __shfl_sync(FULL_MASK, rank, lane >= offset ? lane - offset : 0);
        rank += lane >= offset ? before : 0;
    }
    if (lane == WARP - 1) {
        counts[warp] = rank;
    }
    __syncthreads();
    for (int i = 0; i < (int)(blockDim.x / WARP); i++) {
        at += i < warp ? counts[i] : 0;
        all += counts[i];
    }
    *total = all;
    return at + rank - 1;
}

/* A score as attention weighs it: scaled, and capped where there is a cap. */
__device__ inline float capped_score(float score, float scale, float cap)
{
    return cap > 0.0f ? cap * tanhf(score * scale / cap) : score * scale;
}

__device__ inline float load_float(const void *x, enum dtype dtype, int64_t i)
{
    switch (dtype) {
    case DTYPE_F16:
        return __half2float(((const __half *)x)[i]);
    case DTYPE_BF16:
        return __bfloat162float(((const __nv_bfloat16 *)x)[i]);
    default:
        return ((const float *)x)[i];
    }
}

__device__ inline void store_float(void *y, enum dtype dtype, int64_t i, float value)
{
    switch (dtype) {
    case DTYPE_F16:
        ((__half *)y)[i] = __float2half_rn(value);
        break;
    case DTYPE_BF16:
        ((__nv_bfloat16 *)y)[i] = __float2bfloat16_rn(value);
        break;
    default:
        ((float *)y)[i] = value;
    }
}
