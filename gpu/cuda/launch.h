#pragma once
/* The kernels as C sees them. Each launcher queues on its stream, in order, and returns a cudaError_t as int (0 =
 * fine); pointers are device memory unless named host. Shapes as in gpu.h. Results repeat: sums have one order, and no
 * float is added atomically. */

#include "gpu/shared/activation.h"
#include "gpu/shared/attention.h"
#include "gpu/shared/distribution.h"
#include "gpu/shared/dtype.h"

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* convert.cu */
int launch_convert(void *y, enum dtype y_dtype, const void *x, enum dtype x_dtype, int64_t count, cudaStream_t stream);
/* *index = the first index of a non-finite element, or INT64_MAX. */
int launch_find_nonfinite(int64_t *index, const void *x, enum dtype dtype, int64_t count, cudaStream_t stream);

/* elementwise.cu */
int launch_embed(float *y, const void *table, enum dtype dtype, const int32_t *ids, int64_t tokens, int64_t width,
                 cudaStream_t stream);
struct launch_norm { /* as struct gpu_norm, of `groups` runs of `size` */
    int64_t groups, size;
    int layer, unit_offset;
    float eps;
};
/* weight and bias may be NULL, y may be x. */
int launch_norm(float *y, const float *x, const float *weight, const float *bias, const struct launch_norm *spec,
                cudaStream_t stream);
struct launch_rope { /* as struct gpu_rope, of x [rows, cols] */
    int64_t rows, cols, length, head_dim, rotated;
    int interleaved;
    float turn; /* 1, or -1 for the negative angles */
};
int launch_rope(float *x, const float *cosine, const float *sine, const struct launch_rope *spec, cudaStream_t stream);
struct launch_columns { /* as struct gpu_columns, from x [rows, from_cols] to y [rows, to_cols] */
    int64_t rows, to_cols, from_cols, heads, count, to, to_stride, from, from_stride;
};
int launch_copy_columns(float *y, const float *x, const struct launch_columns *spec, cudaStream_t stream);
/* gate [count / cols] where `one`, else [count]; up may be NULL. */
int launch_activate(float *y, const float *gate, int one, const float *up, int64_t count, int64_t cols,
                    enum gpu_activation activation, cudaStream_t stream);
int launch_soft_cap(float *y, const float *x, float cap, int64_t count, cudaStream_t stream);
int launch_add(float *y, const float *x, int64_t count, cudaStream_t stream);
/* y[t, :] += bias */
int launch_add_rows(float *y, const float *bias, int64_t rows, int64_t cols, cudaStream_t stream);
/* Rows of a column-statistics partial: LAUNCH_STATS_ROWS tokens each. */
#define LAUNCH_STATS_ROWS 256
/* max [chunks, cols] and sum [chunks, cols] are scratch, chunks = ceil(rows / LAUNCH_STATS_ROWS). */
int launch_column_stats(float *absmax, float *abssum, const float *x, int64_t rows, int64_t cols, float *max,
                        double *sum, cudaStream_t stream);
int launch_symmetrize(float *h, int64_t n, float scale, cudaStream_t stream);
int launch_zero_dead(float *w, const float *h, int64_t rows, int64_t n, cudaStream_t stream);
int launch_diagonal(float *diagonal, const float *h, int64_t n, cudaStream_t stream);
int launch_floor_diagonal(float *h, int64_t n, float min, cudaStream_t stream);
int launch_subtract(float *d, const float *a, const float *b, int64_t count, cudaStream_t stream);

/* experts.cu */
#define LAUNCH_ROUTE_EXPERTS_MAX 4096 /* where a bias or groups count */
struct launch_routing {
    int64_t experts, top_k, groups, group_top_k; /* groups 1: none */
    int sigmoid, all, normalize, group_pairs;    /* sigmoid, or softmax over all, or over the chosen */
    float factor, epsilon;
};
/* bias may be NULL */
int launch_route(int32_t *ids, float *weights, const float *logits, const float *bias, int64_t tokens,
                 const struct launch_routing *spec, cudaStream_t stream);
/* offsets [experts + 1] */
int launch_group_places(int32_t *places, int64_t *offsets, const int32_t *ids, int64_t count, int64_t experts,
                        cudaStream_t stream);
/* weights may be NULL */
int launch_gather_rows(float *y, const float *x, const int32_t *places, const float *weights, int64_t rows,
                       int64_t cols, int64_t k, cudaStream_t stream);
int launch_scatter_rows(float *y, const float *x, const int32_t *places, const float *weights, int64_t rows,
                        int64_t cols, int64_t k, cudaStream_t stream);

/* recurrent.cu: rows are sequences of `length` each. */
struct launch_conv {
    float *y;
    const float *x, *w, *bias; /* bias: or NULL */
    int64_t rows, cols, width, length;
    int silu;
};
int launch_causal_conv(const struct launch_conv *conv, cudaStream_t stream);
struct launch_recurrence {
    float *y;
    const float *x, *step, *beta, *a_log, *dt_bias, *d; /* beta: of the delta rule; d: of a scan */
    int64_t sequences, length;
    int64_t heads, groups; /* of values; of keys */
    int64_t keys, values;  /* of a head: rows and columns of its state */
    float dt_min, dt_max;
};
int launch_delta_rule(const struct launch_recurrence *job, cudaStream_t stream);
int launch_state_scan(const struct launch_recurrence *job, cudaStream_t stream);
/* weights: of `size`, or of cols. */
int launch_gated_norm(float *y, const float *x, const float *gate, const float *weight, int64_t rows, int64_t cols,
                      int64_t size, int64_t weights, float eps, int gate_first, cudaStream_t stream);

/* scaling.cu */
/* w[n, k] *= rows[n] * cols[k]; either may be NULL. */
int launch_scale(float *w, const float *rows, const float *cols, int64_t count, int64_t width, cudaStream_t stream);
struct launch_input {
    enum dtype element;
    int dynamic, half;              /* half: codes are multiplied by the scale as F16 holds it */
    int64_t rows, cols, group_size; /* columns that share a scale; the last ones of a row may be fewer */
    float scale;
};
/* outliers may be NULL, y may be x. */
int launch_quantize_input(float *y, const float *x, const float *outliers, const struct launch_input *spec,
                          cudaStream_t stream);

/* elements.cu: tiles as in gpu.h; groups: tiles side by side. */
struct launch_tiles {
    enum dtype element;
    int64_t rows, cols, tile_rows, tile_cols, groups;
    float levels[16]; /* of NF4 */
};
int launch_tile_range(float *max, const float *w, const struct launch_tiles *spec, cudaStream_t stream);
int launch_tile_encode(uint8_t *codes, const float *w, const float *scale, const struct launch_tiles *spec,
                       cudaStream_t stream);
int launch_tile_decode(float *w, const uint8_t *codes, const float *scale, const struct launch_tiles *spec,
                       cudaStream_t stream);

/* softmax.cu: scores [heads, queries, keys] of the queries from position `first` on become weights, zero where not
 * visible. out is BF16 or F32 and may be scores itself when F32. window, chunk, cap: as in struct gpu_attention. */
struct launch_softmax {
    int64_t heads, queries, keys, first, window, chunk;
    float scale, cap;
    const float *sinks; /* of head h the one at h * sink_step; or NULL */
    int64_t sink_step;
};
int launch_softmax(void *out, enum dtype out_dtype, const float *scores, const struct launch_softmax *spec,
                   cudaStream_t stream);

/* flash.cu: attention of q, k and v in BF16, of equal sequences one after another. Dimensions are multiples of 8, up to
 * LAUNCH_FLASH_DIM, and operands aligned to 16 bytes; at most 65,535 heads and as many sequences. window, chunk, cap,
 * sinks: as in struct gpu_attention. */
#define LAUNCH_FLASH_DIM 128
#define LAUNCH_FLASH_MANY 65535
struct launch_flash {
    float *out;
    const void *q, *k, *v;
    int64_t sequences, length, heads, kv_heads, dim, value_dim, window, chunk;
    float scale, cap;
    const float *sinks; /* [heads], or NULL */
};
int launch_flash(const struct launch_flash *spec, cudaStream_t stream);

/* grid.cu */
struct launch_grid {
    int bits, sym, signs, mse, steps, candidates;
    enum dtype scale_dtype;
    int64_t rows, cols, group;
    float norm;
};
int launch_grid(float *scale, float *zero, const float *w, const float *importance, const struct launch_grid *spec,
                cudaStream_t stream);
int launch_round(uint8_t *codes, const float *w, const float *scale, const float *zero, const struct launch_grid *spec,
                 cudaStream_t stream);
int launch_dequantize(float *w, const uint8_t *codes, const float *scale, const float *zero,
                      const struct launch_grid *spec, cudaStream_t stream);

/* refine.cu. A cut at p times each group's absmax: its scales, negated where that is asked for, and zeros
 * [rows, groups], and error = w minus what it gives. */
int launch_clip_cut(float *scale, float *zero, float *error, const float *w, const struct launch_grid *spec, float p,
                    int negative, cudaStream_t stream);
struct launch_clip_best { /* [rows, groups] each */
    float *scale, *zero;
    double *lost;
};
/* Take the cut where the dot of error and product [rows, cols] is less than what is lost; `first`: everywhere. */
int launch_clip_judge(const struct launch_clip_best *best, const float *scale, const float *zero, const float *error,
                      const float *product, const struct launch_grid *spec, int first, cudaStream_t stream);
int launch_hqq(float *scale, float *zero, const float *w, const struct launch_grid *spec, cudaStream_t stream);

/* descend.cu: one group of columns at a time. */
#define LAUNCH_DESCEND_COLS 128 /* columns at most of launch_descend_codes */
struct launch_descend {
    uint8_t *codes;                /* [rows, k] */
    float *scale, *zero;           /* [rows, groups] */
    const float *h;                /* [k, k] */
    float *g, *moves;              /* [rows, k]: D H, and how far the weights of the open group have moved */
    float *levels;                 /* [rows, size]: codes of the open group less its zero point */
    float *curves;                 /* [rows, size]: levels H */
    const float *ones;             /* [k]: sums of H over the columns of a group */
    double *gain;                  /* [rows]: by how much the error has fallen */
    int64_t rows, k, size, groups; /* size: columns of a group */
    float top;
    int sym;
    enum dtype scale_dtype;
};
int launch_descend_ones(float *ones, const float *h, int64_t k, int64_t size, cudaStream_t stream);
int launch_descend_open(const struct launch_descend *job, int64_t group, cudaStream_t stream);
int launch_descend_points(const struct launch_descend *job, int64_t group, cudaStream_t stream);
/* steps [rows, cols]: how far each weight moves. */
int launch_descend_codes(const struct launch_descend *job, float *steps, int64_t first, int cols, cudaStream_t stream);

/* descend_both.cu: the same with rows that depend on each other, which are visited in order. All but codes and points
 * is transposed. */
#define LAUNCH_BOTH_ROWS 32 /* at most of launch_both_scales */
struct launch_both {
    uint8_t *codes;         /* [n, k] */
    float *scale;           /* [n, groups] */
    const float *zero;      /* [n, groups] */
    const float *h, *o;     /* [k, k], [n, n] */
    float *m;               /* [k, n]: (O D)^T */
    float *g;               /* [size, n]: (O D H)^T of the open group */
    float *levels, *curves; /* [size, n]: codes of the open group less its zero point; H levels */
    double *gain;           /* one: by how much the error has fallen */
    int64_t n, k, size, groups;
    float top;
    enum dtype scale_dtype;
};
int launch_both_start(const struct launch_both *job, const float *target, float *to, cudaStream_t stream);
int launch_both_levels(const struct launch_both *job, int64_t group, cudaStream_t stream);
/* Of rows [first, first + count); what they moved by times levels and curves is left in these. */
int launch_both_scales(const struct launch_both *job, int64_t group, int64_t first, int count, cudaStream_t stream);
/* The codes of column j, whose G is g; what its M loses to lost [n]. Then M, and G of `later` columns from g on. */
int launch_both_column(const struct launch_both *job, int64_t j, const float *g, float *lost, cudaStream_t stream);
int launch_both_follow(const struct launch_both *job, int64_t j, float *g, const float *lost, int later,
                       cudaStream_t stream);

/* split.cu: x = high + low, both BF16, but for 2^-17 of it. */
int launch_split(void *high, void *low, const float *x, int64_t count, cudaStream_t stream);

/* triangle.cu: of the block of `size` at (at, at) of matrix [n, n], whose lower triangle is read: the inverse of its
 * Cholesky factor, to the lower triangle of the same block of inverse. *info, when 0: the first pivot that is not
 * positive, from 1. */
#define LAUNCH_TRIANGLE 128 /* size at most */
int launch_triangle(float *inverse, const float *matrix, int64_t n, int64_t at, int size, int *info,
                    cudaStream_t stream);

/* factor.cu: to = the reversed, permuted, damped lower triangle of h, zeros above; order may be NULL. */
int launch_factor_gather(float *to, const float *h, const int32_t *order, int64_t n, float damp, cudaStream_t stream);
/* Elements of a[count] in reverse order. */
int launch_reverse(float *a, int64_t count, cudaStream_t stream);

/* target.cu */
/* y = alpha * a + beta * b; b may be NULL, y may be a or b. */
int launch_combine(float *y, float alpha, const float *a, float beta, const float *b, int64_t count,
                   cudaStream_t stream);
/* y[r, order[i]] = from[r, i] */
int launch_scatter_columns(float *y, const float *from, const int32_t *order, int64_t rows, int64_t cols,
                           cudaStream_t stream);

/* sweep.cu */
#define LAUNCH_SWEEP_COLS 128 /* columns of a block */
/* to[r, i] = w[r, order[i]] */
int launch_gather_columns(float *to, const float *w, const int32_t *order, int64_t rows, int64_t cols,
                          cudaStream_t stream);
/* codes[r, order[i]] = from[r, i] */
int launch_scatter_codes(uint8_t *codes, const uint8_t *from, const int32_t *order, int64_t rows, int64_t cols,
                         cudaStream_t stream);
struct launch_sweep {
    float *w;           /* [rows, k] in visiting order; columns [first, first + cols) are read */
    const float *u;     /* [k, k] */
    const float *scale; /* [rows, groups] */
    const float *zero;
    const int32_t *group; /* [k]: group of the column visited i-th */
    uint8_t *codes;       /* [rows, k] in visiting order */
    float *error;         /* [rows, cols], error_stride from row to row */
    double *loss;         /* [rows]: added to */
    int64_t rows, k, groups, first, error_stride;
    int cols;
    int only_group; /* that of all columns of this block, or -1: not one */
    float top;
    const float *levels; /* [level_count], instead of a grid with zeros; or NULL */
    int level_count;
};
int launch_sweep(const struct launch_sweep *sweep, cudaStream_t stream);

/* losses.cu */
struct launch_residual_row { /* as struct gpu_residual, of one row */
    double error_sq, weight_sq, dot, quant_sq, clipped_sq, max_abs, weight_max;
    int64_t clipped, nonfinite;
};
/* scale NULL: no grid. */
int launch_residual(struct launch_residual_row *rows, const float *w, const float *wq, const float *scale,
                    const float *zero, const struct launch_grid *spec, cudaStream_t stream);
/* out[r] = sum over columns of a[r, :] * b[r, :] in double. */
int launch_row_dot(double *out, const float *a, const float *b, int64_t rows, int64_t cols, cudaStream_t stream);
/* The same, rounded to F32. */
int launch_row_dot_narrow(float *out, const float *a, const float *b, int64_t rows, int64_t cols, cudaStream_t stream);
struct launch_distribution_row { /* as struct gpu_distribution, of one row */
    double square, fourth, range_sq, part_range_sq, max_to_median;
    int64_t far;
};
int launch_distribution(struct launch_distribution_row *rows, const float *w, int64_t count, int64_t cols,
                        int64_t group, cudaStream_t stream);
/* For each strip of LAUNCH_ENERGY_ROWS rows and each column: signal [strips, cols] = sum w^2, error = sum (w - wq)^2.
 */
#define LAUNCH_ENERGY_ROWS 256
int launch_column_energy(double *signal, double *error, const float *w, const float *wq, int64_t rows, int64_t cols,
                         cudaStream_t stream);
struct launch_nll_row {
    double nll, kl;
    int64_t agree; /* 1: the largest logits are at the same place */
};
/* reference may be NULL; rows with target -1 give zeros. */
int launch_nll(struct launch_nll_row *out, const float *logits, const float *reference, const int32_t *targets,
               int64_t tokens, int64_t vocabulary, cudaStream_t stream);

/* codebook_sums.cu: shapes and operands as in struct gpu_codebook; scale may be NULL. */
struct launch_code {
    int64_t rows, cols, group, codes; /* codes: of a codebook */
    int books;
};
int launch_code_expand(float *y, const uint16_t *entries, const float *scale, const float *table,
                       const struct launch_code *spec, float alpha, int add, cudaStream_t stream);
/* The rows are summed in so many slices; parts [slices, books, codes, group] is scratch. */
#define LAUNCH_REDUCE_SLICES 8
int launch_code_reduce(float *out, double *parts, const float *p, const uint16_t *entries, const float *scale,
                       const struct launch_code *spec, cudaStream_t stream);

/* codebook.cu: columns of a block of the search, at most. */
#define LAUNCH_CODE_COLS 128
struct launch_code_search {
    struct launch_code spec;
    uint16_t *entries;
    float *d;
    const float *scale, *table, *h, *importance; /* scale, h, importance: or NULL */
    float *turned;                               /* [books, group, codes]: launch_code_turn's */
    float *costs;                                /* [groups of a block, books, codes]: scratch */
    const float *product;                        /* d h for the block's columns, [rows, count * group]; if h is given */
    double *gains;                               /* [rows]: added to */
    int64_t first, count;                        /* groups of this block */
    int beam;
};
int launch_code_turn(float *turned, const float *table, const struct launch_code *spec, cudaStream_t stream);
int launch_code_search(const struct launch_code_search *search, cudaStream_t stream);

/* cluster.cu */
struct launch_cluster {
    float *table;
    uint8_t *codes;
    const float *w, *importance; /* importance: or NULL */
    const uint8_t *outliers;     /* or NULL */
    int64_t rows, cols;
    int values;
    enum dtype stored;
    char *scratch; /* slices of `slice` bytes, one for each row at work */
    int64_t slice, slices;
};
/* Bytes of a slice. */
int64_t launch_cluster_bytes(int64_t cols, int64_t values);
int launch_cluster(const struct launch_cluster *cluster, cudaStream_t stream);

/* cache.cu: as in struct gpu_cache; y may be x. */
struct launch_cache {
    enum dtype element;
    int bits;
    int64_t rows, cols, group_size, tokens, length;
};
int launch_cache_symmetric(float *y, const float *x, const float *scale, const struct launch_cache *spec,
                           cudaStream_t stream);
int launch_cache_asymmetric(float *y, const float *x, const struct launch_cache *spec, cudaStream_t stream);
/* Queries [first, first + queries) of `heads` heads against keys [0, keys). */
struct launch_attention_error {
    int64_t heads, queries, keys, first, window, chunk, recent;
    float scale, cap;
    const float *sinks; /* [heads] or NULL */
};
struct launch_attention_part { /* as struct gpu_attention_error, of one query */
    double score_error, score_signal, weight_error, weight_signal, output_error, output_signal;
};
/* Scores [heads, queries, keys] of both sides become weights: those of the quantized side that meet quantized values
 * stay there, the others go to split. Sets parts [heads, queries], but not their outputs' numbers. */
int launch_attention_weigh(struct launch_attention_part *parts, float *plain, float *quantized, float *split,
                           const struct launch_attention_error *spec, cudaStream_t stream);
/* The outputs' numbers of parts [rows] from outputs [rows, dim] of both sides; total += all parts. */
int launch_attention_outputs(struct launch_attention_part *total, struct launch_attention_part *parts,
                             const float *plain, const float *quantized, int64_t rows, int64_t dim,
                             cudaStream_t stream);

/* blocks.cu */
struct launch_blocks {
    uint8_t *out;
    const float *w, *importance; /* importance: or NULL */
    int64_t rows, cols;
    int type; /* enum ggml_type */
    int elements, bytes, search;
    float table[16]; /* the levels of IQ4_NL */
};
int launch_blocks(const struct launch_blocks *blocks, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
