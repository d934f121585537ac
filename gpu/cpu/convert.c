/* Conversions between F32, F16 and BF16, round to nearest even, and the search for values that are not finite.
 *
 * F16 to BF16 and back go through F32, which holds both exactly, so that each value is rounded once. */

#include "gpu/cpu/internal.h"

#include <stdatomic.h>
#include <string.h>

#define TILE 65536
#define STEP 512

struct convert {
    const struct kernels *kernels;
    const struct tensor *y, *x;
    int64_t count;
};

void convert_widen(const struct kernels *kernels, float *to, const struct tensor *x, int64_t at, int64_t count)
{
    switch (x->dtype) {
    case DTYPE_F16:
        kernels->f16_to_f32(to, (const uint16_t *)x->data + at, count);
        break;
    case DTYPE_BF16:
        kernels->bf16_to_f32(to, (const uint16_t *)x->data + at, count);
        break;
    default:
        memcpy(to, (const float *)x->data + at, (size_t)count * sizeof(float));
    }
}

static void write_narrow(const struct kernels *kernels, const struct tensor *y, const float *from, int64_t at,
                         int64_t count)
{
    switch (y->dtype) {
    case DTYPE_F16:
        kernels->f32_to_f16((uint16_t *)y->data + at, from, count);
        break;
    case DTYPE_BF16:
        kernels->f32_to_bf16((uint16_t *)y->data + at, from, count);
        break;
    default:
        memcpy((float *)y->data + at, from, (size_t)count * sizeof(float));
    }
}

static void convert_tile(void *ctx, int64_t task)
{
    const struct convert *job = ctx;
    int64_t begin = task * TILE, end = begin + tile_size(job->count, TILE, task);
    float wide[STEP];

    if (job->y->dtype == DTYPE_F32) {
        convert_widen(job->kernels, (float *)job->y->data + begin, job->x, begin, end - begin);
        return;
    }
    for (int64_t at = begin; at < end; at += STEP) {
        int64_t count = end - at < STEP ? end - at : STEP;
        convert_widen(job->kernels, wide, job->x, at, count);
        write_narrow(job->kernels, job->y, wide, at, count);
    }
}

int cpu_convert(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x)
{
    struct convert job = {stream->device->kernels, y, x, tensor_count(x)};

    stream_run(stream, tiles_of(job.count, TILE), convert_tile, &job);
    return 0;
}

struct finite {
    const struct tensor *x;
    int64_t count;
    _Atomic int64_t first;
};

/* An exponent of all ones, in the 16 or 32 bits of one element: whether any has it, without a branch for each. */
static bool any_special(const struct tensor *x, int64_t begin, int64_t end)
{
    unsigned found = 0;

    if (x->dtype == DTYPE_F32) {
        const char *data = x->data;
        for (int64_t i = begin; i < end; i++) {
            uint32_t bits;
            memcpy(&bits, data + i * 4, sizeof(bits));
            found |= (bits & 0x7f800000u) == 0x7f800000u;
        }
        return found != 0;
    }
    uint16_t mask = x->dtype == DTYPE_F16 ? 0x7c00u : 0x7f80u, any = 0;
    const uint16_t *data = x->data;
    for (int64_t i = begin; i < end; i++) {
        any |= (data[i] & mask) == mask;
    }
    return any != 0;
}

static int64_t first_special(const struct tensor *x, int64_t begin, int64_t end)
{
    if (!any_special(x, begin, end)) {
        return -1;
    }
    if (x->dtype == DTYPE_F32) {
        const char *data = x->data;
        for (int64_t i = begin; i < end; i++) {
            uint32_t bits;
            memcpy(&bits, data + i * 4, sizeof(bits));
            if ((bits & 0x7f800000u) == 0x7f800000u) {
                return i;
            }
        }
        return -1;
    }
    uint16_t mask = x->dtype == DTYPE_F16 ? 0x7c00u : 0x7f80u;
    const uint16_t *data = x->data;
    for (int64_t i = begin; i < end; i++) {
        if ((data[i] & mask) == mask) {
            return i;
        }
    }
    return -1;
}

static void finite_tile(void *ctx, int64_t task)
{
    struct finite *job = ctx;
    int64_t found = first_special(job->x, task * TILE, task * TILE + tile_size(job->count, TILE, task));
    int64_t seen = atomic_load(&job->first);

    while (found >= 0 && (seen < 0 || found < seen) && !atomic_compare_exchange_weak(&job->first, &seen, found)) {
    }
}

int cpu_find_nonfinite(struct gpu_stream *stream, int64_t *index, const struct tensor *x)
{
    struct finite job = {x, tensor_count(x), -1};

    stream_run(stream, tiles_of(job.count, TILE), finite_tile, &job);
    *index = atomic_load(&job.first);
    return 0;
}
