/* The middle of attention: one block turns one query's scores into weights under the causal mask and the window.
 * CPU twin: gpu/cpu/attention.c. */

#include "gpu/cuda/device.cuh"

#define THREADS 128

static __global__ void softmax_kernel(void *out, int out_dtype, const float *scores, int64_t length, int64_t window,
                                      float scale)
{
    __shared__ float shared[WARP];
    int64_t query = blockIdx.x % length, at = (int64_t)blockIdx.x * length;
    int64_t low = window > 0 && query - window + 1 > 0 ? query - window + 1 : 0;
    const float *row = scores + at;
    float most = -INFINITY, sum = 0;

    for (int64_t i = low + threadIdx.x; i <= query; i += blockDim.x) {
        most = fmaxf(most, row[i]);
    }
    most = block_max(most, shared) * scale;
    for (int64_t i = low + threadIdx.x; i <= query; i += blockDim.x) {
        sum += expf(row[i] * scale - most);
    }
    sum = block_sum(sum, shared);
    float inverse = 1.0f / sum;
    for (int64_t i = threadIdx.x; i < length; i += blockDim.x) {
        bool visible = i >= low && i <= query;
        store_float(out, out_dtype, at + i, visible ? expf(row[i] * scale - most) * inverse : 0.0f);
    }
}

int launch_softmax(void *out, int out_dtype, const float *scores, int64_t heads, int64_t length, int64_t window,
                   float scale, cudaStream_t stream)
{
    if (heads > 0 && length > 0) {
        softmax_kernel<<<(unsigned)(heads * length), THREADS, 0, stream>>>(out, out_dtype, scores, length, window,
                                                                           scale);
    }
    return (int)cudaGetLastError();
}
