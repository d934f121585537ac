/* Rows of weights to GGUF blocks, a warp a block. CPU twins: gpu/cpu/blocks.c and blocks_k.c, whose searches these are
 * step by step, with sums in the order of the CPU's vectors, so that the bytes are the CPU's. The two halves of a warp
 * do the same: a block's steps depend on each other, and halves that diverged could not exchange values in shuffles. */

#include "gpu/cuda/blocks_k.cuh"
#include "gpu/ggml_blocks.h"

#define WARPS 4 /* of a thread block */
#define THREADS (WARPS * WARP)

/* What a warp shares. */
struct block_shared {
    double terms[BLOCK_MAX];
    float x[BLOCK_MAX], weight[BLOCK_MAX];
    uint8_t plain[BLOCK_BYTES_MAX], found[BLOCK_BYTES_MAX];
};

static __device__ void encode_nibbles(const struct block_task &task, const struct block_levels &levels, uint8_t *out)
{
    float scale = block_scale(task, 0, 32, levels, true);
    int j = threadIdx.x % 16, code[2];

    for (int k = 0; k < 2; k++) {
        float x = task.x[j + 16 * k];
        code[k] = levels.table ? table_code(x, scale, task.table) : block_code(x, scale, 0.0f, levels.low, levels.high);
    }
    if (threadIdx.x % WARP < 16) {
        out[2 + j] = (uint8_t)(code[0] | code[1] << 4);
    }
    if (threadIdx.x % WARP == 0) {
        put_half(out, scale);
    }
}

static __device__ void encode_q8_0(const struct block_task &task, uint8_t *out)
{
    const struct block_levels levels = {-127, 127, 125.0f, 0.5f, 9, false};
    float scale = block_scale(task, 0, 32, levels, true);
    int lane = threadIdx.x % WARP;

    out[2 + lane] = (uint8_t)(int8_t)(block_code(task.x[lane], scale, 0.0f, -127.0f, 127.0f) - 127);
    if (lane == 0) {
        put_half(out, scale);
    }
}

static __device__ void encode_block(int type, const struct block_task &task, uint8_t *out)
{
    switch (type) {
    case GGML_TYPE_Q8_0:
        encode_q8_0(task, out);
        break;
    case GGML_TYPE_Q4_K:
        encode_q4_k(task, out);
        break;
    case GGML_TYPE_Q6_K:
        encode_q6_k(task, out);
        break;
    case GGML_TYPE_IQ4_NL:
        encode_nibbles(task, {-127, 113, 80.0f, 10.0f, 13, true}, out);
        break;
    default:
        encode_nibbles(task, {-8, 7, 5.0f, 0.75f, 13, false}, out);
    }
    __syncwarp(); /* the bytes are read next */
}

/* Element i of a block read back. */
static __device__ float decode(int type, const float *table, const uint8_t *block, int i)
{
    int nibble = i < 16 ? block[2 + i % 16] & 15 : block[2 + i % 16] >> 4;

    switch (type) {
    case GGML_TYPE_Q8_0:
        return get_half(block) * (float)(int8_t)block[2 + i];
    case GGML_TYPE_Q4_K:
        return decode_q4_k(block, i);
    case GGML_TYPE_Q6_K:
        return decode_q6_k(block, i);
    case GGML_TYPE_IQ4_NL:
        return get_half(block) * table[nibble];
    default:
        return get_half(block) * (float)(nibble - 8);
    }
}

/* What a block loses when it is read back: its terms added in their order. */
static __device__ double lost(const struct launch_blocks &job, struct block_shared *shared, const uint8_t *bytes)
{
    double sum = 0;

    for (int i = threadIdx.x % WARP; i < job.elements; i += WARP) {
        double error = (double)shared->x[i] - (double)decode(job.type, job.table, bytes, i);
        shared->terms[i] = (double)shared->weight[i] * error * error;
    }
    __syncwarp();
    for (int i = 0; i < job.elements; i++) {
        sum += shared->terms[i];
    }
    __syncwarp();
    return sum;
}

static __global__ void __launch_bounds__(THREADS) encode_kernel(struct launch_blocks job)
{
    __shared__ struct block_shared all[WARPS];
    struct block_shared *shared = &all[threadIdx.x / WARP];
    int64_t block = (int64_t)blockIdx.x * WARPS + threadIdx.x / WARP, first = block * job.elements;
    struct block_task task = {shared->x, shared->weight, job.table, false};
    const uint8_t *best = shared->plain;

    if (first >= job.rows * job.cols) { /* all of a warp */
        return;
    }
    for (int i = threadIdx.x % WARP; i < job.elements; i += WARP) {
        shared->x[i] = job.w[first + i];
        shared->weight[i] = job.importance != NULL ? job.importance[first % job.cols + i] : 1.0f;
    }
    __syncwarp();
    encode_block(job.type, task, shared->plain);
    if (job.search) {
        task.search = true;
        encode_block(job.type, task, shared->found);
        double after = lost(job, shared, shared->found);
        best = after < lost(job, shared, shared->plain) ? shared->found : best;
    }
    for (int i = threadIdx.x % WARP; i < job.bytes; i += WARP) {
        job.out[block * job.bytes + i] = best[i];
    }
}

int launch_blocks(const struct launch_blocks *blocks, cudaStream_t stream)
{
    int64_t count = blocks->rows * (blocks->cols / blocks->elements);

    if (count > 0) {
        launch(encode_kernel, blocks_of(count, WARPS), THREADS, 0, stream, *blocks);
    }
    return (int)cudaGetLastError();
}
