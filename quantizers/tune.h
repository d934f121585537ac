#pragma once
/* Learning on a solved block: what a method that does so (quantizer.h, `tune`) gets and gives.
 *
 * The pipeline hands over the open block as its solver left it: weights are what codes stand for, inputs are quantized
 * as the runtime does it. The method changes results, norms and biases such that the block gives, from the inputs that
 * the quantized blocks before it make, what the float block gives from the float model's. */

#include "models/block_grad.h"
#include "models/qtensor.h"

#define TUNE_POINTS_MAX 50

/* Where learning is, for whoever watches. */
struct tune_progress {
    int64_t step, steps; /* the last that was made; of so many. steps 0: nothing learns */
    double rate;         /* what is left of the rates */
    double loss, first;  /* of that step; as solved: those of the curve below */
};

/* How the loss fell, for the report: the mean over tokens of |y - t|^2 / |t|^2, t being what the float block gives. */
struct tune_point {
    int64_t step;
    double lr, loss;
};
struct tune_curve {
    bool done; /* else all else says nothing */
    int64_t steps;
    int64_t sequences, held_out; /* that were learned from; those of the measured losses, where they are others */
    double first, best, last;    /* measured: before the first step, of what was kept, after the last step */
    int64_t best_step;           /* 0: the solver's result was kept */
    double seconds;
    int64_t bytes;                             /* of the device's memory: states, gradients, tape */
    char note[256];                            /* "" or what went otherwise, by tune_note */
    struct tune_point points[TUNE_POINTS_MAX]; /* of single steps, evenly spaced */
    int count;
};

/* A linear that was solved. */
struct tune_module {
    int module;                  /* of the block's plan */
    struct qtensor *result;      /* on the host, with all its arrays; to be changed in place */
    const struct tensor *weight; /* F32 [N,K]: the float model's */
    bool learns;                 /* it is the method's own; of `tune`, which comes after a solver, all are */
};

struct tune_context {
    const struct gpu *gpu;
    struct gpu_stream *stream;
    const void *params;
    uint64_t seed;          /* of the block: choices depend on it alone */
    enum dtype float_dtype; /* in which norms and biases are stored */
    struct block *block;    /* its weights are the method's to change; on success they are what results stand for */
    struct tune_module *modules;
    int count;
    /* The calibration set: sequences of `length` tokens, of which a tape takes `batch` (tune_lane) at once. */
    int64_t sequences, length, batch;
    struct block_tape *tape; /* of at least `batch` sequences */
    const int32_t *ids;      /* of all tokens */
    /* A sequence's rows: of a value that the plan takes, on the quantized path, or of the float block's output. */
    int (*input)(void *data, int64_t sequence, int value, const struct tensor *rows);
    int (*target)(void *data, int64_t sequence, const struct tensor *rows);
    int (*tick)(void *data, const struct tune_progress *progress); /* nonzero: stop, and return it */
    void *data;
    struct tune_curve *curve; /* to be filled in */
};

/* Learning on the complete model after all blocks are solved (learn_model.h): its rates are relative to what they
 * change, 0: it stays. */
struct tune_model_plan {
    int64_t epochs; /* over the calibration set */
    int64_t batch;  /* sequences of a step */
    double scale_lr, table_lr, norm_lr, bias_lr;
};

/* How many of so many sequences learning takes through a block at once, 1 or more: a function of their length, so that
 * gradients have the same sums whatever a device has memory for. */
int64_t tune_lane(int64_t sequences, int64_t length);
/* What is left of a rate when `done` of all steps (0..1) are made: from 1 to `floor`, as a cosine or else linearly. */
double tune_decay(bool cosine, double floor, double done);
/* What went otherwise, after what the note says by now. */
__attribute__((format(printf, 2, 3))) void tune_note(struct tune_curve *curve, const char *format, ...);

/* What learning on a block takes and does. */
struct tune_cost {
    int64_t state;   /* bytes of the device's memory for each weight that learns, next to the weight itself */
    double learned;  /* sequences, forward and backward */
    double measured; /* sequences, forward */
    int64_t at_once; /* sequences at most */
};
