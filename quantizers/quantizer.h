#pragma once
/* A quantization method: one file, one const row, registered in registry.c.
 *
 * The pipeline owns every loop and file; a method sees linears that share one input, with that input's statistics, and
 * turns each into a qtensor. Schema, GET /v1/methods, docs and the conformance suite all come from the row. */

#include "base/params.h"
#include "gpu/gpu.h"
#include "models/block.h"
#include "models/qtensor.h"
#include "quantizers/input_sample.h"

/* Statistics a method may ask for (flags); gathered once per distinct input. */
enum stats_flag {
    STATS_NONE = 0,
    STATS_HESSIAN = 1 << 0, /* (2/T) sum x x^T */
    STATS_RANGE = 1 << 1,   /* column absmax and mean |x| */
    STATS_SAMPLE = 1 << 2,  /* the first STATS_SAMPLE_TOKENS inputs themselves */
    STATS_TARGET = 1 << 3,  /* moments of what the float model has beyond these inputs; see `targets` below */
    STATS_SPREAD = 1 << 4,  /* inputs that stand for all of them (input_sample.h) */
};
#define STATS_SAMPLE_TOKENS 512

/* Statistics of one input. Device memory; owned by stats_*. */
struct layer_stats {
    unsigned flags;
    int64_t columns, tokens;
    int64_t min_tokens;    /* of an expert with too few tokens: the number for which its Hessian was shrunk; else 0 */
    struct tensor hessian; /* F32 [n,n]; valid after stats_finish */
    struct tensor absmax;  /* F32 [n] */
    struct tensor absmean; /* F32 [n] */
    struct tensor sample;  /* F32 [min(tokens, STATS_SAMPLE_TOKENS), n] */
    struct input_sample spread;
    /* What a linear's target needs of the float model, where its inputs are x_f and its outputs y_f:
     *   outputs > 0: (2/T) sum y x^T, F32 [outputs, n], y [outputs] being what the one linear's output lacks
     *   outputs == 0: (2/T) sum x (x_f - x)^T, F32 [n, n], for whichever linears read x. Valid after stats_finish. */
    struct tensor target;
    int64_t outputs;
};
/* STATS_TARGET and STATS_SPREAD need more than the number of columns: stats_init_target, stats_init_spread. */
int stats_init(struct layer_stats *stats, unsigned flags, int64_t columns, const struct gpu *gpu);
/* After stats_init: allocate a sample of the `tokens` inputs that are to come. */
int stats_init_spread(struct layer_stats *stats, int64_t tokens, const struct gpu *gpu);
/* Add x [T, n] in fixed chunks. */
int stats_add(struct layer_stats *stats, const struct gpu *gpu, struct gpu_stream *stream, const struct tensor *x);
/* After stats_init: allocate the target's moments. */
int stats_init_target(struct layer_stats *stats, int64_t outputs, const struct gpu *gpu);
/* x [T, n] once more, with what they lack: [T, outputs], or [T, n] where outputs is 0. */
int stats_add_target(struct layer_stats *stats, const struct gpu *gpu, struct gpu_stream *stream,
                     const struct tensor *x, const struct tensor *missing);
/* Scale and mirror. */
int stats_finish(struct layer_stats *stats, const struct gpu *gpu, struct gpu_stream *stream);
/* Statistics of an expert that too few tokens came to, by those of all the layer's tokens, both finished (without a
 * token `stats` need not be): Hessians are mixed as if `pooled` had brought the tokens that lack to `min_tokens`,
 * ranges and samples are pooled's. Without any token of its own the Hessian is the identity, by which methods round to
 * nearest. stats->tokens stays what the expert saw; pooled is used up. */
int stats_shrink(struct layer_stats *stats, struct layer_stats *pooled, int64_t min_tokens, const struct gpu *gpu,
                 struct gpu_stream *stream);
void stats_deinit(struct layer_stats *stats, const struct gpu *gpu);

/* What every method takes; a method's params struct begins with it, and its tables with quant_base_rows. */
struct quant_base {
    json_t *modules_to_not_convert; /* module paths, globs or "re:" patterns left in float; NULL = none */
    json_t *overrides;              /* [{"match":...,...}]: the pipeline's business; NULL = none */
    json_t *kv_cache;               /* {"dtype","granularity"}: likewise; NULL = the cache stays as it is */
    json_t *mixed_precision;        /* {"bits_per_weight", ...}: likewise; NULL = one scheme for all */
    json_t *float_inputs;           /* patterns of modules whose inputs stay as they are; NULL = none */
    bool calibrate_all_experts;     /* experts see every token */
    int64_t expert_min_tokens;      /* with fewer, an expert's statistics are shrunk to those of all tokens */
};
extern const struct params_row quant_base_rows[];
/* How a method's params want experts to see the calibration set. */
struct expert_calibration {
    bool all;           /* every token, whether it goes there or not */
    int64_t min_tokens; /* with fewer an expert is starved; 0: none ever is */
};
struct expert_calibration quant_experts(const void *params);
/* float_inputs, for methods that quantize inputs. */
extern const struct params_row quant_input_rows[];
/* How the range of static inputs is chosen: "input_range" of methods that can have them. */
enum quant_input_range { INPUT_RANGE_OUTPUT_ERROR, INPUT_RANGE_ABSMAX };
extern const char *const quant_input_range_names[];

/* What methods on an integer grid take beyond it; their params struct begins with this. */
struct quant_common {
    struct quant_base base;
    int64_t bits;
    int64_t group_size; /* -1 = one scale per output channel */
    bool sym;
    bool signed_scales;    /* a search tries scales of either sign; symmetric grids */
    int64_t refine_rounds; /* of coordinate descent on the output error, after all else */
    int64_t refine_tokens; /* for each input column, from which on rounded weights are refined */
    bool mse_search;       /* its row is the method's own, since its default is */
    int scale_search;      /* enum quant_search of quantizers/search.h; 0: as mse_search says */
};
extern const struct params_row quant_common_rows[];

struct linear_job;
struct solve_context {
    const struct gpu *gpu;
    struct gpu_stream *stream;
    enum dtype scale_dtype; /* what the chosen format stores */
    uint64_t seed;
    bool on_device;          /* leave codes where they are: see linear_job */
    int (*tick)(void *data); /* call between columns blocks or linears: nonzero = stop and return it */
    void *tick_data;
    /* Where the method's output_tokens asks for them: keep O + (1 - keep) I, F32 [N,N], O being the second moments of
     * the gradients of the model's loss with respect to a linear's outputs, with a mean diagonal of 1. The caller frees
     * it. NULL: there are none. */
    int (*output_moments)(void *data, const struct linear_job *job, double keep, struct tensor *out);
    void *output_data;
};

/* An input group of a block on its way to easier weights, before any of the block's modules is solved. */
struct rewrite_context {
    const struct gpu *gpu;
    struct gpu_stream *stream;
    const void *params;
    enum dtype weight_dtype;         /* what the artifact stores norms in: for block_fold */
    const struct plan_group *group;  /* of the block's plan */
    struct block *block;             /* float, groups before this one rewritten */
    const struct layer_stats *stats; /* of the group's input, as rewrite_stats asked */
    /* Micro-batches of the calibration set: number i with the group's input, in memory that the next call overwrites;
     * what the input leads to can be run from there, several times. */
    int64_t batches;
    int (*input)(void *data, int64_t i, struct block_values *values);
    void *input_data;
    /* Shapes of solutions to come: the scheme of a module of the block, NULL when it stays in float. */
    const struct qscheme *(*scheme)(void *data, int module);
    void *scheme_data;
    int (*tick)(void *data);
    void *tick_data;
};

/* One linear to solve: in by the pipeline, result out by the method. */
struct linear_job {
    const char *name;            /* module path */
    const struct tensor *weight; /* F32 [N,K] on the device; the method may not change it */
    const void *params;          /* the method's params struct, overrides applied */
    bool finite;                 /* its weight was looked through: no NaN and no Inf is in it */
    bool scores;                 /* its outputs are multiplied with another module's: attention's queries and keys */
    struct qtensor result;       /* set on success */
    /* Where context->on_device is set and the device made codes: those, U8, as many as result.codes, which is not
     * allocated as yet. Of an integer grid that the device solved also the grid F32 [N,K/g], which the result has too,
     * and the weight that they stand for, F32 [N,K]. The caller's to free, also after a failure. */
    struct tensor codes, scale, zero, dequantized;
    double loss;                            /* the method's own objective, NAN if it has none */
    bool refined;                           /* by coordinate descent: */
    double unrefined_loss;                  /* what was lost before it */
    double refined_loss;                    /* after it, and before further sweeps; both as `loss`, without damping */
    bool two_sided;                         /* by coordinate descent under output moments, after that: */
    double two_sided_start, two_sided_loss; /* tr(O D H D^T) before and after it */
    bool aimed;                             /* at a target of the float model, not at weight */
    double aimed_error;                     /* tr((T - Wq) H (T - Wq)^T) of that target T */
    double damp_used;                       /* 0 when not applicable */
    double seconds;
    int64_t dead_columns;
    char fallback[96]; /* "" or why it was not done as asked: "rtn: hessian not positive definite" */
    char note[128];    /* "" or a fact for the report: "3 outlier columns" */
};

/* Targets from the float model (STATS_TARGET). */
struct quant_targets {
    double tokens;         /* calibration tokens for each input column that it takes; with fewer a linear has none */
    double residual_share; /* of what the residual stream lost before a linear's output is added to it, which the linear
                              is to make up for; 0..1 */
};

/* A linear of an input group, for what solving it costs. */
struct quant_shape {
    int64_t rows, cols;
    int64_t tokens; /* of the calibration set; 0: there is none */
    bool aimed;     /* at a target of the float model */
    bool scores;    /* as linear_job.scores */
    int threads;    /* of the host's cores, where the device computes on them; else 0 */
};
/* An input group that is rewritten, which `aimed` and `scores` are of no meaning for: `linear` is its largest module.
 */
struct quant_group {
    struct quant_shape linear;
    int64_t elements;     /* of all its modules */
    int64_t tallest;      /* outputs of a module */
    int64_t group_size;   /* of the scheme that its modules get */
    int64_t batch_tokens; /* of a micro-batch */
    int64_t batches;      /* micro-batches */
    bool expert;          /* of each of them those rows alone that went to it */
    double input_flops;   /* of rewrite_context.input for one micro-batch */
    int64_t branch;       /* columns of what the group is judged by (plan_group.branch) */
    double branch_flops;  /* of a token from the group's input to there */
};
/* What a method takes beyond weights and statistics: bytes of the device's memory, and of the host's in addition. */
struct quant_cost {
    int64_t shared;    /* for as long as the group is solved */
    int64_t solving;   /* for one linear (a rewritten group: for all), until it is solved; its result included */
    int64_t solved;    /* that a linear's result leaves on the device until it takes the weight's place */
    int64_t scratch;   /* of operations (gpu/scratch.h) */
    int64_t host;      /* arrays in the host's memory, next to the result's */
    double operations; /* about, to compare sizes of one method: of one linear, of a rewritten group */
};

struct analysis_rows;
struct tune_context;
struct tune_cost;
struct tune_model_plan;

struct quantizer {
    const char *name;                      /* "gptq" */
    const char *title;                     /* "GPTQ" */
    const char *help;                      /* one paragraph: what it does, when to use it; cites the paper */
    unsigned stats;                        /* statistics it needs; 0 = works without calibration */
    unsigned (*needs)(const void *params); /* optional: those that it needs beyond `stats` under these params */
    /* Optional: codes do not depend on statistics under these params, not even on those that are there, so that these
     * serve the report alone. NULL: they do. */
    bool (*data_free)(const void *params);
    /* Optional: rows of a linear of so many inputs are solved independently of each other, so that solving a slice of
     * rows, which reads no statistics, gives that slice of the result's arrays. NULL: they are not. */
    bool (*rows_alone)(const void *params, int64_t cols);
    /* Optional: whether linears take their targets from the float model under these params, and how. */
    bool (*targets)(const void *params, struct quant_targets *out);
    /* Optional: on how many calibration tokens moments of the gradients of outputs are to be gathered before blocks are
     * solved (solve_context.output_moments): 0: not at all; -1: all. */
    int64_t (*output_tokens)(const void *params);
    /* Optional: a JSON object of what the params' preset sets, for members that the request does not give; NULL when
     * the defaults are it. */
    const char *(*preset)(const void *params);
    const struct params_row *const *params; /* NULL-terminated list of tables */
    /* Optional: the table among them that `tune` reads. Complete blocks learn by it, so overrides and candidates
     * cannot have its rows. */
    const struct params_row *learning;
    size_t params_size;
    /* Optional cross-field check; adds errors under pointer. */
    void (*check)(const void *params, const char *pointer, struct validation_errors *errors);
    /* Optional: errors between the parameters and the model they are for. quantized_inputs [plans_modules]: whether
     * a module's inputs are quantized. */
    void (*check_model)(const void *params, const struct plans *plans, const bool *quantized_inputs,
                        const char *pointer, struct validation_errors *errors);
    /* The scheme a linear of this shape gets under params (for format checks before any work). */
    int (*scheme)(const void *params, int64_t rows, int64_t cols, struct qscheme *out);
    /* For a recipe's earlier stages, optional: what the method adds to the scheme of whatever solves (how inputs are
     * quantized), or ERR_INCOMPATIBLE_OPTIONS when that cannot be. */
    int (*amend)(const void *params, struct qscheme *scheme);
    /* Likewise, optional: a JSON object of defaults for the parameters of the method that solves, without which `amend`
     * could not be carried by any format; NULL when it asks for nothing. */
    const char *(*defaults_after)(const void *params);
    /* Optional: change the block at one input group without changing its output (block_fold). */
    unsigned rewrite_stats; /* statistics that rewrite needs */
    int (*rewrite)(const struct rewrite_context *context);
    /* Optional: look at a block in float at the group before its attention, before anything else is done to it, and
     * append rows to the report's "analysis". Such a method comes alone and makes no artifact. */
    int (*analyse)(const struct rewrite_context *context, struct analysis_rows *rows);
    /* Likewise, of the complete model: the pipeline measures what its params (quantizers/sensitivity.h) ask for. */
    bool measures;
    /* Solve linears that share stats (stats->columns == K of each). stats may be NULL when the method asks for none.
     * NULL, and `scheme` with it: the method leaves weights alone. */
    int (*solve)(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                 int count);
    /* Optional: learn on a solved block (tune.h), from the calibration set. A method that solves learns what it solved
     * itself; one that does not comes after one that does, as the last of a list, and learns on all modules. */
    int (*tune)(const struct tune_context *context);
    void (*tune_cost)(const void *params, int64_t sequences, struct tune_cost *out);
    /* Optional, of a method with `tune`: whether scales, norms and the like learn through the complete model after all
     * blocks are done, and how. */
    bool (*tune_model)(const void *params, struct tune_model_plan *out);
    /* Optional: how many weights of a linear are stored in float next to its codes under these params. */
    int64_t (*outliers)(const void *params, int64_t rows, int64_t cols);
    /* What `solve` costs for one linear of this shape; NULL: quant_tile_cost. */
    void (*cost)(const void *params, const struct quant_shape *shape, struct quant_cost *out);
    /* What `rewrite`, or `analyse`, costs for one group; NULL: nothing. */
    void (*rewrite_cost)(const void *params, const struct quant_group *group, struct quant_cost *out);
};

/* The cost of a linear under that method, its defaults filled in. */
struct quant_cost quantizer_cost(const struct quantizer *quantizer, const void *params,
                                 const struct quant_shape *shape);

/* What it needs under these params, all in all. */
unsigned quantizer_stats(const struct quantizer *quantizer, const void *params);
/* Its codes depend on weights alone. */
bool quantizer_data_free(const struct quantizer *quantizer, const void *params);
/* It learns on what another method solved, so it comes last in a list and has rows of its own alone. */
bool quantizer_follows(const struct quantizer *quantizer);
/* It makes a report and no artifact. */
bool quantizer_analyses(const struct quantizer *quantizer);
/* NULL-terminated. */
const struct quantizer *const *quantizer_list(void);
const struct quantizer *quantizer_find(const char *name); /* or NULL */
/* Shared: scheme of a plain integer grid; gpu_grid from common params. */
void quant_base_check(const void *params, const char *pointer, struct validation_errors *errors);
int quant_common_scheme(const void *params, int64_t rows, int64_t cols, struct qscheme *out);
void quant_common_check(const void *params, const char *pointer, struct validation_errors *errors);
struct gpu_grid quant_common_grid(const struct quant_common *params, int64_t cols, enum dtype scale_dtype);
