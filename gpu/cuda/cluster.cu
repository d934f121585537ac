/* Exact one-dimensional k-means, a block a row. CPU twin: gpu/cpu/cluster.c, whose sums, comparisons and ties these
 * are, so that tables and codes are the CPU's bit for bit.
 *
 * A row is sorted by value and place (bitonic), and equal values become one point. Prefix sums run in order, one thread
 * for each of the three, over terms that all threads prepare. A level of the dynamic program is filled from the middles
 * outwards as on the CPU, but all middles of one depth at once: a group of threads searches the best beginning of one
 * middle's last cluster, groups being smaller as middles become many. */

#include "gpu/cuda/device.cuh"

#define THREADS 256
#define VALUES_MAX 256
#define NO_PLACE 0x7fffffff

struct key {
    float value;
    int place; /* column */
};

/* Scratch of one row. */
struct row {
    double *weight;             /* [cols] of points */
    double *sum0, *sum1, *sum2; /* [cols + 1]: prefix sums of f, f w, f w^2 */
    double *min_loss, *next;       /* [cols + 1] */
    struct key *keys;           /* [padded] */
    float *value;               /* [cols] of points, ascending */
    int *from;                  /* [values][cols + 1]: where the last cluster of the best split begins */
    int count;                  /* of points */
};

struct cluster_shared {
    double parts[WARP], stage[3][THREADS], totals[3];
    int counts[THREADS / WARP];
    int begin[VALUES_MAX + 1];
    float table[VALUES_MAX];
};

static inline __host__ __device__ int64_t padded(int64_t cols)
{
    int64_t size = 1;
    while (size < cols) {
        size *= 2;
    }
    return size;
}

int64_t launch_cluster_bytes(int64_t cols, int64_t values)
{
    int64_t doubles = cols + 5 * (cols + 1), ints = values * (cols + 1) + cols;
    return (8 * (doubles + padded(cols)) + 4 * ints + 255) / 256 * 256;
}

static __device__ struct row layout(const struct launch_cluster &job)
{
    int64_t cols = job.cols;
    double *at = (double *)(job.scratch + blockIdx.x * job.slice);
    struct row row = {at, at + cols, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0};

    row.sum1 = row.sum0 + cols + 1;
    row.sum2 = row.sum1 + cols + 1;
    row.min_loss = row.sum2 + cols + 1;
    row.next = row.min_loss + cols + 1;
    row.keys = (struct key *)(row.next + cols + 1);
    row.from = (int *)(row.keys + padded(cols));
    row.value = (float *)(row.from + job.values * (cols + 1));
    return row;
}

static __device__ bool is_behind(struct key a, struct key b)
{
    return a.value > b.value || (a.value == b.value && a.place > b.place);
}

static __device__ void sort(struct key *keys, int size)
{
    for (int run = 2; run <= size; run *= 2) {
        for (int step = run / 2; step > 0; step /= 2) {
            for (int i = threadIdx.x; i < size / 2; i += THREADS) {
                int low = i / step * 2 * step + i % step, high = low + step;
                bool rising = (low & run) == 0;
                struct key a = keys[low], b = keys[high];
                if (is_behind(a, b) == rising) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            __syncthreads();
        }
    }
}

static __device__ double weight_of(const struct launch_cluster &job, int place, bool weighed)
{
    return weighed && job.importance != NULL ? (double)job.importance[place] : 1.0;
}

/* The row's distinct values with their weights; ones when no weight is left. */
static __device__ void gather(const struct launch_cluster &job, int64_t n, struct row *row,
                              struct cluster_shared *shared)
{
    int cols = (int)job.cols, size = (int)padded(cols), total, distinct = 0;
    double weight = 0, count = 0;

    for (int i = threadIdx.x; i < size; i += THREADS) {
        bool counts = i < cols && (job.outliers == NULL || job.outliers[n * cols + i] == 0);
        row->keys[i] = counts ? key{job.w[n * cols + i] + 0.0f, i} : key{INFINITY, NO_PLACE}; /* -0 to 0 */
        weight += counts ? weight_of(job, i, true) : 0.0;
        count += counts;
    }
    weight = block_sum(weight, shared->parts);
    int last = (int)block_sum(count, shared->parts);
    __syncthreads();
    sort(row->keys, size);
    for (int first = 0; first < last; first += THREADS) {
        int i = first + (int)threadIdx.x;
        float value = i < last ? row->keys[i].value : 0.0f;
        bool begins = i < last && (i == 0 || row->keys[i - 1].value != value);
        int at = distinct + block_rank(begins, shared->counts, &total);
        if (begins) {
            double sum = weight_of(job, row->keys[i].place, weight > 0);
            for (int j = i + 1; j < last && row->keys[j].value == value; j++) {
                sum += weight_of(job, row->keys[j].place, weight > 0);
            }
            row->value[at] = value;
            row->weight[at] = sum;
        }
        distinct += total;
        __syncthreads();
    }
    row->count = distinct;
}

/* Three sums over the points in their order, by three threads: of f, f (w - centre), f (w - centre)^2; or, without
 * prefixes, of f, f w and w, which give the centre. totals: in shared memory. */
static __device__ void add_points(const struct row *row, double centre, bool prefixes, struct cluster_shared *shared)
{
    double *sums[3] = {row->sum0, row->sum1, row->sum2};
    int warp = threadIdx.x / WARP;
    bool adds = warp < 3 && threadIdx.x % WARP == 0;
    double total = 0;

    for (int first = 0; first < row->count; first += THREADS) {
        int i = first + (int)threadIdx.x, count = row->count - first < THREADS ? row->count - first : THREADS;
        if (i < row->count) {
            double x = (double)row->value[i] - centre, f = row->weight[i];
            shared->stage[0][threadIdx.x] = f;
            shared->stage[1][threadIdx.x] = f * x;
            shared->stage[2][threadIdx.x] = prefixes ? f * x * x : x;
        }
        __syncthreads();
        for (int j = 0; j < count && adds; j++) {
            total += shared->stage[warp][j];
            shared->stage[warp][j] = total;
        }
        __syncthreads();
        for (int k = 0; k < 3 && prefixes && i < row->count; k++) {
            sums[k][i + 1] = shared->stage[k][threadIdx.x];
        }
        __syncthreads();
    }
    if (adds) {
        shared->totals[warp] = total;
        sums[warp][0] = 0;
    }
    __syncthreads();
}

/* Of points [begin, end) as one cluster. */
static __device__ double interval_loss(const struct row *row, int begin, int end)
{
    double f = row->sum0[end] - row->sum0[begin], x = row->sum1[end] - row->sum1[begin];
    double loss = row->sum2[end] - row->sum2[begin] - (f > 0 ? x * x / f : 0);

    return loss > 0 ? loss : 0;
}

/* Values [low, high] of a level, whose last clusters begin in [from, to]. */
struct part {
    int low, high, from, to;
};

/* The part that `path` leads to, a bit a depth; empty when it leads nowhere. */
static __device__ struct part part_of(const int *begins, struct part part, int depth, int path)
{
    for (int bit = depth - 1; bit >= 0 && part.low <= part.high; bit--) {
        int middle = part.low + (part.high - part.low) / 2;
        if ((path >> bit & 1) == 0) {
            part.high = middle - 1;
            part.to = begins[middle];
        } else {
            part.low = middle + 1;
            part.from = begins[middle];
        }
    }
    return part;
}

/* row->next of one middle by a group of `size` threads. */
static __device__ void fill_middle(const struct row *row, int *begins, struct part part, int size)
{
    int middle = part.low + (part.high - part.low) / 2, best = NO_PLACE;
    bool empty = part.low > part.high;
    double min_loss = INFINITY;

    for (int j = part.from + (int)threadIdx.x % size; !empty && j <= part.to && j < middle; j += size) {
        double loss = row->min_loss[j] + interval_loss(row, j, middle);
        if (loss < min_loss) {
            min_loss = loss;
            best = j;
        }
    }
    for (int offset = size / 2; offset > 0; offset /= 2) {
        double loss = __shfl_xor_sync(FULL_MASK, min_loss, offset);
        int j = __shfl_xor_sync(FULL_MASK, best, offset);
        if (loss < min_loss || (loss == min_loss && j < best)) {
            min_loss = loss;
            best = j;
        }
    }
    if (!empty && threadIdx.x % size == 0) {
        row->next[middle] = min_loss;
        begins[middle] = best != NO_PLACE ? best : part.from;
    }
}

/* A level of the program: the first i values in q + 1 clusters. */
static __device__ void fill_level(const struct row *row, int *begins, int q)
{
    const struct part all = {q + 1, row->count, q, row->count};

    for (int depth = 0; 1 << depth <= row->count - q; depth++) {
        int size = THREADS >> depth;
        size = size > WARP ? WARP : size < 1 ? 1 : size;
        for (int first = 0; first < 1 << depth; first += THREADS / size) {
            int path = first + (int)threadIdx.x / size;
            struct part part = {1, 0, 0, 0};
            if (path < 1 << depth) {
                part = part_of(begins, all, depth, path);
            }
            fill_middle(row, begins, part, size);
        }
        __syncthreads();
    }
}

static __device__ float mean_of(const struct row *row, int begin, int end)
{
    double weight = 0, sum = 0, plain = 0;

    for (int i = begin; i < end; i++) {
        weight += row->weight[i];
        sum += row->weight[i] * (double)row->value[i];
        plain += (double)row->value[i];
    }
    return (float)(weight > 0 ? sum / weight : end > begin ? plain / (double)(end - begin) : 0);
}

/* Table of a row with more distinct values than the table has. */
static __device__ void split(const struct launch_cluster &job, struct row *row, struct cluster_shared *shared)
{
    int values = job.values, width = (int)job.cols + 1;

    add_points(row, 0.0, false, shared);
    double weight = shared->totals[0], sum = shared->totals[1], plain = shared->totals[2];
    add_points(row, weight > 0 ? sum / weight : plain / (double)row->count, true, shared);
    for (int i = threadIdx.x; i <= row->count; i += THREADS) {
        row->min_loss[i] = interval_loss(row, 0, i);
    }
    __syncthreads();
    for (int q = 1; q < values; q++) {
        double *swap = row->min_loss;
        fill_level(row, row->from + (int64_t)q * width, q);
        row->min_loss = row->next;
        row->next = swap;
    }
    if (threadIdx.x == 0) {
        shared->begin[values] = row->count;
        for (int q = values - 1; q >= 0; q--) {
            shared->begin[q] = q > 0 ? row->from[(int64_t)q * width + shared->begin[q + 1]] : 0;
        }
    }
    __syncthreads();
    for (int q = threadIdx.x; q < values; q += THREADS) {
        shared->table[q] = mean_of(row, shared->begin[q], shared->begin[q + 1]);
    }
}

/* The nearest value of an ascending table, the lower of equals. */
static __device__ uint8_t nearest(const float *table, int count, float w)
{
    int low = 0, high = count - 1;

    while (low < high) { /* the first value that is not below w */
        int middle = (low + high) / 2;
        if (table[middle] < w) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low > 0 && (double)w - (double)table[low - 1] <= fabs((double)table[low] - (double)w)) {
        low--;
    }
    while (low > 0 && table[low - 1] == table[low]) {
        low--;
    }
    return (uint8_t)low;
}

static __device__ void cluster_row(const struct launch_cluster &job, int64_t n, struct cluster_shared *shared)
{
    struct row row = layout(job);

    gather(job, n, &row, shared);
    if (row.count > job.values) {
        split(job, &row, shared);
    } else {
        for (int i = threadIdx.x; i < job.values; i += THREADS) {
            int at = i < row.count ? i : row.count - 1;
            shared->table[i] = row.count > 0 ? row.value[at] : 0.0f;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < job.values; i += THREADS) {
        shared->table[i] = dtype_round_finite(shared->table[i], job.stored);
        job.table[n * job.values + i] = shared->table[i];
    }
    __syncthreads();
    for (int64_t k = threadIdx.x; k < job.cols; k += THREADS) {
        job.codes[n * job.cols + k] = nearest(shared->table, job.values, job.w[n * job.cols + k]);
    }
    __syncthreads();
}

static __global__ void __launch_bounds__(THREADS) cluster_kernel(struct launch_cluster job)
{
    __shared__ struct cluster_shared shared;

    for (int64_t n = blockIdx.x; n < job.rows; n += gridDim.x) {
        cluster_row(job, n, &shared);
    }
}

int launch_cluster(const struct launch_cluster *cluster, cudaStream_t stream)
{
    if (cluster->rows > 0) {
        launch(cluster_kernel, (unsigned)cluster->slices, THREADS, 0, stream, *cluster);
    }
    return (int)cudaGetLastError();
}
