/* Causal attention: one kernel (flash.cu) where its operands are BF16 and heads have a size that it takes. Else two
 * batches of products around a softmax kernel: scores = q k^T of as many heads at once as the
 * scratch allows, weights, o = weights v. Queries go in tiles that see no key past their end, which bounds the scratch
 * for long sequences and leaves out part of the half that the mask would hide.
 *
 * Heads that share a key head are not next to their key heads in memory, so a batch is either one query head of each
 * group (all strides alike) or, when groups are larger than many, the heads of one group with stride 0 for the keys. */

#include "gpu/cuda/cuda.h"

#define SCORES_BYTES ((int64_t)512 << 20)
#define QUERY_TILE 512

struct attention {
    struct gpu_stream *stream;
    const struct gpu_attention *spec;
    const char *q, *k, *v; /* operands */
    float *o, *scores;
    void *weights;
    size_t element;
    int64_t max; /* heads at once */
};

/* Heads of one product: `count` of them from `head` and its key head on, at a distance of the steps. */
struct heads {
    int64_t head, step, kv_head, kv_step, count;
};

/* Queries [first, first + queries) of a sequence. */
static int run_tile(const struct attention *job, int64_t sequence, const struct heads *heads, int64_t first,
                    int64_t queries)
{
    const struct gpu_attention *spec = job->spec;
    int64_t dim = spec->head_dim, value_dim = gpu_value_dim(spec), keys = first + queries;
    int64_t query_row = sequence * spec->length + first, key_row = sequence * spec->length;
    int64_t q_at = (query_row * spec->heads + heads->head) * dim;
    int64_t o_at = (query_row * spec->heads + heads->head) * value_dim;
    int64_t k_at = (key_row * spec->kv_heads + heads->kv_head) * dim;
    int64_t v_at = (key_row * spec->kv_heads + heads->kv_head) * value_dim;
    bool bf16 = operand_bf16(job->stream);
    const struct launch_softmax softmax = {.heads = heads->count,
                                           .queries = queries,
                                           .keys = keys,
                                           .first = first,
                                           .window = spec->window,
                                           .chunk = spec->chunk,
                                           .scale = spec->scale,
                                           .cap = spec->cap,
                                           .sinks = spec->sinks != NULL ? (const float *)spec->sinks->data + heads->head
                                                                        : NULL,
                                           .sink_step = heads->step};
    struct gemm scores = {.trans_b = true,
                          .m = queries,
                          .n = keys,
                          .k = dim,
                          .alpha = 1.0f,
                          .a = job->q + (size_t)q_at * job->element,
                          .b = job->k + (size_t)k_at * job->element,
                          .c = job->scores,
                          .lda = spec->heads * dim,
                          .ldb = spec->kv_heads * dim,
                          .ldc = keys,
                          .bf16 = bf16,
                          .count = heads->count,
                          .stride_a = heads->step * dim,
                          .stride_b = heads->kv_step * dim,
                          .stride_c = queries * keys};
    struct gemm output = {.m = queries,
                          .n = value_dim,
                          .k = keys,
                          .alpha = 1.0f,
                          .a = job->weights,
                          .b = job->v + (size_t)v_at * job->element,
                          .c = job->o + o_at,
                          .lda = keys,
                          .ldb = spec->kv_heads * value_dim,
                          .ldc = spec->heads * value_dim,
                          .bf16 = bf16,
                          .count = heads->count,
                          .stride_a = queries * keys,
                          .stride_b = heads->kv_step * value_dim,
                          .stride_c = heads->step * value_dim};
    TRY(gemm_run(job->stream, &scores));
    TRY(cuda_ok(job->stream->device,
                launch_softmax(job->weights, bf16 ? DTYPE_BF16 : DTYPE_F32, job->scores, &softmax, job->stream->stream),
                "softmax"));
    return gemm_run(job->stream, &output);
}

static int run_heads(const struct attention *job, int64_t sequence, const struct heads *heads)
{
    for (int64_t first = 0; first < job->spec->length; first += QUERY_TILE) {
        int64_t left = job->spec->length - first;
        TRY(run_tile(job, sequence, heads, first, left < QUERY_TILE ? left : QUERY_TILE));
    }
    return 0;
}

/* The inner number of a head runs within a batch: over groups, or over the heads of one group. */
static int run_sequence(const struct attention *job, int64_t sequence)
{
    int64_t groups = job->spec->kv_heads, shared = job->spec->heads / groups;
    bool across = groups >= shared;
    int64_t outer = across ? shared : groups, inner = across ? groups : shared;
    int64_t batch = tiles_of(inner, tiles_of(inner, job->max)); /* of equal size */

    for (int64_t i = 0; i < outer; i++) {
        for (int64_t j = 0; j < inner; j += batch) {
            int64_t count = inner - j < batch ? inner - j : batch;
            const struct heads heads = across ? (struct heads){j * shared + i, shared, j, 1, count}
                                              : (struct heads){i * shared + j, 1, i, 0, count};
            TRY(run_heads(job, sequence, &heads));
        }
    }
    return 0;
}

/* A copy of an operand is aligned; one that is BF16 already may be a view of anything. */
static bool flash_aligned(const struct tensor *x)
{
    return x->dtype != DTYPE_BF16 || (uintptr_t)x->data % 16 == 0;
}

static bool flash_can(const struct gpu_stream *stream, const struct tensor *q, const struct tensor *k,
                      const struct tensor *v, const struct gpu_attention *spec)
{
    int64_t dim = spec->head_dim, value_dim = gpu_value_dim(spec);

    return operand_bf16(stream) && dim % 8 == 0 && value_dim % 8 == 0 && dim <= LAUNCH_FLASH_DIM &&
           value_dim <= LAUNCH_FLASH_DIM && spec->heads <= LAUNCH_FLASH_MANY && spec->sequences <= LAUNCH_FLASH_MANY &&
           flash_aligned(q) && flash_aligned(k) && flash_aligned(v);
}

static int flash_run(struct gpu_stream *stream, const struct tensor *o, const struct tensor *q, const struct tensor *k,
                     const struct tensor *v, const struct gpu_attention *spec)
{
    SCRATCH_SCOPE(stream);
    struct launch_flash flash = {.out = o->data,
                                 .sequences = spec->sequences,
                                 .length = spec->length,
                                 .heads = spec->heads,
                                 .kv_heads = spec->kv_heads,
                                 .dim = spec->head_dim,
                                 .value_dim = gpu_value_dim(spec),
                                 .window = spec->window,
                                 .chunk = spec->chunk,
                                 .scale = spec->scale,
                                 .cap = spec->cap,
                                 .sinks = spec->sinks != NULL ? spec->sinks->data : NULL};

    TRY(scratch_reserve(stream, operand_size(stream, q) + operand_size(stream, k) + operand_size(stream, v)));
    TRY(operand_of(stream, q, &flash.q));
    TRY(operand_of(stream, k, &flash.k));
    TRY(operand_of(stream, v, &flash.v));
    return cuda_ok(stream->device, launch_flash(&flash, stream->stream), "attention");
}

int cuda_attention(struct gpu_stream *stream, const struct tensor *o, const struct tensor *q, const struct tensor *k,
                   const struct tensor *v, const struct gpu_attention *spec)
{
    SCRATCH_SCOPE(stream);
    struct attention job = {.stream = stream, .spec = spec, .o = o->data};
    const void *operands[3] = {NULL, NULL, NULL};

    TRY(cuda_begin(stream->device));
    if (spec->length == 0 || spec->sequences == 0) {
        return 0;
    }
    if (flash_can(stream, q, k, v, spec)) {
        return flash_run(stream, o, q, k, v, spec);
    }
    job.element = operand_bf16(stream) ? 2 : sizeof(float);
    int64_t tile = spec->length < QUERY_TILE ? spec->length : QUERY_TILE, count = tile * spec->length;
    int64_t max = SCORES_BYTES / (count * (int64_t)sizeof(float));
    job.max = max < 1 ? 1 : max > spec->heads ? spec->heads : max;
    count *= job.max;
    size_t weights = operand_bf16(stream) ? scratch_size(count, 2) : 0;
    TRY(scratch_reserve(stream, operand_size(stream, q) + operand_size(stream, k) + operand_size(stream, v) +
                                    scratch_size(count, sizeof(float)) + weights));
    TRY(operand_of(stream, q, &operands[0]));
    TRY(operand_of(stream, k, &operands[1]));
    TRY(operand_of(stream, v, &operands[2]));
    job.q = operands[0];
    job.k = operands[1];
    job.v = operands[2];
    job.scores = scratch_take(stream, count, sizeof(float));
    job.weights = weights > 0 ? scratch_take(stream, count, 2) : job.scores;
    for (int64_t s = 0; s < spec->sequences; s++) {
        TRY(run_sequence(&job, s));
    }
    return 0;
}
