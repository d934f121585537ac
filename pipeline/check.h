#pragma once
/* A recipe checked against its model, from headers alone: part of admission. Any thread. */

#include "formats/format.h"
#include "pipeline/recipe.h"

/* Match the recipe's patterns against the model's modules; later look-ups use these answers. */
int recipe_bind(struct recipe *recipe, const struct model *model);
/* The linears that will be quantized, in model order, with the scheme each gets, scales as the format stores them
 * (NULL: it is not chosen yet). The caller frees the array. */
int recipe_modules(const struct recipe *recipe, const struct format *format, const struct model *model,
                   struct format_module **modules, int *count);
/* What the format's runtimes will not do with the result: {"code", "message"} each. */
int recipe_warnings(const struct recipe *recipe, const struct format *format, const struct model *model,
                    json_t *warnings);
/* Binds. False, with the errors, when matching the patterns costs too much. */
bool check_costs(struct recipe *recipe, const struct model *model, struct validation_errors *errors);
/* Every pattern of the request, and every switch that a method has for some modules, changes something on this model:
 * one that does not is a typo or a misunderstanding. */
void check_patterns(const struct recipe *recipe, const struct model *model, struct validation_errors *errors);
/* The shape of every module takes its parameters. */
void check_shapes(const struct recipe *recipe, const struct model *model, struct validation_errors *errors);
/* The format carries the modules and the cache. *format: NULL where the request names none; the first that does, and
 * that all targets (NULL: none) load, is chosen then, or if there is no such one, the first that does. */
void check_format(const struct recipe *recipe, const struct format **format, const struct model *model,
                  struct format_module *modules, int count, const struct format_targets *targets,
                  struct validation_errors *errors);
