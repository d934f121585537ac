#pragma once
/* The linears of one site, solved. */

#include "pipeline/block_writer.h"
#include "pipeline/run.h"

/* Solve the site's linears from its statistics (NULL = no calibration), put the results in place and measure them. */
int site_solve(struct run *run, struct block *block, enum site site, const struct layer_stats *stats,
               struct block_outputs *outputs, struct report_rows *rows);
/* The stage that solves a linear of the open block and the scheme it gets; NULL: it stays in float. */
const struct recipe_stage *site_solver(struct run *run, enum linear_role role, struct qscheme *scheme);
