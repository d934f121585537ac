/* The block types of GGUF files: scales found block by block, as the runtimes of that format read them.
 *
 * Every type has its own layout (gpu/ggml_blocks.h). The scales of a block are searched for what loses least in
 * sum importance_j (w_j - wq_j)^2, and plain ones are kept where nothing better is found (encode_blocks). Calibrated,
 * the importance of input j is H_jj: with the inputs taken as uncorrelated, that sum is the output's squared error.
 * Without calibration, or when it is not wanted, all inputs weigh the same. Weights move on their own here: none makes
 * up for what another lost, as GPTQ does. */

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

static int scheme(const void *params, int64_t rows, int64_t cols, struct qscheme *out)
{
    const struct ggml_params *p = params;
    int type = p->type != TYPE_AUTO ? p->type : cols % SUPER_BLOCK == 0 ? TYPE_Q4_K : TYPE_IQ4_NL;
    const struct ggml_block *block = ggml_block_find(types[type].type);

    if (rows < 1 || cols < 1) {
        return err_raise(ERR_INVALID_MODEL, "a weight is [%lld, %lld]", (long long)rows, (long long)cols);
    }
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

/* The diagonal of the Hessian on the device; data stays NULL when there is none to use. */
static int importance_new(const struct solve_context *context, const struct layer_stats *stats, struct tensor *out)
{
    const struct gpu *gpu = context->gpu;

    if (stats == NULL || (stats->flags & STATS_HESSIAN) == 0) {
        return 0;
    }
    float *diagonal = malloc((size_t)stats->columns * sizeof(*diagonal));
    if (diagonal == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld importances", (long long)stats->columns);
    }
    int rc = gpu->ops->diagonal(context->stream, diagonal, &stats->hessian);
    rc = rc != 0 ? rc : gpu_tensor_from_host(gpu, context->stream, DTYPE_F32, 1, &stats->columns, diagonal, out);
    free(diagonal);
    return rc;
}

static int encode(const struct solve_context *context, const struct tensor *importance, const struct linear_job *job,
                  struct qtensor *q)
{
    const struct ggml_params *p = job->params;
    const struct gpu_blocks spec = {.type = q->scheme.block_type, .search = p->scale_search};
    const int64_t shape[2] = {q->rows, ggml_row_bytes(q->scheme.block_type, q->cols)};
    const struct gpu *gpu = context->gpu;
    bool weighed = p->importance && importance->data != NULL;
    struct tensor blocks = {0};

    int rc = gpu_tensor_new(gpu, DTYPE_U8, 2, shape, &blocks);
    rc = rc != 0 ? rc
                 : gpu->ops->encode_blocks(context->stream, &blocks, job->weight, weighed ? importance : NULL, &spec);
    rc = rc != 0 ? rc : gpu->ops->download(context->stream, q->codes, blocks.data, tensor_bytes(&blocks));
    gpu_tensor_free(gpu, &blocks);
    return rc;
}

static int solve_linear(const struct solve_context *context, const struct tensor *importance, struct linear_job *job)
{
    double start = clock_monotonic_seconds();
    struct qtensor q = {0};
    struct qscheme made;

    int rc = scheme(job->params, job->weight->shape[0], job->weight->shape[1], &made);
    rc = rc != 0 ? rc : quant_check_finite(context, job);
    if (rc == 0) {
        made.scale_dtype = context->scale_dtype;
        rc = qtensor_new(job->name, &made, job->weight->shape[0], job->weight->shape[1], &q);
    }
    rc = rc != 0 ? rc : encode(context, importance, job, &q);
    if (rc != 0) {
        qtensor_deinit(&q);
        return err_set_module(err_pass(rc, "blocks of %s", job->name), job->name);
    }
    job->result = q;
    job->loss = NAN;
    job->seconds = clock_monotonic_seconds() - start;
    return 0;
}

static int solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                 int count)
{
    struct tensor importance = {0};
    int rc = importance_new(context, stats, &importance);

    for (int i = 0; rc == 0 && i < count; i++) {
        rc = quant_tick(context);
        rc = rc != 0 ? rc : solve_linear(context, &importance, &jobs[i]);
    }
    gpu_tensor_free(context->gpu, &importance);
    return rc;
}

static const struct params_row ggml_rows[] = {
    QUANT_ROW(PARAMS_ENUM, ggml_params, type, "\"auto\"", .choices = type_names,
              .help = "Block type: q8_0, iq4_nl and q4_0 have blocks of 32 inputs; q6_k and q4_k have 256, with scales "
                      "of scales; auto is q4_k where blocks of 256 fit a module and iq4_nl elsewhere."),
    QUANT_ROW(PARAMS_BOOL, ggml_params, importance, "true",
              .help = "Weigh errors by the inputs' mean squares where the job has calibration data; else all alike."),
    QUANT_ROW(PARAMS_BOOL, ggml_params, scale_search, "true",
              .help = "Search each block's scales for the least weighed error; else they reach the block's extremes."),
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
    .scheme = scheme,
    .solve = solve,
};
