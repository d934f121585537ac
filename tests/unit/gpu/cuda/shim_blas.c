/* cuBLASLt: descriptions are kept as given, products are three loops in column order. */

#include "tests/unit/gpu/cuda/shim.h"

#include "gpu/tensor.h"

#include <cublasLt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORKSPACE 4096 /* every algorithm here wants this much */

struct matmul {
    cublasOperation_t a, b;
};

struct layout {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld, stride;
    int32_t batch;
};

struct preference {
    uint64_t workspace;
    uint32_t schemes, align[4]; /* A, B, C, D */
};

/* What an algorithm was chosen for, packed into the 64 bytes of cublasLtMatmulAlgo_t as a digest. */
struct choice {
    uint64_t digest;
    uint32_t align[3];
};

static void *opaque(size_t bytes)
{
    void *block = shim_enter() == cudaSuccess ? shim_take(bytes) : NULL;
    if (block != NULL) {
        memset(block, 0, bytes);
    }
    return block;
}

#define CREATED(handle) ((handle) != NULL ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED)

bool cublas_open(char *reason, size_t size); /* gpu/cuda/cuda.h */

bool cublas_open(char *reason, size_t size)
{
    (void)reason;
    (void)size;
    return true;
}

size_t cublasLtGetVersion(void)
{
    return 130002;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    cudaError_t status = shim_enter_allocation();

    *handle = status == cudaSuccess ? shim_take(1) : NULL;
    return *handle != NULL                       ? CUBLAS_STATUS_SUCCESS
           : status == cudaErrorMemoryAllocation ? CUBLAS_STATUS_ALLOC_FAILED
                                                 : CUBLAS_STATUS_NOT_INITIALIZED;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    shim_give(handle);
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    return "a status of the shim";
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType_t scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    *desc = opaque(sizeof(struct matmul));
    return CREATED(*desc);
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    shim_give(desc);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t size)
{
    struct matmul *matmul = (struct matmul *)(void *)desc;

    if (size != sizeof(cublasOperation_t)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        memcpy(&matmul->a, value, size);
        return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_DESC_TRANSB:
        memcpy(&matmul->b, value, size);
        return CUBLAS_STATUS_SUCCESS;
    default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld)
{
    struct layout *made = opaque(sizeof(*made));

    if (made != NULL) {
        *made = (struct layout){.type = type, .rows = rows, .cols = cols, .ld = ld, .batch = 1};
    }
    *layout = (cublasLtMatrixLayout_t)(void *)made;
    return CREATED(made);
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    shim_give(layout);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void *value,
                                                size_t size)
{
    struct layout *made = (struct layout *)(void *)layout;

    if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT && size == sizeof(made->batch)) {
        memcpy(&made->batch, value, size);
        return CUBLAS_STATUS_SUCCESS;
    }
    if (attribute == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET && size == sizeof(made->stride)) {
        memcpy(&made->stride, value, size);
        return CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
    struct preference *made = opaque(sizeof(*made));

    if (made != NULL) {
        *made = (struct preference){.schemes = UINT32_MAX, .align = {256, 256, 256, 256}};
    }
    *preference = (cublasLtMatmulPreference_t)(void *)made;
    return CREATED(made);
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    shim_give(preference);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t size)
{
    struct preference *made = (struct preference *)(void *)preference;

    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && size == sizeof(made->workspace)) {
        memcpy(&made->workspace, value, size);
        return CUBLAS_STATUS_SUCCESS;
    }
    if (size != sizeof(uint32_t)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        memcpy(&made->schemes, value, size);
        return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        memcpy(&made->align[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, size);
        return CUBLAS_STATUS_SUCCESS;
    default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

static uint64_t digest_bytes_of(uint64_t digest, const void *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        digest = (digest ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;
    }
    return digest;
}

static uint64_t digest_layout(uint64_t digest, const struct layout *l)
{
    const int64_t all[] = {(int64_t)l->type, (int64_t)l->rows, (int64_t)l->cols, l->ld, l->stride, l->batch};
    return digest_bytes_of(digest, all, sizeof(all));
}

static uint64_t digest_problem(const struct matmul *m, const struct layout *a, const struct layout *b,
                               const struct layout *c)
{
    const int64_t ops[] = {(int64_t)m->a, (int64_t)m->b};
    return digest_layout(digest_layout(digest_layout(digest_bytes_of(0xcbf29ce484222325u, ops, sizeof(ops)), a), b), c);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *found)
{
    const struct preference *p = (const struct preference *)(const void *)preference;
    struct choice choice = {
        .digest = digest_problem((const struct matmul *)(const void *)desc, (const struct layout *)(const void *)a,
                                 (const struct layout *)(const void *)b, (const struct layout *)(const void *)c),
        .align = {p->align[0], p->align[1], p->align[2]}};

    if (shim_enter() != cudaSuccess) {
        return CUBLAS_STATUS_EXECUTION_FAILED;
    }
    *found = 0;
    if (wanted < 1 || p->workspace < WORKSPACE || (p->schemes & CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE) != 0 || c != d) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    memset(&results[0], 0, sizeof(results[0]));
    memcpy(results[0].algo.data, &choice, sizeof(choice));
    results[0].workspaceSize = WORKSPACE;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

static size_t width(cudaDataType_t type)
{
    return type == CUDA_R_16BF ? 2 : sizeof(float);
}

static float read_element(const struct layout *l, const void *base, int64_t batch, int64_t row, int64_t col,
                          cublasOperation_t op)
{
    int64_t at = batch * l->stride + (op == CUBLAS_OP_T ? row * l->ld + col : col * l->ld + row);
    uint16_t half;
    float value;

    if (l->type == CUDA_R_16BF) {
        memcpy(&half, (const char *)base + at * 2, sizeof(half));
        return dtype_bf16_to_f32(half);
    }
    memcpy(&value, (const char *)base + at * 4, sizeof(value));
    return value;
}

/* Inside live memory, as wide as its leading dimension says, aligned as was promised. */
static void check_operand(const char *name, const struct layout *l, const void *base, uint32_t align)
{
    int64_t last = (l->batch - 1) * l->stride + (int64_t)(l->cols - 1) * l->ld + (int64_t)l->rows;

    shim_check(name, base, (size_t)last * width(l->type));
    if (l->rows < 1 || l->cols < 1 || l->ld < (int64_t)l->rows || (uintptr_t)base % align != 0) {
        fprintf(stderr, "shim: %s is [%llu, %llu] with %lld, aligned to less than %u\n", name,
                (unsigned long long)l->rows, (unsigned long long)l->cols, (long long)l->ld, align);
        abort();
    }
}

enum { TILE = 16 }; /* rows whose sums are in registers together */

static float *floats(int64_t count)
{
    float *out = malloc((size_t)count * sizeof(float));

    if (out == NULL) {
        abort();
    }
    return out;
}

/* Rows of op(A) as F32, in tiles of [depth, TILE]; rows beyond the last are zeros. */
static float *packed_rows(const struct layout *l, const void *base, int64_t batch, cublasOperation_t op, int64_t rows,
                          int64_t depth)
{
    int64_t tiles = (rows + TILE - 1) / TILE;
    float *out = floats(tiles * TILE * depth);

    for (int64_t row = 0; row < tiles * TILE; row++) {
        for (int64_t k = 0; k < depth; k++) {
            out[(row / TILE * depth + k) * TILE + row % TILE] =
                row < rows ? read_element(l, base, batch, row, k, op) : 0;
        }
    }
    return out;
}

/* Columns of op(B) as F32, one after the other. */
static float *packed_columns(const struct layout *l, const void *base, int64_t batch, cublasOperation_t op,
                             int64_t cols, int64_t depth)
{
    float *out = floats(cols * depth);

    for (int64_t col = 0; col < cols; col++) {
        for (int64_t k = 0; k < depth; k++) {
            out[col * depth + k] = read_element(l, base, batch, k, col, op);
        }
    }
    return out;
}

typedef float lanes __attribute__((vector_size(16), aligned(4), may_alias)); /* four: what a register holds */

/* sums[i] = sum over k, in order, of tile[k, i] * column[k]. Nearly all of the time of a job over the shim passes here:
 * in vectors, which are fast in every build, and unchecked, since it reads what was packed just before. */
__attribute__((no_sanitize("address", "undefined"))) static void dot_tile(const float *tile, const float *column,
                                                                          int64_t depth, float sums[TILE])
{
    const lanes *x = (const lanes *)(const void *)tile;
    lanes s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};

    for (int64_t k = 0; k < depth; k++, x += TILE / 4) {
        s0 += x[0] * column[k];
        s1 += x[1] * column[k];
        s2 += x[2] * column[k];
        s3 += x[3] * column[k];
    }
    memcpy(sums, &s0, sizeof(s0));
    memcpy(sums + 4, &s1, sizeof(s1));
    memcpy(sums + 8, &s2, sizeof(s2));
    memcpy(sums + 12, &s3, sizeof(s3));
}

static void product(const struct matmul *m, const struct layout *al, const void *a, const struct layout *bl,
                    const void *b, const struct layout *cl, float *c, float alpha, float beta)
{
    int64_t depth = (int64_t)(m->a == CUBLAS_OP_T ? al->rows : al->cols);
    int64_t rows = (int64_t)cl->rows, cols = (int64_t)cl->cols;
    float sums[TILE];

    for (int64_t batch = 0; batch < cl->batch; batch++) {
        float *x = packed_rows(al, a, batch, m->a, rows, depth), *y = packed_columns(bl, b, batch, m->b, cols, depth);
        for (int64_t col = 0; col < cols; col++) {
            float *out = c + batch * cl->stride + col * cl->ld;
            for (int64_t row = 0; row < rows; row++) {
                if (row % TILE == 0) {
                    dot_tile(x + row * depth, y + col * depth, depth, sums);
                }
                out[row] = alpha * sums[row % TILE] + (beta != 0 ? beta * out[row] : 0.0f);
            }
        }
        free(x);
        free(y);
    }
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream)
{
    const struct matmul *m = (const struct matmul *)(const void *)desc;
    const struct layout *al = (const struct layout *)(const void *)a_layout;
    const struct layout *bl = (const struct layout *)(const void *)b_layout;
    const struct layout *cl = (const struct layout *)(const void *)c_layout;
    uint64_t a_rows = m->a == CUBLAS_OP_T ? al->cols : al->rows, a_cols = m->a == CUBLAS_OP_T ? al->rows : al->cols;
    uint64_t b_rows = m->b == CUBLAS_OP_T ? bl->cols : bl->rows, b_cols = m->b == CUBLAS_OP_T ? bl->rows : bl->cols;
    struct choice choice;

    if (shim_enter() != cudaSuccess) {
        return CUBLAS_STATUS_EXECUTION_FAILED;
    }
    shim_flush();
    memcpy(&choice, algo->data, sizeof(choice));
    if (a_rows != cl->rows || b_cols != cl->cols || a_cols != b_rows || c != d || c_layout != d_layout ||
        choice.digest != digest_problem(m, al, bl, cl) || workspace_bytes < WORKSPACE || al->batch != cl->batch ||
        bl->batch != cl->batch) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    check_operand("A", al, a, choice.align[0]);
    check_operand("B", bl, b, choice.align[1]);
    check_operand("C", cl, c, choice.align[2]);
    shim_check("workspace", workspace, workspace_bytes);
    memset(workspace, 0x5a, workspace_bytes);
    product(m, al, a, bl, b, cl, d, *(const float *)alpha, *(const float *)beta);
    return CUBLAS_STATUS_SUCCESS;
}
