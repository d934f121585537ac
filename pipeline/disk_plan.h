#pragma once
/* What a run stores, from headers alone: the tensors of its artifact, and the files that these are packed from. Bytes.
 * Any thread. */

#include "pipeline/check.h"

struct disk_plan {
    bool known;         /* else nothing below is */
    int64_t parameters; /* of the modules that are quantized */
    int64_t quantized;  /* these modules in the artifact, with scales, zero points and tables */
    int64_t artifact;   /* all tensors of the artifact, 0: there is none */
    int64_t extra;      /* of these in files that no runtime loads */
    int64_t blocks;     /* files of finished blocks; they stay until the artifact is published */
    int64_t last;       /* of these about one block's, the last */
    /* Activations in files, as run_plan.h has them; the caller sets these. */
    int64_t activations; /* next to all blocks but the last */
    int64_t ending;      /* next to all of them, when the last is done */
    int64_t kept;        /* next to the artifact */
};

/* modules: as recipe_modules lists them, of a format that takes them. */
int disk_plan(const struct recipe *recipe, const struct format *format, const struct model *model,
              const struct format_module *modules, int count, struct disk_plan *out);
/* The tensors of one module in the artifact. */
int64_t disk_plan_module(const struct format *format, const struct format_module *module);
/* In the artifact, with all that is stored in addition to the codes; 0: nothing is quantized. */
double disk_plan_bits(const struct disk_plan *plan);
/* The most that is there at a time: while blocks are solved, or while the artifact is written. */
int64_t disk_plan_max(const struct disk_plan *plan);
