#pragma once
/* Public header of the compute layer: devices, memory, streams, and about seventy coarse operations (gpu/ops.def).
 *
 * The CPU backend is linked in (gpu/cpu) and is the reference; others are modules opened at run time, checked by
 * GPU_ABI and the signature of their operations, and ranked by probe score. Callers see only this header, and call
 * through gpu/front.c: arguments are checked there, once for all backends, and an operation that a
 * backend lacks raises ERR_UNSUPPORTED.
 *
 * Conventions: X is [tokens, in], W is [out, in], Y = X W^T; all matrices dense row-major. Activations, Hessians
 * and weights under solution are F32; stored weights may be F32, F16 or BF16. Pointers in tensors belong to the
 * device of the stream. Operations are queued on their stream in order and return 0 or a raised negative code;
 * those with a host result (marked "waits") return when it is there. A stream is used by one thread at a time.
 *
 * Determinism: same inputs and device give the same bits, whatever the thread count: work is cut into tiles by
 * shape alone, each sum has one fixed order. */

#include "gpu/ops.h"
#include "gpu/shared/activation.h"
#include "gpu/shared/distribution.h"
#include "gpu/tensor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Raised when a struct below changes; the rows of ops.def are compared by themselves. */
#define GPU_ABI 23u

struct gpu_device; /* a backend's open device; thread-safe */
struct gpu_stream; /* a backend's queue with its scratch memory */
struct gpu_event;  /* a point in the work of a stream, and when it was reached */

struct gpu_info {
    char id[32];          /* "cpu", "cuda:0" */
    char name[128];       /* "AMD EPYC", "NVIDIA H200" */
    char detail[128];     /* kernels in use: "openblas SkylakeX, avx512, float32 products" */
    char products[16];    /* operands of linear, gram and cross: "float32", "bfloat16"; "": `detail` says it */
    char libraries[96];   /* whose versions results may depend on: "cublasLt 13.0.2" */
    int64_t memory_total; /* bytes */
    int64_t memory_free;
    bool host_memory; /* the device's memory is the host's */
    int threads;
    int64_t batch_tokens; /* tokens of a micro-batch that keep the device busy; a constant of the backend, since results
                             depend on it */
};

/* A norm over each `size` columns of a row. */
struct gpu_norm {
    int64_t size;
    bool layer;       /* the mean is subtracted first (Ba et al. 2016, arXiv 1607.06450), else RMS */
    bool unit_offset; /* the factor is 1 + weight */
    float eps;
};

/* The first `rotated` columns of each head, by tables for `rotated` columns; position t mod length. */
struct gpu_rope {
    int64_t length, head_dim, rotated;
    bool interleaved; /* column 2i against 2i + 1; else i against i + rotated / 2 */
    bool inverse;     /* by the negative angles, which takes a rotation back, and gradients through it */
};

/* Columns of each of several heads: of y those from h * to_stride + to on, of x those from h * from_stride + from on.
 */
struct gpu_columns {
    int64_t heads, count; /* count: columns of a head */
    int64_t to, to_stride;
    int64_t from, from_stride; /* stride 0: x has one head, which all get */
};

/* Attention over sequences laid end to end: q [B*S, heads*head_dim], k [B*S, kv_heads*head_dim], v [B*S,
 * kv_heads*value_dim]. */
struct gpu_attention {
    int64_t sequences, length; /* B, S */
    int64_t heads, kv_heads, head_dim;
    int64_t window;    /* > 0: position t sees (t-window, t]; 0: all up to t */
    float scale;       /* of the scores: 1/sqrt(head_dim) */
    int64_t value_dim; /* of a head's values and outputs; 0: head_dim */
    int64_t chunk;     /* > 0: position t sees none before t - t mod chunk */
    float cap;         /* > 0: scaled scores s become cap * tanh(s / cap) (Gemma Team 2024, arXiv 2408.00118) */
    const struct tensor *sinks; /* F32 [heads]: a logit more in each softmax, whose weight goes nowhere; or NULL (Xiao
                                   et al. 2023, arXiv 2309.17453) */
};
static inline int64_t gpu_value_dim(const struct gpu_attention *spec)
{
    return spec->value_dim > 0 ? spec->value_dim : spec->head_dim;
}

enum gpu_scores {
    GPU_SCORES_ALL,     /* softmax over all experts */
    GPU_SCORES_CHOSEN,  /* softmax over the chosen ones */
    GPU_SCORES_SIGMOID, /* each by itself */
};

/* Which experts a token goes to, and with what weights: factor * score of its logits. With groups, equal runs of
 * experts, the choice is among the experts of the best of them (DeepSeek-AI 2024, arXiv 2405.04434, section 2.1.2). */
struct gpu_route {
    int64_t top_k; /* 1..GPU_ROUTE_MAX */
    enum gpu_scores scores;
    bool normalize;      /* the chosen scores are divided by their sum + epsilon before `factor` */
    int64_t groups;      /* divides the experts; 0 or 1: none */
    int64_t group_top_k; /* groups among whose experts the choice is */
    bool group_pairs;    /* a group is as good as the sum of its two best experts, else as its best one */
    float factor, epsilon;
};
#define GPU_ROUTE_MAX 64
#define GPU_ROUTE_EXPERTS_MAX 4096 /* where a bias or groups count */

/* Linear attention over sequences laid end to end (Yang et al. 2024, arXiv 2412.06464): x [B*S, 2 * key_heads * key_dim
 * + value_heads * value_dim], y [B*S, value_heads * value_dim]. Value head h has the query and the key of key head h /
 * (value_heads / key_heads), and a state [key_dim, value_dim] in F32. */
struct gpu_delta {
    int64_t length; /* S */
    int64_t key_heads, value_heads;
    int64_t key_dim, value_dim; /* of a head; key_dim at most GPU_STATE_MAX */
};

/* A selective state space (Dao and Gu 2024, arXiv 2405.21060): x [B*S, heads * head_dim + 2 * groups * state], y [B*S,
 * heads * head_dim]. Head h has the B and the C of group h / (heads / groups), and a state [state, head_dim] in F32. */
struct gpu_scan {
    int64_t length; /* S */
    int64_t heads, groups;
    int64_t head_dim, state; /* state at most GPU_STATE_MAX */
    float dt_min, dt_max;    /* dt_max may be infinite */
};
#define GPU_STATE_MAX 256

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

/* A table of what codes stand for, in any order, such as qscheme_levels gives: w = scale * values[code], one scale for
 * each group of group_size inputs of a row. A level that is a NaN belongs to no code. */
struct gpu_levels {
    const float *values; /* on the host */
    int count;           /* 1..256 */
    int64_t group_size;  /* divides in */
};

/* How rounded weights are refined. */
struct gpu_descend {
    int passes;  /* over all columns, 1 or more */
    bool scales; /* move scales, and zero points of asymmetric grids, as well as codes */
};

/* One step of AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101): p -= lr * decay * p, then with g = factor *
 * gradient m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, p -= lr * m' / (sqrt(v') + eps), m' and v' being
 * m and v divided by 1 - beta^step. */
struct gpu_adamw {
    double lr, beta1, beta2, eps, decay;
    double factor; /* of the gradient: 1, or less where its norm is cut */
    int64_t step;  /* 1 for the first */
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

/* What a part of the rows lost, added to what others did. */
static inline void gpu_residual_add(struct gpu_residual *sum, const struct gpu_residual *more)
{
    sum->error_sq += more->error_sq;
    sum->weight_sq += more->weight_sq;
    sum->dot += more->dot;
    sum->quant_sq += more->quant_sq;
    sum->clipped_sq += more->clipped_sq;
    sum->max_abs = more->max_abs > sum->max_abs ? more->max_abs : sum->max_abs;
    sum->weight_max = more->weight_max > sum->weight_max ? more->weight_max : sum->weight_max;
    sum->clipped += more->clipped;
    sum->nonfinite += more->nonfinite;
}

/* How weights lie in their groups; sums in double in fixed order. */
struct gpu_distribution {
    double square, fourth; /* sum w^2, w^4 */
    double range_sq;       /* sum over the weights of max^2, the largest magnitude in a weight's group */
    double part_range_sq;  /* the same, of the largest magnitude in its part of DISTRIBUTION_PART weights */
    double max_to_median;  /* the largest ratio of max to the lower median of magnitudes, cut to BF16, where that is not
                              0 */
    int64_t far;           /* weights beyond DISTRIBUTION_FAR such medians */
};

struct gpu_factor {
    double damp_percent;  /* fraction of mean(diag H) added to the diagonal */
    const int32_t *order; /* host, n entries: column visited i-th; NULL = 0..n-1 */
};

/* How a linear's input is quantized where the runtime quantizes it: to I8 (-127..127) or F8_E4M3, symmetric. */
struct gpu_input {
    enum dtype element; /* F32: it stays as it is */
    bool dynamic;       /* scale = absmax / largest of each group of a token; else `scale` for all */
    int64_t group_size; /* dynamic: columns that share a scale, the last ones of a row maybe fewer; 0 = all of a row */
    bool half;          /* dynamic: codes are multiplied by the scale as F16 holds it */
    float scale;        /* static */
};

/* How weights become GGUF blocks. */
struct gpu_blocks {
    int type;    /* enum ggml_type of gpu/ggml_blocks.h: one of its quantized types */
    bool search; /* scales that minimise sum importance_j err^2, which never lose to those that reach the extremes */
};

/* How a cache keeps keys or values, one group of columns like the next. */
struct gpu_cache {
    enum dtype element;         /* I8 or F8_E4M3: symmetric, by `scale`; U8: asymmetric codes of `bits` */
    const struct tensor *scale; /* symmetric: F32 [columns / group_size], positive */
    int64_t group_size;         /* columns that share a scale */
    int bits;                   /* asymmetric: 1..8, on the range of what shares a grid, kept in half precision */
    int64_t tokens, length;     /* asymmetric: consecutive tokens of a sequence of `length` that share a grid */
};

/* What quantized keys and values do to attention: sums of squares over all queries and the keys that each of them sees.
 */
struct gpu_attention_error {
    double score_error, score_signal;   /* of q k^T */
    double weight_error, weight_signal; /* of its softmax, as struct gpu_attention says */
    double output_error, output_signal; /* of softmax times v */
};

/* Weights as scale * an element of a fixed set (F8_E4M3, F8_E5M2, NF4, F4_E2M1 or I8), a scale for each tile of rows x
 * cols weights; tiles at the right and lower edges may be smaller. I8: -127..127, as codes from 1. */
struct gpu_tiles {
    enum dtype element;
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
    int64_t agree; /* positions whose largest logit is that of the reference; of equals the first */
};

/* The rows of gpu/ops.def, which says what each does. `signature` is made of them: a module that was built from other
 * rows is refused. */
struct gpu_ops {
    uint32_t abi;                 /* GPU_ABI; the offsets of this and of the name never change */
    const char *name;             /* "cpu", "cuda" */
    const char *const *signature; /* gpu_signature of gpu/backend.h */
    bool lost_until_exit;         /* a device that was lost can be used again only by a new process */
#define GPU_CALL(name, result, parameters, does) result(*name) parameters;
#define GPU_OP(group, name, does, ...) int (*name)(struct gpu_stream * stream GPU_PARAMETERS(__VA_ARGS__));
#include "gpu/ops.def"
};

/* A device in use: its table and handle. Plain; copied freely. */
struct gpu {
    const struct gpu_ops *ops;
    struct gpu_device *device;
    struct gpu_info info;
};

/* How CPU devices that are opened from now on multiply in `linear`, `gram` and `cross`: "float32", the default;
 * "bfloat16", operands rounded to BF16 with F32 sums; "auto": the latter where the CPU has instructions that make it
 * faster. All else is F32. ERR_CONFIG: no such word, or bfloat16 without instructions. Before other threads start. */
int gpu_cpu_products(const char *want);
/* Before gpu_load_backends: a folder that backends may create and keep compiled code in. Copied; longer than 1023
 * bytes: none. */
void gpu_cache_folder(const char *path);
/* Registry. Load every backend once at start; logs one line each, a warning where the host has a device for a backend
 * that cannot be used. module_folders: searched in order, ':' between them, the first that has a module wins; NULL:
 * none are opened. A module is FOLDER/quantd_gpu_<name>.so and exports quantd_gpu_ops. */
int gpu_load_backends(const char *module_folders);
/* want: "cpu", "cuda:N" or "auto" (highest score). ERR_CONFIG when there is no such device. */
int gpu_open(const char *want, int threads, struct gpu *out);
/* The devices that a text names, by their ids, in its order: names as gpu_open takes them with ',' between, or "all",
 * which is every device of the backend of the highest score. Opens none. ERR_CONFIG when one of them is not there or
 * comes twice, or there are more than GPU_DEVICES_MAX. */
#define GPU_DEVICES_MAX 32
struct gpu_names {
    char ids[GPU_DEVICES_MAX][32];
    int count;
};
int gpu_find_all(const char *wanted, struct gpu_names *out);
void gpu_close(struct gpu *gpu);
/* Describe a device, which is opened only when no gpu_open or gpu_describe did so before: memory_free and what else
 * changes is as it was then. Any thread. */
int gpu_describe(const char *want, int threads, struct gpu_info *out);
/* Why each unusable backend cannot be used: "cuda: no module quantd_gpu_cuda.so in: /usr/lib/quantd\n"... Static
 * text. */
const char *gpu_backend_notes(void);
/* Allocate a tensor of zeros of the given shape on gpu; release with gpu_tensor_free. Sets *out on success only. */
int gpu_tensor_new(const struct gpu *gpu, enum dtype dtype, int rank, const int64_t *shape, struct tensor *out);
/* The same with undefined content, for tensors that are overwritten completely. */
int gpu_tensor_uninitialized(const struct gpu *gpu, enum dtype dtype, int rank, const int64_t *shape,
                             struct tensor *out);
/* The same with the host's elements, which are free on return. */
int gpu_tensor_from_host(const struct gpu *gpu, struct gpu_stream *stream, enum dtype dtype, int rank,
                         const int64_t *shape, const void *host, struct tensor *out);
/* Overwrite a dense tensor with the host's elements, which are free on return. */
int gpu_tensor_upload(const struct gpu *gpu, struct gpu_stream *stream, const struct tensor *to, const void *host);
void gpu_tensor_free(const struct gpu *gpu, struct tensor *tensor); /* NULL data is fine; zeroes the view */

/* Declare a tensor without data, whose memory on `gpu` is freed when the scope ends; errno survives:
 *
 *     AUTO_TENSOR(codes, gpu);
 *     TRY(gpu_tensor_new(gpu, DTYPE_U8, 2, shape, &codes));
 *     *out = tensor_move(&codes);
 */
#define AUTO_TENSOR(name, gpu_)                            \
    struct tensor name = {0};                              \
    __attribute__((cleanup(gpu_tensor_scope_end), unused)) \
    const struct gpu_tensor_scope name##_scope = {(gpu_), &(name)}
struct gpu_tensor_scope {
    const struct gpu *gpu;
    struct tensor *tensor;
};
void gpu_tensor_scope_end(const struct gpu_tensor_scope *scope);
