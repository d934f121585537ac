#pragma once
/* What operations of the CPU backend take for themselves: scratch memory of its stream, which grows to the largest that
 * was ever needed. Bytes, from shapes alone; threads: of the device's pool. Other backends have their own, and no
 * formulas: where the device computes elsewhere, threads is 0 and so is the answer. Any thread. The test of the backend
 * holds it against what is measured. */

#include <stdbool.h>
#include <stdint.h>

int64_t gpu_scratch_attention(int threads, int64_t length, int64_t reach);
/* A product with a stored weight [rows, cols] that is not F32. */
int64_t gpu_scratch_linear(int threads, int64_t cols);
/* On a device whose products are in BF16: one with a weight [rows, cols], and a Gram matrix of so many columns. */
int64_t gpu_scratch_rounded_linear(int threads, int64_t tokens, int64_t rows, int64_t cols);
int64_t gpu_scratch_rounded_gram(int threads, int64_t tokens, int64_t cols);
int64_t gpu_scratch_factor(int threads, int64_t n);
/* Of a weight [rows, cols] on a grid of `group_size` columns. */
int64_t gpu_scratch_sweep(int threads, int64_t rows, int64_t cols, int64_t group_size);
int64_t gpu_scratch_descend(int threads, int64_t rows, int64_t cols, int64_t group_size);
int64_t gpu_scratch_descend_both(int threads, int64_t rows, int64_t cols, int64_t group_size);
int64_t gpu_scratch_clip(int threads, int64_t group_size);
int64_t gpu_scratch_solve(int threads, int64_t cols);
int64_t gpu_scratch_output_error(int threads, int64_t rows, int64_t cols);
/* Of a table of 2^bits values for each row. */
int64_t gpu_scratch_cluster(int threads, int64_t cols, int bits);
/* Of `books` codebooks of 2^bits vectors of `group` columns: the search for codes, and sums of what has a code. */
int64_t gpu_scratch_code_search(int threads, int64_t rows, int64_t cols, int64_t group, int books, int bits);
int64_t gpu_scratch_code_reduce(int threads, int64_t group, int books, int bits);
