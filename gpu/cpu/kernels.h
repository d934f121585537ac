#pragma once
/* The inner loops that pay for vectors. One source (kernels.inc) is compiled once for each instruction set; every
 * operation in it is an IEEE one in a fixed order without contraction, so all tables give the same bits. */

#include "gpu/shared/activation.h"
#include "gpu/shared/dtype.h"

#include <stdbool.h>
#include <stdint.h>

#define LANES 16

/* Of n weights x against u = clamp((x + minimum) / scale): sum w (scale u - minimum - x)^2, w u^2, w u, w x u. */
struct block_sums {
    float error, uu, u, xu;
};

/* Sums over pairs of finite numbers a, b, pair i in lane i mod RESIDUAL_LANES: struct gpu_residual's, before the lanes
 * are added up. Outside: a below `low` or above `high`. */
#define RESIDUAL_LANES 8
struct residual_sums {
    double error[RESIDUAL_LANES], a_sq[RESIDUAL_LANES], dot[RESIDUAL_LANES], b_sq[RESIDUAL_LANES];
    double outside_error[RESIDUAL_LANES];
    double max_error[RESIDUAL_LANES], largest[RESIDUAL_LANES]; /* |a - b|, |a| */
    int64_t outside[RESIDUAL_LANES], nonfinite[RESIDUAL_LANES];
};

/* Sums over groups: struct gpu_distribution's, before the lanes are added up. */
struct distribution_sums {
    double square[RESIDUAL_LANES], fourth[RESIDUAL_LANES];
    double range_sq, part_range_sq, max_to_median;
    int64_t far;
};

/* One sub-block of 32 weights with a scale and a minimum in each of LANES lanes, and what a search over them asks for.
 */
#define AFFINE_WIDTH 32
#define AFFINE_TRIES 12     /* ranges: from a little wider than the weights' to much narrower */
#define AFFINE_ROUNDS 3     /* of each: then the scale and the minimum that its codes want */
#define AFFINE_NEIGHBOURS 9 /* a scale's and a minimum's integers, each less by one, the same, more by one */
struct affine_lanes {
    float x[AFFINE_WIDTH][LANES], weight[AFFINE_WIDTH][LANES];
    double w[LANES], wx[LANES]; /* sum weight, sum weight * x: affine_search fills them */
    bool unit;                  /* all weights are 1 */
};
struct affine_sums { /* struct block_sums of each lane */
    float error[LANES], uu[LANES], u[LANES], xu[LANES];
};
/* The same of sub-blocks of 16 weights with a scale alone. */
#define SIGNED_WIDTH 16
struct signed_lanes {
    float x[SIGNED_WIDTH][LANES], weight[SIGNED_WIDTH][LANES];
    bool unit;
};

struct adamw_factors;
struct levels_sorted;

struct kernels {
    const char *name; /* "avx512" */
    /* Columns of one GPTQ block for LANES rows at once: w [cols][LANES] at stride, replaced by the errors e.
     * u: diagonal block of the factor. scale, zero: [groups][LANES]; group[i]: the group of column i.
     * codes [cols][LANES]; loss[LANES] += e^2. */
    void (*sweep)(float *w, int64_t stride, int64_t cols, const float *u, int64_t ldu, const float *scale,
                  const float *zero, const int32_t *group, float top, uint8_t *codes, double *loss);
    /* min(0, w) and max(0, w). */
    void (*range)(const float *w, int64_t n, float *low, float *high);
    /* sum weight * |w - wq|^norm; n is a multiple of LANES. Stops above `limit`. */
    float (*grid_error)(const float *w, const float *weight, int64_t n, float scale, float zero, float top, float norm,
                        float limit);
    /* sum weight * d^norm, d being the distance of w from [low, high]; n is a multiple of LANES. */
    float (*outside_error)(const float *w, const float *weight, int64_t n, float low, float high, float norm);
    void (*round)(uint8_t *codes, const float *w, int64_t n, float scale, float zero, float top);
    void (*dequantize)(float *w, const uint8_t *codes, int64_t n, float scale, float zero);
    /* x = exp(x * scale - max(x * scale)); returns the sum. */
    float (*softmax)(float *x, int64_t n, float scale);
    float (*maximum)(const float *x, int64_t n);
    /* x = cap * tanh(x * scale / cap). */
    void (*cap)(float *x, int64_t n, float scale, float cap);
    /* sum exp(x - shift). */
    double (*exp_sum)(const float *x, int64_t n, float shift);
    /* sum exp(r - r_shift) * ((r - r_shift) - (x - x_shift)). */
    double (*exp_dot)(const float *r, const float *x, int64_t n, float r_shift, float x_shift);
    /* y = act(gate) * up; up NULL: act(gate); one: gate[0] for all. */
    void (*activate)(float *y, const float *gate, bool one, const float *up, int64_t n, enum gpu_activation activation);
    double (*dot)(const float *a, const float *b, int64_t n);
    /* Adds to *sums; low <= 0 <= high. */
    void (*residual)(struct residual_sums *sums, const float *a, const float *b, int64_t n, float low, float high);
    /* Adds one group of n weights to *sums. */
    void (*distribution)(struct distribution_sums *sums, const float *w, int64_t n);
    /* signal[i] += a[i]^2, error[i] += (a[i] - b[i])^2, over rows of a and b in their order. */
    void (*energy)(double *signal, double *error, const float *a, const float *b, int64_t n, int64_t rows,
                   int64_t stride);
    /* The largest |x| but for NaN and columns whose outlier is not 0; outliers NULL: none is. */
    float (*input_range)(const float *x, const float *outliers, int64_t n);
    /* y = x / scale, to the nearest INT8 or E4M3, times stored; columns whose outlier is not 0 pass. y may be x. */
    void (*input_int8)(float *y, const float *x, const float *outliers, int64_t n, float scale, float stored);
    void (*input_e4m3)(float *y, const float *x, const float *outliers, int64_t n, float scale, float stored);
    /* codes = the element nearest to w / scale, ties to even: F8_E4M3, F8_E5M2, F4_E2M1 or I8. */
    void (*encode_elements)(uint8_t *codes, const float *w, int64_t n, float scale, enum dtype element);
    /* codes = how many of middles [15, and one that is not looked at], ascending, are below w * factor. */
    void (*encode_levels)(uint8_t *codes, const float *w, int64_t n, float factor, const float *middles);
    /* w = scale * the element of that code; values: of the sixteen codes, where the element has four bits. */
    void (*decode_elements)(float *w, const uint8_t *codes, int64_t n, float scale, enum dtype element,
                            const float *values);
    /* out[c] = weight * costs[c] + sum over d < group of query[d] * turned[d * stride + c]; reads and writes up to the
     * next multiple of LANES. */
    void (*code_scores)(float *out, const float *turned, int64_t stride, int64_t n, const float *costs, float weight,
                        const float *query, int64_t group);
    /* The index of the smallest x, the first of equals; 0 when all are NaN. */
    int64_t (*argmin)(const float *x, int64_t n);
    /* u integers of [low, high], halves up; n is a multiple of LANES, inverse is 1 / scale. */
    void (*block_fit)(struct block_sums *sums, const float *x, const float *weight, int64_t n, float scale,
                      float inverse, float minimum, float low, float high);
    /* The same for u of an ascending table, without minimum. */
    void (*block_fit_table)(struct block_sums *sums, const float *x, const float *weight, int64_t n, float scale,
                            float inverse, const float table[16]);
    /* u = clamp((x + minimum) / scale), halves up, as u - low; n is a multiple of LANES. */
    void (*block_codes)(uint8_t *codes, const float *x, int64_t n, float inverse, float minimum, float low, float high);
    /* NULL from here to signed_errors: sub-blocks one by one. The same for codes 0..15 of LANES sub-blocks: scale and
     * minimum with the smallest error of each, as real numbers; block_fit; its error alone; and that of a scale and
     * minimum d * s, dmin * m for the integers next to s and m, number i being (s + i % 3 - 1, m + i / 3 - 1), infinite
     * outside of [0, highest]. error: [AFFINE_NEIGHBOURS][LANES]. */
    void (*affine_search)(struct affine_lanes *a, float *scale, float *minimum);
    void (*affine_sums)(struct affine_sums *out, const struct affine_lanes *a, const float *scale,
                        const float *minimum);
    void (*affine_errors)(float *error, const struct affine_lanes *a, const float *scale, const float *minimum);
    void (*affine_neighbours)(float *error, const struct affine_lanes *a, const float *d, const float *dmin,
                              const float *scale, const float *minimum, float highest);
    /* block_fit of LANES sub-blocks with codes -32..31 and no minimum, and its error alone. */
    void (*signed_sums)(struct affine_sums *out, const struct signed_lanes *a, const float *scale);
    void (*signed_errors)(float *error, const struct signed_lanes *a, const float *scale);
    /* One token of a recurrence over LANES columns of a state s [n][LANES]: s = decay * s, then s_i += k_i * d with
     * d = beta * (v - sum s_i k_i), then out = sum s_i q_i. v, out: LANES numbers. */
    void (*delta_step)(float *state, int64_t n, const float *q, const float *k, const float *v, float decay, float beta,
                       float *out);
    /* The same with d = beta * v. */
    void (*scan_step)(float *state, int64_t n, const float *q, const float *k, const float *v, float decay, float beta,
                      float *out);
    /* The backward pass (kernels_grad.inc). sum[i] += a[i] * b[i], or a[i] where b is NULL. */
    void (*add_products)(double *sum, const float *a, const float *b, int64_t n);
    /* dx += factor * (dn - mean - x * slope). */
    void (*norm_grad)(float *dx, const float *dn, const float *x, int64_t n, float factor, float mean, float slope);
    /* ds = p * (ds - mean) * scale, times 1 - (capped * inverse_cap)^2 unless capped is NULL. */
    void (*softmax_grad)(float *ds, const float *p, const float *capped, int64_t n, float mean, float scale,
                         float inverse_cap);
    void (*soft_cap_grad)(float *dx, const float *dy, const float *x, int64_t n, float cap);
    /* dgate += dy * up * act'(gate), dup += dy * act(gate); up, dgate or dup may be NULL. one: gate[0] for all, and the
     * sum of what dgate would get is returned instead. */
    double (*activate_grad)(float *dgate, float *dup, const float *dy, const float *gate, bool one, const float *up,
                            int64_t n, enum gpu_activation activation);
    /* sum (y - target)^2; dy += factor * (y - target) unless NULL. */
    double (*mse_grad)(float *dy, const float *y, const float *target, int64_t n, float factor);
    /* d += x_factor * exp(x - x_shift) - r_factor * exp(r - r_shift); r may be NULL. */
    void (*exp_grad)(float *d, const float *x, const float *r, int64_t n, float x_shift, float r_shift, float x_factor,
                     float r_factor);
    /* wq = scale * (codes - zero), codes = clamp(rne(u) + zero, 0, top); either output may be NULL. */
    void (*fake_round)(float *wq, uint8_t *codes, const float *u, int64_t n, float scale, float zero, float top);
    /* du += scale * dwq where no clamp cut, unless NULL; sums: of dwq * (code - zero), and of dwq where a clamp cut. */
    void (*fake_round_grad)(float *du, double sums[2], const float *dwq, const float *u, int64_t n, float scale,
                            float zero, float top);
    /* to = the level nearest to u, the lower of two at one distance, codes = its code unless NULL. */
    void (*nearest_levels)(float *to, uint8_t *codes, const float *u, int64_t n, const struct levels_sorted *levels);
    /* du += scale * dwq where u is in [low, high]. */
    void (*add_between)(float *du, const float *dwq, const float *u, int64_t n, float scale, float low, float high);
    /* p = clamp(p - lr * sign(g), center + low, center + high); center may be NULL. */
    void (*sign_step)(float *p, const float *g, const float *center, int64_t n, float lr, float low, float high);
    void (*adamw)(float *p, float *m, float *v, const float *g, int64_t n, const struct adamw_factors *factors);
    void (*f16_to_f32)(float *y, const uint16_t *x, int64_t n);
    void (*f32_to_f16)(uint16_t *y, const float *x, int64_t n);
    void (*bf16_to_f32)(float *y, const uint16_t *x, int64_t n);
    void (*f32_to_bf16)(uint16_t *y, const float *x, int64_t n);
};

/* The best table for this CPU; QUANTD_CPU_LEVEL=generic|avx2|avx512 asks for a lower one. */
const struct kernels *kernels_choose(void);

extern const struct kernels kernels_generic;
#if defined(__x86_64__)
extern const struct kernels kernels_avx2;
extern const struct kernels kernels_avx512;
#endif
