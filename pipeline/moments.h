#pragma once
/* Second moments of the gradients with respect to the outputs of linears, O = sum dy dy^T over tokens: what an error of
 * an output costs the model, by which methods weigh rows against each other (quantizer.h, `output_tokens`).
 *
 * One pass of the float model before any block is solved: forward with the input of each block kept, then the labels,
 * drawn from the model's own distribution (so that O is the Fisher information: Martens and Grosse 2015, arXiv
 * 1503.05671), and the blocks in reverse. A finished pass is found again (moments_file.h). Same request, seed and
 * device: same bytes. */

#include "pipeline/run.h"

/* Make the files that the recipe asks for, unless they are there. The mixture has been chosen. */
int moments_pass(const struct run *attempt);
