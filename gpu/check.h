#pragma once
/* Checks of an operation's arguments, the same for every backend, and the small arithmetic of tiles. Private to gpu/.
 * Each returns 0 or raises ERR_INTERNAL naming the operation and the tensor. Any thread. */

#include "gpu/gpu.h"

#define CHECK_SWEEP_BLOCK_MAX 1024 /* columns of a sweep's block */

/* A tensor as a matrix: the last dimension against all before it. */
int64_t matrix_cols(const struct tensor *tensor);
int64_t matrix_rows(const struct tensor *tensor);
/* ERR_INTERNAL unless tensor has this type and matrix shape (-1 = any), each side below 2^31. */
int check_matrix(const char *op, const char *name, const struct tensor *tensor, enum dtype dtype, int64_t rows,
                 int64_t cols);
/* ERR_INTERNAL unless tensor is F32 with `count` elements in any shape. */
int check_vector(const char *op, const char *name, const struct tensor *tensor, int64_t count);
/* ERR_INTERNAL unless the grid is sound for `cols` inputs. */
int check_grid(const char *op, const struct gpu_grid *spec, int64_t cols);

/* A permutation of 0..n-1 in host memory, or ERR_INTERNAL; NULL is the identity. */
int check_order(const char *op, const int32_t *order, int64_t n);
/* F32, F16 or BF16 of that matrix shape. */
int check_weight(const char *op, const char *name, const struct tensor *w, int64_t rows, int64_t cols);
int check_attention(const struct tensor *o, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                    const struct gpu_attention *spec);
int check_input(const struct tensor *y, const struct tensor *x, const struct tensor *keep,
                const struct gpu_input *spec);
/* The search parameters of a grid. */
int check_search(const struct gpu_grid *spec);
/* clip and hqq: their operands. */
int check_clip(const struct tensor *scale, const struct tensor *zero, const struct tensor *w, const struct tensor *h,
               const struct gpu_grid *spec);
int check_descend(const struct tensor *codes, const struct tensor *scale, const struct tensor *zero,
                  const struct tensor *target, const struct tensor *h, const struct gpu_grid *grid,
                  const struct gpu_descend *spec);
int check_combine(const struct tensor *y, const struct tensor *a, const struct tensor *b);
int check_cross(const struct tensor *c, const struct tensor *a, const struct tensor *b);
int check_solve(const struct tensor *y, const struct tensor *g, const struct tensor *u, const int32_t *order);
int check_hqq(const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
              const struct gpu_grid *spec);
/* codes may be NULL. */
int check_rounding(const char *op, const struct tensor *codes, const struct tensor *w, const struct tensor *scale,
                   const struct tensor *zero, const struct gpu_grid *spec);
int check_sweep(const struct tensor *codes, const struct tensor *w, const struct tensor *u, const struct tensor *scale,
                const struct tensor *zero, const int32_t *order, int64_t block_size, const struct gpu_grid *spec);

int check_blocks(const struct tensor *blocks, const struct tensor *w, const struct tensor *importance,
                 const struct gpu_blocks *spec);
int check_cluster(const struct tensor *table, const struct tensor *codes, const struct tensor *w,
                  const struct tensor *importance, const struct tensor *apart, int bits, enum dtype stored);
/* Entries, a matrix [N,K] beside them, scales (or NULL) and tables of one codebook scheme. */
int check_codebook(const char *op, const struct tensor *entries, const struct tensor *w, const struct tensor *scale,
                   const struct tensor *table, const struct gpu_codebook *spec);

/* Codes (or NULL), a matrix beside them and a scale for each tile. */
int check_tiles(const char *op, const struct tensor *codes, const struct tensor *w, const struct tensor *scale,
                const struct gpu_tiles *spec);

int check_cache(const struct tensor *y, const struct tensor *x, const struct gpu_cache *spec);
int check_attention_error(const struct tensor *q, const struct tensor *k, const struct tensor *v,
                          const struct tensor *kq, const struct tensor *vq, const struct gpu_attention *spec,
                          int64_t recent);

static inline int64_t tiles_of(int64_t count, int64_t tile)
{
    return (count + tile - 1) / tile;
}

static inline int64_t tile_size(int64_t count, int64_t tile, int64_t index)
{
    int64_t left = count - index * tile;
    return left < tile ? left : tile;
}
