/* The GPTQ sweep: blocks of 128 columns go through the fused kernel of sweep.cu, and one F32 product takes each block's
 * errors to the columns behind it. Weights are gathered in visiting order first; the caller's are overwritten as on the
 * CPU. The block size of the request is the CPU's business: results depend on it by rounding only. */

#include "gpu/cuda/cuda.h"

#include <stdlib.h>

struct sweep {
    struct gpu_stream *stream;
    struct launch_sweep launch;
    int32_t *group; /* host, [k] */
};

static bool is_uniform(const int32_t *group, int cols)
{
    for (int i = 1; i < cols; i++) {
        if (group[i] != group[0]) {
            return false;
        }
    }
    return true;
}

static int run_blocks(struct sweep *job)
{
    struct launch_sweep *launch = &job->launch;
    int rc = 0;

    for (int64_t first = 0; rc == 0 && first < launch->k; first += LAUNCH_SWEEP_COLS) {
        int64_t behind = first + LAUNCH_SWEEP_COLS;
        launch->first = first;
        launch->cols = behind < launch->k ? LAUNCH_SWEEP_COLS : (int)(launch->k - first);
        launch->uniform = is_uniform(job->group + first, launch->cols);
        rc = cuda_ok(job->stream->device, launch_sweep(launch, job->stream->stream), "sweep");
        if (rc == 0 && behind < launch->k) {
            struct gemm update = {.m = launch->rows,
                                  .n = launch->k - behind,
                                  .k = LAUNCH_SWEEP_COLS,
                                  .alpha = -1.0f,
                                  .beta = 1.0f,
                                  .a = launch->error,
                                  .b = launch->u + first * launch->k + behind,
                                  .c = launch->w + behind,
                                  .lda = LAUNCH_SWEEP_COLS,
                                  .ldb = launch->k,
                                  .ldc = launch->k};
            rc = gemm_run(job->stream, &update);
        }
    }
    return rc;
}

static int sum_losses(struct sweep *job, double *loss)
{
    double *rows = malloc((size_t)(job->launch.rows > 0 ? job->launch.rows : 1) * sizeof(double));
    double sum = 0;

    if (rows == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot allocate %lld losses", (long long)job->launch.rows);
    }
    int rc = memory_download(job->stream, rows, job->launch.loss, (size_t)job->launch.rows * sizeof(double));
    for (int64_t r = 0; rc == 0 && r < job->launch.rows; r++) {
        sum += rows[r];
    }
    free(rows);
    if (rc == 0) {
        *loss = sum;
    }
    return rc;
}

static int run_sweep(struct sweep *job, const struct tensor *codes, const struct tensor *w, const int32_t *order,
                     double *loss)
{
    struct gpu_stream *stream = job->stream;
    struct launch_sweep *launch = &job->launch;
    int64_t rows = launch->rows, k = launch->k;
    size_t permuted = order != NULL ? scratch_size(k, sizeof(int32_t)) + scratch_size(rows * k, sizeof(float)) +
                                          scratch_size(rows * k, 1)
                                    : 0;

    int rc = scratch_reserve(stream, permuted + scratch_size(k, sizeof(int32_t)) +
                                         scratch_size(rows * LAUNCH_SWEEP_COLS, sizeof(float)) +
                                         scratch_size(rows, sizeof(double)));
    if (rc != 0) {
        return rc;
    }
    int32_t *group = scratch_take(stream, k, sizeof(int32_t)), *visits = NULL;
    launch->group = group;
    launch->error = scratch_take(stream, rows * LAUNCH_SWEEP_COLS, sizeof(float));
    launch->loss = scratch_take(stream, rows, sizeof(double));
    launch->w = w->data;
    launch->codes = codes->data;
    rc = memory_upload(stream, group, job->group, (size_t)k * sizeof(int32_t));
    rc = rc != 0 ? rc : memory_fill_zero(stream, launch->loss, (size_t)rows * sizeof(double));
    if (order != NULL) {
        visits = scratch_take(stream, k, sizeof(int32_t));
        launch->w = scratch_take(stream, rows * k, sizeof(float));
        launch->codes = scratch_take(stream, rows * k, 1);
        rc = rc != 0 ? rc : memory_upload(stream, visits, order, (size_t)k * sizeof(int32_t));
        rc = rc != 0 ? rc
                     : cuda_ok(stream->device,
                               launch_gather_columns(launch->w, w->data, visits, rows, k, stream->stream), "sweep");
    }
    rc = rc != 0 ? rc : run_blocks(job);
    if (order != NULL && rc == 0) {
        rc = cuda_ok(stream->device, launch_scatter_codes(codes->data, launch->codes, visits, rows, k, stream->stream),
                     "sweep");
    }
    return rc != 0 ? rc : sum_losses(job, loss);
}

int cuda_sweep(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w, const struct tensor *u,
               const struct tensor *scale, const struct tensor *zero, const int32_t *order, int64_t block_size,
               const struct gpu_grid *spec, double *loss)
{
    int rc = check_sweep(codes, w, u, scale, zero, order, block_size, spec);

    rc = rc != 0 ? rc : cuda_begin(stream->device);
    if (rc != 0) {
        return rc;
    }
    struct sweep job = {.stream = stream,
                        .launch = {.u = u->data,
                                   .scale = scale->data,
                                   .zero = zero->data,
                                   .rows = matrix_rows(w),
                                   .k = matrix_cols(w),
                                   .groups = matrix_cols(w) / spec->group_size,
                                   .top = (float)((1 << spec->bits) - 1)}};
    job.group = malloc((size_t)(job.launch.k > 0 ? job.launch.k : 1) * sizeof(int32_t));
    if (job.group == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot allocate %lld group numbers", (long long)job.launch.k);
    }
    for (int64_t i = 0; i < job.launch.k; i++) {
        job.group[i] = (int32_t)((order != NULL ? order[i] : i) / spec->group_size);
    }
    rc = run_sweep(&job, codes, w, order, loss);
    free(job.group);
    return rc != 0 ? err_pass(rc, "sweep") : 0;
}
