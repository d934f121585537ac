#pragma once
/* What a method that only looks has to say of a block (struct quantizer.analyse, measures). */

#include "models/cache.h"

#include <stdbool.h>
#include <stdint.h>

/* One way to quantize a linear, and what it would cost: a row of the pipeline's table of sensitivities, which explains
 * the members. */
struct analysis_linear {
    char module[128]; /* "": the row is not about a linear */
    char method[32];
    int64_t set, bits, group_size, parameters;
    double bits_per_weight, relative_mse, output_mse, kl, predicted; /* NAN: not known */
    bool measured;
};

/* One way to keep a block's keys and values, and what it would cost; or one to quantize a linear. Relative errors: NAN
 * where they are not finite. */
struct analysis_row {
    int64_t layer;
    char scheme[64];
    struct analysis_linear linear;
    double bits_per_value;
    double key_relative_mse, value_relative_mse, score_relative_mse, weight_relative_mse, output_relative_mse;
    int64_t tokens;             /* that it was measured on */
    struct cache_scales scales; /* count 0: grids are dynamic */
};

struct analysis_rows {
    struct analysis_row *list;
    int count;
};

/* A zeroed row at the end, valid until the next one is added; NULL, raised: no memory. */
struct analysis_row *analysis_rows_add(struct analysis_rows *rows);
void analysis_rows_deinit(struct analysis_rows *rows); /* zeroed is fine */
