#pragma once
/* Rows of reports of modules that are made up. */

#include "jobs/rows.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* A module of `parameters` weights in 256 columns, 4 bits in groups of 128, whose error is rounding's alone. */
static inline struct report_row plain_row(const char *module, int64_t layer, int64_t parameters, double error)
{
    struct report_row row = {.layer = layer,
                             .rows = parameters / 256,
                             .cols = 256,
                             .parameters = parameters,
                             .bits = 4,
                             .group_size = 128,
                             .sym = 1,
                             .mse = 1e-4,
                             .rounding_mse = 1e-4,
                             .relative_mse = error,
                             .output_relative_mse = error,
                             .error_alignment = 1,
                             .weight_kurtosis = 3,
                             .weight_max_to_median = 6,
                             .weight_outlier_fraction = 5e-5,
                             .weight_channel_max_to_median = 1.5,
                             .full_range_mse = NAN,
                             .part_range_ratio = 0.7,
                             .input_channel_max_to_median = 2,
                             .input_evenness = 0.9,
                             .error_channels = 110,
                             .signal_channels = 100,
                             .input_error = NAN,
                             .input_absmax_to_rms = NAN,
                             .input_outlier = -1,
                             .damp_percent_used = 0.01,
                             .tokens = 16384};

    (void)snprintf(row.module, sizeof(row.module), "%s", module);
    (void)snprintf(row.method, sizeof(row.method), "gptq");
    (void)snprintf(row.top_channels, sizeof(row.top_channels), "12:0.02 40:0.015 7:0.011");
    return row;
}

#define BLOCKS 4
/* The linears of a small Llama, all alike. */
static inline int plain_rows(struct report_row *rows)
{
    static const struct {
        const char *name;
        int64_t parameters;
    } kinds[] = {{"self_attn.q_proj", 65536}, {"self_attn.k_proj", 65536}, {"self_attn.v_proj", 65536},
                 {"self_attn.o_proj", 65536}, {"mlp.gate_proj", 262144},   {"mlp.up_proj", 262144},
                 {"mlp.down_proj", 262144}};
    int count = 0;

    for (int layer = 0; layer < BLOCKS; layer++) {
        for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
            char name[64];
            (void)snprintf(name, sizeof(name), "model.layers.%d.%s", layer, kinds[k].name);
            rows[count] = plain_row(name, layer, kinds[k].parameters, 0.01);
            rows[count].index = count;
            count++;
        }
    }
    return count;
}
#define PLAIN_ROWS (7 * BLOCKS)
