#pragma once
/* The kernels of the group `grad` as C sees them, as in launch.h. Gradients are added to. */

#include "gpu/cuda/launch.h"
#include "gpu/shared/adamw.h"
#include "gpu/shared/levels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* grad.cu. parts [ceil(rows / LAUNCH_STATS_ROWS), cols] is scratch. */
int launch_column_sums(float *d, const float *x, int64_t rows, int64_t cols, double *parts, cudaStream_t stream);
#define LAUNCH_NORM_GROUPS 32 /* of a block */
struct launch_norm_grad {
    struct launch_norm spec;
    float *dx, *dweight, *dbias;  /* or NULL */
    const float *dy, *x, *weight; /* weight: or NULL */
    double
        *parts; /* [ceil(groups / LAUNCH_NORM_GROUPS), 2, size]: scratch where dweight or dbias is given, else NULL */
};
int launch_norm_grad(const struct launch_norm_grad *job, cudaStream_t stream);
struct launch_activate_grad {
    float *dgate, *dup;          /* or NULL */
    const float *dy, *gate, *up; /* up: or NULL */
    int64_t rows, cols;
    int one; /* the gate has one column */
    enum gpu_activation activation;
};
int launch_activate_grad(const struct launch_activate_grad *job, cudaStream_t stream);
int launch_soft_cap_grad(float *dx, const float *dy, const float *x, float cap, int64_t count, cudaStream_t stream);
int launch_add_columns(float *y, const float *x, const struct launch_columns *spec, cudaStream_t stream);
/* Of a static scale. outliers may be NULL. */
int launch_quantize_input_grad(float *dx, const float *dy, const float *x, const float *outliers,
                               const struct launch_input *spec, cudaStream_t stream);
int launch_row_dots(float *d, const float *a, const float *x, const int32_t *places, int64_t rows, int64_t cols,
                    int64_t k, cudaStream_t stream);
int launch_route_grad(float *dlogits, const float *dweights, const int32_t *ids, const float *logits, int64_t tokens,
                      const struct launch_routing *spec, cudaStream_t stream);

/* grad_attention.cu: scores q k^T and products do v^T [heads, queries, keys] become weights and gradients of the scores
 * before scale and cap, both of `dtype`, zero where not visible; in F32 they may be scores and products themselves.
 * sinks [heads, queries] gets what each query adds to its sink's gradient; or NULL. */
int launch_softmax_grad(void *weights, void *grads, enum dtype dtype, const float *scores, const float *products,
                        double *sinks, const struct launch_softmax *spec, cudaStream_t stream);
/* totals[h * step] += the sum of parts[h, queries], h < heads; d += totals. */
int launch_sinks_part(double *totals, const double *parts, int64_t heads, int64_t queries, int64_t step,
                      cudaStream_t stream);
int launch_sinks_add(float *d, const double *totals, int64_t heads, cudaStream_t stream);

/* grad_losses.cu: parts [ceil(count / LAUNCH_MSE_TILE)]; [tokens]. */
#define LAUNCH_MSE_TILE 8192
int launch_mse_grad(double *parts, float *dy, const float *y, const float *target, float factor, int64_t count,
                    cudaStream_t stream);
struct launch_softmax_loss {
    double *parts;
    float *dlogits;                /* or NULL */
    const float *logits, *teacher; /* teacher: or NULL, then labels */
    const int32_t *labels;
    int64_t tokens, vocabulary;
    double factor;
};
int launch_softmax_loss(const struct launch_softmax_loss *job, cudaStream_t stream);

/* grad_round.cu: `points` groups of `group` weights, one scale and zero each. */
struct launch_fake {
    float *wq;      /* or NULL */
    uint8_t *codes; /* or NULL */
    const float *u, *scale, *zero, *dwq;
    float *du, *dscale, *dzero; /* or NULL */
    int64_t points, group;
    float top;
};
int launch_fake_round(const struct launch_fake *job, cudaStream_t stream);
int launch_fake_round_grad(const struct launch_fake *job, cudaStream_t stream);
int launch_fake_levels(const struct launch_fake *job, const struct levels_sorted *levels, cudaStream_t stream);
int launch_fake_levels_grad(const struct launch_fake *job, const struct levels_sorted *levels, cudaStream_t stream);
/* center may be NULL */
int launch_sign_step(float *p, const float *g, const float *center, float lr, float low, float high, int64_t count,
                     cudaStream_t stream);
int launch_adamw(float *p, float *m, float *v, const float *g, const struct adamw_factors *factors, int64_t count,
                 cudaStream_t stream);

#ifdef __cplusplus
}
#endif
