/* Products through cuBLASLt, row-major on top of its column-major view: c = a b in rows is c^T = b^T a^T in columns, so
 * the operands change places and nothing is transposed.
 *
 * Descriptions and algorithms are made once per shape and kept. Only those whose reduction goes through the workspace
 * are allowed, so a product gives the same bits each time. F32 products stay in F32: TF32 would change codes. */

#include "gpu/cuda/cuda.h"

#include <stdlib.h>
#include <string.h>

/* A power of two. A block of a model has hundreds of shapes, and to ask for one takes as long as a product. */
#define CACHE_SIZE 2048

struct gemm_key {
    int64_t m, n, k, lda, ldb, ldc, count, stride_a, stride_b, stride_c;
    uint32_t align_a, align_b, align_c; /* bytes; an algorithm may load this many at a time */
    bool trans_a, trans_b, bf16, beta;
};

/* As cuBLASLt has it described. */
struct problem {
    cublasLtMatmulDesc_t matmul;
    cublasLtMatrixLayout_t a, b, c;
};

struct gemm_entry {
    bool used;
    struct gemm_key key;
    struct problem problem;
    cublasLtMatmulAlgo_t algo;
    size_t workspace;
};

struct gemm_cache {
    struct gemm_entry entries[CACHE_SIZE]; /* by hash, the next free one after it */
    int count;
};

int gemm_cache_new(struct gemm_cache **cache)
{
    return mem_new(cache);
}

int cublas_ok(struct gpu_device *device, cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS) {
        return 0;
    }
    if (status == CUBLAS_STATUS_ALLOC_FAILED) {
        return err_raise(ERR_GPU_OUT_OF_MEMORY, "%s: %s", what, cublasLtGetStatusString(status));
    }
    TRY(cuda_ok(device, cudaPeekAtLastError(), what)); /* the runtime knows more, when it was its error */
    return err_raise(ERR_INTERNAL, "%s: %s", what, cublasLtGetStatusString(status));
}

static void problem_deinit(struct problem *problem)
{
    if (problem->matmul != NULL) {
        (void)cublasLtMatmulDescDestroy(problem->matmul);
    }
    const cublasLtMatrixLayout_t layouts[] = {problem->a, problem->b, problem->c};
    for (int i = 0; i < 3; i++) {
        if (layouts[i] != NULL) {
            (void)cublasLtMatrixLayoutDestroy(layouts[i]);
        }
    }
}

static void clear(struct gemm_cache *cache)
{
    for (int i = 0; i < CACHE_SIZE; i++) {
        problem_deinit(&cache->entries[i].problem);
    }
    memset(cache, 0, sizeof(*cache));
}

void gemm_cache_free(struct gemm_cache *cache)
{
    if (cache != NULL) {
        clear(cache);
        free(cache);
    }
}

/* A column-major operand; `batch` copies at a distance of `stride` elements. */
static cublasStatus_t layout_new(cublasLtMatrixLayout_t *layout, cudaDataType_t type, int64_t rows, int64_t cols,
                                 int64_t ld, int64_t batch, int64_t stride)
{
    int32_t count = (int32_t)batch;
    cublasStatus_t status = cublasLtMatrixLayoutCreate(layout, type, (uint64_t)rows, (uint64_t)cols, ld);

    if (status == CUBLAS_STATUS_SUCCESS && batch > 1) {
        status = cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count));
        if (status == CUBLAS_STATUS_SUCCESS) {
            status = cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                                      sizeof(stride));
        }
    }
    return status;
}

/* cuBLASLt's first operand is our b, its second our a: it computes [n, m] in columns. */
static cublasStatus_t problem_init(struct problem *problem, const struct gemm *g)
{
    cudaDataType_t type = g->bf16 ? CUDA_R_16BF : CUDA_R_32F;
    cublasOperation_t first = g->trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t second = g->trans_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasStatus_t status = cublasLtMatmulDescCreate(&problem->matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F);

    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulDescSetAttribute(problem->matmul, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof(first));
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulDescSetAttribute(problem->matmul, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof(second));
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = layout_new(&problem->a, type, g->trans_b ? g->k : g->n, g->trans_b ? g->n : g->k, g->ldb, g->count,
                            g->stride_b);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = layout_new(&problem->b, type, g->trans_a ? g->m : g->k, g->trans_a ? g->k : g->m, g->lda, g->count,
                            g->stride_a);
    }
    return status != CUBLAS_STATUS_SUCCESS
               ? status
               : layout_new(&problem->c, CUDA_R_32F, g->n, g->m, g->ldc, g->count, g->stride_c);
}

/* What heuristics may count on. They assume 256 bytes unless it is set, which a part of a matrix need not have. */
static cublasStatus_t limit_alignment(cublasLtMatmulPreference_t preference, const struct gemm_key *key)
{
    cublasStatus_t status = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                                                                 &key->align_b, sizeof(key->align_b));

    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                                                      &key->align_a, sizeof(key->align_a));
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                                                      &key->align_c, sizeof(key->align_c));
    }
    return status != CUBLAS_STATUS_SUCCESS
               ? status
               : cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                                                      &key->align_c, sizeof(key->align_c));
}

static int gemm_choose(struct gpu_stream *stream, struct gemm_entry *entry)
{
    struct gpu_device *device = stream->device;
    const struct problem *problem = &entry->problem;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t result;
    size_t limit = GEMM_WORKSPACE;
    uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    int found = 0;

    TRY(cublas_ok(device, cublasLtMatmulPreferenceCreate(&preference), "choosing a product"));
    cublasStatus_t status = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                                 &limit, sizeof(limit));
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes,
                                                      sizeof(schemes));
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = limit_alignment(preference, &entry->key);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulAlgoGetHeuristic(device->blas, problem->matmul, problem->a, problem->b, problem->c,
                                                problem->c, preference, 1, &result, &found);
    }
    (void)cublasLtMatmulPreferenceDestroy(preference);
    TRY(cublas_ok(device, status, "choosing a product"));
    if (found == 0) {
        return err_raise(ERR_INTERNAL, "cuBLASLt has no algorithm for this product");
    }
    entry->algo = result.algo;
    entry->workspace = result.workspaceSize;
    return 0;
}

/* Memory comes in 256 bytes, so the alignment of a piece follows from its place: a function of the shape. */
static uint32_t alignment_of(const void *pointer)
{
    uintptr_t address = (uintptr_t)pointer, low = address & -address;
    return low == 0 || low > 256 ? 256 : (uint32_t)low;
}

static struct gemm_key key_of(const struct gemm *g)
{
    struct gemm_key key;
    memset(&key, 0, sizeof(key)); /* padding too: keys are compared as bytes */
    key.m = g->m;
    key.n = g->n;
    key.k = g->k;
    key.lda = g->lda;
    key.ldb = g->ldb;
    key.ldc = g->ldc;
    key.count = g->count;
    key.stride_a = g->stride_a;
    key.stride_b = g->stride_b;
    key.stride_c = g->stride_c;
    key.align_a = alignment_of(g->a);
    key.align_b = alignment_of(g->b);
    key.align_c = alignment_of(g->c);
    key.trans_a = g->trans_a;
    key.trans_b = g->trans_b;
    key.bf16 = g->bf16;
    key.beta = g->beta != 0;
    return key;
}

/* FNV-1a. */
static uint32_t hash_of(const struct gemm_key *key)
{
    const unsigned char *bytes = (const unsigned char *)key;
    uint32_t hash = 2166136261u;

    for (size_t i = 0; i < sizeof(*key); i++) {
        hash = (hash ^ bytes[i]) * 16777619u;
    }
    return hash;
}

/* The key's entry, or the free one where it belongs. */
static struct gemm_entry *look_up(struct gemm_cache *cache, const struct gemm_key *key)
{
    uint32_t at = hash_of(key) % CACHE_SIZE;

    while (cache->entries[at].used && memcmp(&cache->entries[at].key, key, sizeof(*key)) != 0) {
        at = (at + 1) % CACHE_SIZE;
    }
    return &cache->entries[at];
}

static int describe_and_choose(struct gpu_stream *stream, const struct gemm *g, struct gemm_entry *entry)
{
    TRY(cublas_ok(stream->device, problem_init(&entry->problem, g), "describing a product"));
    return gemm_choose(stream, entry);
}

static int find_entry(struct gpu_stream *stream, const struct gemm *g, const struct gemm_entry **found)
{
    struct gemm_cache *cache = stream->cache;
    struct gemm_key key = key_of(g);
    struct gemm_entry *entry = look_up(cache, &key);

    if (!entry->used) {
        if (cache->count >= CACHE_SIZE / 2) { /* of a job before this one */
            clear(cache);
            entry = look_up(cache, &key);
        }
        memcpy(&entry->key, &key, sizeof(key));
        int rc = describe_and_choose(stream, g, entry);
        if (rc != 0) {
            problem_deinit(&entry->problem);
            entry->problem = (struct problem){0};
            return err_pass(rc, "product [%lld, %lld] over %lld", (long long)g->m, (long long)g->n, (long long)g->k);
        }
        entry->used = true;
        cache->count++;
    }
    *found = entry;
    return 0;
}

/* A sum over nothing: what was there stays (beta = 1) or becomes zero. */
static int run_empty(struct gpu_stream *stream, const struct gemm *g)
{
    int64_t count = g->count > 1 ? g->count : 1;

    for (int64_t i = 0; g->beta == 0 && i < count; i++) {
        TRY(cuda_ok(stream->device,
                    cudaMemset2DAsync(g->c + i * g->stride_c, (size_t)g->ldc * sizeof(float), 0,
                                      (size_t)g->n * sizeof(float), (size_t)g->m, stream->stream),
                    "an empty product"));
    }
    return 0;
}

int gemm_run(struct gpu_stream *stream, const struct gemm *gemm)
{
    const struct gemm_entry *entry = NULL;

    if (gemm->m == 0 || gemm->n == 0) {
        return 0;
    }
    if (gemm->k == 0) {
        return run_empty(stream, gemm);
    }
    if (stream->workspace == NULL) {
        TRY(memory_raw(stream->device, GEMM_WORKSPACE, &stream->workspace));
    }
    TRY(find_entry(stream, gemm, &entry));
    const struct problem *problem = &entry->problem;
    return cublas_ok(stream->device,
                     cublasLtMatmul(stream->device->blas, problem->matmul, &gemm->alpha, gemm->b, problem->a, gemm->a,
                                    problem->b, &gemm->beta, gemm->c, problem->c, gemm->c, problem->c, &entry->algo,
                                    stream->workspace, entry->workspace, stream->stream),
                     "product");
}
