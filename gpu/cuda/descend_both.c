/* Coordinate descent on both sides' moments as on the CPU (gpu/cpu/descend_both.c, which says what M and G are): the
 * kernels of descend_both.cu decide, F32 products carry what moved to the columns outside of a block and of a group.
 * All is kept transposed, as there. */

#include "gpu/cuda/cuda.h"

#define BLOCK 64 /* columns whose moves are followed one by one */

struct descend_both {
    struct gpu_stream *stream;
    const struct gpu_descend *spec;
    struct launch_both launch;
    float *start; /* [K, N]: D^T */
    float *moves; /* [BLOCK, N]: what M lost in the open block */
    double *sums; /* device [size] */
    double *host; /* [size] */
};

static int descend_both_ok(const struct descend_both *job, int launched)
{
    return cuda_ok(job->stream->device, launched, "descend_both");
}

/* c[m, N] = alpha a[m, n] b[n, N] + beta c */
static int descend_both_product(const struct descend_both *job, int64_t m, int64_t n, float alpha, const float *a,
                                int64_t lda, const float *b, float beta, float *c)
{
    int64_t rows = job->launch.n;
    const struct gemm gemm = {.m = m,
                              .n = rows,
                              .k = n,
                              .alpha = alpha,
                              .beta = beta,
                              .a = a,
                              .b = b,
                              .c = c,
                              .lda = lda,
                              .ldb = rows,
                              .ldc = rows};

    return m > 0 ? gemm_run(job->stream, &gemm) : 0;
}

/* D^T, M, and the error: sums over the columns of each group. */
static int descend_both_begin(const struct descend_both *job, const float *target, double *error)
{
    const struct launch_both *launch = &job->launch;
    int64_t n = launch->n, size = launch->size;

    TRY(descend_both_ok(job, launch_both_start(launch, target, job->start, job->stream->stream)));
    TRY(descend_both_product(job, launch->k, n, 1.0f, job->start, n, launch->o, 0.0f, launch->m));
    for (int64_t group = 0; group < launch->groups; group++) {
        const float *d = job->start + group * size * n;
        TRY(descend_both_product(job, size, launch->k, 1.0f, launch->h + group * size * launch->k, launch->k, launch->m,
                                 0.0f, launch->levels));
        TRY(descend_both_ok(job, launch_row_dot(job->sums, d, launch->levels, size, n, job->stream->stream)));
        TRY(memory_download(job->stream, job->host, job->sums, (size_t)size * sizeof(double)));
        for (int64_t j = 0; j < size; j++) {
            *error += job->host[j];
        }
    }
    return memory_fill_zero(job->stream, launch->gain, sizeof(double));
}

static int descend_both_scales(const struct descend_both *job, int64_t group)
{
    const struct launch_both *launch = &job->launch;
    int64_t n = launch->n, size = launch->size, start = group * size;

    TRY(descend_both_ok(job, launch_both_levels(launch, group, job->stream->stream)));
    TRY(descend_both_product(job, size, size, 1.0f, launch->h + start * (launch->k + 1), launch->k, launch->levels,
                             0.0f, launch->curves));
    for (int64_t first = 0; first < n; first += LAUNCH_BOTH_ROWS) {
        int64_t count = n - first < LAUNCH_BOTH_ROWS ? n - first : LAUNCH_BOTH_ROWS;
        TRY(descend_both_ok(job, launch_both_scales(launch, group, first, (int)count, job->stream->stream)));
        TRY(descend_both_product(job, size, count, -1.0f, launch->curves + first, n, launch->o + first * n, 1.0f,
                                 launch->g));
    }
    return descend_both_product(job, size, n, -1.0f, launch->levels, n, launch->o, 1.0f, launch->m + start * n);
}

static int descend_both_codes(const struct descend_both *job, int64_t group)
{
    const struct launch_both *launch = &job->launch;
    cudaStream_t stream = job->stream->stream;
    int64_t n = launch->n, start = group * launch->size;

    for (int64_t first = 0; first < launch->size; first += BLOCK) {
        int64_t cols = launch->size - first < BLOCK ? launch->size - first : BLOCK, next = first + cols;
        for (int64_t c = 0; c < cols; c++) {
            float *g = launch->g + (first + c) * n, *lost = job->moves + c * n;
            int64_t j = start + first + c;
            TRY(descend_both_ok(job, launch_both_column(launch, j, g, lost, stream)));
            TRY(descend_both_ok(job, launch_both_follow(launch, j, g, lost, (int)(cols - c - 1), stream)));
        }
        TRY(descend_both_product(job, launch->size - next, cols, -1.0f,
                                 launch->h + (start + next) * launch->k + start + first, launch->k, job->moves, 1.0f,
                                 launch->g + next * n));
    }
    return 0;
}

static int descend_both_passes(const struct descend_both *job)
{
    const struct launch_both *launch = &job->launch;

    for (int64_t step = 0; step < job->spec->passes * launch->groups; step++) {
        int64_t group = step % launch->groups;
        TRY(descend_both_product(job, launch->size, launch->k, 1.0f, launch->h + group * launch->size * launch->k,
                                 launch->k, launch->m, 0.0f, launch->g));
        TRY(job->spec->scales ? descend_both_scales(job, group) : 0);
        TRY(descend_both_codes(job, group));
    }
    return 0;
}

static int descend_both_run(struct descend_both *job, const float *target, double *before, double *gained)
{
    struct launch_both *launch = &job->launch;
    struct gpu_stream *stream = job->stream;
    int64_t n = launch->n, k = launch->k, size = launch->size;

    SCRATCH_SCOPE(stream);
    TRY(scratch_reserve(stream, 2 * scratch_size(k * n, sizeof(float)) + 3 * scratch_size(size * n, sizeof(float)) +
                                    scratch_size(BLOCK * n, sizeof(float)) + scratch_size(size, sizeof(double)) +
                                    scratch_size(1, sizeof(double))));
    job->start = scratch_take(stream, k * n, sizeof(float));
    launch->m = scratch_take(stream, k * n, sizeof(float));
    launch->g = scratch_take(stream, size * n, sizeof(float));
    launch->levels = scratch_take(stream, size * n, sizeof(float));
    launch->curves = scratch_take(stream, size * n, sizeof(float));
    job->moves = scratch_take(stream, BLOCK * n, sizeof(float));
    job->sums = scratch_take(stream, size, sizeof(double));
    launch->gain = scratch_take(stream, 1, sizeof(double));
    TRY(descend_both_begin(job, target, before));
    TRY(descend_both_passes(job));
    return memory_download(stream, gained, launch->gain, sizeof(double));
}

int cuda_descend_both(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *scale,
                      const struct tensor *zero, const struct tensor *target, const struct tensor *h,
                      const struct tensor *o, const struct gpu_grid *grid, const struct gpu_descend *spec,
                      double *before, double *after)
{
    double error = 0, gained = 0;
    AUTO_FREE double *host = NULL;

    TRY(cuda_begin(stream->device));
    struct descend_both job = {.stream = stream,
                               .spec = spec,
                               .launch = {.codes = codes->data,
                                          .scale = scale->data,
                                          .zero = zero->data,
                                          .h = h->data,
                                          .o = o->data,
                                          .n = matrix_rows(target),
                                          .k = matrix_cols(target),
                                          .size = grid->group_size,
                                          .groups = matrix_cols(target) / grid->group_size,
                                          .top = (float)((1 << grid->bits) - 1),
                                          .scale_dtype = grid->scale_dtype}};
    TRY(mem_buffer(&host, (size_t)job.launch.size));
    job.host = host;
    if (job.launch.n > 0 && job.launch.k > 0) {
        TRY(descend_both_run(&job, target->data, &error, &gained));
    }
    *before = error;
    *after = error - gained;
    return 0;
}
