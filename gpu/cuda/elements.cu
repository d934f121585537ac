/* Weights as a scale times an element of a fixed set, a scale for each tile. CPU twin: gpu/cpu/elements.c. */

#include "gpu/cuda/device.cuh"

#include <cuda_fp8.h>

#define THREADS 256
#define SMALL 1024 /* elements of a tile that one warp looks at */

/* One block a tile. */
static __global__ void range_kernel(float *max, const float *w, struct launch_tiles spec)
{
    __shared__ float shared[WARP];
    int64_t left = (int64_t)blockIdx.x % spec.groups * spec.tile_cols;
    int64_t top = (int64_t)blockIdx.x / spec.groups * spec.tile_rows;
    int64_t width = spec.cols - left < spec.tile_cols ? spec.cols - left : spec.tile_cols;
    int64_t height = spec.rows - top < spec.tile_rows ? spec.rows - top : spec.tile_rows;
    float found = 0;

    for (int64_t i = threadIdx.x; i < width * height; i += blockDim.x) {
        found = fmaxf(found, fabsf(w[(top + i / width) * spec.cols + left + i % width]));
    }
    found = block_max(found, shared);
    if (threadIdx.x == 0) {
        max[blockIdx.x] = found;
    }
}

int launch_tile_range(float *max, const float *w, const struct launch_tiles *spec, cudaStream_t stream)
{
    int64_t tiles = spec->groups * ((spec->rows + spec->tile_rows - 1) / spec->tile_rows);
    int threads = spec->tile_rows * spec->tile_cols <= SMALL ? WARP : THREADS;

    launch(range_kernel, (unsigned)tiles, threads, 0, stream, max, w, *spec);
    return (int)cudaGetLastError();
}

static __device__ float scale_at(const float *scale, const struct launch_tiles &spec, int64_t i)
{
    return scale[i / spec.cols / spec.tile_rows * spec.groups + i % spec.cols / spec.tile_cols];
}

/* The intrinsics saturate and round to nearest even, as the CPU's conversions do. */
static __device__ uint8_t code_of(float w, float scale, const struct launch_tiles &spec)
{
    if (spec.element == DTYPE_NF4) {
        float inverse = 1.0f / scale;
        float x = isfinite(inverse) ? w * inverse : scale != 0 ? w / scale : 0.0f;
        int code = 0;
        for (int i = 0; i < 15; i++) {
            code += x > (spec.levels[i] + spec.levels[i + 1]) / 2.0f;
        }
        return (uint8_t)code;
    }
    if (spec.element == DTYPE_I8) {
        return (uint8_t)(128 + (int)fminf(fmaxf(rintf(w / scale), -127.0f), 127.0f));
    }
    if (spec.element == DTYPE_F4_E2M1) {
        return dtype_f32_to_e2m1(w / scale);
    }
    return spec.element == DTYPE_F8_E5M2 ? (uint8_t)__nv_cvt_float_to_fp8(w / scale, __NV_SATFINITE, __NV_E5M2)
                                       : (uint8_t)__nv_cvt_float_to_fp8(w / scale, __NV_SATFINITE, __NV_E4M3);
}

static __global__ void encode_kernel(uint8_t *codes, const float *w, const float *scale, struct launch_tiles spec)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < spec.rows * spec.cols; i += stride) {
        codes[i] = code_of(w[i], scale_at(scale, spec, i), spec);
    }
}

int launch_tile_encode(uint8_t *codes, const float *w, const float *scale, const struct launch_tiles *spec,
                       cudaStream_t stream)
{
    launch(encode_kernel, flat_blocks(spec->rows * spec->cols, THREADS), THREADS, 0, stream, codes, w, scale, *spec);
    return (int)cudaGetLastError();
}

static __device__ float value_of(uint8_t code, const struct launch_tiles &spec)
{
    switch (spec.element) {
    case DTYPE_NF4:
        return spec.levels[code & 15];
    case DTYPE_I8:
        return (float)((int)code - 128);
    case DTYPE_F4_E2M1:
        return dtype_e2m1_to_f32(code & 15);
    case DTYPE_F8_E5M2: {
        __nv_fp8_e5m2 value;
        value.__x = code;
        return (float)value;
    }
    default: {
        __nv_fp8_e4m3 value;
        value.__x = code;
        return (float)value;
    }
    }
}

static __global__ void decode_kernel(float *w, const uint8_t *codes, const float *scale, struct launch_tiles spec)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < spec.rows * spec.cols; i += stride) {
        w[i] = scale_at(scale, spec, i) * value_of(codes[i], spec);
    }
}

int launch_tile_decode(float *w, const uint8_t *codes, const float *scale, const struct launch_tiles *spec,
                       cudaStream_t stream)
{
    launch(decode_kernel, flat_blocks(spec->rows * spec->cols, THREADS), THREADS, 0, stream, w, codes, scale, *spec);
    return (int)cudaGetLastError();
}
