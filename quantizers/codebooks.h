#pragma once
/* A linear as sums of codebook vectors: what vector k-means and AQLM share. Private to quantizers/.
 * One thread at a time, the one that owns the context's stream. */

#include "quantizers/common.h"

/* A linear whose row n, group i is scale[n] * sum over m of table[m, entries[n, i, m]]. */
struct codebooks {
    const struct solve_context *context;
    const struct tensor *weight; /* F32 [N,K]: the job's */
    struct gpu_codebook spec;
    int64_t rows, cols, groups, codes, size; /* codes of a codebook, floats of all tables */
    struct tensor entries;                   /* U16 [N, groups * codebooks] */
    struct tensor table;                     /* F32 [codebooks * codes, group_size] */
    struct tensor scale;                     /* F32 [N]; 0 where a row is all zero */
    struct tensor d;                         /* F32 [N,K]: weight less what the entries stand for */
    struct tensor importance;                /* F32 [K]: what a column's error costs, mean 1 */
    struct tensor p, q;                      /* F32 [N,K]: scratch */
    struct tensor rowwise;                   /* F32 [N]: scratch */
    struct tensor o;                         /* F32 [N,N]: what rows' errors cost together; without data: they do not */
    struct tensor od, diagonal;              /* with o: F32 [N,K], scratch; F32 [N], that of o */
    struct tensor reduced;                   /* F32, like table: scratch */
    float *host_rows;                        /* [N] */
};

/* Memory for job with scales chosen: the root mean square of each row, as scale_dtype stores it. importance: host [K],
 * none negative, or NULL for ones. ERR_NON_FINITE_VALUE names the weight's first NaN or Inf. Deinit also after a
 * failure. */
int codebooks_init(const struct solve_context *context, const struct linear_job *job, const struct gpu_codebook *spec,
                   const float *importance, struct codebooks *out);
void codebooks_deinit(struct codebooks *c); /* zeroed is fine */
CLEANUP_DEINIT(codebooks, struct codebooks, codebooks_deinit)
/* codebooks_start.c. Residual k-means: each codebook from what those before it left, weighed by importance and the
 * rows' scales. */
int codebooks_start(struct codebooks *c, int64_t max_iterations);
/* Does a table have an entry for each vector of the linear? */
bool codebooks_cover(const struct codebooks *c);
/* d from entries, tables and scales as they are. */
int codebooks_residual(struct codebooks *c);
/* *loss = tr(d h d^T), with o tr(o d h d^T), or sum importance_k d^2 with h NULL. Uses q and od. */
int codebooks_loss(struct codebooks *c, const struct tensor *h, double *loss);
/* Round scales and tables to scale_dtype, then choose codes for them until nothing is gained. */
int codebooks_store(struct codebooks *c, const struct tensor *h);
/* Better codes, one sweep over all groups: the loss falls by *gain >= 0, and d follows. Uses p, q and od. */
int codebooks_search(struct codebooks *c, const struct tensor *h, double *gain);
/* Download into job->result, which the caller owns then. */
int codebooks_take(const struct codebooks *c, const struct qscheme *scheme, struct linear_job *job);

/* The complete tensor from or to the host; upload's source is free on return. */
int codebooks_upload(const struct codebooks *c, const struct tensor *to, const void *host);
int codebooks_download(const struct codebooks *c, void *host, const struct tensor *from);

/* codebooks_fit.c: with h and the entries as they are, tables that lose less, by `steps` of conjugate gradients; d
 * follows. *loss is read and lowered; it never rises. */
int codebooks_fit_tables(struct codebooks *c, const struct tensor *h, int steps, double *loss);
/* The best scale of each row. */
int codebooks_fit_scales(struct codebooks *c, const struct tensor *h, double *loss);

/* codebooks_both.c. From now on rows depend on each other by o, symmetric, with a positive diagonal, which goes to c
 * (also after a failure). Scales of rows are then left as they are. */
int codebooks_couple(struct codebooks *c, struct tensor *o);
/* For c that has o: q = o x h. Uses od. */
int codebooks_across(const struct codebooks *c, const struct tensor *x, const struct tensor *h);
int codebooks_search_both(struct codebooks *c, const struct tensor *h, double *gain);

/* diag H of the statistics on the host, or *out = NULL when there are none; the caller frees it. */
int codebooks_diagonal(const struct solve_context *context, const struct layer_stats *stats, float **out);
/* What codebooks_start and what follows it cost; without operations beyond those of `iterations` of k-means. */
void codebooks_cost(const struct gpu_codebook *spec, const struct quant_shape *shape, int64_t iterations,
                    struct quant_cost *out);
/* What codebooks_couple adds to that, with `epochs` of searches. */
void codebooks_cost_both(const struct gpu_codebook *spec, const struct quant_shape *shape, double epochs,
                         struct quant_cost *out);

/* ERR_INCOMPATIBLE_OPTIONS, about in_group_size, where it does not divide a row's inputs. */
int codebooks_check_group(int64_t in_group_size, int64_t cols);
