/* The factor that GPTQ walks along, by one Cholesky and one triangular inverse of the reversed matrix; the essay is in
 * the CPU twin, gpu/cpu/factor.c.
 *
 * Both halve the matrix until a block fits one multiprocessor (triangle.cu): with A = L L^T and X = L^-1,
 *
 *   L11, X11 from A11;  L21 = A21 L11^-T;  L22, X22 from A22 - L21 L21^T;  X21 = -X22 (L21 X11)
 *
 * so that nearly all of it is large products. L21 comes from blocks of L11 and inverses of small ones on its diagonal
 * only, as in LAPACK, since a product with X11 would lose what its condition costs. cuSOLVER's potrf and trtri took 2.5
 * times as long on an H200 (4096: 13 ms; 11008: 89 ms). */

#include "gpu/cuda/cuda.h"

#define ORDER_MAX 65535 /* a launch's second side */
#define LEAF 256        /* columns whose inverse is good enough to multiply with */
#define STRIPS 8        /* into which products with triangles are cut, to leave out zeros */

/* damp_percent of the mean of the diagonal in which dead columns count as 1. */
static int cuda_damping(struct gpu_stream *stream, const struct tensor *h, double percent, float *damp)
{
    int64_t n = matrix_cols(h);
    AUTO_FREE float *diagonal = NULL;
    double sum = 0;

    TRY(mem_buffer(&diagonal, (size_t)n));
    TRY(cuda_diagonal(stream, diagonal, h));
    for (int64_t j = 0; j < n; j++) {
        sum += diagonal[j] == 0.0f ? 1.0 : (double)diagonal[j];
    }
    *damp = (float)(percent * sum / (double)n);
    return 0;
}

/* A in the lower triangle of a, L21 blocks in its place as they come, X in the lower triangle of x, zeros above. */
struct triangle {
    struct gpu_stream *stream;
    float *a, *x, *l21; /* l21: scratch for the largest L21 */
    int64_t n;
    int *info; /* device: the first pivot that is not positive, from 1, or 0 */
};

/* The upper part of `size` rows: complete blocks, as near to half as possible. */
static int64_t half_of(int64_t size)
{
    int64_t blocks = tiles_of(size, LAUNCH_TRIANGLE);
    return (blocks + 1) / 2 * LAUNCH_TRIANGLE;
}

/* Elements of the largest L21 in `size` rows; not always the first. */
static int64_t l21_size(int64_t size)
{
    if (size <= LAUNCH_TRIANGLE) {
        return 0;
    }
    int64_t upper = half_of(size), here = upper * (size - upper), below = l21_size(upper);
    return here > below ? here : below; /* the lower part is not larger than the upper */
}

static int64_t strip_of(int64_t size)
{
    int64_t strip = tiles_of(size, STRIPS * (int64_t)LAUNCH_TRIANGLE) * LAUNCH_TRIANGLE;
    return strip > LEAF ? strip : LEAF;
}

static float *triangle_at(const struct triangle *t, float *matrix, int64_t row, int64_t col)
{
    return matrix + row * t->n + col;
}

/* c = beta c + alpha a b, or b^T. */
static int triangle_multiply(const struct triangle *t, struct gemm gemm)
{
    gemm.lda = gemm.lda != 0 ? gemm.lda : t->n;
    gemm.ldb = gemm.ldb != 0 ? gemm.ldb : t->n;
    gemm.ldc = gemm.ldc != 0 ? gemm.ldc : t->n;
    return gemm_run(t->stream, &gemm);
}

/* A[row.., col..] becomes A[row.., col..] L^-T, L being the diagonal block at col. */
static int triangle_solve(const struct triangle *t, int64_t row, int64_t rows, int64_t col, int64_t cols)
{
    float *a = triangle_at(t, t->a, row, col);

    if (cols <= LEAF) {
        TRY(cuda_ok(t->stream->device,
                    cudaMemcpy2DAsync(t->l21, (size_t)cols * sizeof(float), a, (size_t)t->n * sizeof(float),
                                      (size_t)cols * sizeof(float), (size_t)rows, cudaMemcpyDeviceToDevice,
                                      t->stream->stream),
                    "factor"));
        return triangle_multiply(t, (struct gemm){.trans_b = true,
                                                  .m = rows,
                                                  .n = cols,
                                                  .k = cols,
                                                  .alpha = 1.0f,
                                                  .a = t->l21,
                                                  .b = triangle_at(t, t->x, col, col),
                                                  .c = a,
                                                  .lda = cols});
    }
    int64_t first = half_of(cols);
    TRY(triangle_solve(t, row, rows, col, first));
    TRY(triangle_multiply(t, (struct gemm){.trans_b = true,
                                           .m = rows,
                                           .n = cols - first,
                                           .k = first,
                                           .alpha = -1.0f,
                                           .beta = 1.0f,
                                           .a = a,
                                           .b = triangle_at(t, t->a, col + first, col),
                                           .c = a + first}));
    return triangle_solve(t, row, rows, col + first, cols - first);
}

/* A22 -= L21 L21^T, from the diagonal down. */
static int subtract_square(const struct triangle *t, int64_t at, int64_t size, int64_t col, int64_t cols)
{
    int64_t strip = strip_of(size);

    for (int64_t first = at; first < at + size; first += strip) {
        int64_t left = at + size - first;
        float *l = triangle_at(t, t->a, first, col);
        TRY(triangle_multiply(t, (struct gemm){.trans_b = true,
                                               .m = left,
                                               .n = left < strip ? left : strip,
                                               .k = cols,
                                               .alpha = -1.0f,
                                               .beta = 1.0f,
                                               .a = l,
                                               .b = l,
                                               .c = triangle_at(t, t->a, first, first)}));
    }
    return 0;
}

/* X21 = -X22 (L21 X11), leaving out what X11 and X22 have above their diagonals. */
static int invert_below(const struct triangle *t, int64_t at, int64_t upper, int64_t lower)
{
    int64_t strip = strip_of(upper), below = at + upper;

    for (int64_t first = 0; first < upper; first += strip) {
        int64_t left = upper - first;
        TRY(triangle_multiply(t, (struct gemm){.m = lower,
                                               .n = left < strip ? left : strip,
                                               .k = left,
                                               .alpha = 1.0f,
                                               .a = triangle_at(t, t->a, below, at + first),
                                               .b = triangle_at(t, t->x, at + first, at + first),
                                               .c = t->l21 + first,
                                               .ldc = upper}));
    }
    strip = strip_of(lower);
    for (int64_t first = 0; first < lower; first += strip) {
        int64_t rows = lower - first < strip ? lower - first : strip;
        TRY(triangle_multiply(t, (struct gemm){.m = rows,
                                               .n = upper,
                                               .k = first + rows,
                                               .alpha = -1.0f,
                                               .a = triangle_at(t, t->x, below + first, below),
                                               .b = t->l21,
                                               .c = triangle_at(t, t->x, below + first, at),
                                               .ldb = upper}));
    }
    return 0;
}

static int invert(const struct triangle *t, int64_t at, int64_t size)
{
    if (size <= LAUNCH_TRIANGLE) {
        return cuda_ok(t->stream->device, launch_triangle(t->x, t->a, t->n, at, (int)size, t->info, t->stream->stream),
                       "factor");
    }
    int64_t upper = half_of(size), lower = size - upper;
    TRY(invert(t, at, upper));
    TRY(triangle_solve(t, at + upper, lower, at, upper));
    TRY(subtract_square(t, at + upper, lower, at, upper));
    TRY(invert(t, at + upper, lower));
    return invert_below(t, at, upper, lower);
}

/* Waits. */
static int check_pivots(const struct triangle *t)
{
    int info = 0;

    TRY(memory_download(t->stream, &info, t->info, sizeof(info)));
    if (info != 0) {
        return err_raise(ERR_NOT_POSITIVE_DEFINITE, "the Hessian [%lld, %lld] is not positive definite (step %d)",
                         (long long)t->n, (long long)t->n, info);
    }
    return 0;
}

int order_upload(struct gpu_stream *stream, const int32_t *order, int64_t n, const int32_t **on_device)
{
    *on_device = NULL;
    if (order == NULL) {
        return 0;
    }
    int32_t *visits = scratch_take(stream, n, sizeof(int32_t));
    *on_device = visits;
    return memory_upload(stream, visits, order, (size_t)n * sizeof(int32_t));
}

static int run_factor(struct triangle *t, const struct tensor *h, const struct gpu_factor *spec, float damp)
{
    SCRATCH_SCOPE(t->stream);
    struct gpu_stream *stream = t->stream;
    int64_t n = t->n, l21 = l21_size(n);
    const int32_t *order = NULL;

    TRY(scratch_reserve(stream, scratch_size(n * n, sizeof(float)) + scratch_size(l21, sizeof(float)) +
                                    scratch_size(n, sizeof(int32_t)) + scratch_size(1, sizeof(int))));
    t->a = scratch_take(stream, n * n, sizeof(float));
    t->l21 = scratch_take(stream, l21, sizeof(float));
    t->info = scratch_take(stream, 1, sizeof(int));
    TRY(order_upload(stream, spec->order, n, &order));
    TRY(memory_fill_zero(stream, t->info, sizeof(int)));
    TRY(memory_fill_zero(stream, t->x, (size_t)(n * n) * sizeof(float)));
    TRY(cuda_ok(stream->device, launch_factor_gather(t->a, h->data, order, n, damp, stream->stream), "factor"));
    TRY(invert(t, 0, n));
    TRY(check_pivots(t));
    return cuda_ok(stream->device, launch_reverse(t->x, n * n, stream->stream), "factor");
}

static int check_factor(struct gpu_stream *stream, const struct tensor *u)
{
    int64_t n = matrix_cols(u), bad = -1;

    TRY(cuda_find_nonfinite(stream, &bad, u));
    return bad < 0 ? 0
                   : err_raise(ERR_NOT_POSITIVE_DEFINITE, "the factor of the Hessian [%lld, %lld] is not finite",
                               (long long)n, (long long)n);
}

int cuda_factor(struct gpu_stream *stream, const struct tensor *u, const struct tensor *h,
                const struct gpu_factor *spec)
{
    struct triangle t = {.stream = stream, .x = u->data, .n = matrix_cols(h)};
    float damp = 0;

    if (t.n > ORDER_MAX) {
        return err_raise(ERR_INTERNAL, "factor: n = %lld is too large", (long long)t.n);
    }
    TRY(cuda_begin(stream->device));
    if (t.n == 0) {
        return 0;
    }
    TRY(cuda_damping(stream, h, spec->damp_percent, &damp));
    TRY(run_factor(&t, h, spec, damp));
    return check_factor(stream, u);
}
