/* Codebooks under output moments: the loss is tr(O D H D^T), in which rows cost something together (YAQA: Tseng et al.
 * 2025, arXiv 2505.22988; GuidedQuant: Kim et al. 2025, arXiv 2505.07004).
 *
 * With all other rows fixed, row n's part of it is o_nn (e H e^T), e = sum over m of o_nm / o_nn * D_m, up to what does
 * not depend on the row's codes, and e follows D_n as D_n itself moves. So the search for one row is that of rows that
 * do not depend on each other, on e in the place of D. A few rows are searched at once, each against the others as they
 * were. Should that raise the loss, codes stay as they were before the sweep.
 *
 * Losses and tables take products in F32. The search alone mixes rows by a product that some devices round to BF16. */

#include "quantizers/codebooks.h"

#include "base/err.h"
#include "base/mem.h"

#include <stdlib.h>

#define SEARCHED_ROWS 8

int codebooks_couple(struct codebooks *c, struct tensor *o)
{
    const struct gpu *gpu = c->context->gpu;
    const int64_t shape[2] = {c->rows, c->cols};
    AUTO_FREE float *values = NULL;

    c->o = tensor_move(o);
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, shape, &c->od));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 1, &c->rows, &c->diagonal));
    TRY(mem_buffer(&values, (size_t)(c->rows * c->rows)));
    TRY(codebooks_download(c, values, &c->o));
    for (int64_t n = 0; n < c->rows; n++) {
        values[n] = values[n * c->rows + n];
    }
    return codebooks_upload(c, &c->diagonal, values);
}

int codebooks_across(const struct codebooks *c, const struct tensor *x, const struct tensor *h)
{
    const struct gpu_ops *ops = c->context->gpu->ops;
    const struct tensor turned = tensor_2d(c->od.data, DTYPE_F32, c->cols, c->rows); /* (x h)^T, h being symmetric */

    TRY(ops->multiply(c->context->stream, &turned, h, x));
    return ops->multiply(c->context->stream, &c->q, &c->o, &turned);
}

/* inverse: F32 [N], 1 / o_nn. */
static int both_search_rows(struct codebooks *c, const struct tensor *h, const struct tensor *inverse, int64_t first)
{
    const struct gpu_ops *ops = c->context->gpu->ops;
    struct gpu_stream *stream = c->context->stream;
    int64_t count = c->rows - first < SEARCHED_ROWS ? c->rows - first : SEARCHED_ROWS;
    const struct tensor o = tensor_rows(&c->o, first, count), e = tensor_rows(&c->p, 0, count);
    const struct tensor d = tensor_rows(&c->d, first, count), weight = tensor_rows(c->weight, first, count);
    const struct tensor entries = tensor_rows(&c->entries, first, count),
                        scale = tensor_1d((float *)c->scale.data + first, DTYPE_F32, count);
    const struct tensor factors = tensor_1d((float *)inverse->data + first, DTYPE_F32, count);
    double gain;

    TRY(ops->fill_zero(stream, e.data, tensor_bytes(&e)));
    TRY(ops->linear_grad(stream, &e, &o, &c->d));
    TRY(ops->scale(stream, &e, &factors, NULL));
    TRY(ops->code_search(stream, &entries, &e, &scale, &c->table, h, NULL, &c->spec, &gain));
    TRY(ops->convert(stream, &d, &weight));
    return ops->code_expand(stream, &d, &entries, &scale, &c->table, &c->spec, -1.0f, true);
}

static int both_search(struct codebooks *c, const struct tensor *h)
{
    AUTO_TENSOR(inverse, c->context->gpu);

    TRY(codebooks_download(c, c->host_rows, &c->diagonal));
    for (int64_t n = 0; n < c->rows; n++) {
        c->host_rows[n] = 1 / c->host_rows[n];
    }
    TRY(gpu_tensor_new(c->context->gpu, DTYPE_F32, 1, &c->rows, &inverse));
    TRY(codebooks_upload(c, &inverse, c->host_rows));
    for (int64_t first = 0; first < c->rows; first += SEARCHED_ROWS) {
        TRY(quant_tick(c->context));
        TRY(both_search_rows(c, h, &inverse, first));
    }
    return 0;
}

int codebooks_search_both(struct codebooks *c, const struct tensor *h, double *gain)
{
    double before = 0, after = 0;
    AUTO_FREE uint16_t *entries = NULL;

    TRY(mem_buffer(&entries, (size_t)tensor_count(&c->entries)));
    TRY(codebooks_download(c, entries, &c->entries));
    TRY(codebooks_loss(c, h, &before));
    TRY(both_search(c, h));
    TRY(codebooks_loss(c, h, &after));
    *gain = before - after;
    if (after <= before) {
        return 0;
    }
    *gain = 0;
    TRY(codebooks_upload(c, &c->entries, entries));
    return codebooks_residual(c);
}

void codebooks_cost_both(const struct gpu_codebook *spec, const struct quant_shape *shape, double epochs,
                         struct quant_cost *out)
{
    int64_t elements = shape->rows * shape->cols, square = shape->rows * shape->rows;
    int64_t entries = elements / spec->group_size * spec->codebooks * (int64_t)sizeof(uint16_t);

    out->solving += (square + elements + 2 * shape->rows) * (int64_t)sizeof(float);
    out->host += square * (int64_t)sizeof(float) + entries;
    out->operations += epochs * 2 * (double)elements * (double)(shape->rows + shape->cols);
}
