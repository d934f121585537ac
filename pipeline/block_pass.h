#pragma once
/* The calibration set through the open block. */

#include "pipeline/block_writer.h"
#include "pipeline/run.h"

/* Quantize every module of the open block in true-sequential order; results go to outputs, report rows to rows. The
 * block's weights are the dequantized ones afterwards, and its inputs are quantized where the scheme says so. */
int block_solve(struct run *run, struct block *block, struct block_outputs *outputs, struct report_rows *rows);
