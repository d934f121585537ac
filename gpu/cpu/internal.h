#pragma once
/* What the files of the CPU backend share: its device and stream, scratch memory, checks, and the operations.
 *
 * An operation checks its tensors, reserves scratch, and runs numbered tasks on the device's pool. Tasks cannot fail;
 * whatever can fail happens before they start. A task's result depends on its number and the shapes alone. */

#include "base/err.h"
#include "base/pool.h"
#include "gpu/check.h"
#include "gpu/cpu/blas.h"
#include "gpu/cpu/kernels.h"
#include "gpu/gpu.h"

#include <pthread.h>

/* Large blocks that were freed, to be had again: pages that the system zeroes anew cost more than much of what is done
 * with them. Never more than what was in use at once, together with what is. */
#define MEMORY_KEPT_MAX 32
struct memory {
    pthread_mutex_t lock;
    void *kept[MEMORY_KEPT_MAX]; /* oldest first */
    int count;
    size_t used, idle, most; /* bytes of large blocks in use, kept, and in use at most */
    size_t live, peak;       /* bytes of all blocks in use, and at most */
};

struct gpu_device {
    struct pool *pool;
    const struct kernels *kernels;
    struct memory memory;
};

struct gpu_stream {
    struct gpu_device *device;
    char *scratch; /* one slice of slice_bytes for each worker, behind shared_bytes for all */
    size_t shared_bytes, slice_bytes, capacity;
};

/* Make room: `shared` bytes that all tasks see, `slice` bytes for each worker. Contents are undefined. */
int scratch_reserve(struct gpu_stream *stream, size_t shared, size_t slice);
void *scratch_shared(const struct gpu_stream *stream);
/* In a task: this worker's slice, 64-byte aligned. */
void *scratch_slice(const struct gpu_stream *stream);
/* Bytes of `count` elements, rounded up to whole cache lines. */
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

/* The operations of struct gpu_ops, in its order. */
int cpu_convert(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x);
int cpu_linear(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *w,
               const struct tensor *bias);
int cpu_multiply(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *w);
int cpu_gram(struct gpu_stream *stream, const struct tensor *h, const struct tensor *x);
int cpu_symmetrize(struct gpu_stream *stream, const struct tensor *h, double scale);
int cpu_embed(struct gpu_stream *stream, const struct tensor *y, const struct tensor *table, const int32_t *ids);
int cpu_rmsnorm(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *weight,
                float eps);
int cpu_rope(struct gpu_stream *stream, const struct tensor *x, const struct tensor *cosine, const struct tensor *sine,
             int64_t length, int64_t head_dim);
int cpu_attention(struct gpu_stream *stream, const struct tensor *o, const struct tensor *q, const struct tensor *k,
                  const struct tensor *v, const struct gpu_attention *spec);
int cpu_swiglu(struct gpu_stream *stream, const struct tensor *y, const struct tensor *gate, const struct tensor *up);
int cpu_add(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x);
int cpu_column_stats(struct gpu_stream *stream, const struct tensor *absmax, const struct tensor *abssum,
                     const struct tensor *x);
int cpu_grid(struct gpu_stream *stream, const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
             const struct tensor *importance, const struct gpu_grid *spec);
int cpu_round(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w, const struct tensor *scale,
              const struct tensor *zero, const struct gpu_grid *spec);
int cpu_dequantize(struct gpu_stream *stream, const struct tensor *w, const struct tensor *codes,
                   const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec);
int cpu_factor(struct gpu_stream *stream, const struct tensor *u, const struct tensor *h,
               const struct gpu_factor *spec);
int cpu_sweep(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w, const struct tensor *u,
              const struct tensor *scale, const struct tensor *zero, const int32_t *order, int64_t block_size,
              const struct gpu_grid *spec, double *loss);
int cpu_residual(struct gpu_stream *stream, struct gpu_residual *out, const struct tensor *w, const struct tensor *wq,
                 const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec);
int cpu_output_error(struct gpu_stream *stream, double *error, double *signal, const struct tensor *w,
                     const struct tensor *wq, const struct tensor *h);
int cpu_nll(struct gpu_stream *stream, struct gpu_nll *out, const struct tensor *logits, const struct tensor *reference,
            const int32_t *targets);
int cpu_find_nonfinite(struct gpu_stream *stream, int64_t *index, const struct tensor *x);
int cpu_zero_dead(struct gpu_stream *stream, const struct tensor *w, const struct tensor *h, int64_t *dead);
int cpu_diagonal(struct gpu_stream *stream, float *host, const struct tensor *h);
int cpu_scale(struct gpu_stream *stream, const struct tensor *w, const struct tensor *rows, const struct tensor *cols);
int cpu_quantize_input(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                       const struct tensor *keep, const struct gpu_input *spec);
int cpu_encode_blocks(struct gpu_stream *stream, const struct tensor *blocks, const struct tensor *w,
                      const struct tensor *importance, const struct gpu_blocks *spec);
int cpu_quantize_cache(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                       const struct gpu_cache *spec);
int cpu_attention_error(struct gpu_stream *stream, struct gpu_attention_error *out, const struct tensor *q,
                        const struct tensor *k, const struct tensor *v, const struct tensor *kq,
                        const struct tensor *vq, const struct gpu_attention *spec, int64_t recent);
int cpu_clip(struct gpu_stream *stream, const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
             const struct tensor *h, const struct gpu_grid *spec);
int cpu_descend(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *scale,
                const struct tensor *zero, const struct tensor *target, const struct tensor *h,
                const struct gpu_grid *grid, const struct gpu_descend *spec, double *before, double *after);
int cpu_combine(struct gpu_stream *stream, const struct tensor *y, double alpha, const struct tensor *a, double beta,
                const struct tensor *b);
int cpu_cross(struct gpu_stream *stream, const struct tensor *c, const struct tensor *a, const struct tensor *b);
int cpu_solve(struct gpu_stream *stream, const struct tensor *y, const struct tensor *g, const struct tensor *u,
              const int32_t *order);
int cpu_hqq(struct gpu_stream *stream, const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
            const struct gpu_grid *spec);

/* One group's grid over the range [low, high], low <= 0 <= high: the scale as it is stored, the zero answering it. */
struct grid_point {
    float scale, zero;
};
struct grid_point grid_point(const struct gpu_grid *spec, float low, float high);

/* x / scale as INT8 or E4M3 keeps it, times scale. */
float scaling_round(float x, float scale, enum gpu_number number);
int cpu_cluster_rows(struct gpu_stream *stream, const struct tensor *table, const struct tensor *codes,
                     const struct tensor *w, const struct tensor *importance, const struct tensor *apart, int bits,
                     enum dtype stored);
int cpu_code_search(struct gpu_stream *stream, const struct tensor *entries, const struct tensor *d,
                    const struct tensor *scale, const struct tensor *table, const struct tensor *h,
                    const struct tensor *importance, const struct gpu_codebook *spec, double *gain);
int cpu_code_expand(struct gpu_stream *stream, const struct tensor *y, const struct tensor *entries,
                    const struct tensor *scale, const struct tensor *table, const struct gpu_codebook *spec,
                    float alpha, bool add);
int cpu_code_reduce(struct gpu_stream *stream, const struct tensor *out, const struct tensor *p,
                    const struct tensor *entries, const struct tensor *scale, const struct gpu_codebook *spec);
int cpu_row_dot(struct gpu_stream *stream, const struct tensor *out, const struct tensor *a, const struct tensor *b);
int cpu_tile_range(struct gpu_stream *stream, const struct tensor *most, const struct tensor *w,
                   const struct gpu_tiles *spec);
int cpu_tile_encode(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w,
                    const struct tensor *scale, const struct gpu_tiles *spec);
int cpu_tile_decode(struct gpu_stream *stream, const struct tensor *w, const struct tensor *codes,
                    const struct tensor *scale, const struct gpu_tiles *spec);
