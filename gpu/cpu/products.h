#pragma once
/* Products of BF16 operands with F32 sums, by instructions that a CPU may have (linear, gram and cross; solves never).
 *
 * Operands are rounded to BF16 and packed once, in tiles of 16 rows (of x, of w, or columns of what a Gram matrix is
 * made of) by 32 elements of the sum, padded with zeros. A tile is 16 x 16 words of two neighbours in the sum: on the
 * left the words of a row lie side by side, on the right those of 16 rows do (the words' transpose), as TDPBF16PS and
 * VDPBF16PS read them. Packed blocks of 16 rows have their tiles one after the other.
 *
 * An element of the product is one sum, tile after tile in the order of the sum's index and in F32 between tiles, so
 * its bits depend on the instructions alone, not on how a product is cut into tasks. */

#include "gpu/tensor.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PRODUCTS_ROWS 16                             /* of a tile */
#define PRODUCTS_SUM 32                              /* elements of the sum in a tile */
#define PRODUCTS_TILE (PRODUCTS_ROWS * PRODUCTS_SUM) /* elements of a tile */
#define PRODUCTS_BLOCK (2 * PRODUCTS_ROWS)           /* rows and columns that are multiplied at once */

/* One set of instructions. */
struct products {
    const char *name;    /* "amx", "avx512_bf16" */
    void (*begin)(void); /* in each task, before the first block, and after the last one */
    void (*end)(void);
    /* c [32, 32] = or += the sum over `tiles` of the left operand's two blocks of 16 rows, a[0] and a[1], times the
     * right one's, b[0] and b[1]. ld: floats between rows of c. */
    void (*block)(int64_t tiles, const uint16_t *const a[2], const uint16_t *const b[2], float *c, int64_t ld,
                  bool add);
};

enum products_side { PRODUCTS_LEFT, PRODUCTS_RIGHT };

/* What this CPU has, the fastest; NULL: none, or QUANTD_CPU_LEVEL asks for a lower level (kernels.h). Asks the kernel
 * for AMX's registers once. Any thread. */
const struct products *products_choose(void);
/* Whether they are faster than F32 with AVX-512: AMX is, VDPBF16PS where two of it are as fast as two FMA (Zen), not on
 * Intel's CPUs, which multiply as many numbers by FMA (measured: 95 GFLOP/s against 134 on a Xeon with both). */
bool products_faster(const struct products *products);

/* Pack `rows` (1..16) rows of x, which are `ld` elements of `dtype` (F32, F16, BF16) apart and have `count` elements of
 * the sum each, into ceil(count / 32) tiles. */
void products_pack_rows(enum products_side side, uint16_t *to, enum dtype dtype, const void *x, int64_t ld,
                        int64_t rows, int64_t count);
/* The same of `rows` (1..16) columns of x, F32, which have `count` elements of the sum each, `ld` elements apart. */
void products_pack_columns(enum products_side side, uint16_t *to, const float *x, int64_t ld, int64_t rows,
                           int64_t count);
