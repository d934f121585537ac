/* Scales outside the range of the type that stores them. They are clamped, and the weights that share such a scale may
 * lose nearly all of their energy: half precision ends at 65504 and has steps of 2^-24 near zero. The report row of
 * such a module says so, and so does a warning of the job. */

#include "pipeline/stored_scales.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "gpu/ggml_blocks.h"
#include "quantizers/input_range.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A scale of fewer steps than this is rounded by an eighth or more. */
#define STEPS_MIN 4

struct bounds {
    float smallest, largest;
};

static struct bounds bounds_of(enum dtype dtype)
{
    const struct dtype_row *row = &dtype_rows[dtype == DTYPE_F16 || dtype == DTYPE_BF16 ? dtype : DTYPE_F32];

    return (struct bounds){(float)(dtype == DTYPE_F16 ? STEPS_MIN * row->min : row->min_normal), (float)row->max};
}

/* What shares scale i is tile i of the weight. */
struct scales {
    float *values;
    int64_t count;
    struct gpu_tiles tiles;
    int64_t rows, cols; /* as the tiles see the weight */
    struct bounds bounds;
    int64_t beyond, below;
};

static float half_at(const uint8_t *bytes)
{
    uint16_t half;

    memcpy(&half, bytes, sizeof(half));
    return fabsf(dtype_f16_to_f32(half));
}

/* The largest of a block's own scales: Q4_K has two, and Q6_K stores its scale after its codes. */
static float block_scale(int type, const uint8_t *block)
{
    if (type == GGML_TYPE_Q4_K) {
        return fmaxf(half_at(block), half_at(block + 2));
    }
    return half_at(type == GGML_TYPE_Q6_K ? block + 208 : block);
}

static int scales_of_blocks(const struct qtensor *q, struct scales *out)
{
    const struct ggml_block *block = ggml_block_find(q->scheme.block_type);

    out->tiles.cols = block->elements;
    out->count = q->rows * (q->cols / block->elements);
    out->values = malloc((size_t)out->count * sizeof(*out->values));
    for (int64_t i = 0; out->values != NULL && i < out->count; i++) {
        out->values[i] = block_scale(block->type, q->codes + i * block->bytes);
    }
    return out->values != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for scales");
}

static int scales_of(const struct qtensor *q, struct scales *out)
{
    bool flat = q->scheme.kind == QTENSOR_NF4, per_row = q->scheme.kind == QTENSOR_CODEBOOKS;

    out->tiles = (struct gpu_tiles){.element = DTYPE_I8, .rows = 1};
    out->rows = flat ? 1 : q->rows;
    out->cols = flat ? q->rows * q->cols : q->cols;
    out->bounds = bounds_of(q->scheme.kind == QTENSOR_BLOCKS ? DTYPE_F16 : q->scheme.scale_dtype);
    if (q->scheme.kind == QTENSOR_BLOCKS) {
        return scales_of_blocks(q, out);
    }
    if (q->scales == NULL || (flat && q->scheme.nested)) { /* nested scales are codes of singles */
        return 0;
    }
    out->tiles.rows = flat || q->scheme.group_rows < 1 ? 1 : q->scheme.group_rows;
    out->tiles.cols = per_row ? q->cols : q->scheme.group_size;
    out->count = q->row_groups * (per_row ? 1 : q->groups);
    out->values = malloc((size_t)out->count * sizeof(*out->values));
    if (out->values == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for scales");
    }
    for (int64_t i = 0; i < out->count; i++) {
        out->values[i] = fabsf(q->scales[i]); /* a search may have negated it */
    }
    return 0;
}

/* Scales that are too small, but for those of weights that are all zero. */
static int count_below(struct run *run, const struct tensor *weight, struct scales *scales)
{
    const struct gpu *gpu = run->p->gpu;
    const int64_t down = (scales->rows + scales->tiles.rows - 1) / scales->tiles.rows;
    const int64_t across = (scales->cols + scales->tiles.cols - 1) / scales->tiles.cols;
    const struct tensor w = tensor_2d(weight->data, DTYPE_F32, scales->rows, scales->cols);
    AUTO_TENSOR(range, gpu);
    AUTO_FREE float *host = NULL;

    if (down * across != scales->count) {
        return err_raise(ERR_INTERNAL, "%lld scales of %lld x %lld tiles", (long long)scales->count, (long long)down,
                         (long long)across);
    }
    TRY(mem_buffer(&host, (size_t)scales->count));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){down, across}, &range));
    TRY(gpu->ops->tile_range(run->stream, &range, &w, &scales->tiles));
    TRY(gpu->ops->download(run->stream, host, range.data, tensor_bytes(&range)));
    for (int64_t i = 0; i < scales->count; i++) {
        scales->below += scales->values[i] <= scales->bounds.smallest && host[i] > 0;
    }
    return 0;
}

static int64_t count_beyond(const float *values, int64_t count, float largest)
{
    int64_t found = 0;

    for (int64_t i = 0; i < count; i++) {
        found += fabsf(values[i]) >= largest;
    }
    return found;
}

static int64_t table_count(const struct qtensor *q)
{
    int64_t entries = (int64_t)1 << q->scheme.bits;

    return q->scheme.kind == QTENSOR_TABLE ? q->rows * entries
           : q->scheme.kind == QTENSOR_CODEBOOKS
               ? q->scheme.codebooks * entries * q->scheme.group_rows * q->scheme.group_size
               : 0;
}

static int scales_warn(struct run *run, struct linear_job *job, const struct scales *scales)
{
    const char *type =
        dtype_rows[job->result.scheme.kind == QTENSOR_BLOCKS ? DTYPE_F16 : job->result.scheme.scale_dtype].name;
    char message[256];

    snprintf(job->fallback, sizeof(job->fallback), "scales of %lld: %lld beyond %s and clamped, %lld too small for it",
             (long long)scales->count, (long long)scales->beyond, type, (long long)scales->below);
    snprintf(message, sizeof(message),
             "format %s stores scales as %s, which cannot hold those of some modules; they were clamped and these "
             "modules lost more than others: \"fallback\" in the report's rows",
             run->p->format->name, type);
    return message_send_warning(run->sender, "scales_clamped", message);
}

bool stored_scales_suspect(const struct qtensor *q)
{
    struct bounds bounds = bounds_of(q->scheme.scale_dtype);
    bool suspect = q->scales == NULL || q->tables != NULL;

    for (int64_t i = 0; !suspect && i < q->row_groups * q->groups; i++) {
        float scale = fabsf(q->scales[i]);
        suspect = scale <= bounds.smallest || scale >= bounds.largest;
    }
    return suspect;
}

int check_stored_scales(struct run *run, const struct tensor *weight, struct linear_job *job)
{
    struct scales scales = {0};
    bool small = false;
    int rc = scales_of(&job->result, &scales);

    scales.beyond = rc == 0 ? count_beyond(scales.values, scales.count, scales.bounds.largest) : 0;
    if (rc == 0 && job->result.tables != NULL) {
        scales.beyond += count_beyond(job->result.tables, table_count(&job->result), scales.bounds.largest);
    }
    for (int64_t i = 0; rc == 0 && !small && i < scales.count; i++) {
        small = scales.values[i] <= scales.bounds.smallest;
    }
    rc = small ? count_below(run, weight, &scales) : rc;
    free(scales.values);
    if (rc == 0 && (scales.beyond > 0 || scales.below > 0)) {
        rc = scales_warn(run, job, &scales);
    }
    return rc;
}

float stored_input_scale(float max, enum dtype element, enum dtype dtype, struct linear_job *job)
{
    struct bounds bounds = bounds_of(dtype);
    float scale = input_range_scale(max, element, dtype);

    if (max > 0 && (scale >= bounds.largest || scale <= bounds.smallest)) {
        float exact = max / ((float)dtype_rows[element].max);
        snprintf(job->fallback, sizeof(job->fallback), "input scale %.3g does not fit %s", (double)exact,
                 dtype_rows[dtype].name);
    }
    return scale;
}
