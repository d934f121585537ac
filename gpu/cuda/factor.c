/* The factor that GPTQ walks along, by one Cholesky and one triangular inverse of the reversed matrix; the essay is in
 * the CPU twin, gpu/cpu/factor.c. cuSOLVER is column-major: our lower triangle is its upper one. */

#include "gpu/cuda/cuda.h"

#include <stdlib.h>

#define ORDER_MAX 65535 /* a launch's second side */

int cusolver_ok(struct gpu_device *device, cusolverStatus_t status, const char *what)
{
    if (status == CUSOLVER_STATUS_SUCCESS) {
        return 0;
    }
    if (status == CUSOLVER_STATUS_ALLOC_FAILED) {
        return err_raise(ERR_GPU_OUT_OF_MEMORY, "%s: cuSOLVER status %d", what, (int)status);
    }
    int rc = cuda_ok(device, cudaPeekAtLastError(), what);
    return rc != 0 ? rc : err_raise(ERR_INTERNAL, "%s: cuSOLVER status %d", what, (int)status);
}

/* damp_percent of the mean of the diagonal in which dead columns count as 1. */
static int damping(struct gpu_stream *stream, const struct tensor *h, double percent, float *damp)
{
    int64_t n = matrix_cols(h);
    float *diagonal = malloc((size_t)n * sizeof(float));
    double sum = 0;

    if (diagonal == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot allocate a diagonal of %lld", (long long)n);
    }
    int rc = cuda_diagonal(stream, diagonal, h);
    for (int64_t j = 0; rc == 0 && j < n; j++) {
        sum += diagonal[j] == 0.0f ? 1.0 : (double)diagonal[j];
    }
    free(diagonal);
    *damp = (float)(percent * sum / (double)n);
    return rc;
}

struct sizes {
    size_t device_cholesky, host_cholesky, device_inverse, host_inverse;
};

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* With the first solve of a stream. */
static int open_solver(struct gpu_stream *stream)
{
    struct gpu_device *device = stream->device;
    int rc = 0;

    if (stream->solver_params == NULL) {
        rc = cusolver_ok(device, cusolverDnCreateParams(&stream->solver_params), "cusolverDnCreateParams");
    }
    if (rc != 0 || stream->solver != NULL) {
        return rc;
    }
    rc = cusolver_ok(device, cusolverDnCreate(&stream->solver), "cusolverDnCreate");
    rc = rc != 0 ? rc : cusolver_ok(device, cusolverDnSetStream(stream->solver, stream->stream), "cusolverDnSetStream");
    if (rc != 0 && stream->solver != NULL) {
        (void)cusolverDnDestroy(stream->solver);
        stream->solver = NULL;
    }
    return rc;
}

static int ask_sizes(struct gpu_stream *stream, float *u, int64_t n, struct sizes *sizes)
{
    int rc = cusolver_ok(stream->device,
                         cusolverDnXpotrf_bufferSize(stream->solver, stream->solver_params, CUBLAS_FILL_MODE_UPPER, n,
                                                     CUDA_R_32F, u, n, CUDA_R_32F, &sizes->device_cholesky,
                                                     &sizes->host_cholesky),
                         "Cholesky workspace");
    return rc != 0 ? rc
                   : cusolver_ok(stream->device,
                                 cusolverDnXtrtri_bufferSize(stream->solver, CUBLAS_FILL_MODE_UPPER,
                                                             CUBLAS_DIAG_NON_UNIT, n, CUDA_R_32F, u, n,
                                                             &sizes->device_inverse, &sizes->host_inverse),
                                 "inverse workspace");
}

/* What cuSOLVER says of its last call: 0, or the column that failed. */
static int read_info(struct gpu_stream *stream, const int *device_info, const struct tensor *h)
{
    int info = 0;
    int rc = memory_download(stream, &info, device_info, sizeof(info));

    if (rc == 0 && info < 0) {
        rc = err_raise(ERR_INTERNAL, "cuSOLVER refused its argument %d", -info);
    }
    if (rc == 0 && info > 0) {
        rc = err_raise(ERR_NOT_POSITIVE_DEFINITE, "the Hessian [%lld, %lld] is not positive definite (step %d)",
                       (long long)matrix_rows(h), (long long)matrix_cols(h), info);
    }
    return rc;
}

static int solve(struct gpu_stream *stream, float *u, int64_t n, const struct tensor *h, const struct sizes *sizes,
                 void *host_work)
{
    int *info = scratch_take(stream, 1, sizeof(int));
    void *work = scratch_take(stream, (int64_t)larger(sizes->device_cholesky, sizes->device_inverse), 1);

    int rc =
        cusolver_ok(stream->device,
                    cusolverDnXpotrf(stream->solver, stream->solver_params, CUBLAS_FILL_MODE_UPPER, n, CUDA_R_32F, u, n,
                                     CUDA_R_32F, work, sizes->device_cholesky, host_work, sizes->host_cholesky, info),
                    "Cholesky");
    rc = rc != 0 ? rc : read_info(stream, info, h);
    rc = rc != 0
             ? rc
             : cusolver_ok(stream->device,
                           cusolverDnXtrtri(stream->solver, CUBLAS_FILL_MODE_UPPER, CUBLAS_DIAG_NON_UNIT, n, CUDA_R_32F,
                                            u, n, work, sizes->device_inverse, host_work, sizes->host_inverse, info),
                           "triangular inverse");
    return rc != 0 ? rc : read_info(stream, info, h);
}

static int upload_order(struct gpu_stream *stream, const int32_t *order, int64_t n, int32_t **on_device)
{
    *on_device = NULL;
    if (order == NULL) {
        return 0;
    }
    *on_device = scratch_take(stream, n, sizeof(int32_t));
    return memory_upload(stream, *on_device, order, (size_t)n * sizeof(int32_t));
}

static int run_factor(struct gpu_stream *stream, const struct tensor *u, const struct tensor *h,
                      const struct gpu_factor *spec, float damp, const struct sizes *sizes, void *host_work)
{
    int64_t n = matrix_cols(h), bad = -1;
    int32_t *order = NULL;

    int rc =
        scratch_reserve(stream, scratch_size(n, sizeof(int32_t)) + scratch_size(1, sizeof(int)) +
                                    scratch_size((int64_t)larger(sizes->device_cholesky, sizes->device_inverse), 1));
    rc = rc != 0 ? rc : upload_order(stream, spec->order, n, &order);
    rc = rc != 0 ? rc
                 : cuda_ok(stream->device, launch_factor_gather(u->data, h->data, order, n, damp, stream->stream),
                           "factor");
    rc = rc != 0 ? rc : solve(stream, u->data, n, h, sizes, host_work);
    rc = rc != 0 ? rc : cuda_ok(stream->device, launch_reverse(u->data, n * n, stream->stream), "factor");
    rc = rc != 0 ? rc : cuda_find_nonfinite(stream, &bad, u);
    if (rc == 0 && bad >= 0) {
        rc = err_raise(ERR_NOT_POSITIVE_DEFINITE, "the factor of the Hessian [%lld, %lld] is not finite", (long long)n,
                       (long long)n);
    }
    return rc;
}

int cuda_factor(struct gpu_stream *stream, const struct tensor *u, const struct tensor *h,
                const struct gpu_factor *spec)
{
    int64_t n = matrix_cols(h);
    struct sizes sizes = {0};
    float damp = 0;
    int rc = check_matrix("factor", "h", h, DTYPE_F32, n, n);

    rc = rc != 0 ? rc : check_matrix("factor", "u", u, DTYPE_F32, n, n);
    rc = rc != 0 ? rc : check_order("factor", spec->order, n);
    if (rc == 0 && (u->data == h->data || n > ORDER_MAX)) {
        rc = err_raise(ERR_INTERNAL, "factor: u and h are one tensor, or n = %lld is too large", (long long)n);
    }
    rc = rc != 0 ? rc : cuda_begin(stream->device);
    if (rc != 0 || n == 0) {
        return rc;
    }
    rc = open_solver(stream);
    rc = rc != 0 ? rc : damping(stream, h, spec->damp_percent, &damp);
    rc = rc != 0 ? rc : ask_sizes(stream, u->data, n, &sizes);
    if (rc != 0) {
        return err_pass(rc, "factor");
    }
    void *host_work = malloc(larger(larger(sizes.host_cholesky, sizes.host_inverse), 1));
    if (host_work == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "cannot allocate cuSOLVER's host workspace");
    }
    rc = run_factor(stream, u, h, spec, damp, &sizes, host_work);
    free(host_work); /* the stream was waited for */
    return rc != 0 ? err_pass(rc, "factor") : 0;
}
