#pragma once
/* What a run stores, from headers alone: the tensors of its artifact, and the files that these are packed from. Bytes.
 * Any thread. */

#include "pipeline/check.h"

struct disk_plan {
    bool known;          /* else nothing below is */
    int64_t parameters;  /* of the modules that are quantized */
    int64_t quantized;   /* these modules in the artifact, with scales, zero points and tables */
    int64_t artifact;    /* all tensors of the artifact, 0: there is none */
    int64_t blocks;      /* files of finished blocks, codes unpacked; they stay until the artifact is published */
    int64_t activations; /* in files beyond the budget of memory, and saved ones (run_plan.h); the caller sets it */
};

/* modules: as recipe_modules lists them, of a format that takes them. */
int disk_plan(const struct recipe *recipe, const struct format *format, const struct model *model,
              const struct format_module *modules, int count, struct disk_plan *out);
/* The tensors of one module in the artifact. */
int64_t disk_plan_module(const struct format *format, const struct format_module *module);
/* In the artifact, with all that is stored in addition to the codes; 0: nothing is quantized. */
double disk_plan_bits(const struct disk_plan *plan);
/* While the artifact is written, which is when most is there. */
int64_t disk_plan_max(const struct disk_plan *plan);
