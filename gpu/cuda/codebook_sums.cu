/* What the entries of codebooks stand for, and its adjoint. CPU twin: gpu/cpu/codebook_sums.c, whose results these are
 * bit for bit: an element's vectors are added in the order of the codebooks, a vector's uses in the order of rows and
 * groups within eight slices of the rows, the slices in theirs.
 *
 * The adjoint needs no sort and no atomics: a block owns a range of one codebook's vectors and reads all entries of its
 * slice, which the cache holds; what falls into the range is lined up in order. A vector's sums belong to one group of
 * threads, one thread an element, which takes the vector's uses one after the other. */

#include "gpu/cuda/device.cuh"

#define THREADS 256
#define SUMS 2048  /* elements of a block's range of vectors */
#define TERMS 2048 /* elements of the uses that are lined up at once */

static __global__ void expand_kernel(float *y, const uint16_t *entries, const float *scale, const float *table,
                                     struct launch_code spec, float alpha, int add)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x, count = spec.rows * spec.cols;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        const uint16_t *codes = entries + i / spec.group * spec.books; /* groups tile the rows */
        const float *element = table + i % spec.group;
        float v = 0, s = scale != NULL ? scale[i / spec.cols] : 1.0f;
        for (int64_t book = 0; book < spec.books; book++) {
            v += element[(book * spec.codes + codes[book]) * spec.group];
        }
        float value = alpha * (s * v);
        y[i] = add ? y[i] + value : value;
    }
}

int launch_code_expand(float *y, const uint16_t *entries, const float *scale, const float *table,
                       const struct launch_code *spec, float alpha, int add, cudaStream_t stream)
{
    launch(expand_kernel, flat_blocks(spec->rows * spec->cols, THREADS), THREADS, 0, stream, y, entries, scale, table,
           *spec, alpha, add);
    return (int)cudaGetLastError();
}

struct lined_up {
    double sums[SUMS];
    float terms[TERMS];
    int code[THREADS], use[THREADS]; /* from the first of the range, of the uses read */
    int counts[THREADS / WARP];
};

/* The uses lined up are added to their vectors. first_use: of those read. */
static __device__ void add_uses(struct lined_up *shared, int total, int64_t first_use, const float *p,
                                const float *scale, const struct launch_code &spec)
{
    int width = (int)spec.group, batch = TERMS / width, lane_groups = THREADS / width;
    int lane_group = threadIdx.x / width, element = threadIdx.x % width;
    int64_t groups = spec.cols / spec.group;

    for (int done = 0; done < total; done += batch) {
        int count = total - done < batch ? total - done : batch;
        for (int i = threadIdx.x; i < count * width; i += THREADS) {
            int64_t use = first_use + shared->use[done + i / width];
            float s = scale != NULL ? scale[use / groups] : 1.0f;
            shared->terms[i] = s * p[use * width + i % width];
        }
        __syncthreads();
        for (int i = 0; i < count && lane_group < lane_groups; i++) {
            int code = shared->code[done + i];
            if (code % lane_groups == lane_group) {
                shared->sums[code * width + element] += (double)shared->terms[i * width + element];
            }
        }
        __syncthreads();
    }
}

static __global__ void __launch_bounds__(THREADS) reduce_kernel(double *parts, const float *p, const uint16_t *entries,
                                                                const float *scale, struct launch_code spec, int range)
{
    __shared__ struct lined_up shared;
    int64_t first = (int64_t)blockIdx.x * range, book = blockIdx.y, slice = blockIdx.z;
    int64_t groups = spec.cols / spec.group, rows = (spec.rows + LAUNCH_REDUCE_SLICES - 1) / LAUNCH_REDUCE_SLICES;
    int64_t begin = slice * rows, end = begin + rows < spec.rows ? begin + rows : spec.rows;
    int size = range * (int)spec.group;

    for (int i = threadIdx.x; i < size; i += THREADS) {
        shared.sums[i] = 0;
    }
    __syncthreads();
    for (int64_t use = begin * groups; use < end * groups; use += THREADS) {
        int64_t mine = use + threadIdx.x;
        int64_t code = mine < end * groups ? (int64_t)entries[mine * spec.books + book] - first : -1;
        bool in_range = code >= 0 && code < range;
        int total, at = block_rank(in_range, shared.counts, &total);
        if (in_range) {
            shared.code[at] = (int)code;
            shared.use[at] = (int)threadIdx.x;
        }
        __syncthreads();
        add_uses(&shared, total, use, p, scale, spec);
    }
    double *part = parts + ((slice * spec.books + book) * spec.codes + first) * spec.group;
    for (int i = threadIdx.x; i < size && first * spec.group + i < spec.codes * spec.group; i += THREADS) {
        part[i] = shared.sums[i];
    }
}

static __global__ void add_slices_kernel(float *out, const double *parts, int64_t size)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < size; i += stride) {
        double sum = 0;
        for (int slice = 0; slice < LAUNCH_REDUCE_SLICES; slice++) {
            sum += parts[slice * size + i];
        }
        out[i] = (float)sum;
    }
}

int launch_code_reduce(float *out, double *parts, const float *p, const uint16_t *entries, const float *scale,
                       const struct launch_code *spec, cudaStream_t stream)
{
    int range = SUMS / (int)spec->group;
    int64_t size = spec->books * spec->codes * spec->group;

    range = range < spec->codes ? range : (int)spec->codes;
    dim3 grid(blocks_of(spec->codes, range), (unsigned)spec->books, LAUNCH_REDUCE_SLICES);
    launch(reduce_kernel, grid, THREADS, 0, stream, parts, p, entries, scale, *spec, range);
    launch(add_slices_kernel, flat_blocks(size, THREADS), THREADS, 0, stream, out, parts, size);
    return (int)cudaGetLastError();
}
