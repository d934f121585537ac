#pragma once
/* Where the error of a job comes from, read from its report's rows. */

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ANATOMY_TEXT 640 /* bytes of a sentence */

/* What makes most of a module's error, the most urgent first. */
enum anatomy_cause {
    CAUSE_TOKENS,   /* too few calibration tokens for its inputs */
    CAUSE_DEAD,     /* inputs that calibration never used */
    CAUSE_INPUTS,   /* static input scales, which a few inputs determine */
    CAUSE_CLIPPING, /* weights beyond the grid's range */
    CAUSE_CHANNELS, /* a few input channels */
    CAUSE_WEIGHTS,  /* weights far from the others of their group */
    CAUSE_ROUNDING, /* the grid's step, alike for all */
    CAUSE_COUNT
};
extern const char *const anatomy_causes[]; /* "tokens", ..., NULL-terminated */

/* One row. A number that the row does not have is NAN, or -1. Texts are in the row. */
struct anatomy_row {
    const char *module, *method;
    char kind[64]; /* "mlp.down_proj": the path below its layer; of an expert "mlp.experts.*.down_proj" */
    int64_t layer, cols, parameters, bits, group_size, tokens, dead_columns, error_channels, top_channel;
    double error;                           /* output_relative_mse, or relative_mse where no row has the former */
    double loss;                            /* error * parameters */
    double clipping, clipped;               /* the share of its error, of its weights */
    double alignment, outliers, part_range; /* error_alignment, weight_outlier_fraction, part_range_ratio */
    double input_channels, evenness, top;   /* input_channel_max_to_median, input_evenness; the first channel's share */
    double full_range, square, kurtosis;    /* full_range_mse; mean square of its weights; weight_kurtosis */
    double input_error, input_absmax_to_rms; /* of static inputs */
    bool input_outlier;
    enum anatomy_cause cause;
};

struct anatomy_rows {
    struct anatomy_row *list; /* in the order of the report */
    size_t count;
    double loss, parameters; /* sums */
    bool outputs;            /* errors are of outputs */
};

/* Rows that have their kind, or their layer, in common. */
struct anatomy_part {
    const struct anatomy_row *first;
    int64_t modules;
    double loss, parameters; /* sums */
};

/* ERR_HOST_OUT_OF_MEMORY. rows must outlive *out. */
int anatomy_read(const json_t *rows, struct anatomy_rows *out);
void anatomy_deinit(struct anatomy_rows *rows); /* zeroed is fine */
/* The mean error by parameters; 0 without rows. */
double anatomy_mean(const struct anatomy_rows *rows);
/* By kind, or else by layer, in the order of first rows, into `parts`, which has space for one a row. Returns their
 * number. */
size_t anatomy_gather(const struct anatomy_rows *rows, bool kinds, struct anatomy_part *parts);
/* Whether its solver adjusts codes by second moments of the inputs, which takes tokens. */
bool anatomy_solves_by_moments(const struct anatomy_row *row);
/* The next width above `bits` of those that all formats of integers carry; 0: there is none. */
int64_t anatomy_next_bits(int64_t bits);
/* What is left of the error of rounding at `bits` with `more` of them. */
double anatomy_bits_ratio(int64_t bits, int64_t more);
/* A share as "12 %", "0.084 %"; a factor as "38", "4.2". */
const char *anatomy_percent(double share, char out[32]);
const char *anatomy_factor(double value, char out[32]);
/* What the module loses, why, and what would help. */
void anatomy_sentence(const struct anatomy_rows *rows, const struct anatomy_row *row, char out[ANATOMY_TEXT]);
/* The report's "anatomy": a summary, shares of the error by kind of module and by block, and the worst modules with a
 * sentence each; null without rows. suggestions: the report's, or NULL where they are not known. NULL: no memory. New
 * reference. */
json_t *anatomy_report(const json_t *rows, const json_t *suggestions);
