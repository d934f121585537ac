/* The block types of GGUF files: scales found block by block, as the runtimes of that format read them.
 *
 * Every type has its own layout (gpu/ggml_blocks.h). The scales of a block are searched for the minimum of
 * sum importance_j (w_j - wq_j)^2, and plain ones stay where nothing better is found (encode_blocks). Calibrated,
 * the importance of input j is H_jj: with the inputs taken as uncorrelated, that sum is the output's squared error.
 * Without calibration, or with importance false, all inputs weigh the same. Each weight is rounded on its own here:
 * none compensates for the error of another, as in GPTQ. */

#include "quantizers/common.h"

#include "base/err.h"
#include "base/ids.h"
#include "gpu/ggml_blocks.h"

#include <math.h>
#include <stdlib.h>

struct ggml_params {
    struct quant_base base;
    int type;
    bool importance;
    bool scale_search;
};

#define SUPER_BLOCK 256 /* inputs of a block of q4_k and q6_k */

enum { TYPE_Q4_K = 2, TYPE_IQ4_NL = 3, TYPE_AUTO = 5 };
static const char *const type_names[] = {"q8_0", "q6_k", "q4_k", "iq4_nl", "q4_0", "auto", NULL};
static const struct {
    int type, bits;
} types[] = {{GGML_TYPE_Q8_0, 8}, {GGML_TYPE_Q6_K, 6}, {GGML_TYPE_Q4_K, 4}, {GGML_TYPE_IQ4_NL, 4}, {GGML_TYPE_Q4_0, 4}};

static int ggml_scheme(const void *params, int64_t rows, int64_t cols, struct qscheme *out)
{
    const struct ggml_params *p = params;
    int type = p->type != TYPE_AUTO ? p->type : cols % SUPER_BLOCK == 0 ? TYPE_Q4_K : TYPE_IQ4_NL;
    const struct ggml_block *block = ggml_block_find(types[type].type);

    TRY(quant_check_shape(rows, cols));
    if (cols % block->elements != 0) {
        int rc = err_raise(ERR_INCOMPATIBLE_OPTIONS, "blocks of %s have %lld inputs, which does not divide %lld",
                           type_names[type], (long long)block->elements, (long long)cols);
        (void)err_set_param(rc, "type");
        return block->elements > 32 && cols % 32 == 0
                   ? err_set_hint(rc, "type auto, q8_0, iq4_nl or q4_0 (blocks of 32), for all or in an override")
                   : err_set_hint(rc, "leave the module in float: modules_to_not_convert");
    }
    *out = (struct qscheme){.kind = QTENSOR_BLOCKS,
                            .bits = types[type].bits,
                            .group_size = block->elements,
                            .block_type = block->type,
                            .scale_dtype = DTYPE_F16};
    return 0;
}

static int ggml_encode(const struct solve_context *context, const struct tensor *importance,
                       const struct linear_job *job, struct qtensor *q)
{
    const struct ggml_params *p = job->params;
    const struct gpu_blocks spec = {.type = q->scheme.block_type, .search = p->scale_search};
    const int64_t shape[2] = {q->rows, ggml_row_bytes(q->scheme.block_type, q->cols)};
    const struct gpu *gpu = context->gpu;
    bool weighed = p->importance && importance->data != NULL;
    AUTO_TENSOR(blocks, gpu);

    TRY(gpu_tensor_new(gpu, DTYPE_U8, 2, shape, &blocks));
    TRY(gpu->ops->encode_blocks(context->stream, &blocks, job->weight, weighed ? importance : NULL, &spec));
    return gpu->ops->download(context->stream, q->codes, blocks.data, tensor_bytes(&blocks));
}

static int ggml_solve_linear(const struct solve_context *context, const struct tensor *importance,
                             struct linear_job *job)
{
    double start = clock_monotonic_seconds();
    int64_t rows = job->weight->shape[0], cols = job->weight->shape[1];
    AUTO(qtensor) struct qtensor q = {0};
    struct qscheme made;

    TRY(ggml_scheme(job->params, rows, cols, &made));
    TRY(quant_check_finite(context, job));
    made.scale_dtype = context->scale_dtype;
    TRY(qtensor_new(job->name, &made, rows, cols, &q));
    TRY(ggml_encode(context, importance, job, &q));
    job->result = qtensor_move(&q);
    job->loss = NAN;
    job->seconds = clock_monotonic_seconds() - start;
    return 0;
}

static void ggml_cost(const void *values, const struct quant_shape *shape, struct quant_cost *out)
{
    const struct ggml_params *p = values;
    double elements = (double)shape->rows * (double)shape->cols;
    struct qscheme scheme = {.block_type = 0};

    *out = (struct quant_cost){.operations = (p->scale_search ? 300 : 20) * elements};
    if (ggml_scheme(p, shape->rows, shape->cols, &scheme) == 0) {
        out->shared = shape->cols * (int64_t)sizeof(float);
        out->solving = shape->rows * ggml_row_bytes(scheme.block_type, shape->cols);
    }
}

static int ggml_solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                      int count)
{
    AUTO_TENSOR(importance, context->gpu);

    if (stats != NULL && (stats->flags & STATS_HESSIAN) != 0) {
        TRY(quant_importance(context, stats, &importance));
    }
    for (int i = 0; i < count; i++) {
        TRY(quant_tick(context));
        TRY(quant_fail(&jobs[i], ggml_solve_linear(context, &importance, &jobs[i])));
    }
    return 0;
}

static const struct params_row ggml_rows[] = {
    QUANT_ROW(PARAMS_ENUM, ggml_params, type, "\"auto\"", .choices = type_names,
              .help = "Block type: q8_0, iq4_nl and q4_0 have blocks of 32 inputs; q6_k and q4_k have 256, with scales "
                      "of scales; auto is q4_k where blocks of 256 fit a module and iq4_nl elsewhere."),
    QUANT_ROW(PARAMS_BOOL, ggml_params, importance, "true",
              .help = "Weigh errors by the inputs' mean squares where the job has calibration data; else all alike."),
    QUANT_ROW(PARAMS_BOOL, ggml_params, scale_search, "true",
              .help =
                  "Search each block's scales for the smallest weighed error; else they reach the block's extremes."),
    {.name = NULL},
};

static const struct params_row *const ggml_params_tables[] = {quant_base_rows, ggml_rows, NULL};

const struct quantizer quantizer_ggml = {
    .name = "ggml",
    .title = "GGUF blocks",
    .help = "Rounds weights to the block types of GGUF files (q8_0, q6_k, q4_k, iq4_nl, q4_0), with scales searched "
            "block by block and, where the job has calibration data, errors weighed by how much each input carries. "
            "Types can be mixed with overrides, such as q6_k for down_proj. Write it with format gguf.",
    .stats = STATS_NONE,
    .params = ggml_params_tables,
    .params_size = sizeof(struct ggml_params),
    .check = quant_base_check,
    .scheme = ggml_scheme,
    .solve = ggml_solve,
    .cost = ggml_cost,
};
