/* Grids refined: the range cut where the group's part of the output loses the least, and half-quadratic splitting. CPU
 * twins: gpu/cpu/clip.c, gpu/cpu/hqq.c.
 *
 * Clipping goes candidate by candidate over all rows and groups at once: one kernel leaves what every group loses by
 * the cut, d = w - wq, a batch of products takes d to d H_gg, and another kernel keeps the cut where their dot is
 * least. */

#include "gpu/cuda/point.cuh"

#define THREADS 256

/* --- clip: half a warp a group, as in grid.cu */
static __global__ void cut_kernel(float *scale, float *zero, float *error, const float *weights,
                                  struct launch_grid spec, float p, int negative)
{
    int64_t tasks = spec.rows * (spec.cols / spec.group);
    int64_t task = (int64_t)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    bool live = task < tasks;
    task = live ? task : tasks - 1; /* all lanes of a warp take part in the shuffles */

    const float *w = weights + task * spec.group; /* groups tile the rows */
    float low = 0, high = 0, top = (float)((1 << spec.bits) - 1);
    for (int64_t i = lane; i < spec.group; i += LANES) {
        low = fminf(low, w[i]);
        high = fmaxf(high, w[i]);
    }
    low = -lanes_max(-low);
    high = lanes_max(high);
    struct grid_point point = {1.0f, spec.sym ? (float)(1 << (spec.bits - 1)) : 0.0f};
    if (low < 0.0f || high > 0.0f) {
        float bound = p * (-low > high ? -low : high);
        point = grid_of(spec, low < -bound ? -bound : low, high > bound ? bound : high);
        point.scale = negative ? -point.scale : point.scale;
    }
    for (int64_t i = lane; i < spec.group && live; i += LANES) {
        float code = round_clamped(w[i] / point.scale, -point.zero, top - point.zero) + point.zero;
        error[task * spec.group + i] = w[i] - point.scale * (code - point.zero);
    }
    if (live && lane == 0) {
        scale[task] = point.scale;
        zero[task] = point.zero;
    }
}

int launch_clip_cut(float *scale, float *zero, float *error, const float *w, const struct launch_grid *spec, float p,
                    int negative, cudaStream_t stream)
{
    int64_t tasks = spec->rows * (spec->cols / spec->group);
    if (tasks > 0) {
        launch(cut_kernel, blocks_of(tasks, THREADS / LANES), THREADS, 0, stream, scale, zero, error, w, *spec, p,
               negative);
    }
    return (int)cudaGetLastError();
}

static __global__ void judge_kernel(struct launch_clip_best best, const float *scale, const float *zero,
                                    const float *error, const float *product, struct launch_grid spec, int first)
{
    int64_t tasks = spec.rows * (spec.cols / spec.group);
    int64_t task = (int64_t)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    bool live = task < tasks;
    double lost = 0;

    for (int64_t i = lane; i < spec.group && live; i += LANES) {
        lost += (double)error[task * spec.group + i] * (double)product[task * spec.group + i];
    }
    lost = lanes_sum(lost);
    if (live && lane == 0 && (first || lost < best.lost[task])) {
        best.lost[task] = lost;
        best.scale[task] = scale[task];
        best.zero[task] = zero[task];
    }
}

int launch_clip_judge(const struct launch_clip_best *best, const float *scale, const float *zero, const float *error,
                      const float *product, const struct launch_grid *spec, int first, cudaStream_t stream)
{
    int64_t tasks = spec->rows * (spec->cols / spec->group);
    if (tasks > 0) {
        launch(judge_kernel, blocks_of(tasks, THREADS / LANES), THREADS, 0, stream, *best, scale, zero, error, product,
               *spec, first);
    }
    return (int)cudaGetLastError();
}

/* --- hqq: a warp a group */
#define ROUNDS 20
#define NORM 0.7f
#define BETA 10.0f
#define BETA_GROWTH 1.01f

/* What d has beyond what is counted, both in units. The power is taken in double, so that its rounding is the CPU's. */
static __device__ float kept_error(float d, float beta)
{
    float size = fabsf(d);
    float rest = size > 0.0f ? size - (float)pow((double)size, (double)(NORM - 1.0f)) / beta : 0.0f;

    return rest > 0.0f ? copysignf(rest, d) : 0.0f;
}

/* A group's weights on a grid. */
struct refined {
    const float *w;
    int64_t count;
    float top, unit, beta;
    int lane;
    enum dtype scale_dtype;
};

static __device__ float code_of(const struct refined &job, float w, struct grid_point point)
{
    return round_clamped(w / point.scale, -point.zero, job.top - point.zero) + point.zero;
}

/* What the code of w should stand for. */
static __device__ float target_of(const struct refined &job, float w, float code, struct grid_point point)
{
    float d = w - point.scale * (code - point.zero);
    return w - kept_error(d / job.unit, job.beta) * job.unit;
}

static __device__ double lost_of(const struct refined &job, struct grid_point point)
{
    double lost = 0;

    for (int64_t i = job.lane; i < job.count; i += WARP) {
        float code = code_of(job, job.w[i], point);
        lost += (double)fabsf(job.w[i] - point.scale * (code - point.zero));
    }
    return warp_sum(lost);
}

/* The next grid from the codes of this one; false when there is none. */
static __device__ bool advance(const struct refined &job, struct grid_point *point)
{
    double mean = 0, dot = 0, square = 0;

    for (int64_t i = job.lane; i < job.count; i += WARP) {
        float code = code_of(job, job.w[i], *point);
        mean += (double)code - (double)target_of(job, job.w[i], code, *point) / (double)point->scale;
    }
    float zero = rintf((float)(warp_sum(mean) / (double)job.count));
    zero = zero < 0.0f ? 0.0f : zero > job.top ? job.top : zero;
    for (int64_t i = job.lane; i < job.count; i += WARP) {
        float code = code_of(job, job.w[i], *point);
        double step = (double)code - (double)zero;
        dot += step * (double)target_of(job, job.w[i], code, *point);
        square += step * step;
    }
    dot = warp_sum(dot);
    square = warp_sum(square);
    float scale = square > 0 ? dtype_round((float)(dot / square), job.scale_dtype) : 0.0f;
    if (!(scale > 0.0f) || isinf(scale) || (scale == point->scale && zero == point->zero)) {
        return false;
    }
    *point = {scale, zero};
    return true;
}

static __global__ void hqq_kernel(float *scale, float *zero, const float *w, struct launch_grid spec)
{
    int64_t tasks = spec.rows * (spec.cols / spec.group);
    int64_t task = (int64_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;

    if (task >= tasks) { /* all of a warp */
        return;
    }
    struct grid_point point = {scale[task], zero[task]}, best = point;
    struct refined job = {w + task * spec.group,     spec.group,      (float)((1 << spec.bits) - 1), point.scale, BETA,
                          (int)(threadIdx.x % WARP), spec.scale_dtype};
    double min = INFINITY;
    for (int round = 0; round < ROUNDS; round++) {
        double lost = lost_of(job, point);
        if (!(lost < min)) {
            break;
        }
        min = lost;
        best = point;
        if (!advance(job, &point)) {
            break;
        }
        job.beta *= BETA_GROWTH;
    }
    if (job.lane == 0) {
        scale[task] = best.scale;
        zero[task] = best.zero;
    }
}

int launch_hqq(float *scale, float *zero, const float *w, const struct launch_grid *spec, cudaStream_t stream)
{
    int64_t tasks = spec->rows * (spec->cols / spec->group);
    if (tasks > 0) {
        launch(hqq_kernel, blocks_of(tasks, THREADS / WARP), THREADS, 0, stream, scale, zero, w, *spec);
    }
    return (int)cudaGetLastError();
}
