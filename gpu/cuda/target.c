/* What the target of a solve is made of, as on the CPU (gpu/cpu/target.c). (H + damp)^-1 = P^T U^T U P is two F32
 * products with triangles of the factor, cut into strips of columns that leave out the zeros; rows go in strips that
 * bound the scratch. */

#include "gpu/cuda/cuda.h"

#define STRIP_ELEMENTS ((int64_t)64 << 20) /* of a strip of rows */
#define STRIPS 8                           /* of columns, in a product with a triangle */
#define STRIP_COLS 256                     /* at least */

int cuda_combine(struct gpu_stream *stream, const struct tensor *y, double alpha, const struct tensor *a, double beta,
                 const struct tensor *b)
{
    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device,
                   launch_combine(y->data, (float)alpha, a->data, (float)beta, b != NULL ? b->data : NULL,
                                  tensor_count(y), stream->stream),
                   "combine");
}

int cuda_cross(struct gpu_stream *stream, const struct tensor *c, const struct tensor *a, const struct tensor *b)
{
    SCRATCH_SCOPE(stream);
    struct gemm gemm = {.trans_a = true,
                        .m = matrix_cols(a),
                        .n = matrix_cols(b),
                        .k = matrix_rows(a),
                        .alpha = 1.0f,
                        .beta = 1.0f,
                        .c = c->data,
                        .lda = matrix_cols(a),
                        .ldb = matrix_cols(b),
                        .ldc = matrix_cols(b),
                        .bf16 = operand_bf16(stream)};

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, operand_size(stream, a) + operand_size(stream, b)));
    TRY(operand_of(stream, a, &gemm.a));
    TRY(operand_of(stream, b, &gemm.b));
    return gemm_run(stream, &gemm);
}

struct solve {
    struct gpu_stream *stream;
    const float *u;
    const int32_t *host_order, *order; /* or NULL; order: on the device */
    int64_t k, strip;                  /* strip: columns of one */
    float *half, *moved; /* [rows of a strip, k]: g U^T; columns in the order of the sweep, if there is one */
};

/* to = from U^T: row j of U has zeros before column j. */
static int solve_lower(const struct solve *job, float *to, const float *from, int64_t rows)
{
    int64_t k = job->k;

    for (int64_t first = 0; first < k; first += job->strip) {
        const struct gemm gemm = {.trans_b = true,
                                  .m = rows,
                                  .n = k - first < job->strip ? k - first : job->strip,
                                  .k = k - first,
                                  .alpha = 1.0f,
                                  .a = from + first,
                                  .b = job->u + first * (k + 1),
                                  .c = to + first,
                                  .lda = k,
                                  .ldb = k,
                                  .ldc = k};
        TRY(gemm_run(job->stream, &gemm));
    }
    return 0;
}

/* to = from U: column j of U has zeros after row j. */
static int solve_upper(const struct solve *job, float *to, const float *from, int64_t rows)
{
    int64_t k = job->k;

    for (int64_t first = 0; first < k; first += job->strip) {
        int64_t cols = k - first < job->strip ? k - first : job->strip;
        const struct gemm gemm = {.m = rows,
                                  .n = cols,
                                  .k = first + cols,
                                  .alpha = 1.0f,
                                  .a = from,
                                  .b = job->u + first,
                                  .c = to + first,
                                  .lda = k,
                                  .ldb = k,
                                  .ldc = k};
        TRY(gemm_run(job->stream, &gemm));
    }
    return 0;
}

/* y may be g: without an order the first product has read it before the second one writes. */
static int target_solve_rows(const struct solve *job, float *y, const float *g, int64_t rows)
{
    struct gpu_stream *stream = job->stream;

    if (job->order == NULL) {
        TRY(solve_lower(job, job->half, g, rows));
        return solve_upper(job, y, job->half, rows);
    }
    TRY(cuda_ok(stream->device, launch_gather_columns(job->moved, g, job->order, rows, job->k, stream->stream),
                "solve"));
    TRY(solve_lower(job, job->half, job->moved, rows));
    TRY(solve_upper(job, job->moved, job->half, rows));
    return cuda_ok(stream->device, launch_scatter_columns(y, job->moved, job->order, rows, job->k, stream->stream),
                   "solve");
}

static int solve_run(struct solve *job, float *y, const float *g, int64_t rows)
{
    SCRATCH_SCOPE(job->stream);
    struct gpu_stream *stream = job->stream;
    int64_t k = job->k, max = STRIP_ELEMENTS / k;
    max = max < 1 ? 1 : max < rows ? max : rows;
    size_t strip = scratch_size(max * k, sizeof(float));

    TRY(scratch_reserve(stream, job->host_order != NULL ? 2 * strip + scratch_size(k, sizeof(int32_t)) : strip));
    job->half = scratch_take(stream, max * k, sizeof(float));
    if (job->host_order != NULL) {
        job->moved = scratch_take(stream, max * k, sizeof(float));
    }
    TRY(order_upload(stream, job->host_order, k, &job->order));
    for (int64_t first = 0; first < rows; first += max) {
        TRY(target_solve_rows(job, y + first * k, g + first * k, rows - first < max ? rows - first : max));
    }
    return 0;
}

int cuda_solve(struct gpu_stream *stream, const struct tensor *y, const struct tensor *g, const struct tensor *u,
               const int32_t *order)
{
    struct solve job = {.stream = stream, .u = u->data, .host_order = order, .k = matrix_cols(g)};
    int64_t rows = matrix_rows(g);

    TRY(cuda_begin(stream->device));
    if (rows == 0 || job.k == 0) {
        return 0;
    }
    job.strip = tiles_of(job.k, STRIPS * STRIP_COLS) * STRIP_COLS;
    return solve_run(&job, y->data, g->data, rows);
}
