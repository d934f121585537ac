#pragma once
/* Report rows: one per quantized linear. A number that does not exist or is not finite is NAN; `nonfinite` says whether
 * any number of the row was not finite. */

#include "gpu/gpu.h"
#include "pipeline/anatomy.h"
#include "quantizers/input_range.h"
#include "quantizers/quantizer.h"

#include <stddef.h>
#include <stdint.h>

struct report_row {
    int64_t index; /* running number of the row */
    int64_t layer;
    char module[128];
    int64_t rows, cols, parameters;
    char method[32];
    int64_t bits, group_size; /* -1: one group a row */
    int64_t sym;
    double bits_per_weight, loss, unrefined_loss, refined_loss, two_sided_start, two_sided_loss;
    char target[16]; /* "weight", "float_model" */
    double mse, rounding_mse, clipping_mse, clipped_fraction, relative_mse, sqnr_db, max_abs_error, cosine_similarity;
    double output_relative_mse, error_alignment, weight_absmax;
    double weight_kurtosis, weight_max_to_median, weight_outlier_fraction, weight_channel_max_to_median;
    double full_range_mse, part_range_ratio;
    double input_channel_max_to_median, input_evenness;
    int64_t error_channels, signal_channels; /* -1: no inputs are known */
    char top_channels[96];
    double input_scale, input_range, input_error, input_error_absmax, input_absmax_to_rms;
    int64_t input_outlier; /* -1: there are no static inputs */
    double damp_percent_used;
    int64_t dead_columns, samples, tokens;
    char fallback[96], note[128]; /* "": null */
    int64_t nonfinite;
    double seconds;
};

enum report_type {
    REPORT_INT,
    REPORT_REAL,  /* double; NAN: null */
    REPORT_TEXT,  /* char[]; "": null */
    REPORT_FLAG,  /* int64_t: 0, 1; -1: null */
    REPORT_COUNT, /* int64_t; -1: null */
};
struct report_column {
    const char *name;
    enum report_type type;
    size_t offset, size; /* in struct report_row */
};

/* In report order (version 1); the last has no name. */
extern const struct report_column report_columns[];

struct report_rows {
    struct report_row *list;
    int count;
};
/* At the end; ERR_HOST_OUT_OF_MEMORY. */
int report_rows_add(struct report_rows *rows, const struct report_row *row);
void report_rows_deinit(struct report_rows *rows); /* zeroed is fine */

/* Static inputs of a linear. */
struct report_input {
    bool known; /* there are some */
    struct input_range range;
    float absmax, rms;
    bool outlier; /* a few inputs are far larger than the others */
};

struct report_facts {
    int64_t index; /* running number of the row */
    int64_t layer;
    const char *method;
    const struct linear_job *job; /* solved */
    struct gpu_residual residual;
    struct anatomy anatomy;
    bool has_output;
    double output_error, output_signal; /* tr(dW H dW^T), tr(W H W^T) */
    int64_t samples, tokens;
    struct report_input input;
};

void report_row_of(const struct report_facts *facts, struct report_row *out);
