#pragma once
/* Parts of recipe_parse. Inside the jobs floor only; any thread. */

#include "jobs/recipe.h"

/* One stage from the members of object that are its own. */
void recipe_parse_stage(const struct quantizer *quantizer, const json_t *object, const char *pointer,
                        struct faults *faults, struct recipe_stage *out);
/* sound: the request's own parameters are; else they would be faulted here again. */
void recipe_parse_overrides(const json_t *quantization, bool sound, const char *pointer, struct faults *faults,
                            struct recipe *recipe);
/* Every pattern of the request into recipe->patterns. */
void recipe_collect_patterns(const json_t *quantization, const char *pointer, struct faults *faults,
                             struct recipe *recipe);
