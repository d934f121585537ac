/* Causal attention in one kernel: scores and weights never leave the multiprocessor (Dao 2023, arXiv 2307.08691). A
 * block takes QUERIES queries of one head through all key tiles that any of them sees; each of four warps has 32 of
 * them, their outputs in F32 registers, and the running maximum and sum of weights of each row. Products have BF16
 * operands and F32 sums, as in the other path (attention.c); weights are rounded to BF16 before they are divided by
 * their sum rather than after.
 *
 * One key tile and one value tile are in shared memory: values arrive while scores are computed, and the next keys
 * while values are multiplied. Sums have a fixed order. CPU twin: gpu/cpu/attention.c. */

#include "gpu/cuda/tensor_core.cuh"

#define WARPS 4
#define THREADS (WARPS * WARP)
#define QUERIES 128
#define KEYS 64
#define PAD 8 /* elements at the end of a row, so that eight rows lie in different banks */
#define LOG2_E 1.4426950408889634f

template <int DIM> struct tiles {
    __nv_bfloat16 q[QUERIES][DIM + PAD];
    __nv_bfloat16 k[KEYS][DIM + PAD];
    __nv_bfloat16 v[KEYS][DIM + PAD];
};

/* Of a warp's 32 queries in two halves of 16: lane l has rows g and g + 8 of each half. */
template <int DIM> struct work {
    float out[2][DIM / 8][4];
    float most[2][2], sum[2][2]; /* in units of log2; sum: of this lane's columns */
    float scores[2][KEYS / 8][4];
};

/* What a block has to do. */
struct place {
    int64_t first, low, end; /* queries from `first` on; keys [low, end) */
    int64_t row;             /* of the sequence's first token */
    int64_t head, kv_head;
};

/* ROWS rows from `first` on of a matrix with `stride` elements a row, `dim` of them there; zeros at and past `end`. */
template <int ROWS, int DIM>
static __device__ void copy_rows(__nv_bfloat16 (*to)[DIM + PAD], const __nv_bfloat16 *from, int64_t stride,
                                 int64_t first, int64_t end, int dim)
{
    for (int i = threadIdx.x; i < ROWS * (DIM / 8); i += THREADS) {
        int row = i / (DIM / 8), col = i % (DIM / 8) * 8;
        bool there = first + row < end && col < dim;
        copy_begin(&to[row][col], from + (there ? (first + row) * stride + col : 0), there);
    }
}

template <int DIM> static __device__ void multiply_keys(work<DIM> &w, const tiles<DIM> *shared, int warp, int lane)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                w.scores[half][n][i] = 0.0f;
            }
        }
    }
#pragma unroll
    for (int d = 0; d < DIM; d += 16) {
        uint32_t a[2][4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            tensor_load(a[half], &shared->q[warp * 32 + half * 16 + lane % 16][d + lane / 16 * 8]);
        }
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            uint32_t b[4];
            tensor_load(b, &shared->k[n * 16 + lane / 16 * 8 + lane % 8][d + lane / 8 % 2 * 8]);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                tensor_multiply(w.scores[half][2 * n], a[half], b);
                tensor_multiply(w.scores[half][2 * n + 1], a[half], b + 2);
            }
        }
    }
}

/* Scores in units of log2; those that a row does not see become -Inf. */
template <int DIM, bool CAPPED>
static __device__ void mask_scores(work<DIM> &w, const struct launch_flash &spec, const struct place &place,
                                   int64_t first_key, bool whole, int warp, int lane)
{
    float scale = spec.scale * LOG2_E;

#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int second = 0; second < 2; second++) {
            int64_t query = place.first + warp * 32 + half * 16 + second * 8 + lane / 4;
            int from = 0, to = KEYS; /* in this tile */
            if (!whole) {
                int64_t before = attention_first(spec.window, spec.chunk, query) - first_key, own = query - first_key;
                from = before < 0 ? 0 : before < KEYS ? (int)before : KEYS;
                to = own < KEYS ? (int)own : KEYS;
            }
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float &score = w.scores[half][n][second * 2 + i];
                    int key = n * 8 + lane % 4 * 2 + i;
                    score = CAPPED ? capped_score(score, spec.scale, spec.cap) * LOG2_E : score * scale;
                    score = key >= from && key <= to ? score : -INFINITY;
                }
            }
        }
    }
}

/* Scores become weights relative to the largest so far, and what there is of outputs and sums is scaled to it. */
template <int DIM> static __device__ void weigh(work<DIM> &w)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int second = 0; second < 2; second++) {
            float most = w.most[half][second];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                most = fmaxf(most, fmaxf(w.scores[half][n][second * 2], w.scores[half][n][second * 2 + 1]));
            }
            most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, 1));
            most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, 2));
            float against = most == -INFINITY ? 0.0f : most; /* a row that has seen nothing yet */
            float keep = exp2f(w.most[half][second] - against), sum = 0;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float &score = w.scores[half][n][second * 2 + i];
                    score = exp2f(score - against);
                    sum += score;
                }
            }
            w.most[half][second] = most;
            w.sum[half][second] = w.sum[half][second] * keep + sum;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                w.out[half][n][second * 2] *= keep;
                w.out[half][n][second * 2 + 1] *= keep;
            }
        }
    }
}

template <int DIM> static __device__ void multiply_values(work<DIM> &w, const tiles<DIM> *shared, int lane)
{
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
        uint32_t a[2][4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float *pair = &w.scores[half][2 * n + i / 2][i % 2 * 2];
                a[half][i] = tensor_pair(pair[0], pair[1]);
            }
        }
#pragma unroll
        for (int d = 0; d < DIM / 16; d++) {
            uint32_t b[4];
            tensor_load_turned(b, &shared->v[n * 16 + lane % 16][d * 16 + lane / 16 * 8]);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                tensor_multiply(w.out[half][2 * d], a[half], b);
                tensor_multiply(w.out[half][2 * d + 1], a[half], b + 2);
            }
        }
    }
}

template <int DIM>
static __device__ void store_rows(const work<DIM> &w, const struct launch_flash &spec, const struct place &place,
                                  int warp, int lane)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int second = 0; second < 2; second++) {
            int64_t query = place.first + warp * 32 + half * 16 + second * 8 + lane / 4;
            float sum = w.sum[half][second];
            sum += __shfl_xor_sync(FULL_MASK, sum, 1);
            sum += __shfl_xor_sync(FULL_MASK, sum, 2);
            if (query >= spec.length) {
                continue;
            }
            if (spec.sinks != NULL) {
                sum += exp2f(spec.sinks[place.head] * LOG2_E - w.most[half][second]);
            }
            float inverse = 1.0f / sum;
            float *out = spec.out + ((place.row + query) * spec.heads + place.head) * spec.value_dim;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                int col = n * 8 + lane % 4 * 2;
                if (col < spec.value_dim) { /* of which there is an even number */
                    out[col] = w.out[half][n][second * 2] * inverse;
                    out[col + 1] = w.out[half][n][second * 2 + 1] * inverse;
                }
            }
        }
    }
}

static __device__ struct place place_of(const struct launch_flash &spec)
{
    struct place place;
    int64_t last;

    place.first = (int64_t)(gridDim.x - 1 - blockIdx.x) * QUERIES; /* those that see the most keys begin first */
    place.head = blockIdx.y;
    place.kv_head = place.head / (spec.heads / spec.kv_heads);
    place.row = (int64_t)blockIdx.z * spec.length;
    last = place.first + QUERIES;
    place.end = last < spec.length ? last : spec.length;
    place.low = attention_first(spec.window, spec.chunk, place.first) / KEYS * KEYS;
    return place;
}

/* DIM: of keys and of values at most, a multiple of 16. */
template <int DIM, bool CAPPED> static __global__ void __launch_bounds__(THREADS) flash_kernel(struct launch_flash spec)
{
    tiles<DIM> *shared = dynamic_shared<tiles<DIM>>();
    const struct place place = place_of(spec);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int64_t q_stride = spec.heads * spec.dim, k_stride = spec.kv_heads * spec.dim;
    int64_t v_stride = spec.kv_heads * spec.value_dim;
    const __nv_bfloat16 *q = (const __nv_bfloat16 *)spec.q + place.row * q_stride + place.head * spec.dim;
    const __nv_bfloat16 *k = (const __nv_bfloat16 *)spec.k + place.row * k_stride + place.kv_head * spec.dim;
    const __nv_bfloat16 *v = (const __nv_bfloat16 *)spec.v + place.row * v_stride + place.kv_head * spec.value_dim;
    int64_t blind = attention_first(spec.window, spec.chunk, place.end - 1); /* keys before it are not for all */
    work<DIM> w;

#pragma unroll
    for (int half = 0; half < 2; half++) {
        w.most[half][0] = w.most[half][1] = -INFINITY;
        w.sum[half][0] = w.sum[half][1] = 0.0f;
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                w.out[half][n][i] = 0.0f;
            }
        }
    }
    copy_rows<QUERIES, DIM>(shared->q, q, q_stride, place.first, place.end, (int)spec.dim);
    copy_rows<KEYS, DIM>(shared->k, k, k_stride, place.low, place.end, (int)spec.dim);
    copy_group();
    for (int64_t key = place.low; key < place.end; key += KEYS) {
        copy_rows<KEYS, DIM>(shared->v, v, v_stride, key, place.end, (int)spec.value_dim);
        copy_group();
        copy_wait<1>(); /* the keys */
        __syncthreads();
        multiply_keys(w, shared, warp, lane);
        __syncthreads(); /* all warps are done with the keys */
        copy_rows<KEYS, DIM>(shared->k, k, k_stride, key + KEYS, place.end, (int)spec.dim);
        copy_group();
        mask_scores<DIM, CAPPED>(w, spec, place, key, key >= blind && key + KEYS - 1 <= place.first, warp, lane);
        weigh(w);
        copy_wait<1>(); /* the values */
        __syncthreads();
        multiply_values(w, shared, lane);
        __syncthreads();
    }
    copy_wait<0>();
    store_rows(w, spec, place, warp, lane);
}

template <int DIM, bool CAPPED> static int run_capped(const struct launch_flash *spec, cudaStream_t stream)
{
    size_t bytes = sizeof(struct tiles<DIM>);

    cudaError_t status =
        cudaFuncSetAttribute(flash_kernel<DIM, CAPPED>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (status != cudaSuccess) {
        return (int)status;
    }
    launch(flash_kernel<DIM, CAPPED>,
           dim3(blocks_of(spec->length, QUERIES), (unsigned)spec->heads, (unsigned)spec->sequences), THREADS, bytes,
           stream, *spec);
    return (int)cudaGetLastError();
}

template <int DIM> static int run(const struct launch_flash *spec, cudaStream_t stream)
{
    return spec->cap > 0 ? run_capped<DIM, true>(spec, stream) : run_capped<DIM, false>(spec, stream);
}

int launch_flash(const struct launch_flash *spec, cudaStream_t stream)
{
    int64_t dim = spec->dim > spec->value_dim ? spec->dim : spec->value_dim;

    return dim <= 32 ? run<32>(spec, stream) : dim <= 64 ? run<64>(spec, stream) : run<128>(spec, stream);
}
