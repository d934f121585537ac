/* Grids refined: clip as products between the kernels of refine.cu, hqq as one kernel. Rows go in strips that bound the
 * scratch. */

#include "gpu/cuda/cuda.h"

#define STRIP_ELEMENTS ((int64_t)64 << 20) /* weights of a strip of rows */

static struct launch_grid refine_launch(const struct tensor *w, const struct gpu_grid *spec)
{
    return (struct launch_grid){.bits = spec->bits,
                                .sym = spec->sym,
                                .signs = spec->signs,
                                .scale_dtype = spec->scale_dtype,
                                .rows = matrix_rows(w),
                                .cols = matrix_cols(w),
                                .group = spec->group_size};
}

struct clip {
    struct gpu_stream *stream;
    struct launch_grid grid; /* rows: of the strip */
    const float *w, *h;
    struct launch_clip_best best; /* scale and zero are the results */
    float *scale, *zero, *error, *product;
};

/* Judge the range cut at p times each group's absmax, with scales of one sign. */
static int clip_judge(struct clip *job, float p, bool negative, bool first)
{
    struct gpu_stream *stream = job->stream;
    const struct launch_grid *grid = &job->grid;
    const struct gemm gemm = {.m = grid->rows,
                              .n = grid->group,
                              .k = grid->group,
                              .alpha = 1.0f,
                              .a = job->error,
                              .b = job->h,
                              .c = job->product,
                              .lda = grid->cols,
                              .ldb = grid->cols,
                              .ldc = grid->cols,
                              .count = grid->cols / grid->group,
                              .stride_a = grid->group,
                              .stride_b = grid->group * (grid->cols + 1), /* along H's diagonal */
                              .stride_c = grid->group};

    TRY(cuda_ok(stream->device,
                launch_clip_cut(job->scale, job->zero, job->error, job->w, grid, p, negative, stream->stream), "clip"));
    TRY(gemm_run(stream, &gemm));
    return cuda_ok(
        stream->device,
        launch_clip_judge(&job->best, job->scale, job->zero, job->error, job->product, grid, first, stream->stream),
        "clip");
}

/* Strips of rows; `rows` of them at most in each. */
static int clip_strips(struct clip *job, int64_t rows, const struct gpu_grid *spec)
{
    int64_t candidates = (int64_t)(spec->max_shrink * spec->steps + 1e-9), all = job->grid.rows;
    int64_t groups = job->grid.cols / job->grid.group;

    for (int64_t first = 0; first < all; first += rows) {
        job->grid.rows = all - first < rows ? all - first : rows;
        for (int64_t i = 0; i == 0 || i < candidates; i++) {
            float p = (float)(1.0 - (double)i / spec->steps);
            TRY(clip_judge(job, p, false, i == 0));
            if (spec->signs) {
                TRY(clip_judge(job, p, true, false));
            }
        }
        job->w += rows * job->grid.cols;
        job->best.scale += rows * groups;
        job->best.zero += rows * groups;
    }
    return 0;
}

int cuda_clip(struct gpu_stream *stream, const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
              const struct tensor *h, const struct gpu_grid *spec)
{
    SCRATCH_SCOPE(stream);

    TRY(cuda_begin(stream->device));
    if (tensor_count(w) == 0) {
        return 0;
    }
    struct clip job = {.stream = stream,
                       .grid = refine_launch(w, spec),
                       .w = w->data,
                       .h = h->data,
                       .best = {.scale = scale->data, .zero = zero->data}};
    int64_t rows = STRIP_ELEMENTS / job.grid.cols, cols = job.grid.cols, groups = cols / spec->group_size;
    rows = rows < 1 ? 1 : rows < job.grid.rows ? rows : job.grid.rows;
    TRY(scratch_reserve(stream, 2 * scratch_size(rows * cols, sizeof(float)) +
                                    2 * scratch_size(rows * groups, sizeof(float)) +
                                    scratch_size(rows * groups, sizeof(double))));
    job.error = scratch_take(stream, rows * cols, sizeof(float));
    job.product = scratch_take(stream, rows * cols, sizeof(float));
    job.scale = scratch_take(stream, rows * groups, sizeof(float));
    job.zero = scratch_take(stream, rows * groups, sizeof(float));
    job.best.lost = scratch_take(stream, rows * groups, sizeof(double));
    return clip_strips(&job, rows, spec);
}

int cuda_hqq(struct gpu_stream *stream, const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
             const struct gpu_grid *spec)
{
    TRY(cuda_begin(stream->device));
    const struct launch_grid grid = refine_launch(w, spec);
    return cuda_ok(stream->device, launch_hqq(scale->data, zero->data, w->data, &grid, stream->stream), "hqq");
}
