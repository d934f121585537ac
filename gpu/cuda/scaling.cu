/* Scaling of rows and columns, and inputs as a runtime's quantizer leaves them. CPU twin: gpu/cpu/scaling.c. */

#include "gpu/cuda/number.cuh"

#define THREADS 256

static __global__ void scale_kernel(float *w, const float *rows, const float *cols, int64_t width, int64_t total)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += stride) {
        float row = rows != NULL ? rows[i / width] : 1.0f;
        w[i] *= cols != NULL ? row * cols[i % width] : row;
    }
}

int launch_scale(float *w, const float *rows, const float *cols, int64_t count, int64_t width, cudaStream_t stream)
{
    launch(scale_kernel, flat_blocks(count * width, THREADS), THREADS, 0, stream, w, rows, cols, width, count * width);
    return (int)cudaGetLastError();
}

/* One block per group; the last one of a row may be shorter. */
static __global__ void input_kernel(float *y, const float *x, const float *outliers, struct launch_input spec)
{
    __shared__ float shared[WARP];
    int64_t groups = (spec.cols + spec.group_size - 1) / spec.group_size;
    int64_t col = (int64_t)blockIdx.x % groups * spec.group_size;
    int64_t at = (int64_t)blockIdx.x / groups * spec.cols + col;
    int64_t count = spec.cols - col < spec.group_size ? spec.cols - col : spec.group_size;
    const float *passed = outliers != NULL ? outliers + col : NULL;
    float scale = spec.scale;

    if (spec.dynamic) {
        float max = 0;
        for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
            max = passed == NULL || passed[i] == 0.0f ? fmaxf(max, fabsf(x[at + i])) : max;
        }
        scale = block_max(max, shared) / (float)dtype_max(spec.element);
    }
    float multiplier = spec.half ? __half2float(__float2half_rn(scale)) : scale;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
        bool passes = (passed != NULL && passed[i] != 0.0f) || scale == 0.0f;
        y[at + i] = passes ? x[at + i] : code_of_number(x[at + i], scale, spec.element) * multiplier;
    }
}

int launch_quantize_input(float *y, const float *x, const float *outliers, const struct launch_input *spec,
                          cudaStream_t stream)
{
    int64_t groups = spec->rows * ((spec->cols + spec->group_size - 1) / spec->group_size);
    if (groups > 0) {
        launch(input_kernel, (unsigned)groups, spec->group_size <= 128 ? 64 : THREADS, 0, stream, y, x, outliers, *spec);
    }
    return (int)cudaGetLastError();
}
