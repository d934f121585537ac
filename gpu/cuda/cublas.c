/* cuBLASLt, opened once there is a device: its 400 MB take a tenth of a second to load, which a host without a device
 * need not spend at each start. The functions of its header that the module calls are defined here and hand on to the
 * library's own. */

#include "gpu/cuda/cuda.h"

#include <cublas_api.h> /* its version */
#include <dlfcn.h>
#include <stdio.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
#define LIBRARY "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)

#define FUNCTIONS                                                                                                    \
    F(cublasStatus_t, Create, (cublasLtHandle_t * handle), (handle))                                                 \
    F(cublasStatus_t, Destroy, (cublasLtHandle_t handle), (handle))                                                  \
    F(size_t, GetVersion, (void), ())                                                                                \
    F(const char *, GetStatusString, (cublasStatus_t status), (status))                                              \
    F(cublasStatus_t, MatmulDescCreate,                                                                              \
      (cublasLtMatmulDesc_t * descriptor, cublasComputeType_t compute, cudaDataType_t scale),                        \
      (descriptor, compute, scale))                                                                                  \
    F(cublasStatus_t, MatmulDescDestroy, (cublasLtMatmulDesc_t descriptor), (descriptor))                            \
    F(cublasStatus_t, MatmulDescSetAttribute,                                                                        \
      (cublasLtMatmulDesc_t descriptor, cublasLtMatmulDescAttributes_t attribute, const void *value, size_t size),   \
      (descriptor, attribute, value, size))                                                                          \
    F(cublasStatus_t, MatrixLayoutCreate,                                                                            \
      (cublasLtMatrixLayout_t * layout, cudaDataType type, uint64_t rows, uint64_t cols, int64_t ld),                \
      (layout, type, rows, cols, ld))                                                                                \
    F(cublasStatus_t, MatrixLayoutDestroy, (cublasLtMatrixLayout_t layout), (layout))                                \
    F(cublasStatus_t, MatrixLayoutSetAttribute,                                                                      \
      (cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute, const void *value, size_t size),    \
      (layout, attribute, value, size))                                                                              \
    F(cublasStatus_t, MatmulPreferenceCreate, (cublasLtMatmulPreference_t * preference), (preference))               \
    F(cublasStatus_t, MatmulPreferenceDestroy, (cublasLtMatmulPreference_t preference), (preference))                \
    F(cublasStatus_t, MatmulPreferenceSetAttribute,                                                                  \
      (cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute, const void *value,     \
       size_t size),                                                                                                 \
      (preference, attribute, value, size))                                                                          \
    F(cublasStatus_t, MatmulAlgoGetHeuristic,                                                                        \
      (cublasLtHandle_t handle, cublasLtMatmulDesc_t descriptor, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b, \
       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int wanted,        \
       cublasLtMatmulHeuristicResult_t results[], int *found),                                                       \
      (handle, descriptor, a, b, c, d, preference, wanted, results, found))                                          \
    F(cublasStatus_t, Matmul,                                                                                        \
      (cublasLtHandle_t handle, cublasLtMatmulDesc_t descriptor, const void *alpha, const void *a,                   \
       cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout, const void *beta,            \
       const void *c, cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,                     \
       const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t size, cudaStream_t stream),                    \
      (handle, descriptor, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm, workspace,    \
       size, stream))

#define F(type, name, parameters, arguments) \
    static type(*library_##name) parameters; \
    type cublasLt##name parameters           \
    {                                        \
        return library_##name arguments;     \
    }
FUNCTIONS
#undef F

bool cublas_open(char *reason, size_t size)
{
    /* Stays open: it may have threads of the driver from its first handle on. */
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    const char *missing = NULL;

    if (library == NULL) {
        const char *why = dlerror();
        snprintf(reason, size, "%s", why != NULL ? why : LIBRARY " cannot be opened");
        return false;
    }
#define F(type, name, parameters, arguments)                      \
    *(void **)&library_##name = dlsym(library, "cublasLt" #name); \
    missing = library_##name != NULL ? missing : "cublasLt" #name;
    FUNCTIONS
#undef F
    if (missing != NULL) {
        snprintf(reason, size, LIBRARY " has no %s", missing);
        (void)dlclose(library);
        return false;
    }
    return true;
}
