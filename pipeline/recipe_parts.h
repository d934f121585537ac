#pragma once
/* Parts of recipe_parse. Inside this folder only; any thread. */

#include "pipeline/recipe.h"

/* One stage from the members of object that are its own. solves: it is the one whose codes are taken; a stage that only
 * rewrites reads no more of its parameters than that needs, and they are not held against each other. */
void recipe_parse_stage(const struct quantizer *quantizer, const json_t *object, bool solves, const char *pointer,
                        struct validation_errors *errors, struct recipe_stage *out);
/* sound: the request's own parameters are; else they would be faulted here again. */
void recipe_parse_overrides(const json_t *quantization, bool sound, const char *pointer,
                            struct validation_errors *errors, struct recipe *recipe);
/* The overrides next to `all`, which says every parameter of the rest. An override starts from the request, where
 * presets and methods have defaults of their own; in `all` these are filled in, so an override says itself where its
 * parameters differ. New reference. */
json_t *recipe_overrides_json(const struct recipe *recipe, const json_t *all);
/* Every pattern of the request into recipe->patterns. */
void recipe_collect_patterns(const json_t *quantization, const char *pointer, struct validation_errors *errors,
                             struct recipe *recipe);
