#pragma once
/* The modules of one input group, solved. */

#include "pipeline/block_writer.h"
#include "pipeline/run.h"

struct report_facts;

/* Solve the group's modules from its statistics (NULL = no calibration), put the results in place and measure them. */
int group_solve(struct run *run, struct block *block, int group, const struct layer_stats *stats,
                struct block_outputs *outputs, struct report_rows *rows);
/* A solved module that was not put in place: `placed` is the block's with the quantized weight and input, all of it
 * valid during the call only; of job the result and its codes may be taken, by zeroing what was taken. */
typedef int (*solve_receiver)(void *data, int module, const struct block_module *placed, struct linear_job *job,
                              const struct report_facts *facts);
/* Solve and measure the group's modules as group_solve does, and leave the block as it is. */
int group_try(struct run *run, struct block *block, int group, const struct layer_stats *stats, solve_receiver receive,
              void *data);
/* The errors of what a job's result stands for, from `weight`, F32 on the device: to facts and, unless the method left
 * them there, to job->dequantized and, of an integer grid, job->scale and job->zero, the caller's to free. */
int solved_measure(struct run *run, const struct tensor *weight, struct linear_job *job,
                   const struct layer_stats *stats, struct report_facts *facts);
/* The first part of it: what the result stands for to job->dequantized, and its difference from `weight`. */
int solved_residual(struct run *run, const struct tensor *weight, struct linear_job *job, struct gpu_residual *out);
/* What the codes of an output of the open block stand for, F32 on the device: the weight that group_solve put in place.
 */
int solved_weight(struct run *run, struct block_outputs *outputs, int i, struct tensor *weight);
/* From here on the block sees this module's input as the runtime quantizes it, by the module's result. */
int solved_input(struct run *run, struct block_module *module, const struct qtensor *q);
/* The stage that solves a module of the open block and the scheme it gets; NULL: it stays in float. */
const struct recipe_stage *module_solver(struct run *run, int module, struct qscheme *scheme);
