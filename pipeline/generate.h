#pragma once
/* Greedy continuations of the same prompts by both models, compared. */

#include "pipeline/run.h"

/* After the last block, with all of them committed. The float model's continuations are saved in the run's folder,
 * where a later run of the same prompts finds them. The token set and its stores exist during the call only. */
int generate_compare(struct run *run, struct generation_result *out);

/* --- parts, for tests */
/* How many of the `tokens` of two continuations agree before the first that differs. */
int64_t generate_agreeing(const int32_t *a, const int32_t *b, int64_t tokens);
/* The share of pairs of adjacent tokens that are a repetition of an earlier one, 0 (none) up to almost 1; of a single
 * token 0. */
double generate_repetition(const int32_t *ids, int64_t tokens);
/* What one pass over [prompt, continuation] fixes. ids: the continuation as it was guessed for the pass, of which the
 * first `fixed` tokens are known to be greedy; greedy: what the pass makes the largest logit for each place. What is
 * wrong is replaced by what the pass says, which for the first wrong token is final and for later ones a better guess.
 * Returns how many are fixed now, more than before. */
int64_t generate_fix(int32_t *ids, const int32_t *greedy, int64_t fixed, int64_t tokens);
