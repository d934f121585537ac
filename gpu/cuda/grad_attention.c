/* The gradient of attention, as products per head like the forward pass (gpu/cuda/attention.c) around one kernel: for a
 * batch of heads and a tile of queries scores = q k^T and products = do v^T, then weights and gradients of the scores,
 * then dq += ds k, dk += ds^T q, dv += weights^T do. The softmax is computed again; nothing of its size is kept.
 *
 * Sums have one order: tiles and batches follow each other on the stream and add by products with beta = 1. A batch of
 * one query head of each group adds to a different key head each; where a batch is the heads of one group, which share
 * a key head, dk and dv get one product a head. */

#include "gpu/cuda/cuda.h"
#include "gpu/cuda/launch_grad.h"

#define SCORES_BYTES ((int64_t)256 << 20) /* of one buffer of scores */
#define QUERY_TILE 512

struct attention_grad {
    struct gpu_stream *stream;
    const struct gpu_attention *spec;
    const char *q, *k, *v, *d_out; /* operands */
    float *dq, *dk, *dv;           /* or NULL */
    float *scores, *products;
    void *weights, *grads;  /* as operands; in F32 scores and products themselves */
    double *sinks, *totals; /* [heads at once, queries], [heads]; or NULL */
    size_t element;
    int64_t max; /* heads at once */
};

/* Heads of one batch: `count` of them from `head` and its key head on, at a distance of the steps. */
struct grad_heads {
    int64_t head, step, kv_head, kv_step, count;
};

/* Queries [first, first + queries) of a sequence, of some heads; where their elements are. */
struct grad_tile {
    const struct grad_heads *heads;
    int64_t first, queries, keys;
    int64_t q_at, k_at, v_at, o_at;
};

/* Rows of queries by rows of keys: q k^T, or do v^T. */
static int grad_scores(const struct attention_grad *job, const struct grad_tile *tile, bool values, float *out)
{
    const struct gpu_attention *spec = job->spec;
    int64_t width = values ? gpu_value_dim(spec) : spec->head_dim;
    const char *a = values ? job->d_out : job->q, *b = values ? job->v : job->k;
    const struct gemm gemm = {.trans_b = true,
                              .m = tile->queries,
                              .n = tile->keys,
                              .k = width,
                              .alpha = 1.0f,
                              .a = a + (size_t)(values ? tile->o_at : tile->q_at) * job->element,
                              .b = b + (size_t)(values ? tile->v_at : tile->k_at) * job->element,
                              .c = out,
                              .lda = spec->heads * width,
                              .ldb = spec->kv_heads * width,
                              .ldc = tile->keys,
                              .bf16 = operand_bf16(job->stream),
                              .count = tile->heads->count,
                              .stride_a = tile->heads->step * width,
                              .stride_b = tile->heads->kv_step * width,
                              .stride_c = tile->queries * tile->keys};

    return gemm_run(job->stream, &gemm);
}

static int grad_softmax(const struct attention_grad *job, const struct grad_tile *tile)
{
    const struct gpu_attention *spec = job->spec;
    const struct grad_heads *heads = tile->heads;
    cudaStream_t stream = job->stream->stream;
    const struct launch_softmax softmax = {.heads = heads->count,
                                           .queries = tile->queries,
                                           .keys = tile->keys,
                                           .first = tile->first,
                                           .window = spec->window,
                                           .chunk = spec->chunk,
                                           .scale = spec->scale,
                                           .cap = spec->cap,
                                           .sinks = spec->sinks != NULL ? (const float *)spec->sinks->data + heads->head
                                                                        : NULL,
                                           .sink_step = heads->step};

    TRY(cuda_ok(job->stream->device,
                launch_softmax_grad(job->weights, job->grads, operand_bf16(job->stream) ? DTYPE_BF16 : DTYPE_F32,
                                    job->scores, job->products, job->sinks, &softmax, stream),
                "attention_grad"));
    if (job->sinks == NULL) {
        return 0;
    }
    return cuda_ok(
        job->stream->device,
        launch_sinks_part(job->totals + heads->head, job->sinks, heads->count, tile->queries, heads->step, stream),
        "attention_grad");
}

static int grad_queries(const struct attention_grad *job, const struct grad_tile *tile)
{
    const struct gpu_attention *spec = job->spec;
    int64_t dim = spec->head_dim;
    const struct gemm gemm = {.m = tile->queries,
                              .n = dim,
                              .k = tile->keys,
                              .alpha = 1.0f,
                              .beta = 1.0f,
                              .a = job->grads,
                              .b = job->k + (size_t)tile->k_at * job->element,
                              .c = job->dq + tile->q_at,
                              .lda = tile->keys,
                              .ldb = spec->kv_heads * dim,
                              .ldc = spec->heads * dim,
                              .bf16 = operand_bf16(job->stream),
                              .count = tile->heads->count,
                              .stride_a = tile->queries * tile->keys,
                              .stride_b = tile->heads->kv_step * dim,
                              .stride_c = tile->heads->step * dim};

    return gemm_run(job->stream, &gemm);
}

/* dk += ds^T q, or dv += weights^T do. */
static int grad_keys(const struct attention_grad *job, const struct grad_tile *tile, bool values)
{
    const struct gpu_attention *spec = job->spec;
    const struct grad_heads *heads = tile->heads;
    int64_t width = values ? gpu_value_dim(spec) : spec->head_dim, size = tile->queries * tile->keys;
    bool apart = heads->kv_step > 0; /* each head has a key head of its own */
    struct gemm gemm = {.trans_a = true,
                        .m = tile->keys,
                        .n = width,
                        .k = tile->queries,
                        .alpha = 1.0f,
                        .beta = 1.0f,
                        .c = values ? job->dv + tile->v_at : job->dk + tile->k_at,
                        .lda = tile->keys,
                        .ldb = spec->heads * width,
                        .ldc = spec->kv_heads * width,
                        .bf16 = operand_bf16(job->stream),
                        .count = apart ? heads->count : 1,
                        .stride_a = size,
                        .stride_b = heads->step * width,
                        .stride_c = heads->kv_step * width};

    for (int64_t i = 0; i < (apart ? 1 : heads->count); i++) {
        int64_t at = (values ? tile->o_at : tile->q_at) + i * heads->step * width;
        gemm.a = (const char *)(values ? job->weights : job->grads) + (size_t)(i * size) * job->element;
        gemm.b = (values ? job->d_out : job->q) + (size_t)at * job->element;
        TRY(gemm_run(job->stream, &gemm));
    }
    return 0;
}

static int grad_run_tile(const struct attention_grad *job, int64_t sequence, struct grad_tile *tile)
{
    const struct gpu_attention *spec = job->spec;
    const struct grad_heads *heads = tile->heads;
    int64_t query_row = sequence * spec->length + tile->first, key_row = sequence * spec->length;

    tile->keys = tile->first + tile->queries;
    tile->q_at = (query_row * spec->heads + heads->head) * spec->head_dim;
    tile->o_at = (query_row * spec->heads + heads->head) * gpu_value_dim(spec);
    tile->k_at = (key_row * spec->kv_heads + heads->kv_head) * spec->head_dim;
    tile->v_at = (key_row * spec->kv_heads + heads->kv_head) * gpu_value_dim(spec);
    TRY(grad_scores(job, tile, false, job->scores));
    TRY(grad_scores(job, tile, true, job->products));
    TRY(grad_softmax(job, tile));
    if (job->dq != NULL) {
        TRY(grad_queries(job, tile));
    }
    if (job->dk != NULL) {
        TRY(grad_keys(job, tile, false));
    }
    return job->dv != NULL ? grad_keys(job, tile, true) : 0;
}

/* The inner number of a head runs within a batch: over groups, or over the heads of one group. */
static int grad_sequence(const struct attention_grad *job, int64_t sequence)
{
    int64_t groups = job->spec->kv_heads, shared = job->spec->heads / groups, length = job->spec->length;
    bool across = groups >= shared;
    int64_t outer = across ? shared : groups, inner = across ? groups : shared;
    int64_t batch = tiles_of(inner, tiles_of(inner, job->max)); /* of equal size */

    for (int64_t i = 0; i < outer; i++) {
        for (int64_t j = 0; j < inner; j += batch) {
            int64_t count = inner - j < batch ? inner - j : batch;
            const struct grad_heads heads = across ? (struct grad_heads){j * shared + i, shared, j, 1, count}
                                                   : (struct grad_heads){i * shared + j, 1, i, 0, count};
            for (int64_t first = 0; first < length; first += QUERY_TILE) {
                struct grad_tile tile = {.heads = &heads,
                                         .first = first,
                                         .queries = length - first < QUERY_TILE ? length - first : QUERY_TILE};
                TRY(grad_run_tile(job, sequence, &tile));
            }
        }
    }
    return 0;
}

/* Scratch for buffers of scores and, where operands are not F32, for what becomes of them. */
static int grad_buffers(struct attention_grad *job, const struct tensor *const operands[4], bool sinks)
{
    const struct gpu_attention *spec = job->spec;
    struct gpu_stream *stream = job->stream;
    int64_t tile = spec->length < QUERY_TILE ? spec->length : QUERY_TILE, count = tile * spec->length;
    int64_t max = SCORES_BYTES / (count * (int64_t)sizeof(float));
    const void *pointers[4];

    job->max = max < 1 ? 1 : max > spec->heads ? spec->heads : max;
    count *= job->max;
    bool bf16 = operand_bf16(stream);
    size_t bytes = 2 * (scratch_size(count, sizeof(float)) + (bf16 ? scratch_size(count, 2) : 0));
    bytes += sinks ? scratch_size(job->max * tile, sizeof(double)) + scratch_size(spec->heads, sizeof(double)) : 0;
    for (int i = 0; i < 4; i++) {
        bytes += operand_size(stream, operands[i]);
    }
    TRY(scratch_reserve(stream, bytes));
    for (int i = 0; i < 4; i++) {
        TRY(operand_of(stream, operands[i], &pointers[i]));
    }
    job->q = pointers[0];
    job->k = pointers[1];
    job->v = pointers[2];
    job->d_out = pointers[3];
    job->scores = scratch_take(stream, count, sizeof(float));
    job->products = scratch_take(stream, count, sizeof(float));
    job->weights = bf16 ? scratch_take(stream, count, 2) : job->scores;
    job->grads = bf16 ? scratch_take(stream, count, 2) : job->products;
    if (!sinks) {
        return 0;
    }
    job->sinks = scratch_take(stream, job->max * tile, sizeof(double));
    job->totals = scratch_take(stream, spec->heads, sizeof(double));
    return memory_fill_zero(stream, job->totals, (size_t)spec->heads * sizeof(double));
}

int cuda_attention_grad(struct gpu_stream *stream, const struct tensor *dq, const struct tensor *dk,
                        const struct tensor *dv, const struct tensor *dsinks, const struct tensor *d_out,
                        const struct tensor *q, const struct tensor *k, const struct tensor *v,
                        const struct gpu_attention *spec)
{
    SCRATCH_SCOPE(stream);
    const struct tensor *const operands[4] = {q, k, v, d_out};
    struct attention_grad job = {.stream = stream,
                                 .spec = spec,
                                 .dq = dq != NULL ? dq->data : NULL,
                                 .dk = dk != NULL ? dk->data : NULL,
                                 .dv = dv != NULL ? dv->data : NULL,
                                 .element = operand_bf16(stream) ? 2 : sizeof(float)};

    TRY(cuda_begin(stream->device));
    if (spec->length == 0 || spec->sequences == 0) {
        return 0;
    }
    TRY(grad_buffers(&job, operands, dsinks != NULL));
    for (int64_t s = 0; s < spec->sequences; s++) {
        TRY(grad_sequence(&job, s));
    }
    if (dsinks == NULL) {
        return 0;
    }
    return cuda_ok(stream->device, launch_sinks_add(dsinks->data, job.totals, spec->heads, stream->stream),
                   "attention_grad");
}
