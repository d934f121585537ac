#pragma once
/* What the files of the CPU backend share: its device and stream, scratch memory, and the operations.
 *
 * An operation reserves scratch and runs numbered tasks on the device's pool. Tasks cannot fail;
 * whatever can fail happens before they start. A task's result depends on its number and the shapes alone. */

#include "base/err.h"
#include "base/pool.h"
#include "gpu/backend.h"
#include "gpu/cpu/blas.h"
#include "gpu/cpu/kernels.h"
#include "gpu/cpu/products.h"
#include "gpu/shared/attention.h"
#include "gpu/shared/grid.h"
#include "gpu/shared/tiles.h"

#include <pthread.h>

/* Large blocks that were freed, to be had again: pages that the system zeroes again cost more than much of what is done
 * with them. Never more than what was in use at once, together with what is. */
#define MEMORY_UNUSED_MAX 32
struct memory {
    pthread_mutex_t lock;
    void *unused[MEMORY_UNUSED_MAX]; /* oldest first */
    int count;
    size_t used, idle, max; /* bytes of large blocks in use, kept, and in use at most */
    size_t live, peak;      /* bytes of all blocks in use, and at most */
};

struct gpu_device {
    struct pool *pool;
    const struct kernels *kernels;
    const struct products *products; /* of linear, gram and cross; NULL: in F32 */
    struct memory memory;
};

struct gpu_stream {
    struct gpu_stream_head head;
    struct gpu_device *device;
    char *scratch; /* one slice of slice_bytes for each worker, after shared_bytes for all */
    size_t shared_bytes, slice_bytes, capacity;
};

struct gpu_event {
    double seconds; /* of the monotonic clock, when it was recorded: what came before had ended */
};

/* Reserve `shared` bytes that all tasks see and `slice` bytes for each worker. Contents are undefined. */
int scratch_reserve(struct gpu_stream *stream, size_t shared, size_t slice);
void *scratch_shared(const struct gpu_stream *stream);
/* In a task: this worker's slice, 64-byte aligned. */
void *scratch_slice(const struct gpu_stream *stream);
/* Bytes of `count` elements, rounded up to a multiple of a cache line. */
size_t scratch_size(int64_t count, size_t element);

void stream_run(struct gpu_stream *stream, int64_t tasks, void (*fn)(void *ctx, int64_t task), void *ctx);

/* Elements [at, at + count) of x, which is F32, F16 or BF16, as F32. */
void convert_widen(const struct kernels *kernels, float *to, const struct tensor *x, int64_t at, int64_t count);

/* Host memory as gpu_ops.alloc gives it. Any thread. */
void memory_open(struct gpu_device *device);
void memory_close(struct gpu_device *device);
int memory_new(struct gpu_device *device, size_t bytes, bool zeroed, void **pointer);
void memory_free(struct gpu_device *device, void *pointer); /* NULL is fine */
void memory_trim(struct gpu_device *device);                /* what is kept goes back to the system */
int64_t memory_idle(struct gpu_device *device);             /* bytes kept */
int64_t memory_peak(struct gpu_device *device, bool reset); /* bytes in use at most, small blocks included */
int info_read(struct gpu_device *device, struct gpu_info *info);

/* The operations; their arguments have been checked (gpu/front.c). */
#define GPU_OP(group, name, does, ...) int cpu_##name(struct gpu_stream *stream GPU_PARAMETERS(__VA_ARGS__));
#include "gpu/ops.def"

/* Linear, and gram (upper: a and b are the same) and cross, by the device's instructions for BF16 products. */
int products_linear(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *w,
                    const struct tensor *bias);
int products_cross(struct gpu_stream *stream, const struct tensor *c, const struct tensor *a, const struct tensor *b,
                   bool upper);

/* How a Gram matrix of n columns is cut into square tiles, and the task-th pair i < j of `tiles`, row by row of the
 * strict upper triangle. */
int64_t gram_tile_size(int64_t n);
void gram_pair(int64_t task, int64_t tiles, int64_t *i, int64_t *j);

static inline struct grid_point grid_of(const struct gpu_grid *spec, float low, float high)
{
    return grid_point(spec->bits, spec->sym, spec->scale_dtype, low, high);
}

/* Scores q k^T of a query of `head` and the `count` keys that it sees become weights times what is returned. */
float attention_weights(const struct kernels *kernels, const struct gpu_attention *spec, int64_t head, float *scores,
                        int64_t count);

/* x / scale as INT8 or E4M3 keeps it, times scale. */
float scaling_round(float x, float scale, enum dtype element);
