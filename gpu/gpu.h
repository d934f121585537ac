#pragma once
/* The compute face: devices, memory, streams, and about forty coarse operations.
 *
 * The CPU backend is linked in (gpu/cpu) and is the truth; others are modules opened at run time, checked by
 * GPU_ABI and ranked by probe score. Callers see only this header. No caller meets a NULL operation: a backend
 * that lacks one gets a stub that raises ERR_UNSUPPORTED (gpu_complete).
 *
 * Conventions: X is [tokens, in], W is [out, in], Y = X W^T; all matrices dense row-major. Activations, Hessians
 * and weights under solution are F32; stored weights may be F32, F16 or BF16. Pointers in tensors belong to the
 * device of the stream. Operations are queued on their stream in order and return 0 or a raised negative code;
 * those with a host result (marked "waits") return when it is there. A stream is used by one thread at a time.
 *
 * Determinism: same inputs and device give the same bits, whatever the thread count: work is cut into tiles by
 * shape alone, each sum has one fixed order. */

#include "gpu/tensor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GPU_ABI 16u

struct gpu_device; /* a backend's open device; thread-safe */
struct gpu_stream; /* a backend's queue with its scratch memory */

struct gpu_info {
    char id[32];          /* "cpu", "cuda:0" */
    char name[128];       /* "AMD EPYC", "NVIDIA H200" */
    char detail[128];     /* kernels in use: "openblas SkylakeX, avx512" */
    char libraries[96];   /* whose versions results may depend on: "cublasLt 13.0.2" */
    int64_t memory_total; /* bytes */
    int64_t memory_free;
    bool host_memory; /* the device's memory is the host's */
    int threads;
    int64_t batch_tokens; /* tokens of a micro-batch that keep the device busy; a constant of the backend, since results
                             depend on it */
};

/* Attention over sequences laid end to end: q [B*S, heads*head_dim], k and v [B*S, kv_heads*head_dim]. */
struct gpu_attention {
    int64_t sequences, length; /* B, S */
    int64_t heads, kv_heads, head_dim;
    int64_t window; /* > 0: position t sees (t-window, t]; 0: all up to t */
    float scale;    /* 1/sqrt(head_dim) */
};

/* An integer grid: w = scale * (code - zero), code in [0, 2^bits - 1], one scale and zero per group of
 * group_size inputs of a row. Symmetric: zero = 2^(bits-1). */
struct gpu_grid {
    int bits;           /* 2..8 */
    int64_t group_size; /* divides in; == in for one group a row */
    bool sym;
    bool signs;             /* symmetric, and mse: scales of either sign are tried */
    bool mse;               /* search the shrink factor that minimises sum w_j |err|^norm */
    double norm;            /* 2.4 */
    double max_shrink;      /* 0.8 */
    int steps;              /* 100: p = 1 - i/steps, i = 0 .. max_shrink*steps - 1 */
    enum dtype scale_dtype; /* scales are rounded to this before any code is computed */
};

/* How rounded weights are refined. */
struct gpu_descend {
    int passes;  /* over all columns, 1 or more */
    bool scales; /* move scales, and zero points of asymmetric grids, as well as codes */
};

/* What a solution lost, summed in double in fixed order. */
struct gpu_residual {
    double error_sq;   /* sum (w - wq)^2 */
    double weight_sq;  /* sum w^2 */
    double dot;        /* sum w*wq */
    double quant_sq;   /* sum wq^2 */
    double clipped_sq; /* the part of error_sq from weights outside [grid low, grid high] */
    double max_abs;    /* max |w - wq| */
    double weight_max; /* max |w| */
    int64_t clipped;   /* weights outside the grid's range */
    int64_t nonfinite;
};

struct gpu_factor {
    double damp_percent;  /* fraction of mean(diag H) added to the diagonal */
    const int32_t *order; /* host, n entries: column visited i-th; NULL = 0..n-1 */
};

/* How a linear's input is quantized where the runtime quantizes it: to INT8 (-127..127) or E4M3, symmetric. */
enum gpu_number { GPU_NUMBER_NONE, GPU_NUMBER_INT8, GPU_NUMBER_E4M3 };
struct gpu_input {
    enum gpu_number number;
    bool dynamic; /* scale = absmax / largest of each token's run; else `scale` for all */
    int64_t run;  /* dynamic: columns that share a scale, the last ones of a row maybe fewer; 0 = the whole row */
    bool half;    /* dynamic: codes are multiplied by the scale as F16 holds it */
    float scale;  /* static */
};

/* How weights become GGUF blocks. */
struct gpu_blocks {
    int type;    /* enum ggml_type of gpu/ggml_blocks.h: one of its quantized types */
    bool search; /* scales that minimise sum importance_j err^2, which never lose to those that reach the extremes */
};

/* How a cache keeps keys or values, one run of columns like the next. */
struct gpu_cache {
    enum gpu_number number;     /* INT8 or E4M3: symmetric, by `scale`; NONE: asymmetric codes of `bits` */
    const struct tensor *scale; /* symmetric: F32 [columns / run], positive */
    int64_t run;                /* columns that share a scale */
    int bits;                   /* asymmetric: 1..8, on the range of what shares a grid, kept in half precision */
    int64_t tokens, length;     /* asymmetric: consecutive tokens of a sequence of `length` that share a grid */
};

/* What quantized keys and values do to attention: sums of squares over all queries and what each of them sees. */
struct gpu_attention_error {
    double score_error, score_signal;   /* of q k^T */
    double weight_error, weight_signal; /* of softmax(q k^T * scale) */
    double output_error, output_signal; /* of softmax(q k^T * scale) v */
};

/* Weights as scale * an element of a fixed set, a scale for each tile of rows x cols weights; tiles at the right and
 * lower edges may be smaller. INT8: -127..127, as codes from 1. */
enum gpu_element { GPU_ELEMENT_E4M3, GPU_ELEMENT_E5M2, GPU_ELEMENT_NF4, GPU_ELEMENT_INT8 };
struct gpu_tiles {
    enum gpu_element element;
    int64_t rows, cols;
};

/* Weights as scale[n] * sum over m of table[m * 2^bits + entries[n, i, m]], i = k / group_size. Entries are U16
 * [N, K/group_size * codebooks], tables F32 [codebooks * 2^bits, group_size], scales F32 [N] or NULL for ones. */
struct gpu_codebook {
    int codebooks;      /* M: 1..GPU_CODE_BOOKS_MAX */
    int bits;           /* 1..16 */
    int64_t group_size; /* 1..GPU_CODE_GROUP_MAX, divides K */
    int beam;           /* of code_search: ways of coding a group that are followed, 1..GPU_CODE_BEAM_MAX */
};
#define GPU_CODE_BOOKS_MAX 8
#define GPU_CODE_GROUP_MAX 32
#define GPU_CODE_BEAM_MAX 8

struct gpu_nll {
    double nll_sum; /* -sum log p(target), natural log */
    double kl_sum;  /* sum over positions of KL(reference || logits) */
    int64_t count;
};

struct gpu_ops {
    uint32_t abi;
    const char *name;     /* "cpu", "cuda" */
    bool lost_until_exit; /* a device that was lost can be used again only by a new process */
    /* > 0: usable here, higher wins; 0: not here, why in `reason` (one line). */
    int (*probe)(char *reason, size_t size);
    int (*device_count)(void);
    /* threads: worker threads a CPU device may use (0 = all cores); others ignore it. */
    int (*device_open)(int index, int threads, struct gpu_device **device);
    void (*device_close)(struct gpu_device *device);
    int (*device_info)(struct gpu_device *device, struct gpu_info *info);
    int (*stream_new)(struct gpu_device *device, struct gpu_stream **stream);
    void (*stream_free)(struct gpu_stream *stream);
    int (*stream_sync)(struct gpu_stream *stream);
    /* What is queued on `stream` from now on comes after all that is queued on `first` by now. Both of one device, and
     * neither used by another thread meanwhile. The host does not wait. */
    int (*stream_follow)(struct gpu_stream *stream, struct gpu_stream *first);

    /* Bytes of the device's memory that this process had in use at most since the last reset, as far as the backend
     * counts them: tensors, scratch, what the device keeps for itself does not count. reset: begin from what is in use
     * now. */
    int (*memory_peak)(struct gpu_device *device, bool reset, int64_t *bytes);

    /* memory: 64-byte aligned; of any content unless zeroed */
    int (*alloc)(struct gpu_device *device, size_t bytes, bool zeroed, void **pointer);
    void (*free)(struct gpu_device *device, void *pointer);
    int (*upload)(struct gpu_stream *stream, void *to, const void *host, size_t bytes);     /* host is free on return */
    int (*download)(struct gpu_stream *stream, void *host, const void *from, size_t bytes); /* waits */
    int (*fill_zero)(struct gpu_stream *stream, void *to, size_t bytes);
    /* Memory of the host that the device copies from by itself: 64-byte aligned, of any content. */
    int (*host_alloc)(struct gpu_device *device, size_t bytes, void **pointer);
    void (*host_free)(struct gpu_device *device, void *pointer);
    /* From such memory, which must stay as it is until the stream has been waited for. */
    int (*upload_pinned)(struct gpu_stream *stream, void *to, const void *pinned, size_t bytes);

    /* 1. y = x in y's type (F32, F16, BF16 either way). Same element count. */
    int (*convert)(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x);
    /* 2. y[T,N] = x[T,K] w[N,K]^T + bias[N]; w F32, F16 or BF16; bias F32 or NULL; fp32 sums. */
    int (*linear)(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *w,
                  const struct tensor *bias);
    /* 2b. The same without bias for solves: all F32, products in F32 whatever `linear` rounds its operands to. */
    int (*multiply)(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x, const struct tensor *w);
    /* 3. h[n,n] += x[T,n]^T x: upper triangle only; symmetrize when done. */
    int (*gram)(struct gpu_stream *stream, const struct tensor *h, const struct tensor *x);
    /* 4. h = scale * h, lower triangle copied from the upper. */
    int (*symmetrize)(struct gpu_stream *stream, const struct tensor *h, double scale);
    /* 5. y[T,h] = table[ids[t]]; ids host I32, each in [0, rows). */
    int (*embed)(struct gpu_stream *stream, const struct tensor *y, const struct tensor *table, const int32_t *ids);
    /* 6. y = x / sqrt(mean(x^2) + eps) * weight over the last dimension; weight F32 [d]. x may be y.
     *    x is [T, d], or [T, heads*d] when weight is shorter: each run of d is normed by itself (q/k norm). */
    int (*rmsnorm)(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                   const struct tensor *weight, float eps);
    /* 7. rotate x [B*S, heads*d] in place, half-split convention; cos, sin F32 [>=S, d/2]; position t mod S. */
    int (*rope)(struct gpu_stream *stream, const struct tensor *x, const struct tensor *cosine,
                const struct tensor *sine, int64_t length, int64_t head_dim);
    /* 8. o = softmax(q k^T * scale, causal) v, per head; kv head = head / (heads/kv_heads). */
    int (*attention)(struct gpu_stream *stream, const struct tensor *o, const struct tensor *q, const struct tensor *k,
                     const struct tensor *v, const struct gpu_attention *spec);
    /* 9. y = silu(gate) * up; y may be gate. */
    int (*swiglu)(struct gpu_stream *stream, const struct tensor *y, const struct tensor *gate,
                  const struct tensor *up);
    /* 10. y += x. */
    int (*add)(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x);
    /* 11. Per column of x[T,n]: absmax[n] = max(absmax, |x|), abssum[n] += |x| (F32; either may be NULL). */
    int (*column_stats)(struct gpu_stream *stream, const struct tensor *absmax, const struct tensor *abssum,
                        const struct tensor *x);
    /* 12. Choose scale and zero F32 [N, K/group_size] for w F32 [N,K]; importance F32 [K] weights the search, or NULL.
     *     All-zero group: scale 1 (codes = zero, exact). methods.md §1 steps 2-4. */
    int (*grid)(struct gpu_stream *stream, const struct tensor *scale, const struct tensor *zero,
                const struct tensor *w, const struct tensor *importance, const struct gpu_grid *spec);
    /* 13. codes U8 [N,K] = clamp(rne(w/scale) + zero, 0, 2^bits-1). */
    int (*round)(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w,
                 const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec);
    /* 14. w F32 [N,K] = scale * (codes - zero). */
    int (*dequantize)(struct gpu_stream *stream, const struct tensor *w, const struct tensor *codes,
                      const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec);
    /* 15. u[n,n] upper with (P(H + damp*mean(diag)*I)P^T)^-1 = u^T u, P = spec->order; dead columns (H_jj = 0) get
     *     diagonal 1 before damping. h is kept. ERR_NOT_POSITIVE_DEFINITE when the factorisation fails (waits). */
    int (*factor)(struct gpu_stream *stream, const struct tensor *u, const struct tensor *h,
                  const struct gpu_factor *spec);
    /* 16. GPTQ sweep over columns in `order` (host I32 or NULL): codes U8 [N,K] in original column order from w F32
     * [N,K] (overwritten), the group's scale and zero looked up by original column; *loss = sum of e^2 (waits). */
    int (*sweep)(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w, const struct tensor *u,
                 const struct tensor *scale, const struct tensor *zero, const int32_t *order, int64_t block_size,
                 const struct gpu_grid *spec, double *loss);
    /* 17. What wq lost against w; the clip split needs scale, zero and spec, else pass NULL for all three (waits). */
    int (*residual)(struct gpu_stream *stream, struct gpu_residual *out, const struct tensor *w,
                    const struct tensor *wq, const struct tensor *scale, const struct tensor *zero,
                    const struct gpu_grid *spec);
    /* 18. error = tr((w-wq) H (w-wq)^T) and, unless NULL, signal = tr(w H w^T); H symmetric, fp32 products, double sums
     *     (waits). */
    int (*output_error)(struct gpu_stream *stream, double *error, double *signal, const struct tensor *w,
                        const struct tensor *wq, const struct tensor *h);
    /* 19. Log-softmax loss of logits[T,V] at host targets (-1 = skip); with reference[T,V] also KL (NULL: 0). Adds to
     * *out (waits). */
    int (*nll)(struct gpu_stream *stream, struct gpu_nll *out, const struct tensor *logits,
               const struct tensor *reference, const int32_t *targets);
    /* 20. First non-finite element of x: index, or -1 (waits). */
    int (*find_nonfinite)(struct gpu_stream *stream, int64_t *index, const struct tensor *x);
    /* 21. Zero the columns of w F32 [N,K] whose H_jj is 0; *dead = how many (waits). methods.md §4 step 2. */
    int (*zero_dead)(struct gpu_stream *stream, const struct tensor *w, const struct tensor *h, int64_t *dead);
    /* 22. diag[n] F32 of h[n,n] to the host (waits). */
    int (*diagonal)(struct gpu_stream *stream, float *host, const struct tensor *h);
    /* 23. w[n,k] *= rows[n] * cols[k]; w F32, rows F32 [N] and cols F32 [K], either NULL. */
    int (*scale)(struct gpu_stream *stream, const struct tensor *w, const struct tensor *rows,
                 const struct tensor *cols);
    /* 24. y = x as it is after quantization and back; y may be x. keep: F32 [K], columns where it is not 0 pass as they
     *     are and count for no scale; or NULL. A run of zeros stays zeros. */
    int (*quantize_input)(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                          const struct tensor *keep, const struct gpu_input *spec);
    /* 25. blocks U8 [N, bytes of a row] = w F32 [N,K] in blocks along K; importance F32 [K], none negative, weighs the
     *     errors of a search, or NULL. */
    int (*encode_blocks)(struct gpu_stream *stream, const struct tensor *blocks, const struct tensor *w,
                         const struct tensor *importance, const struct gpu_blocks *spec);
    /* 26. y = x as a cache of that kind gives it back; y may be x. */
    int (*quantize_cache)(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                          const struct gpu_cache *spec);
    /* 27. Add to *out what attention on kq and vq loses against k and v. recent: query t finds keys before
     *     floor(t/recent)*recent and values before t-recent quantized and newer ones as they are; 0: all quantized
     *     (waits). */
    int (*attention_error)(struct gpu_stream *stream, struct gpu_attention_error *out, const struct tensor *q,
                           const struct tensor *k, const struct tensor *v, const struct tensor *kq,
                           const struct tensor *vq, const struct gpu_attention *spec, int64_t recent);
    /* 28. Scale and zero as in `grid`, the range cut at p times the group's absmax where d H_gg d^T, d = w - wq, is
     *     least: H_gg is the group's diagonal block of h F32 [K,K]. steps and max_shrink of spec count; p = 1 is the
     * first candidate. */
    int (*clip)(struct gpu_stream *stream, const struct tensor *scale, const struct tensor *zero,
                const struct tensor *w, const struct tensor *h, const struct gpu_grid *spec);
    /* 29. Refine an asymmetric grid's scale and zero in place (half-quadratic, mean |w - wq| never grows). */
    int (*hqq)(struct gpu_stream *stream, const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
               const struct gpu_grid *spec);
    /* 30. Each row of w F32 [N,K] to 2^bits values that lose least in sum importance_k err^2 (exactly: methods.md §6):
     *     table F32 [N, 2^bits] ascending and rounded to `stored`, codes U8 [N,K] the nearest of them, the lower of
     *     equals. importance F32 [K], or NULL; apart U8 [N,K], or NULL: weights where it is not 0 count for nothing. */
    int (*cluster_rows)(struct gpu_stream *stream, const struct tensor *table, const struct tensor *codes,
                        const struct tensor *w, const struct tensor *importance, const struct tensor *apart, int bits,
                        enum dtype stored);
    /* 31. Better entries for d F32 [N,K] = w - what they stand for, which follows them, one sweep over all groups:
     *     tr(d h d^T) falls by *gain >= 0. With h NULL it is sum importance_k d^2 (NULL: ones) (waits). */
    int (*code_search)(struct gpu_stream *stream, const struct tensor *entries, const struct tensor *d,
                       const struct tensor *scale, const struct tensor *table, const struct tensor *h,
                       const struct tensor *importance, const struct gpu_codebook *spec, double *gain);
    /* 32. y F32 [N,K] = alpha * what the entries stand for, or y += that. */
    int (*code_expand)(struct gpu_stream *stream, const struct tensor *y, const struct tensor *entries,
                       const struct tensor *scale, const struct tensor *table, const struct gpu_codebook *spec,
                       float alpha, bool add);
    /* 33. The adjoint: out, shaped like the table, = for each vector the sum of scale[n] * p over its uses; double
     *     sums. */
    int (*code_reduce)(struct gpu_stream *stream, const struct tensor *out, const struct tensor *p,
                       const struct tensor *entries, const struct tensor *scale, const struct gpu_codebook *spec);
    /* 34. out F32 [N] = sum over k of a[n,k] * b[n,k]; double sums. */
    int (*row_dot)(struct gpu_stream *stream, const struct tensor *out, const struct tensor *a, const struct tensor *b);
    /* 35. most F32 [ceil(N/rows), ceil(K/cols)] = the largest magnitude of each tile of w F32 [N,K]. */
    int (*tile_range)(struct gpu_stream *stream, const struct tensor *most, const struct tensor *w,
                      const struct gpu_tiles *spec);
    /* 36. codes U8 [N,K] = the element nearest to w / scale; scale shaped like `most`. NF4: to w * (1/scale), ties to
     * the lower level, and the level 0 where scale is 0. */
    int (*tile_encode)(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w,
                       const struct tensor *scale, const struct gpu_tiles *spec);
    /* 37. w = scale * the code's element. */
    int (*tile_decode)(struct gpu_stream *stream, const struct tensor *w, const struct tensor *codes,
                       const struct tensor *scale, const struct gpu_tiles *spec);
    /* 38. Lower tr(D H D^T), D = target - wq [N,K], by moving one code at a time, and scales and zero points between:
     *     codes U8 [N,K], scale and zero F32 [N,K/g] in place, scales rounded to the grid's scale_dtype. h F32 [K,K]
     *     symmetric, both triangles. *before, *after: the error, as far as it was followed (waits). */
    int (*descend)(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *scale,
                   const struct tensor *zero, const struct tensor *target, const struct tensor *h,
                   const struct gpu_grid *grid, const struct gpu_descend *spec, double *before, double *after);
    /* 39. y = alpha * a + beta * b, F32 of one shape; y may be a or b. b NULL: y = alpha * a. */
    int (*combine)(struct gpu_stream *stream, const struct tensor *y, double alpha, const struct tensor *a, double beta,
                   const struct tensor *b);
    /* 40. c[M,K] += a[T,M]^T b[T,K], F32; sums as in `gram`. */
    int (*cross)(struct gpu_stream *stream, const struct tensor *c, const struct tensor *a, const struct tensor *b);
    /* 41. y[N,K] = g[N,K] (H + damp)^-1, the inverse as the u and the order of `factor` have it; products in F32. y may
     *     be g. */
    int (*solve)(struct gpu_stream *stream, const struct tensor *y, const struct tensor *g, const struct tensor *u,
                 const int32_t *order);
};

/* A device in use: its table and handle. Plain; copied freely. */
struct gpu {
    const struct gpu_ops *ops;
    struct gpu_device *device;
    struct gpu_info info;
};

/* What a module needs of the daemon: it links nothing of base, so errors go through here and land in the caller's
 * record (raise and pass return code). */
struct gpu_host {
    uint32_t abi;
    int (*raise)(const char *file, int line, int code, const char *message);
    int (*pass)(const char *file, int line, int code, const char *message);
    const char *cache_folder; /* where what is compiled for a device may be kept from one start to the next; or NULL */
};
typedef const struct gpu_ops *gpu_module_entry(const struct gpu_host *host);

/* Before gpu_load_backends: a folder that backends may create and keep compiled code in. Copied; longer than 1023
 * bytes: none. */
void gpu_cache_folder(const char *path);
/* Registry. Load every backend once at start; logs one line each, a warning where the host has a device for a backend
 * that cannot be used. module_folders: searched in order, ':' between them, the first that has a module wins; NULL:
 * none are opened. A module is FOLDER/quantd_gpu_<name>.so and exports quantd_gpu_ops. */
int gpu_load_backends(const char *module_folders);
/* want: "cpu", "cuda:N" or "auto" (highest score). ERR_CONFIG when it cannot be had. */
int gpu_open(const char *want, int threads, struct gpu *out);
/* Is there a device of that name? Opens none. 0 or ERR_CONFIG, as gpu_open. */
int gpu_find(const char *want);
void gpu_close(struct gpu *gpu);
/* The same words for what a device is, without opening it when some gpu_open or gpu_describe has: memory_free and what
 * else changes is as it was then. Any thread. */
int gpu_describe(const char *want, struct gpu_info *out);
/* Why each backend that is not usable is not: "cuda: no module quantd_gpu_cuda.so in: /usr/lib/quantd\n"... Static
 * text. */
const char *gpu_backend_notes(void);
/* Fill every NULL operation of a table with a stub that raises ERR_UNSUPPORTED. */
void gpu_complete(struct gpu_ops *ops);

/* The table linked in. */
const struct gpu_ops *gpu_cpu_ops(void);

/* Allocate a tensor of zeros of the given shape on gpu; release with gpu_tensor_free. Sets *out on success only. */
int gpu_tensor_new(const struct gpu *gpu, enum dtype dtype, int rank, const int64_t *shape, struct tensor *out);
/* The same of any content, for what is overwritten whole. */
int gpu_tensor_raw(const struct gpu *gpu, enum dtype dtype, int rank, const int64_t *shape, struct tensor *out);
void gpu_tensor_free(const struct gpu *gpu, struct tensor *tensor); /* NULL data is fine; zeroes the view */
