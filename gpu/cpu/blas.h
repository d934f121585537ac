#pragma once
/* The few BLAS and LAPACK routines in use, found at run time, single-threaded: threads are ours (base/pool.h).
 * Row-major throughout; the factorisations take and give the lower triangle of a row-major matrix. */

#include <stddef.h>

/* Load the library once. 0, or ERR_UNSUPPORTED with the reason raised. Any thread. */
int blas_load(void);
/* Name of the kernels that the library picked ("SkylakeX"), "" before loading. */
const char *blas_core(void);

/* c[m,n] = alpha * op(a) op(b) + beta * c; op(a) is [m,k], op(b) is [k,n]. ld: elements between rows as stored. */
void blas_gemm(int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
               int ldb, float beta, float *c, int ldc);
/* Upper triangle of c[n,n] += a[k,n]^T a. */
void blas_gram_upper(int n, int k, const float *a, int lda, float *c, int ldc);
/* Lower triangle of c[n,n] -= a[n,k] a^T. */
void blas_downdate_lower(int n, int k, const float *a, int lda, float *c, int ldc);
/* b[m,n] = b l^-T with l[n,n] lower. */
void blas_solve_right(int m, int n, const float *l, int ldl, float *b, int ldb);
/* b[m,n] = b op(u) with u[n,n] upper; op: the transpose where trans. */
void blas_multiply_upper(int trans, int m, int n, const float *u, int ldu, float *b, int ldb);
/* a = l l^T in the lower triangle. 0, or > 0 when a is not positive definite. */
int blas_cholesky_lower(int n, float *a, int lda);
/* a = a^-1 in the lower triangle. 0, or > 0 when singular. */
int blas_invert_lower(int n, float *a, int lda);
