#pragma once
/* Files of output moments in the run's folder (moments.h): "moments-<layer>.safetensors" has a tensor for each linear
 * that has them, and MOMENTS_FILE says, once the pass is done, what it was made of. */

#include "models/block_grad.h"
#include "pipeline/run.h"

#define MOMENTS_FILE "moments.json"

/* What the files depend on, as a digest: the float model, the set, and which modules have them (their names), but no
 * parameters of methods, so that all rungs of a ladder share them; whether a pass under that key is done, and each of
 * its files is complete; it is. */
int moments_key(const struct run *run, const struct calibration_set *set, const json_t *modules,
                char key[DIGEST_HEX_SIZE]);
bool moments_are_there(const char *directory, int64_t layers, const char *key);
int moments_finish(const char *directory, const char *key);
/* The file of a block, whose sums get a mean diagonal of 1. ERR_NON_FINITE_VALUE names the linear. */
int moments_write(struct run *run, const struct block *block, const struct block_grads *grads);
/* keep O + (1 - keep) I of a linear of the open block, F32 [N,N]. The caller frees it. ERR_SOURCE_CORRUPT where the
 * file is not what it should be. */
int moments_read(struct run *run, const struct linear_job *job, double keep, struct tensor *out);
/* No further rung of a job needs those in its folder. */
void moments_remove(const char *directory, int64_t layers);
