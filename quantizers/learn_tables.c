/* Tables that learn, with codes as they are. Vector codebooks (QTENSOR_CODEBOOKS) are expanded and their gradients
 * reduced on the device. A table for each row (QTENSOR_TABLE) is expanded, and its gradients summed, on the host: the
 * gradient of an entry is the sum of those of the weights that have its code. */

#include "quantizers/learn.h"

#include "base/err.h"
#include "base/mem.h"

#include <string.h>

bool learn_tables_can(const struct learn_plan *plan, const struct qtensor *result)
{
    bool vectors = result->scheme.kind == QTENSOR_CODEBOOKS && result->scheme.group_rows == 1;

    return (vectors || result->scheme.kind == QTENSOR_TABLE) && plan->rate[LEARN_TABLES] > 0;
}

static int tables_upload(const struct tune_context *context, struct learn_linear *linear, int64_t rows, int64_t cols)
{
    const struct qtensor *q = linear->module->result;

    TRY(gpu_tensor_from_host(context->gpu, context->stream, DTYPE_F32, 2, (const int64_t[]){rows, cols}, q->tables,
                             &linear->table));
    return learn_vector_init(context, LEARN_TABLES, &linear->table, q->scheme.scale_dtype, true, 0, &linear->tables);
}

int learn_tables_init(const struct tune_context *context, const struct learn_plan *plan, struct learn_linear *linear)
{
    const struct qtensor *q = linear->module->result;
    int64_t codes = (int64_t)1 << q->scheme.bits;

    if (q->scheme.kind == QTENSOR_TABLE) {
        return tables_upload(context, linear, q->rows, codes);
    }
    linear->books = (struct gpu_codebook){
        .codebooks = q->scheme.codebooks, .bits = q->scheme.bits, .group_size = q->scheme.group_size, .beam = 1};
    TRY(gpu_tensor_from_host(context->gpu, context->stream, DTYPE_U16, 2,
                             (const int64_t[]){q->rows, q->groups * q->scheme.codebooks}, q->entries,
                             &linear->entries));
    TRY(gpu_tensor_from_host(context->gpu, context->stream, DTYPE_F32, 1, &q->rows, q->scales, &linear->scale));
    if (plan->rate[LEARN_SCALES] > 0) {
        TRY(learn_vector_init(context, LEARN_SCALES, &linear->scale, q->scheme.scale_dtype, false, 0, &linear->scales));
        linear->scales.reach = plan->scale_reach;
    }
    return tables_upload(context, linear, q->scheme.codebooks * codes, q->scheme.group_size);
}

/* What the result stands for with other tables. */
static int rows_apply(const struct tune_context *context, const struct learn_linear *linear)
{
    struct qtensor q = *linear->module->result; /* its arrays but one are the result's */
    AUTO_FREE float *tables = NULL;
    AUTO_FREE float *weight = NULL;

    TRY(mem_buffer(&tables, linear->tables.count));
    TRY(mem_buffer(&weight, (size_t)q.rows * (size_t)q.cols));
    TRY(context->gpu->ops->download(context->stream, tables, linear->table.data, tensor_bytes(&linear->table)));
    q.tables = tables;
    qtensor_dequantize(&q, weight);
    return gpu_tensor_upload(context->gpu, context->stream, linear->weight, weight);
}

int learn_tables_apply(const struct tune_context *context, const struct learn_linear *linear)
{
    if (linear->module->result->scheme.kind == QTENSOR_TABLE) {
        return rows_apply(context, linear);
    }
    return context->gpu->ops->code_expand(context->stream, linear->weight, &linear->entries, &linear->scale,
                                          &linear->table, &linear->books, 1.0f, false);
}

/* A sparse value's weight has no entry. */
static int rows_gradient(const struct tune_context *context, struct learn_linear *linear)
{
    const struct qtensor *q = linear->module->result;
    int64_t codes = (int64_t)1 << q->scheme.bits;
    AUTO_FREE float *gradient = NULL;
    AUTO_FREE double *sums = NULL;

    TRY(mem_buffer(&gradient, (size_t)q->rows * (size_t)q->cols));
    TRY(mem_array(&sums, linear->tables.count));
    TRY(context->gpu->ops->download(context->stream, gradient, linear->grad.data, tensor_bytes(&linear->grad)));
    for (int64_t i = 0; i < q->index_count; i++) {
        gradient[q->index[i]] = 0;
    }
    for (int64_t n = 0; n < q->rows; n++) {
        for (int64_t k = 0; k < q->cols; k++) {
            sums[n * codes + q->codes[n * q->cols + k]] += gradient[n * q->cols + k];
        }
    }
    for (size_t i = 0; i < linear->tables.count; i++) {
        linear->tables.host[i] = (float)sums[i];
    }
    return gpu_tensor_upload(context->gpu, context->stream, &linear->tables.grad, linear->tables.host);
}

static int vectors_gradient(const struct tune_context *context, const struct tensor *scratch,
                            struct learn_linear *linear)
{
    const struct qtensor *q = linear->module->result;
    const struct gpu_ops *ops = context->gpu->ops;
    const struct tensor unscaled = tensor_2d(scratch->data, DTYPE_F32, q->rows, q->cols);

    TRY(ops->code_reduce(context->stream, &linear->tables.grad, &linear->grad, &linear->entries, &linear->scale,
                         &linear->books));
    if (linear->scales.count == 0) {
        return 0;
    }
    TRY(ops->code_expand(context->stream, &unscaled, &linear->entries, NULL, &linear->table, &linear->books, 1.0f,
                         false));
    return ops->row_dot(context->stream, &linear->scales.grad, &linear->grad, &unscaled);
}

int learn_tables_step(const struct tune_context *context, const struct learn_plan *plan, double share, int64_t step,
                      const struct tensor *scratch, struct learn_linear *linear)
{
    bool rows = linear->module->result->scheme.kind == QTENSOR_TABLE;

    TRY(rows ? rows_gradient(context, linear) : vectors_gradient(context, scratch, linear));
    TRY(learn_vector_step(context, plan, share * plan->rate[LEARN_TABLES], step, &linear->tables));
    return learn_vector_step(context, plan, share * plan->rate[LEARN_SCALES], step, &linear->scales);
}

int learn_tables_finish(const struct tune_context *context, struct learn_linear *linear)
{
    struct qtensor *q = linear->module->result;

    TRY(learn_vector_restore(context, &linear->scales));
    TRY(learn_vector_restore(context, &linear->tables));
    memcpy(q->tables, linear->tables.best, linear->tables.count * sizeof(*q->tables));
    if (linear->scales.count > 0) {
        memcpy(q->scales, linear->scales.best, linear->scales.count * sizeof(*q->scales));
    }
    return learn_tables_apply(context, linear);
}
