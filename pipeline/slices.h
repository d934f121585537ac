#pragma once
/* Blocks through which nothing passes, solved a slice of rows at a time. */

#include "pipeline/block_writer.h"
#include "pipeline/run.h"

struct report_rows;

#define SLICES_ELEMENTS ((int64_t)1 << 20) /* of a slice: with what is made of them, as much as caches hold */

/* Rows of a slice of a weight of that shape; of the last one maybe fewer. */
int64_t slices_rows(int64_t rows, int64_t cols);
/* Whether linears of so many inputs may be solved so. */
bool slices_take(const struct recipe_stage *solver, const struct qscheme *scheme, int64_t cols);
/* Whether block `index` may: no set passes, the device works in the host's memory, and all solvers take rows alone. */
bool slices_fit(struct run *run, int64_t index);
/* Read, solve and measure the open block's modules. Outputs and rows are the caller's, also after a failure. */
int block_solve_slices(struct run *run, struct block_outputs *outputs, struct report_rows *rows);
