/* Causal attention as two batches of products around a softmax kernel: scores = q k^T of as many heads at once as the
 * scratch allows, weights, o = weights v. Heads that share a key head take its operand with stride 0.
 *
 * The whole square of scores is computed; the half above the diagonal is a few per cent of a block's work. */

#include "gpu/cuda/cuda.h"

#define SCORES_BYTES ((int64_t)512 << 20)

struct attention {
    struct gpu_stream *stream;
    const struct gpu_attention *spec;
    const char *q, *k, *v; /* operands */
    float *o, *scores;
    void *weights;
    size_t element;
    int64_t shared; /* query heads of one key head */
};

/* Heads [head, head + count) of one sequence; all have their own key head, or all share one. */
static int run_heads(const struct attention *job, int64_t sequence, int64_t head, int64_t count)
{
    const struct gpu_attention *spec = job->spec;
    int64_t length = spec->length, dim = spec->head_dim;
    int64_t q_row = spec->heads * dim, kv_row = spec->kv_heads * dim;
    int64_t q_at = sequence * length * q_row + head * dim;
    int64_t kv_at = sequence * length * kv_row + head / job->shared * dim;
    int64_t kv_stride = job->shared == 1 ? dim : 0;
    bool bf16 = operand_bf16(job->stream);
    struct gemm scores = {.trans_b = true,
                          .m = length,
                          .n = length,
                          .k = dim,
                          .alpha = 1.0f,
                          .a = job->q + (size_t)q_at * job->element,
                          .b = job->k + (size_t)kv_at * job->element,
                          .c = job->scores,
                          .lda = q_row,
                          .ldb = kv_row,
                          .ldc = length,
                          .bf16 = bf16,
                          .count = count,
                          .stride_a = dim,
                          .stride_b = kv_stride,
                          .stride_c = length * length};
    struct gemm output = {.m = length,
                          .n = dim,
                          .k = length,
                          .alpha = 1.0f,
                          .a = job->weights,
                          .b = job->v + (size_t)kv_at * job->element,
                          .c = job->o + q_at,
                          .lda = length,
                          .ldb = kv_row,
                          .ldc = q_row,
                          .bf16 = bf16,
                          .count = count,
                          .stride_a = length * length,
                          .stride_b = kv_stride,
                          .stride_c = dim};
    int rc = gemm_run(job->stream, &scores);
    rc = rc != 0 ? rc
                 : cuda_ok(job->stream->device,
                           launch_softmax(job->weights, bf16 ? LAUNCH_BF16 : LAUNCH_F32, job->scores, count, length,
                                          spec->window, spec->scale, job->stream->stream),
                           "softmax");
    return rc != 0 ? rc : gemm_run(job->stream, &output);
}

static int run_sequences(const struct attention *job, int64_t most)
{
    int rc = 0;

    for (int64_t s = 0; rc == 0 && s < job->spec->sequences; s++) {
        for (int64_t head = 0; rc == 0 && head < job->spec->heads;) {
            int64_t left = job->shared == 1 ? job->spec->heads - head : job->shared - head % job->shared;
            int64_t count = left < most ? left : most;
            rc = run_heads(job, s, head, count);
            head += count;
        }
    }
    return rc;
}

int cuda_attention(struct gpu_stream *stream, const struct tensor *o, const struct tensor *q, const struct tensor *k,
                   const struct tensor *v, const struct gpu_attention *spec)
{
    struct attention job = {.stream = stream, .spec = spec, .o = o->data};
    const void *operands[3] = {NULL, NULL, NULL};
    int rc = check_attention(o, q, k, v, spec);

    rc = rc != 0 ? rc : cuda_begin(stream->device);
    if (rc != 0 || spec->length == 0) {
        return rc;
    }
    job.element = operand_bf16(stream) ? 2 : sizeof(float);
    job.shared = spec->heads / spec->kv_heads;
    int64_t square = spec->length * spec->length, most = SCORES_BYTES / (square * (int64_t)sizeof(float));
    most = most < 1 ? 1 : most > spec->heads ? spec->heads : most;
    size_t weights = operand_bf16(stream) ? scratch_size(most * square, 2) : 0;
    rc = scratch_reserve(stream, operand_size(stream, q) + operand_size(stream, k) + operand_size(stream, v) +
                                     scratch_size(most * square, sizeof(float)) + weights);
    rc = rc != 0 ? rc : operand_of(stream, q, &operands[0]);
    rc = rc != 0 ? rc : operand_of(stream, k, &operands[1]);
    rc = rc != 0 ? rc : operand_of(stream, v, &operands[2]);
    if (rc != 0) {
        return err_pass(rc, "attention");
    }
    job.q = operands[0];
    job.k = operands[1];
    job.v = operands[2];
    job.scores = scratch_take(stream, most * square, sizeof(float));
    job.weights = weights > 0 ? scratch_take(stream, most * square, 2) : job.scores;
    rc = run_sequences(&job, most);
    return rc != 0 ? err_pass(rc, "attention") : 0;
}
