/* OpenBLAS by dlopen.
 *
 * It is opened at run time for two reasons: the choice of kernels can be corrected first (0.3.21 knows no Zen 4 or 5
 * with AVX-512 and would run them with the Haswell kernels, at half the speed), and a machine without it gets a
 * sentence in the notes rather than a daemon that does not start.
 *
 * LAPACK is column-major: a row-major lower triangle is the upper triangle of its transpose, so "lower" here is "U"
 * there, and the result lands where row-major readers expect it. */

#include "gpu/cpu/blas.h"

#include "base/err.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112, UPPER = 121, LOWER = 122, NON_UNIT = 131, RIGHT = 142 };

static struct {
    void (*sgemm)(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
                  int ldb, float beta, float *c, int ldc);
    void (*ssyrk)(int order, int uplo, int trans, int n, int k, float alpha, const float *a, int lda, float beta,
                  float *c, int ldc);
    void (*strsm)(int order, int side, int uplo, int trans, int diag, int m, int n, float alpha, const float *a,
                  int lda, float *b, int ldb);
    void (*strmm)(int order, int side, int uplo, int trans, int diag, int m, int n, float alpha, const float *a,
                  int lda, float *b, int ldb);
    void (*spotrf)(const char *uplo, const int *n, float *a, const int *lda, int *info, size_t uplo_length);
    void (*strtri)(const char *uplo, const char *diag, const int *n, float *a, const int *lda, int *info,
                   size_t uplo_length, size_t diag_length);
    char *(*corename)(void);
    void (*set_num_threads)(int threads);
} blas;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static char failure[256];

/* ISO C has no conversion from an object pointer to a function pointer; POSIX promises that the bits agree. */
static int blas_find(void *library, const char *name, void *slot)
{
    void *symbol = dlsym(library, name);
    if (symbol == NULL) {
        return 0;
    }
    *(void **)slot = symbol;
    return 1;
}

static void blas_fail(const char *what, const char *name)
{
    const char *detail = dlerror();
    snprintf(failure, sizeof(failure), "%s %s: %s", what, name, detail != NULL ? detail : "unknown reason");
}

static void choose_kernels(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        setenv("OPENBLAS_CORETYPE", "SkylakeX", 0);
    }
#endif
    setenv("OPENBLAS_NUM_THREADS", "1", 1);
}

static void blas_open(void)
{
    choose_kernels();
    void *library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        blas_fail("cannot load", "libopenblas.so.0");
        return;
    }
    const struct {
        const char *name;
        void *slot;
    } symbols[] = {
        {"cblas_sgemm", &blas.sgemm}, {"cblas_ssyrk", &blas.ssyrk}, {"cblas_strsm", &blas.strsm},
        {"cblas_strmm", &blas.strmm}, {"spotrf_", &blas.spotrf},    {"strtri_", &blas.strtri},
    };
    void *lapack = NULL; /* some builds of OpenBLAS leave LAPACK to a library of its own */
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        if (blas_find(library, symbols[i].name, symbols[i].slot)) {
            continue;
        }
        if (lapack == NULL) {
            lapack = dlopen("liblapack.so.3", RTLD_NOW | RTLD_LOCAL);
        }
        if (lapack == NULL || !blas_find(lapack, symbols[i].name, symbols[i].slot)) {
            blas_fail("cannot find", symbols[i].name);
            return;
        }
    }
    blas_find(library, "openblas_get_corename", &blas.corename);
    if (blas_find(library, "openblas_set_num_threads", &blas.set_num_threads)) {
        blas.set_num_threads(1);
    }
}

int blas_load(void)
{
    pthread_once(&once, blas_open);
    return failure[0] == '\0' ? 0 : err_raise(ERR_UNSUPPORTED, "%s", failure);
}

const char *blas_core(void)
{
    return blas.corename != NULL ? blas.corename() : "";
}

void blas_gemm(int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
               int ldb, float beta, float *c, int ldc)
{
    blas.sgemm(ROW_MAJOR, trans_a ? TRANS : NO_TRANS, trans_b ? TRANS : NO_TRANS, m, n, k, alpha, a, lda, b, ldb, beta,
               c, ldc);
}

void blas_gram_upper(int n, int k, const float *a, int lda, float *c, int ldc)
{
    blas.ssyrk(ROW_MAJOR, UPPER, TRANS, n, k, 1.0f, a, lda, 1.0f, c, ldc);
}

void blas_downdate_lower(int n, int k, const float *a, int lda, float *c, int ldc)
{
    blas.ssyrk(ROW_MAJOR, LOWER, NO_TRANS, n, k, -1.0f, a, lda, 1.0f, c, ldc);
}

void blas_solve_right(int m, int n, const float *l, int ldl, float *b, int ldb)
{
    blas.strsm(ROW_MAJOR, RIGHT, LOWER, TRANS, NON_UNIT, m, n, 1.0f, l, ldl, b, ldb);
}

void blas_multiply_upper(int trans, int m, int n, const float *u, int ldu, float *b, int ldb)
{
    blas.strmm(ROW_MAJOR, RIGHT, UPPER, trans ? TRANS : NO_TRANS, NON_UNIT, m, n, 1.0f, u, ldu, b, ldb);
}

int blas_cholesky_lower(int n, float *a, int lda)
{
    int info = 0;
    blas.spotrf("U", &n, a, &lda, &info, 1);
    return info;
}

int blas_invert_lower(int n, float *a, int lda)
{
    int info = 0;
    blas.strtri("U", "N", &n, a, &lda, &info, 1, 1);
    return info;
}
