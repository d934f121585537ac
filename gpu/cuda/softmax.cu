/* The middle of attention: one block turns one query's scores into weights under the causal mask and the window.
 * CPU twin: gpu/cpu/attention.c. */

#include "gpu/cuda/device.cuh"

#define THREADS 128

static __global__ void softmax_kernel(void *out, int out_dtype, const float *scores, struct launch_softmax spec)
{
    __shared__ float shared[WARP];
    int64_t query = spec.first + blockIdx.x % spec.queries, at = (int64_t)blockIdx.x * spec.keys;
    int64_t window = spec.window;
    float scale = spec.scale;
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
    for (int64_t i = threadIdx.x; i < spec.keys; i += blockDim.x) {
        bool visible = i >= low && i <= query;
        store_float(out, out_dtype, at + i, visible ? expf(row[i] * scale - most) * inverse : 0.0f);
    }
}

int launch_softmax(void *out, int out_dtype, const float *scores, const struct launch_softmax *spec,
                   cudaStream_t stream)
{
    if (spec->heads > 0 && spec->queries > 0) {
        launch(softmax_kernel, (unsigned)(spec->heads * spec->queries), THREADS, 0, stream, out, out_dtype, scores,
               *spec);
    }
    return (int)cudaGetLastError();
}
