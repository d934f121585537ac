/* Rows of weights to GGUF blocks, each with the scales of the smallest sum importance_j (w_j - wq_j)^2.
 *
 * Plain scales put a block's extreme on the lowest level, as rounding to nearest does. The search starts from them,
 * tries scales around them with either sign, and follows each by least squares for the codes that it gave: with codes u
 * held, the best scale is sum w x u / sum w u^2. A block keeps its plain bytes unless the others lose less when both
 * are read back and summed in double, so a search never loses to plain scales, whatever the weights of the errors.
 *
 * A scale is rounded to F16 before any code is computed from it. Codes are rounded to nearest, halves up. */

#include "gpu/cpu/blocks.h"

#include <math.h>
#include <string.h>

static const float iq4nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static const struct block_levels levels_q4_0 = {-8, 7, NULL, 5.0f, 0.75f, 13};
static const struct block_levels levels_q8_0 = {-127, 127, NULL, 125.0f, 0.5f, 9};
static const struct block_levels levels_iq4nl = {-127, 113, iq4nl, 80.0f, 10.0f, 13};

struct encoding {
    struct gpu_stream *stream;
    const struct gpu_blocks *spec;
    const struct ggml_block *block;
    const float *w, *importance; /* [N,K]; [K] or NULL */
    const float *ones;           /* [BLOCK_MAX] */
    int64_t rows, cols;
    uint8_t *out;
};

float block_inverse(float scale)
{
    return fabsf(scale) > 0x1p-120f ? 1.0f / scale : 0.0f;
}

static int table_code(float x, float scale, const float table[16])
{
    float v = x * block_inverse(scale);
    int code = 0;

    for (int j = 0; j < 15; j++) {
        code += v > 0.5f * (table[j] + table[j + 1]);
    }
    return code;
}

struct choice {
    float scale, error;
};

/* Keep scale if it loses less; returns the best scale for the codes that it gave, or 0. */
static float block_consider(const struct block_task *task, const float *x, const float *weight, int64_t n,
                            const struct block_levels *levels, float scale, struct choice *best)
{
    struct block_sums sums;

    if (levels->table != NULL) {
        task->kernels->block_fit_table(&sums, x, weight, n, scale, block_inverse(scale), levels->table);
    } else {
        task->kernels->block_fit(&sums, x, weight, n, scale, block_inverse(scale), 0.0f, levels->low, levels->high);
    }
    if (sums.error < best->error) {
        *best = (struct choice){scale, sums.error};
    }
    float fitted = sums.xu / sums.uu;
    return isfinite(fitted) ? fitted : 0.0f;
}

float block_scale(const struct block_task *task, const float *x, const float *weight, int64_t n,
                  const struct block_levels *levels, enum dtype store)
{
    float extreme = 0;

    for (int64_t i = 0; i < n; i++) {
        extreme = fabsf(x[i]) > fabsf(extreme) ? x[i] : extreme;
    }
    /* Q8_0 has as many levels above zero as below: its scales are positive by custom. */
    float plain = block_storable((levels->low == -levels->high ? fabsf(extreme) : -extreme) / -levels->low, store);
    if (!task->search || plain == 0.0f) {
        return plain;
    }
    struct choice best = {plain, INFINITY};
    (void)block_consider(task, x, weight, n, levels, plain, &best);
    for (int i = 0; i < 2 * levels->count; i++) {
        int step = i / 2;
        float reach = levels->first + levels->step * (float)step;
        float scale = block_storable((i % 2 == 0 ? extreme : -extreme) / reach, store);
        float after = scale != 0.0f ? block_consider(task, x, weight, n, levels, scale, &best) : 0.0f;
        after = block_storable(after, store);
        if (after != 0.0f && after != scale) {
            (void)block_consider(task, x, weight, n, levels, after, &best);
        }
    }
    for (int i = 0; i < 4; i++) {
        struct choice before = best;
        float fitted = block_storable(block_consider(task, x, weight, n, levels, best.scale, &before), store);
        if (fitted == 0.0f || fitted == best.scale) {
            break;
        }
        (void)block_consider(task, x, weight, n, levels, fitted, &best);
        if (best.scale != fitted) {
            break;
        }
    }
    return best.scale;
}

static void encode_nibbles(const struct block_task *task, const struct block_levels *levels, uint8_t *out)
{
    float scale = block_scale(task, task->x, task->weight, 32, levels, DTYPE_F16);
    uint16_t half = dtype_f32_to_f16(scale);

    memcpy(out, &half, sizeof(half));
    uint8_t codes[32];

    if (levels->table != NULL) {
        for (int j = 0; j < 32; j++) {
            codes[j] = (uint8_t)table_code(task->x[j], scale, levels->table);
        }
    } else {
        task->kernels->block_codes(codes, task->x, 32, block_inverse(scale), 0.0f, levels->low, levels->high);
    }
    for (int j = 0; j < 16; j++) {
        out[2 + j] = (uint8_t)(codes[j] | codes[j + 16] << 4);
    }
}

static void encode_q8_0(const struct block_task *task, uint8_t *out)
{
    float scale = block_scale(task, task->x, task->weight, 32, &levels_q8_0, DTYPE_F16);
    uint16_t half = dtype_f32_to_f16(scale);

    memcpy(out, &half, sizeof(half));
    task->kernels->block_codes(out + 2, task->x, 32, block_inverse(scale), 0.0f, -127.0f, 127.0f);
    for (int j = 0; j < 32; j++) {
        out[2 + j] = (uint8_t)(out[2 + j] - 127);
    }
}

static void encode_block(int type, const struct block_task *task, uint8_t *out)
{
    switch (type) {
    case GGML_TYPE_Q8_0:
        encode_q8_0(task, out);
        break;
    case GGML_TYPE_Q4_K:
        block_encode_q4_k(task, out);
        break;
    case GGML_TYPE_Q6_K:
        block_encode_q6_k(task, out);
        break;
    default:
        encode_nibbles(task, type == GGML_TYPE_IQ4_NL ? &levels_iq4nl : &levels_q4_0, out);
    }
}

#define ROW_TILE 16

/* Block number `block` of all rows'. */
static struct block_task task_of(const struct encoding *job, int64_t block)
{
    int64_t size = job->block->elements, blocks = job->cols / size;

    return (struct block_task){.kernels = job->stream->device->kernels,
                               .x = job->w + block * size,
                               .weight = job->importance != NULL ? job->importance + block % blocks * size : job->ones};
}

/* What the bytes lose when they are read back. */
static double lost(const struct encoding *job, const struct block_task *task, const uint8_t *bytes)
{
    float back[BLOCK_MAX];
    double errors[BLOCK_MAX], sum = 0;

    ggml_decode_row(job->block->type, bytes, job->block->elements, back);
    for (int64_t i = 0; i < job->block->elements; i++) {
        double error = (double)task->x[i] - (double)back[i];
        errors[i] = (double)task->weight[i] * error * error;
    }
    for (int64_t i = 0; i < job->block->elements; i++) {
        sum += errors[i];
    }
    return sum;
}

/* The plain bytes, unless those that a search found lose less. */
static void encode_better(const struct encoding *job, const struct block_task *task, const uint8_t *found, uint8_t *out)
{
    encode_block(job->block->type, task, out);
    if (lost(job, task, found) < lost(job, task, out)) {
        memcpy(out, found, (size_t)job->block->bytes);
    }
}

static void encode_one(const struct encoding *job, int64_t block)
{
    struct block_task task = task_of(job, block);
    uint8_t *out = job->out + block * job->block->bytes;
    uint8_t found[BLOCK_BYTES_MAX];

    if (!job->spec->search) {
        encode_block(job->block->type, &task, out);
        return;
    }
    if (job->block->type == GGML_TYPE_Q6_K && task.kernels->signed_sums != NULL) {
        block_search_q6_k(task.kernels, task.x, job->importance != NULL ? task.weight : NULL, found);
    } else {
        task.search = true;
        encode_block(job->block->type, &task, found);
        task.search = false;
    }
    encode_better(job, &task, found, out);
}

/* Two Q4_K blocks, by a search. */
static void encode_two(const struct encoding *job, int64_t block)
{
    const struct block_task tasks[2] = {task_of(job, block), task_of(job, block + 1)};
    const float *const x[2] = {tasks[0].x, tasks[1].x}, *const weight[2] = {tasks[0].weight, tasks[1].weight};
    uint8_t first[BLOCK_BYTES_MAX], second[BLOCK_BYTES_MAX], *const found[2] = {first, second};

    block_search_two(tasks[0].kernels, x, job->importance != NULL ? weight : NULL, found);
    for (int b = 0; b < 2; b++) {
        encode_better(job, &tasks[b], found[b], job->out + (block + b) * job->block->bytes);
    }
}

static void encode_tile(void *ctx, int64_t task)
{
    const struct encoding *job = ctx;
    int64_t blocks = job->cols / job->block->elements, first = task * ROW_TILE * blocks;
    int64_t count = tile_size(job->rows, ROW_TILE, task) * blocks, i = 0;

    if (job->block->type == GGML_TYPE_Q4_K && job->spec->search &&
        job->stream->device->kernels->affine_search != NULL) {
        for (; i + 2 <= count; i += 2) {
            encode_two(job, first + i);
        }
    }
    for (; i < count; i++) {
        encode_one(job, first + i);
    }
}

int cpu_encode_blocks(struct gpu_stream *stream, const struct tensor *blocks, const struct tensor *w,
                      const struct tensor *importance, const struct gpu_blocks *spec)
{
    struct encoding job = {.stream = stream,
                           .spec = spec,
                           .block = ggml_block_find(spec->type),
                           .w = w->data,
                           .importance = importance != NULL ? importance->data : NULL,
                           .rows = matrix_rows(w),
                           .cols = matrix_cols(w),
                           .out = blocks->data};

    TRY(scratch_reserve(stream, scratch_size(BLOCK_MAX, sizeof(float)), 0));
    float *ones = scratch_shared(stream);
    for (int i = 0; i < BLOCK_MAX; i++) {
        ones[i] = 1.0f;
    }
    job.ones = ones;
    stream_run(stream, tiles_of(job.rows, ROW_TILE), encode_tile, &job);
    return 0;
}
