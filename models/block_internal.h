#pragma once
/* What block_fold.c remembers for experts' modules that are not loaded, and block_load.c does to them. Not for other
 * files. */

#include "models/block.h"

/* What an expert's module was given by a fold: the same again whenever it is loaded. */
struct block_factors {
    struct block_factors *next;
    int module;
    bool rows; /* of its rows and its bias, else of its columns */
    int64_t count;
    float factors[];
};

/* Give a module that was just loaded what folds gave it before, in their order. */
int block_apply_factors(struct block *block, int module, const struct gpu *gpu, struct gpu_stream *stream);
void block_free_factors(struct block *block);
