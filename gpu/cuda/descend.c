/* Coordinate descent as on the CPU (gpu/cpu/descend.c): the kernels of descend.cu decide, F32 products carry what moved
 * to the columns outside of a block and of a group. Rows go in strips that bound the scratch. */

#include "gpu/cuda/cuda.h"

#define STRIP_ELEMENTS ((int64_t)64 << 20) /* weights of a strip of rows */

struct descend {
    struct gpu_stream *stream;
    const struct gpu_descend *spec;
    struct launch_descend launch; /* rows: of the strip */
    const float *target;
    double *sums;          /* device [rows]: of the strip */
    double *host;          /* [rows] */
    double before, gained; /* over strips */
};

/* G of columns [first, first + cols) after columns [from, from + count) moved by moves, `stride` elements a row. */
static int strip_follow(const struct descend *job, const float *moves, int64_t stride, int64_t from, int64_t count,
                        int64_t first, int64_t cols)
{
    const struct launch_descend *launch = &job->launch;
    const struct gemm gemm = {.m = launch->rows,
                              .n = cols,
                              .k = count,
                              .alpha = -1.0f,
                              .beta = 1.0f,
                              .a = moves,
                              .b = launch->h + from * launch->k + first,
                              .c = launch->g + first,
                              .lda = stride,
                              .ldb = launch->k,
                              .ldc = launch->k};

    return cols > 0 ? gemm_run(job->stream, &gemm) : 0;
}

static int strip_points(const struct descend *job, int64_t group)
{
    const struct launch_descend *launch = &job->launch;
    const struct gemm gemm = {.m = launch->rows,
                              .n = launch->size,
                              .k = launch->size,
                              .alpha = 1.0f,
                              .a = launch->levels,
                              .b = launch->h + group * launch->size * (launch->k + 1),
                              .c = launch->curves,
                              .lda = launch->size,
                              .ldb = launch->k,
                              .ldc = launch->size};

    TRY(gemm_run(job->stream, &gemm));
    return cuda_ok(job->stream->device, launch_descend_points(launch, group, job->stream->stream), "descend");
}

static int strip_group(const struct descend *job, int64_t group)
{
    const struct launch_descend *launch = &job->launch;
    struct gpu_device *device = job->stream->device;
    int64_t start = group * launch->size, end = start + launch->size;

    TRY(cuda_ok(device, launch_descend_open(launch, group, job->stream->stream), "descend"));
    if (job->spec->scales) {
        TRY(strip_points(job, group));
    }
    for (int64_t first = start; first < end; first += LAUNCH_DESCEND_COLS) {
        int64_t cols = end - first < LAUNCH_DESCEND_COLS ? end - first : LAUNCH_DESCEND_COLS;
        float *steps = launch->levels; /* not needed any more */
        TRY(cuda_ok(device, launch_descend_codes(launch, steps, first, (int)cols, job->stream->stream), "descend"));
        TRY(strip_follow(job, steps, cols, first, cols, start, first - start));
        TRY(strip_follow(job, steps, cols, first, cols, first + cols, end - first - cols));
    }
    TRY(strip_follow(job, launch->moves + start, launch->k, start, launch->size, 0, start));
    return strip_follow(job, launch->moves + start, launch->k, start, launch->size, end, launch->k - end);
}

static int strip_sum(const struct descend *job, const double *rows, double *sum)
{
    TRY(memory_download(job->stream, job->host, rows, (size_t)job->launch.rows * sizeof(double)));

    for (int64_t r = 0; r < job->launch.rows; r++) {
        *sum += job->host[r];
    }
    return 0;
}

/* D, G and the error of the strip's rows. */
static int strip_start(struct descend *job)
{
    struct launch_descend *launch = &job->launch;
    struct gpu_stream *stream = job->stream;
    const struct launch_grid grid = {.rows = launch->rows, .cols = launch->k, .group = launch->size};
    const struct gemm gemm = {.m = launch->rows,
                              .n = launch->k,
                              .k = launch->k,
                              .alpha = 1.0f,
                              .a = launch->moves,
                              .b = launch->h,
                              .c = launch->g,
                              .lda = launch->k,
                              .ldb = launch->k,
                              .ldc = launch->k};
    int64_t count = launch->rows * launch->k;

    TRY(cuda_ok(stream->device,
                launch_dequantize(launch->moves, launch->codes, launch->scale, launch->zero, &grid, stream->stream),
                "descend"));
    TRY(cuda_ok(stream->device, launch_subtract(launch->moves, job->target, launch->moves, count, stream->stream),
                "descend"));
    TRY(gemm_run(stream, &gemm));
    TRY(cuda_ok(stream->device,
                launch_row_dot(job->sums, launch->moves, launch->g, launch->rows, launch->k, stream->stream),
                "descend"));
    TRY(strip_sum(job, job->sums, &job->before));
    return memory_fill_zero(stream, launch->gain, (size_t)launch->rows * sizeof(double));
}

static int descend_strips(struct descend *job, int64_t rows)
{
    struct launch_descend *launch = &job->launch;
    int64_t all = launch->rows;

    for (int64_t first = 0; first < all; first += rows) {
        launch->rows = all - first < rows ? all - first : rows;
        TRY(strip_start(job));
        for (int64_t i = 0; i < job->spec->passes * launch->groups; i++) {
            TRY(strip_group(job, i % launch->groups));
        }
        TRY(strip_sum(job, launch->gain, &job->gained));
        launch->codes += rows * launch->k;
        launch->scale += rows * launch->groups;
        launch->zero += rows * launch->groups;
        job->target += rows * launch->k;
    }
    return 0;
}

static int descend_run(struct descend *job, int64_t rows)
{
    struct launch_descend *launch = &job->launch;
    struct gpu_stream *stream = job->stream;
    int64_t cols = launch->size < LAUNCH_DESCEND_COLS ? LAUNCH_DESCEND_COLS : launch->size; /* of levels: steps, too */

    SCRATCH_SCOPE(stream);
    TRY(scratch_reserve(stream, 2 * scratch_size(rows * launch->k, sizeof(float)) +
                                    2 * scratch_size(rows * cols, sizeof(float)) +
                                    scratch_size(launch->k, sizeof(float)) + 2 * scratch_size(rows, sizeof(double))));
    launch->g = scratch_take(stream, rows * launch->k, sizeof(float));
    launch->moves = scratch_take(stream, rows * launch->k, sizeof(float));
    launch->levels = scratch_take(stream, rows * cols, sizeof(float));
    launch->curves = scratch_take(stream, rows * cols, sizeof(float));
    float *ones = scratch_take(stream, launch->k, sizeof(float));
    launch->ones = ones;
    launch->gain = scratch_take(stream, rows, sizeof(double));
    job->sums = scratch_take(stream, rows, sizeof(double));
    if (!launch->sym && job->spec->scales) {
        TRY(cuda_ok(stream->device, launch_descend_ones(ones, launch->h, launch->k, launch->size, stream->stream),
                    "descend"));
    }
    return descend_strips(job, rows);
}

int cuda_descend(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *scale,
                 const struct tensor *zero, const struct tensor *target, const struct tensor *h,
                 const struct gpu_grid *grid, const struct gpu_descend *spec, double *before, double *after)
{
    AUTO_FREE double *host = NULL;

    TRY(cuda_begin(stream->device));
    struct descend job = {.stream = stream,
                          .spec = spec,
                          .launch = {.codes = codes->data,
                                     .scale = scale->data,
                                     .zero = zero->data,
                                     .h = h->data,
                                     .rows = matrix_rows(target),
                                     .k = matrix_cols(target),
                                     .size = grid->group_size,
                                     .groups = matrix_cols(target) / grid->group_size,
                                     .top = (float)((1 << grid->bits) - 1),
                                     .sym = grid->sym,
                                     .scale_dtype = grid->scale_dtype},
                          .target = target->data};
    int64_t rows = STRIP_ELEMENTS / (job.launch.k > 0 ? job.launch.k : 1);
    rows = rows < 1 ? 1 : rows < job.launch.rows ? rows : job.launch.rows;
    TRY(mem_buffer(&host, (size_t)rows));
    job.host = host;
    if (rows > 0) {
        TRY(descend_run(&job, rows));
    }
    *before = job.before;
    *after = job.before - job.gained;
    return 0;
}
