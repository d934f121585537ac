#pragma once
/* Parts of recipe_parse. Inside the jobs floor only; any thread. */

#include "jobs/recipe.h"

/* One stage from the members of object that are its own. solves: it is the one whose codes are taken; a stage that only
 * rewrites reads no more of its parameters than that needs, and they are not held against each other. */
void recipe_parse_stage(const struct quantizer *quantizer, const json_t *object, bool solves, const char *pointer,
                        struct faults *faults, struct recipe_stage *out);
/* sound: the request's own parameters are; else they would be faulted here again. */
void recipe_parse_overrides(const json_t *quantization, bool sound, const char *pointer, struct faults *faults,
                            struct recipe *recipe);
/* Every pattern of the request into recipe->patterns. */
void recipe_collect_patterns(const json_t *quantization, const char *pointer, struct faults *faults,
                             struct recipe *recipe);
