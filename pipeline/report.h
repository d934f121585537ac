#pragma once
/* Per-layer rows and job totals. One row per quantized linear; not finite = null plus nonfinite:true. */

#include "gpu/gpu.h"
#include "quantizers/input_range.h"
#include "quantizers/quantizer.h"

#include <jansson.h>
#include <stdint.h>

/* Column names in report order (version 1), NULL-terminated. */
extern const char *const report_columns[];

/* Static inputs of a linear. */
struct report_input {
    bool known; /* there are such */
    struct input_range range;
    float absmax, rms;
    bool outlier; /* few inputs reach far beyond the others */
};

struct report_facts {
    int64_t index; /* running number of the row */
    int64_t layer;
    const char *method;
    const struct linear_job *job; /* solved */
    struct gpu_residual residual;
    bool has_output;
    double output_error, output_signal; /* tr(dW H dW^T), tr(W H W^T) */
    int64_t samples, tokens;
    struct report_input input;
};

/* New reference. */
json_t *report_row(const struct report_facts *facts);

/* Sums over rows for the report's "totals": weighted relative errors, bits per weight, counts. New reference. */
json_t *report_totals(const json_t *rows);
/* The five rows with the largest output_relative_mse (relative_mse where that is null): module and value. */
json_t *report_worst(const json_t *rows);
