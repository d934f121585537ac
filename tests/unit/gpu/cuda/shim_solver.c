/* cuSOLVER: Cholesky and triangular inverse of the upper triangle, in column order, in double. */

#include "tests/unit/gpu/cuda/shim.h"

#include <cusolverDn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEVICE_BYTES 1000 /* of workspace */
#define HOST_BYTES 77

static cusolverStatus_t handle_new(void **handle)
{
    cudaError_t status = shim_enter_allocation();

    *handle = status == cudaSuccess ? shim_take(1) : NULL;
    return *handle != NULL                       ? CUSOLVER_STATUS_SUCCESS
           : status == cudaErrorMemoryAllocation ? CUSOLVER_STATUS_ALLOC_FAILED
                                                 : CUSOLVER_STATUS_NOT_INITIALIZED;
}

cusolverStatus_t cusolverDnCreate(cusolverDnHandle_t *handle)
{
    return handle_new((void **)handle);
}

cusolverStatus_t cusolverDnDestroy(cusolverDnHandle_t handle)
{
    shim_give(handle);
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnCreateParams(cusolverDnParams_t *params)
{
    return handle_new((void **)params);
}

cusolverStatus_t cusolverDnDestroyParams(cusolverDnParams_t params)
{
    shim_give(params);
    return CUSOLVER_STATUS_SUCCESS;
}

cusolverStatus_t cusolverDnSetStream(cusolverDnHandle_t handle, cudaStream_t stream)
{
    return shim_enter() == cudaSuccess ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_INTERNAL_ERROR;
}

static cusolverStatus_t sizes(size_t *device, size_t *host)
{
    *device = DEVICE_BYTES;
    *host = HOST_BYTES;
    return shim_enter() == cudaSuccess ? CUSOLVER_STATUS_SUCCESS : CUSOLVER_STATUS_INTERNAL_ERROR;
}

cusolverStatus_t cusolverDnXpotrf_bufferSize(cusolverDnHandle_t handle, cusolverDnParams_t params,
                                             cublasFillMode_t uplo, int64_t n, cudaDataType type, const void *a,
                                             int64_t lda, cudaDataType compute, size_t *device, size_t *host)
{
    return sizes(device, host);
}

cusolverStatus_t cusolverDnXtrtri_bufferSize(cusolverDnHandle_t handle, cublasFillMode_t uplo, cublasDiagType_t diag,
                                             int64_t n, cudaDataType type, void *a, int64_t lda, size_t *device,
                                             size_t *host)
{
    return sizes(device, host);
}

/* What both take: an upper F32 matrix in live memory and workspaces that are overwritten. */
static cusolverStatus_t enter(cublasFillMode_t uplo, cudaDataType type, int64_t n, const void *a, int64_t lda,
                              void *device_work, size_t device_bytes, void *host_work, size_t host_bytes, int *info)
{
    if (shim_enter() != cudaSuccess) {
        return CUSOLVER_STATUS_EXECUTION_FAILED;
    }
    shim_flush();
    if (uplo != CUBLAS_FILL_MODE_UPPER || type != CUDA_R_32F || lda < n || device_bytes < DEVICE_BYTES ||
        host_bytes < HOST_BYTES) {
        return CUSOLVER_STATUS_INVALID_VALUE;
    }
    shim_check("matrix", a, (size_t)(lda * n) * sizeof(float));
    shim_check("solver workspace", device_work, device_bytes);
    shim_check("solver info", info, sizeof(*info));
    memset(device_work, 0x5a, device_bytes);
    memset(host_work, 0x5a, host_bytes);
    *info = 0;
    return CUSOLVER_STATUS_SUCCESS;
}

#define AT(row, col) a[(col)*lda + (row)]

cusolverStatus_t cusolverDnXpotrf(cusolverDnHandle_t handle, cusolverDnParams_t params, cublasFillMode_t uplo,
                                  int64_t n, cudaDataType type, void *matrix, int64_t lda, cudaDataType compute,
                                  void *device_work, size_t device_bytes, void *host_work, size_t host_bytes, int *info)
{
    cusolverStatus_t status = enter(uplo, type, n, matrix, lda, device_work, device_bytes, host_work, host_bytes, info);
    float *a = matrix;

    for (int64_t j = 0; status == CUSOLVER_STATUS_SUCCESS && j < n; j++) { /* a = u^T u */
        for (int64_t i = 0; i <= j; i++) {
            double sum = (double)AT(i, j);
            for (int64_t k = 0; k < i; k++) {
                sum -= (double)AT(k, i) * (double)AT(k, j);
            }
            if (i == j && !(sum > 0)) {
                *info = (int)j + 1;
                return CUSOLVER_STATUS_SUCCESS;
            }
            AT(i, j) = (float)(i == j ? sqrt(sum) : sum / (double)AT(i, i));
        }
    }
    return status;
}

cusolverStatus_t cusolverDnXtrtri(cusolverDnHandle_t handle, cublasFillMode_t uplo, cublasDiagType_t diag, int64_t n,
                                  cudaDataType type, void *matrix, int64_t lda, void *device_work, size_t device_bytes,
                                  void *host_work, size_t host_bytes, int *info)
{
    cusolverStatus_t status = enter(uplo, type, n, matrix, lda, device_work, device_bytes, host_work, host_bytes, info);
    float *a = matrix;

    /* column j of the inverse, from the bottom up; columns before j are inverses already, so work on a copy of j */
    for (int64_t j = n - 1; status == CUSOLVER_STATUS_SUCCESS && j >= 0; j--) {
        double *x = calloc((size_t)(j + 1), sizeof(double));
        if (x == NULL) {
            return CUSOLVER_STATUS_ALLOC_FAILED;
        }
        for (int64_t i = j; i >= 0; i--) {
            double sum = i == j ? 1 : 0;
            for (int64_t k = i + 1; k <= j; k++) {
                sum -= (double)AT(i, k) * x[k];
            }
            x[i] = sum / (double)AT(i, i);
        }
        for (int64_t i = 0; i <= j; i++) {
            AT(i, j) = (float)x[i];
        }
        free(x);
    }
    return status;
}
