/* Products with weights and of activations with themselves.
 *
 * Operands go to the tensor cores as BF16 with F32 sums, as the models' own runtimes compute them; BF16 products are
 * exact in F32, so what is lost is the rounding of the operands. QUANTD_CUDA_MATH=fp32 keeps F32 throughout. */

#include "gpu/cuda/cuda.h"

/* Rows of a strip of the Gram matrix: strip i is one product over the columns from its own on, so the half below the
 * diagonal is not computed. */
#define GRAM_STRIP 1024

bool operand_bf16(const struct gpu_stream *stream)
{
    return !stream->device->fp32;
}

static bool is_ready(const struct gpu_stream *stream, const struct tensor *x)
{
    return x->dtype == (operand_bf16(stream) ? DTYPE_BF16 : DTYPE_F32);
}

size_t operand_size(const struct gpu_stream *stream, const struct tensor *x)
{
    return is_ready(stream, x) ? 0 : scratch_size(tensor_count(x), operand_bf16(stream) ? 2 : sizeof(float));
}

int operand_of(struct gpu_stream *stream, const struct tensor *x, const void **operand)
{
    if (is_ready(stream, x)) {
        *operand = x->data;
        return 0;
    }
    struct tensor copy = *x;
    copy.dtype = operand_bf16(stream) ? DTYPE_BF16 : DTYPE_F32;
    copy.data = scratch_take(stream, tensor_count(x), dtype_rows[copy.dtype].bytes);
    *operand = copy.data;
    return cuda_convert(stream, &copy, x);
}

int cuda_linear(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *w,
                const struct tensor *bias)
{
    SCRATCH_SCOPE(stream);
    struct gemm gemm = {.trans_b = true, .m = matrix_rows(x), .n = matrix_rows(w), .k = matrix_cols(x), .alpha = 1.0f};

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, operand_size(stream, x) + operand_size(stream, w)));
    TRY(operand_of(stream, x, &gemm.a));
    TRY(operand_of(stream, w, &gemm.b));
    gemm.c = y->data;
    gemm.lda = gemm.ldb = gemm.k;
    gemm.ldc = gemm.n;
    gemm.bf16 = operand_bf16(stream);
    TRY(gemm_run(stream, &gemm));
    if (bias != NULL) {
        TRY(cuda_ok(stream->device, launch_add_rows(y->data, bias->data, gemm.m, gemm.n, stream->stream), "bias"));
    }
    return 0;
}

int cuda_multiply(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *w)
{
    struct gemm gemm = {.trans_b = true, .m = matrix_rows(x), .n = matrix_rows(w), .k = matrix_cols(x), .alpha = 1.0f};

    TRY(cuda_begin(stream->device));
    gemm.a = x->data;
    gemm.b = w->data;
    gemm.c = y->data;
    gemm.lda = gemm.ldb = gemm.k;
    gemm.ldc = gemm.n;
    return gemm_run(stream, &gemm);
}

int cuda_gram(struct gpu_stream *stream, const struct tensor *h, const struct tensor *x)
{
    SCRATCH_SCOPE(stream);
    int64_t n = matrix_cols(x), rows = matrix_rows(x);
    const void *operand = NULL;

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, operand_size(stream, x)));
    TRY(operand_of(stream, x, &operand));
    size_t element = operand_bf16(stream) ? 2 : sizeof(float);
    for (int64_t first = 0; rows > 0 && first < n; first += GRAM_STRIP) {
        const char *from = (const char *)operand + (size_t)first * element;
        struct gemm strip = {.trans_a = true,
                             .m = n - first < GRAM_STRIP ? n - first : GRAM_STRIP,
                             .n = n - first,
                             .k = rows,
                             .alpha = 1.0f,
                             .beta = 1.0f,
                             .a = from,
                             .b = from,
                             .c = (float *)h->data + first * n + first,
                             .lda = n,
                             .ldb = n,
                             .ldc = n,
                             .bf16 = operand_bf16(stream)};
        TRY(gemm_run(stream, &strip));
    }
    return 0;
}
