#pragma once
/* Gradient steps on a solved block: what the methods that learn share. Private to quantizers/. One thread at a time,
 * the one that owns the context's stream.
 *
 * What can be learned:
 *   latents  weights of an integer grid in units of their scale, F32 on the device; a code is the latent rounded
 *   scales, norms, biases, tables of codebooks: vectors, which are small. Their steps are done on the host, in double
 *
 * Every forward pass is by scales, norms and biases as they will be stored, so that a measured loss is that of the
 * artifact; gradients pass straight through the rounding (Bengio et al. 2013, arXiv 1308.3432). */

#include "quantizers/common.h"
#include "quantizers/tune.h"

enum learn_kind { LEARN_LATENTS, LEARN_SCALES, LEARN_NORMS, LEARN_BIASES, LEARN_TABLES, LEARN_KINDS };

#define LEARN_MARGIN_MAX 0.499

/* Members and rows of what methods take for learning on the complete model (learn_model.h). */
#define LEARN_MODEL_MEMBERS             \
    bool end_to_end;                    \
    int64_t e2e_epochs, e2e_batch_size; \
    double e2e_lr, e2e_norm_lr
#define LEARN_MODEL_ROWS(struct_)                                                                                     \
    QUANT_ROW(PARAMS_BOOL, struct_, end_to_end, "false",                                                              \
              .help =                                                                                                 \
                  "After all blocks: train scales, tables, norms and biases through the complete model, such that "   \
                  "its logits have the smallest KL divergence from the float model's."),                              \
        QUANT_ROW(PARAMS_INT, struct_, e2e_epochs, "4", .min = 1, .max = 1000,                                        \
                  .help = "Passes of end_to_end over the calibration set. After each the loss is measured, and what " \
                          "had the smallest is kept."),                                                               \
        QUANT_ROW(PARAMS_INT, struct_, e2e_batch_size, "8", .min = 1, .max = 4096,                                    \
                  .help = "Calibration sequences of a step of end_to_end; all of them where there are fewer."),       \
        QUANT_ROW(PARAMS_NUMBER, struct_, e2e_lr, "0.01", .min = 0, .max = 1,                                         \
                  .help =                                                                                             \
                      "What a step of end_to_end changes of scales and tables at first, as a share of their size; "   \
                      "it falls as a cosine to a twentieth. 0: they stay."),                                          \
        QUANT_ROW(PARAMS_NUMBER, struct_, e2e_norm_lr, "0.005", .min = 0, .max = 1,                                   \
                  .help = "The same of norms and biases.")
/* The plan that these members ask for. */
#define LEARN_MODEL_PLAN(params)                                                                         \
    {                                                                                                    \
        .epochs = (params)->e2e_epochs, .batch = (params)->e2e_batch_size, .scale_lr = (params)->e2e_lr, \
        .table_lr = (params)->e2e_lr, .norm_lr = (params)->e2e_norm_lr, .bias_lr = (params)->e2e_norm_lr \
    }
/* Members of end_to_end that are other than by default while it is off ask for nothing. tables: the method's. */
void learn_model_check(const struct params_row *const *tables, const void *values, bool end_to_end, const char *pointer,
                       struct validation_errors *errors);

/* How steps are made. */
struct learn_plan {
    int64_t steps;       /* 0: the block stays as it was solved */
    int64_t batch;       /* sequences of a step */
    int64_t checks;      /* times that the loss is measured, evenly spaced, after the first time */
    int64_t checked;     /* sequences that it is measured on */
    bool held_out;       /* which nothing is learned from */
    int64_t patience;    /* measured losses in a row without a new minimum that end it; 0: none do */
    bool sign;           /* steps of the sign of the gradient's moving average, else AdamW */
    double beta1, beta2; /* shares that moving averages keep in a step; with signs beta2 is not used */
    bool cosine;         /* rates fall as a cosine, else linearly */
    double floor;        /* to this share of themselves at the end */
    /* Rates, 0: it stays as it is. Of latents in units of a scale, of all else relative to its size. */
    double rate[LEARN_KINDS];
    bool exact;         /* latents begin at the float weights, else between these and the solver's codes, */
    double margin;      /* at most so far from the codes; below 0.5 */
    double reach;       /* of latents from where they began; INFINITY: any */
    double scale_reach; /* of scales, as a share; below 1, so that none changes its sign */
};

/* Learn, and leave block and results as the smallest measured loss had them, which may be as they were. Fills in
 * context->curve. */
int learn_block(const struct tune_context *context, const struct learn_plan *plan);

/* What that costs with so many sequences. */
void learn_cost(const struct learn_plan *asked, int64_t sequences, struct tune_cost *out);

/* --- Parts. */

/* The plan as a set of so many sequences has it; the curve's note says what is other than asked. */
struct learn_plan learn_fit(const struct learn_plan *asked, int64_t sequences, struct tune_curve *curve);

/* A few numbers that are learned, on the host. */
struct learn_vector {
    enum learn_kind kind;
    struct tensor device;       /* F32: what the forward pass reads; the block's, or a linear's */
    struct tensor grad;         /* F32, as many; owned */
    float *start, *best, *host; /* [count]: as solved; of the smallest loss; for copies */
    double *unit;               /* what a change of 1 in `moved` is */
    double *moved, *m, *v;
    size_t count;
    enum dtype dtype; /* stored */
    double reach;     /* of `moved` */
};
/* Of a tensor with `count` elements on the device, whose values are as they are stored. of_rms: a unit is the root mean
 * square of all, plus `offset`; else each element's own size. */
int learn_vector_init(const struct tune_context *context, enum learn_kind kind, const struct tensor *device,
                      enum dtype dtype, bool of_rms, double offset, struct learn_vector *out);
void learn_vector_deinit(const struct gpu *gpu, struct learn_vector *vector);            /* zeroed is fine */
int learn_vector_reset(const struct tune_context *context, struct learn_vector *vector); /* as it began */
int learn_vector_step(const struct tune_context *context, const struct learn_plan *plan, double rate, int64_t step,
                      struct learn_vector *vector);
int learn_vector_keep(const struct tune_context *context, struct learn_vector *vector); /* it is the best */
bool learn_vector_changed(const struct learn_vector *vector); /* the best is other than at first; count 0: no */
int learn_vector_restore(const struct tune_context *context, const struct learn_vector *vector); /* of the best */

/* A linear that learns. Its forward weight is the block's. */
struct learn_linear {
    const struct tune_module *module;
    struct tensor *weight; /* the block's */
    struct tensor grad;    /* F32 [N,K]: of that weight */
    /* On a grid: */
    struct gpu_grid grid;
    struct tensor latent, center, m, v; /* F32 [N,K]; without data where they do not learn, and m, v with signs */
    struct tensor scale, zero;          /* F32 [N,K/g] */
    struct tensor codes;                /* U8 [N,K]: of the smallest loss; without data where they cannot change */
    /* Of codebooks: */
    struct gpu_codebook books;
    struct tensor entries, table;       /* U16, F32 */
    struct learn_vector scales, tables; /* count 0: they do not learn */
};
/* Whether anything of such a result can learn. */
bool learn_linear_can(const struct learn_plan *plan, const struct qtensor *result);
int learn_linear_init(const struct tune_context *context, const struct learn_plan *plan,
                      const struct tune_module *module, struct learn_linear *out);
void learn_linear_deinit(const struct gpu *gpu, struct learn_linear *linear); /* zeroed is fine */
int learn_linear_reset(const struct tune_context *context, const struct learn_plan *plan, struct learn_linear *linear);
/* The block's weight, of what is learned as it is. */
int learn_linear_apply(const struct tune_context *context, const struct learn_linear *linear);
/* From the gradient of the weight to the others', and a step. scratch F32: [N,K] or larger. */
int learn_linear_step(const struct tune_context *context, const struct learn_plan *plan, double share, int64_t step,
                      const struct tensor *scratch, struct learn_linear *linear);
int learn_linear_keep(const struct tune_context *context, struct learn_linear *linear);
/* The best to the result and to the block's weight. changed: it is not what the solver left. */
int learn_linear_finish(const struct tune_context *context, bool changed, struct learn_linear *linear);

/* learn_parts.c: what learns of a block, by the plan's rates. */
struct learn_parts {
    struct learn_linear *linears;
    struct learn_vector *floats; /* of norms and biases */
    int linear_count, float_count;
    struct block_grads grads; /* views of theirs; zeros at first */
    struct tensor scratch;    /* F32: as the largest linear */
};
int learn_parts_init(const struct tune_context *context, const struct learn_plan *plan,
                     struct learn_parts *out);                             /* after a failure deinit is due, too */
void learn_parts_deinit(const struct gpu *gpu, struct learn_parts *parts); /* zeroed is fine */
int learn_parts_apply(const struct tune_context *context, const struct learn_parts *parts);
int learn_parts_step(const struct tune_context *context, const struct learn_plan *plan, double share, int64_t step,
                     struct learn_parts *parts);
/* The best to results and block, which says which norms and biases are others than at first. changed: as
 * learn_linear_finish has it. */
int learn_parts_finish(const struct tune_context *context, bool changed, struct learn_parts *parts);

/* learn_tables.c: a linear of codebooks, likewise. Its tables and the scales of rows learn, with codes as they are. */
bool learn_tables_can(const struct learn_plan *plan, const struct qtensor *result);
int learn_tables_init(const struct tune_context *context, const struct learn_plan *plan, struct learn_linear *linear);
int learn_tables_apply(const struct tune_context *context, const struct learn_linear *linear);
int learn_tables_step(const struct tune_context *context, const struct learn_plan *plan, double share, int64_t step,
                      const struct tensor *scratch, struct learn_linear *linear);
int learn_tables_finish(const struct tune_context *context, struct learn_linear *linear);
