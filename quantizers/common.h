#pragma once
/* What method files share: rows, device memory of one linear, the download of a solution. Private to quantizers/. One
 * thread at a time, the one that owns the context's stream. */

#include "base/cleanup.h"
#include "quantizers/quantizer.h"

#include <stddef.h>

/* A params_row of a member of the same name. */
#define QUANT_ROW(type_, struct_, member, fallback_, ...)                                      \
    {                                                                                          \
        .name = #member, .type = (type_), .offset = offsetof(struct struct_, member),          \
        .size = sizeof(((struct struct_ *)NULL)->member), .fallback = (fallback_), __VA_ARGS__ \
    }

/* The row of an int member input_range. */
#define QUANT_INPUT_RANGE_ROW(struct_)                                                                                 \
    QUANT_ROW(PARAMS_ENUM, struct_, input_range, "\"output_error\"", .choices = quant_input_range_names,               \
              .help = "Range of static inputs: the one with which the outputs of the linears that read them have the " \
                      "smallest error, or the maximum over the calibration set.")

/* Rows of members output_moments and output_tokens (solve_context.output_moments). what: a string, what they let move.
 */
#define QUANT_OUTPUT_ROWS(struct_, what)                                                                             \
    QUANT_ROW(PARAMS_BOOL, struct_, output_moments, "false",                                                         \
              .help =                                                                                                \
                  "Pass the float model's gradients back once before the blocks, with labels drawn from the model, " \
                  "and let " what                                                                                    \
                  " descend on the loss that they see: outputs that matter more get less error, and rows "           \
                  "compensate for each other."),                                                                     \
        QUANT_ROW(PARAMS_INT, struct_, output_tokens, "0", .min = 0, .max = (double)INT32_MAX,                       \
                  .help = "With output_moments: calibration tokens of that pass, from the first; 0 = all.")
/* ERR_INCOMPATIBLE_OPTIONS about that member. */
void quant_refuse(struct validation_errors *errors, const char *pointer, const char *name, const char *why);
/* output_tokens without output_moments asks for nothing. */
void quant_output_check(bool output_moments, int64_t output_tokens, const char *pointer,
                        struct validation_errors *errors);
/* Output moments come from some thousand tokens: so much of them is kept, O' = kept O + (1 - kept) I, with I rows are
 * independent. */
#define QUANT_OUTPUT_KEPT 0.85

/* Rows for bits, group_size and sym, whose default is each method's own. */
#define QUANT_GRID_ROWS(sym_)                                                                                  \
    QUANT_ROW(PARAMS_INT, quant_common, bits, "4", .choices = quant_bits_choices, .aliases = quant_bits_names, \
              .help = "Bits of a weight's code."),                                                             \
        QUANT_ROW(PARAMS_INT, quant_common, group_size, "128", .choices = quant_group_choices,                 \
                  .aliases = quant_group_names,                                                                \
                  .help = "Inputs that share a scale; -1 = one scale for each output channel."),               \
        QUANT_ROW(PARAMS_BOOL, quant_common, sym, (sym_), .aliases = quant_sym_names,                          \
                  .help = "Symmetric grid, zero in its middle; else each group has its own zero point.")
extern const char *const quant_bits_choices[], *const quant_group_choices[];
/* What other programs call the parameters of integer grids. */
extern const char *const quant_bits_names[], *const quant_group_names[], *const quant_sym_names[];

extern const struct quantizer quantizer_rtn, quantizer_gptq, quantizer_awq;
extern const struct quantizer quantizer_kv_cache, quantizer_kv_analysis;
extern const struct quantizer quantizer_ggml;
extern const struct quantizer quantizer_smoothquant, quantizer_llm_int8, quantizer_nf4, quantizer_fp8;
extern const struct quantizer quantizer_kmeans, quantizer_aqlm;
extern const struct quantizer quantizer_autoround, quantizer_qat, quantizer_tune;

/* A linear on its way to codes. */
struct quant_work {
    const struct gpu *gpu; /* NULL: nothing was allocated */
    struct gpu_grid grid;
    struct qscheme scheme;
    struct tensor w;           /* F32 [N,K]: a copy of the weight that may be changed */
    bool rounded;              /* w is what the codes stand for */
    struct tensor codes;       /* U8 [N,K] */
    struct tensor scale, zero; /* F32 [N,K/g] */
};

/* Memory for job under its params, w being a copy of its weight. ERR_NON_FINITE_VALUE names the weight's first NaN or
 * Inf. Deinit also after a failure. */
int quant_work_init(const struct solve_context *context, const struct linear_job *job, struct quant_work *work);
void quant_work_deinit(struct quant_work *work); /* zeroed is fine */
CLEANUP_DEINIT(quant_work, struct quant_work, quant_work_deinit)
/* w = what the codes stand for. */
int quant_work_dequantize(const struct solve_context *context, struct quant_work *work);
/* codes = round(w), w = what they stand for. */
int quant_work_round(const struct solve_context *context, struct quant_work *work);
/* Download codes and grid into job->result, which the caller owns then; with context->on_device the grid alone, and
 * the job takes the device's codes, grid and weight from work. */
int quant_work_take(const struct solve_context *context, struct quant_work *work, struct linear_job *job);
/* The weight of the group's module number i, F32 [N,K], and its scheme, NULL when it stays in float. */
const struct tensor *rewrite_weight(const struct rewrite_context *context, int i);
const struct qscheme *rewrite_scheme(const struct rewrite_context *context, int i);
/* The min-max grid of a scheme, without a search. */
struct gpu_grid quant_scheme_grid(const struct qscheme *scheme);
/* Round w, F32 [N,K], to nearest: the grid's scale and zero, F32 [N,K/g], from w, the codes, U8 [N,K], and w = what
 * they stand for. */
int quant_round_nearest(const struct gpu *gpu, struct gpu_stream *stream, const struct gpu_grid *grid,
                        const struct tensor *w, const struct tensor *codes, const struct tensor *scale,
                        const struct tensor *zero);
/* For codes of elements (gpu_tiles): an empty result, the largest magnitudes of w's tiles into its scales, and codes
 * for the scales that stand there. w F32, as many weights as q has. Codes stay in a device's own memory (job->codes, U8
 * in w's shape) where context->on_device lets them. */
int quant_tile_new(const struct solve_context *context, const char *name, const struct qscheme *scheme, int64_t rows,
                   int64_t cols, struct qtensor *out);
int quant_tile_range(const struct solve_context *context, const struct tensor *w, const struct gpu_tiles *spec,
                     struct qtensor *q);
int quant_tile_encode(const struct solve_context *context, const struct tensor *w, const struct gpu_tiles *spec,
                      struct linear_job *job, struct qtensor *q);
/* A positive scale as dtype (F32, F16 or BF16) stores it; beyond its range at either end, the last value that it has.
 */
float quant_store_scale(float scale, enum dtype dtype);
/* ERR_INVALID_MODEL for a weight without rows or columns. */
int quant_check_shape(int64_t rows, int64_t cols);
/* ERR_NON_FINITE_VALUE names the first NaN or Inf of job's weight. */
int quant_check_finite(const struct solve_context *context, const struct linear_job *job);
/* Whether stats have the Hessian that `method` needs for the linear `name`: ERR_INSUFFICIENT_CALIBRATION where they do
 * not (stats may be NULL), which names the linear. */
int quant_hessian_given(const struct layer_stats *stats, const char *method, const char *name);
/* The Hessian that `method` needs for the linear `name`: ERR_INSUFFICIENT_CALIBRATION where stats have none (stats may
 * be NULL), ERR_NON_FINITE_VALUE where it is not finite; both name the linear. */
int quant_check_hessian(const struct solve_context *context, const struct layer_stats *stats, const char *method,
                        const char *name);
/* diag H of statistics that have a Hessian, F32 [K]: on the host, malloc'ed, or on the device; the caller frees it. */
int quant_diagonal(const struct solve_context *context, const struct layer_stats *stats, float **out);
int quant_importance(const struct solve_context *context, const struct layer_stats *stats, struct tensor *out);
/* Returns rc. A failure, other than a job's end by tick, gets job's name as its module where it has none yet. */
int quant_fail(const struct linear_job *job, int rc);
/* Ask the caller whether to continue: 0, or what the solve returns then. */
int quant_tick(const struct solve_context *context);

/* The loop of methods that solve each linear on its own: tick, then `one`, whose failure names its linear. */
int quant_each(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs, int count,
               int (*one)(const struct solve_context *context, const struct layer_stats *stats,
                          struct linear_job *job));

/* Bytes of a struct quant_work for a linear with groups of that many columns. */
int64_t quant_work_bytes(const struct quant_shape *shape, int64_t group_size);
/* group_size with -1 as what it stands for. */
int64_t quant_group_columns(const struct quant_common *common, int64_t cols);

/* Round one linear to nearest: what RTN does, and what other methods fall back on. Sets result and seconds. */
int rtn_solve_linear(const struct solve_context *context, struct linear_job *job);
