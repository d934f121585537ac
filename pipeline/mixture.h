#pragma once
/* What the linears of a mixture (recipe.h) become: checks from headers alone, the choice by a sensitivity pass, and how
 * it is kept. */

#include "formats/format.h"
#include "pipeline/recipe.h"
#include "pipeline/sensitivity.h"

#define MIXTURE_FILE "mixture.json" /* in the run's folder */

/* As long as no run has chosen: each set of the model's modules another of its candidates in turn, of those that the
 * format takes (NULL: it is not known yet). recipe: whose mixture it is, bound. */
int mixture_assume(const struct recipe *recipe, const struct format *format, const struct model *model);
/* What the request asks for, against what candidates and format can reach; errors are named under
 * "/quantization/mixed_precision". *bytes: of all quantized modules in the artifact under the budget. */
int mixture_check(const struct recipe *recipe, const struct format *format, const struct model *model,
                  struct validation_errors *errors, int64_t *bytes);
/* What is measured for the choice. */
int mixture_pass_request(const struct recipe *recipe, const struct format *format, const struct model *model,
                         struct sensitivity_request *out);
/* Choose by a table. */
int mixture_choose(const struct recipe *recipe, const struct format *format, const struct model *model,
                   const struct sensitivity_table *table);
struct run;
/* Before the first block of an attempt: measure the candidates (sensitivity_pass), choose, and save the choice in the
 * run's folder. An attempt that resumes finds the measurements there and so chooses the same. Nothing where the recipe
 * has no mixture. */
int mixture_measure(const struct run *attempt);
/* The choice, in MIXTURE_FILE of a folder. load: ERR_NOT_FOUND where there is none that fits the mixture. */
int mixture_save(const struct mixture *mixture, const char *directory);
int mixture_load(struct mixture *mixture, const char *directory);
/* The choice for a manifest: {"bits_per_weight", "predicted_kl", "exact", "candidates": [names], "modules": {name:
 * [candidate, kl]}}; summary: {"candidates": [{"name", "modules"}]} in place of these two. New reference. */
json_t *mixture_json(const struct mixture *mixture);
json_t *mixture_summary(const struct mixture *mixture);
