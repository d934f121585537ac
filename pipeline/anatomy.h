#pragma once
/* Where the error of a solved linear comes from, for its row of the report. */

#include "quantizers/quantizer.h"

#define ANATOMY_TOP 3 /* channels that are named */

/* One input channel and its share of a sum over all. */
struct anatomy_channel {
    int64_t index;
    double share;
};

struct anatomy {
    struct gpu_distribution weights; /* in the groups that share a scale */
    double weight_channels;          /* the largest root mean square of an input channel's weights to the median's */
    bool has_inputs;                 /* the rest is known: */
    double input_channels;           /* likewise of the inputs of calibration; 0 where there are none */
    double input_evenness; /* (mean x)^2 / mean x^2 of the channels' root mean squares: 1 where all are equal */
    int64_t error_channels, signal_channels; /* the fewest channels that make up half of the output's error, signal */
    struct anatomy_channel top[ANATOMY_TOP]; /* those with the most error, in descending order */
    int top_count;
};

/* The columns that share a scale with their neighbours in a row, where a scheme has such groups, else all. */
int64_t anatomy_group(const struct qtensor *q);
/* The part of it that is of weights alone, added up over slices of rows in their order. */
struct anatomy_sums {
    int64_t cols;
    struct gpu_distribution weights;
    double *signal, *error; /* of columns: squares of weights and of errors */
    double *slice;          /* [2, cols]: of one slice */
};
int anatomy_begin(struct anatomy_sums *sums, int64_t cols);
/* weight and dequantized F32 [rows, cols] on the device. */
int anatomy_add(struct anatomy_sums *sums, const struct gpu *gpu, struct gpu_stream *stream,
                const struct tensor *weight, const struct tensor *dequantized, int64_t group);
int anatomy_finish(const struct anatomy_sums *sums, struct anatomy *out);
void anatomy_drop(struct anatomy_sums *sums); /* zeroed is fine */
/* weight and dequantized F32 [N,K] on the device; stats NULL, or with the inputs' second moments. */
int anatomy_measure(const struct gpu *gpu, struct gpu_stream *stream, const struct tensor *weight,
                    const struct tensor *dequantized, const struct layer_stats *stats, int64_t group,
                    struct anatomy *out);
