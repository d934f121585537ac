#pragma once
/* Parts of recipe_parse. Inside this folder only; any thread. */

#include "pipeline/recipe.h"

/* Names to stages and tuner, without parameters, and to the recipe's name; false: with errors. */
bool recipe_parse_methods(const json_t *method, const char *pointer, struct validation_errors *errors,
                          struct recipe *out);
/* One stage from the members of object that it has rows for. solves: it makes the codes; the parameters of a stage that
 * only rewrites are not checked against each other, since it does not use them all. */
void recipe_parse_stage(const struct quantizer *quantizer, const json_t *object, bool solves, const char *pointer,
                        struct validation_errors *errors, struct recipe_stage *out);
void recipe_stage_deinit(struct recipe_stage *stage); /* zeroed is fine */
/* The request's parameters with those of a part of it, such as an override, in their place: the object that the part's
 * stage is parsed from. New reference. */
json_t *recipe_merge(const struct quantizer *solver, const json_t *quantization, const json_t *part);
/* A part's members other than "match", "skip" and "method" are parameters of its solver, and none of the model. */
void recipe_check_part(const struct quantizer *solver, const json_t *item, const char *pointer,
                       struct validation_errors *errors);
/* What a pass over the model tries, of a recipe that measures, from its parameters, to recipe->candidates. */
void recipe_parse_candidates(const char *pointer, struct validation_errors *errors, struct recipe *recipe);
/* valid: the request's own parameters are; else their errors would be reported again here. */
void recipe_parse_overrides(const json_t *quantization, bool valid, const char *pointer,
                            struct validation_errors *errors, struct recipe *recipe);
/* The overrides, completed so that they mean the same next to `all`, which has every parameter filled in: an override
 * starts from the request, and where a preset or another method would have given it another value than `all` has, it
 * gets that value itself. New reference. */
json_t *recipe_overrides_json(const struct recipe *recipe, const json_t *all);
/* Every pattern of the request into recipe->patterns. */
void recipe_collect_patterns(const json_t *quantization, const char *pointer, struct validation_errors *errors,
                             struct recipe *recipe);
/* Add to `item`, an override or a candidate, those of its solver's parameters that differ from `all`, which has every
 * parameter of the request filled in. */
void recipe_fill_part(const struct recipe_stage *solver, const json_t *all, json_t *item);
