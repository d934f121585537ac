/* The search for better codes of vectors. CPU twin: gpu/cpu/codebook.c, operation by operation, so that with equal
 * products entries are equal.
 *
 * A block takes eight rows, a warp each, through all groups of a block of columns, since a row's groups follow each
 * other. For what belongs to one row a lane is one element of the group. For the scan of a codebook a thread is a code:
 * it reads the code's vector once, codes lying along the row, and scores it for all eight rows at once, their queries
 * being in shared memory; then each warp takes the best of its row's scores, as many as the beam follows. */

#include "gpu/cuda/device.cuh"

#define ROWS 8 /* of a block: one warp each */
#define THREADS (ROWS * WARP)
#define CHUNK 1024 /* codes whose scores are held at once, as on the CPU: ties come in their order */
#define BOOKS_MAX 8
#define BEAM_MAX 8
#define GROUP_MAX WARP
#define SETUP_THREADS 256

static __global__ void turn_kernel(float *turned, const float *table, struct launch_code spec)
{
    int64_t stride = (int64_t)gridDim.x * blockDim.x, count = spec.books * spec.codes * spec.group;

    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
        int64_t code = i % spec.codes, element = i / spec.codes % spec.group, book = i / spec.codes / spec.group;
        turned[i] = table[(book * spec.codes + code) * spec.group + element];
    }
}

int launch_code_turn(float *turned, const float *table, const struct launch_code *spec, cudaStream_t stream)
{
    launch(turn_kernel, flat_blocks(spec->books * spec->codes * spec->group, SETUP_THREADS), SETUP_THREADS, 0, stream,
           turned, table, *spec);
    return (int)cudaGetLastError();
}

/* H_ii, or diag f, by all threads of the block. */
static __device__ void load_metric(float *m, const struct launch_code_search &job, int64_t group)
{
    int g = (int)job.spec.group;

    for (int i = threadIdx.x; i < g * g; i += (int)blockDim.x) {
        int64_t row = group * g + i / g, col = group * g + i % g;
        float weight = job.importance != NULL ? job.importance[row] : 1.0f;
        m[i] = job.h != NULL ? job.h[row * job.spec.cols + col] : row == col ? weight : 0.0f;
    }
    __syncthreads();
}

/* C^T H_ii C: one code a thread; books and the groups of the block are the grid's other sides. */
static __global__ void cost_kernel(struct launch_code_search job)
{
    __shared__ float m[GROUP_MAX * GROUP_MAX];
    int64_t code = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, book = blockIdx.y, group = blockIdx.z;
    int g = (int)job.spec.group;
    const float *turned = job.turned + book * g * job.spec.codes + code;

    load_metric(m, job, job.first + group);
    if (code < job.spec.codes) {
        float cost = 0;
        for (int a = 0; a < g; a++) {
            float sum = 0;
            for (int b = 0; b < g; b++) {
                sum += m[a * g + b] * turned[b * job.spec.codes];
            }
            cost += sum * turned[a * job.spec.codes];
        }
        job.costs[(group * job.spec.books + book) * job.spec.codes + code] = cost;
    }
}

/* What a block shares. Ways to code a group, v the sum of a way's vectors, u the same without one codebook's: elements
 * belong to their lanes, codes to the lane of the codebook's number, so that no warp waits for itself. */
struct search_row {
    float v[BEAM_MAX][WARP], u[BEAM_MAX][WARP];
    uint16_t codes[2][BEAM_MAX][BOOKS_MAX]; /* before and after a codebook's turn */
    float product[LAUNCH_CODE_COLS];
};
struct search_shared {
    float scores[ROWS][CHUNK];
    float query[GROUP_MAX][ROWS];
    float weight[ROWS];
    float m[GROUP_MAX * GROUP_MAX];
    struct search_row rows[ROWS];
};

/* A row of the search as its warp holds it. */
struct row {
    const float *table, *m;
    int g, lane, codes;
    float s, t;              /* scale; what the group is asked for, an element a lane */
    float score;             /* lane i: the i-th best of what was found */
    int code, parent, count; /* of it; how many there are */
};

/* sum over b of m[a, b] v[b], a the lane. */
static __device__ float metric_dot(const struct row &row, float v)
{
    float dot = 0;

    for (int b = 0; b < row.g; b++) {
        float other = __shfl_sync(FULL_MASK, v, b);
        dot += row.lane < row.g ? row.m[row.lane * row.g + b] * other : 0.0f;
    }
    return dot;
}

static __device__ float loss_of(const struct row &row, float v)
{
    float term = v * (row.s * metric_dot(row, v) - 2.0f * row.t), sum = 0;

    for (int a = 0; a < row.g; a++) {
        sum += __shfl_sync(FULL_MASK, term, a);
    }
    return row.s * sum;
}

/* The sum of a group's vectors; code: this lane's. */
static __device__ float add_vectors(const struct row &row, int books, int code)
{
    float v = 0;

    for (int book = 0; book < books; book++) {
        int at = __shfl_sync(FULL_MASK, code, book);
        v += row.lane < row.g ? row.table[((int64_t)book * row.codes + at) * row.g + row.lane] : 0.0f;
    }
    return v;
}

/* Keep the best `beam` of what is found, ties in order of coming. */
static __device__ void keep(struct row *row, int beam, float score, int code, int parent)
{
    int limit = row->count < beam ? row->count : beam - 1;
    int before = warp_sum(row->lane < limit && !(row->score > score) ? 1 : 0);
    int from = row->lane > before ? row->lane - 1 : row->lane;
    float moved_score = __shfl_sync(FULL_MASK, row->score, from);
    int moved_code = __shfl_sync(FULL_MASK, row->code, from), moved_parent = __shfl_sync(FULL_MASK, row->parent, from);

    row->count = limit + 1;
    if (row->lane == before) {
        row->score = score;
        row->code = code;
        row->parent = parent;
    } else if (row->lane > before && row->lane <= limit) {
        row->score = moved_score;
        row->code = moved_code;
        row->parent = moved_parent;
    }
}

struct argmin {
    float score;
    int at;
};

/* Of this lane's part of the scores, the first of equals. */
static __device__ struct argmin lane_argmin(const float *scores, int lane, int n)
{
    struct argmin argmin = {INFINITY, CHUNK};

    for (int at = lane; at < n; at += WARP) {
        if (scores[at] < argmin.score || (scores[at] == argmin.score && at < argmin.at)) {
            argmin = {scores[at], at};
        }
    }
    return argmin;
}

static __device__ struct argmin warp_argmin(struct argmin argmin)
{
    for (int offset = WARP / 2; offset > 0; offset /= 2) {
        float score = __shfl_xor_sync(FULL_MASK, argmin.score, offset);
        int at = __shfl_xor_sync(FULL_MASK, argmin.at, offset);
        if (score < argmin.score || (score == argmin.score && at < argmin.at)) {
            argmin = {score, at};
        }
    }
    return argmin;
}

/* The best of a chunk's scores among what was found before. */
static __device__ void pick(struct row *row, int beam, float *scores, int first, int n, float base, int parent)
{
    struct argmin mine = lane_argmin(scores, row->lane, n);

    for (int i = 0; i < beam && i < n; i++) {
        struct argmin best = warp_argmin(mine);
        float last = __shfl_sync(FULL_MASK, row->score, row->count > 0 ? row->count - 1 : 0);
        float score = base + best.score;
        if (best.at == CHUNK || (row->count == beam && !(score < last))) {
            break;
        }
        keep(row, beam, score, first + best.at, parent);
        if (row->lane == best.at % WARP) {
            scores[best.at] = INFINITY;
            mine = lane_argmin(scores, row->lane, n);
        }
    }
}

/* All codes of a chunk for all rows. */
static __device__ void score_chunk(struct search_shared *shared, const float *turned, const float *costs, int first,
                                   int n, int codes, int g)
{
    for (int c = threadIdx.x; c < n; c += THREADS) {
        float sums[ROWS], cost = costs[first + c];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            sums[r] = cost * shared->weight[r];
        }
        for (int a = 0; a < g; a++) {
            float element = turned[(int64_t)a * codes + first + c];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                sums[r] += element * shared->query[a][r];
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            shared->scores[r][c] = sums[r];
        }
    }
}

/* One codebook's code chosen again in each of `count` ways, of which the row has the first *ways; returns how many ways
 * there are then for all rows, and in *ways for this one: fewer, or none, where its scores are NaN. A row without ways
 * keeps the codes that it has. */
static __device__ int advance(struct search_shared *shared, struct row *row, const struct launch_code_search &job,
                              int64_t group, int book, int count, int *ways)
{
    int warp = threadIdx.x / WARP, lane = row->lane, g = row->g;
    struct search_row *mine = &shared->rows[warp];
    const float *turned = job.turned + (int64_t)book * g * row->codes;
    const float *costs = job.costs + (group * job.spec.books + book) * row->codes;
    const float *table = row->table + (int64_t)book * row->codes * g;
    uint16_t(*before)[BOOKS_MAX] = mine->codes[book % 2], (*after)[BOOKS_MAX] = mine->codes[(book + 1) % 2];

    row->count = 0;
    for (int i = 0; i < count; i++) {
        bool mine_too = i < *ways; /* the same for the warp; what is not written is not read */
        int code = __shfl_sync(FULL_MASK, mine_too && lane < BOOKS_MAX ? (int)before[i][lane] : 0, book);
        float u = mine_too && lane < g ? mine->v[i][lane] - table[code * g + lane] : 0.0f;
        mine->u[i][lane] = u;
        shared->query[lane][warp] = 2.0f * row->s * (row->s * metric_dot(*row, u) - row->t);
        float base = loss_of(*row, u);
        for (int first = 0; first < row->codes; first += CHUNK) {
            int n = row->codes - first < CHUNK ? row->codes - first : CHUNK;
            __syncthreads(); /* queries are there, and no scores are read any more */
            score_chunk(shared, turned, costs, first, n, row->codes, g);
            __syncthreads();
            if (mine_too) {
                pick(row, job.beam, shared->scores[warp], first, n, base, i);
            }
        }
        __syncthreads();
    }
    for (int i = 0; i < row->count; i++) {
        int code = __shfl_sync(FULL_MASK, row->code, i), parent = __shfl_sync(FULL_MASK, row->parent, i);
        mine->v[i][lane] = lane < g ? mine->u[parent][lane] + table[code * g + lane] : 0.0f;
        if (lane < BOOKS_MAX) {
            after[i][lane] = lane == book ? (uint16_t)code : before[parent][lane];
        }
    }
    if (row->count == 0 && lane < BOOKS_MAX) {
        after[0][lane] = before[0][lane];
    }
    *ways = row->count;
    /* the same for all rows, whatever their numbers are: all take part in the barriers */
    int64_t found = (int64_t)count * (row->codes < job.beam ? row->codes : job.beam);
    return found < job.beam ? (int)found : job.beam;
}

/* product += change H[group, block]. */
static __device__ void pass_on(const struct launch_code_search &job, const struct row &row, int64_t group, float change,
                               float *product)
{
    int64_t col = job.first * row.g, width = job.count * row.g;

    for (int a = 0; job.h != NULL && a < row.g; a++) {
        const float *h = job.h + ((job.first + group) * row.g + a) * job.spec.cols + col;
        float step = __shfl_sync(FULL_MASK, change, a);
        for (int64_t k = row.lane; k < width; k += WARP) {
            product[k] += step * h[k];
        }
    }
}

/* Better codes for one group of the warp's row. */
static __device__ void search_group(struct search_shared *shared, struct row *row, const struct launch_code_search &job,
                                    int64_t group, int64_t n)
{
    struct search_row *mine = &shared->rows[threadIdx.x / WARP];
    int lane = row->lane, g = row->g, books = job.spec.books, count = 1, ways = 1;
    bool live = n < job.spec.rows;
    int64_t place = (live ? n : 0) * (job.spec.cols / g) + job.first + group;
    uint16_t *codes = job.entries + place * books;
    int code = live && lane < books ? codes[lane] : 0;

    float v = add_vectors(*row, books, code);
    row->t = (lane < g ? mine->product[group * g + lane] : 0.0f) + row->s * metric_dot(*row, v);
    float before = loss_of(*row, v);
    mine->v[0][lane] = v;
    if (lane < BOOKS_MAX) {
        mine->codes[0][0][lane] = (uint16_t)code;
    }
    for (int book = 0; book < books; book++) {
        count = advance(shared, row, job, group, book, count, &ways);
    }
    int found = lane < books ? mine->codes[books % 2][0][lane] : 0;
    int moved = warp_sum(found != code ? 1 : 0);
    float better = add_vectors(*row, books, found), after = loss_of(*row, better);
    if (live && moved != 0 && after < before) {
        float change = row->s * (v - better);
        if (lane < books) {
            codes[lane] = (uint16_t)found;
        }
        if (lane < g) {
            job.d[place * g + lane] += change;
        }
        pass_on(job, *row, group, change, mine->product);
        if (lane == 0) {
            job.gains[n] += (double)(before - after);
        }
    }
}

static __global__ void __launch_bounds__(THREADS) search_kernel(struct launch_code_search job)
{
    struct search_shared *shared = dynamic_shared<struct search_shared>();
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = (int)job.spec.group;
    int64_t n = (int64_t)blockIdx.x * ROWS + warp, col = job.first * g, width = job.count * g;
    bool live = n < job.spec.rows;
    struct row row = {job.table, shared->m, g, lane, (int)job.spec.codes, 1.0f, 0, 0, 0, 0, 0};

    row.s = live && job.scale != NULL ? job.scale[n] : 1.0f;
    if (lane == 0) {
        shared->weight[warp] = row.s * row.s;
    }
    for (int64_t k = lane; k < width; k += WARP) {
        float product = 0;
        if (live && job.h != NULL) {
            product = job.product[n * width + k];
        } else if (live) {
            product = job.d[n * job.spec.cols + col + k] * (job.importance != NULL ? job.importance[col + k] : 1.0f);
        }
        shared->rows[warp].product[k] = product;
    }
    for (int64_t group = 0; group < job.count; group++) {
        load_metric(shared->m, job, job.first + group); /* waits for all */
        search_group(shared, &row, job, group, n);
        __syncthreads();
    }
}

int launch_code_search(const struct launch_code_search *search, cudaStream_t stream)
{
    const int bytes = (int)sizeof(struct search_shared);
    const struct launch_code *spec = &search->spec;

    if (spec->rows == 0 || search->count == 0) {
        return 0;
    }
    dim3 grid(blocks_of(spec->codes, SETUP_THREADS), (unsigned)spec->books, (unsigned)search->count);
    launch(cost_kernel, grid, SETUP_THREADS, 0, stream, *search);
    cudaError_t status = cudaFuncSetAttribute(search_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (status == cudaSuccess) {
        launch(search_kernel, blocks_of(spec->rows, ROWS), THREADS, bytes, stream, *search);
    }
    return status != cudaSuccess ? (int)status : (int)cudaGetLastError();
}
