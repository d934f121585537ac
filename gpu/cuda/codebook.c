/* Weights as sums of codebook vectors: descriptions for the kernels of codebook.cu and codebook_sums.cu, and the search
 * block of columns by block of columns: a product gives D H for the block, then the kernel takes the rows through its
 * groups. */

#include "gpu/cuda/cuda.h"

static struct launch_code codebook_launch(const struct tensor *w, const struct gpu_codebook *spec)
{
    return (struct launch_code){.rows = matrix_rows(w),
                                .cols = matrix_cols(w),
                                .group = spec->group_size,
                                .codes = (int64_t)1 << spec->bits,
                                .books = spec->codebooks};
}

static const void *data_of(const struct tensor *tensor)
{
    return tensor != NULL ? tensor->data : NULL;
}

int cuda_code_expand(struct gpu_stream *stream, const struct tensor *y, const struct tensor *entries,
                     const struct tensor *scale, const struct tensor *table, const struct gpu_codebook *spec,
                     float alpha, bool add)
{
    const struct launch_code code = codebook_launch(y, spec);

    TRY(cuda_begin(stream->device));
    return cuda_ok(
        stream->device,
        launch_code_expand(y->data, entries->data, data_of(scale), table->data, &code, alpha, add, stream->stream),
        "code_expand");
}

int cuda_code_reduce(struct gpu_stream *stream, const struct tensor *out, const struct tensor *p,
                     const struct tensor *entries, const struct tensor *scale, const struct gpu_codebook *spec)
{
    SCRATCH_SCOPE(stream);
    const struct launch_code code = codebook_launch(p, spec);
    int64_t parts = LAUNCH_REDUCE_SLICES * code.books * code.codes * code.group;

    TRY(cuda_begin(stream->device));
    TRY(scratch_reserve(stream, scratch_size(parts, sizeof(double))));
    return cuda_ok(stream->device,
                   launch_code_reduce(out->data, scratch_take(stream, parts, sizeof(double)), p->data, entries->data,
                                      data_of(scale), &code, stream->stream),
                   "code_reduce");
}

/* D H for the block's columns; the kernel makes its own product when there is no H. */
static int codebook_multiply(struct gpu_stream *stream, const struct launch_code_search *search, float *product)
{
    int64_t first = search->first * search->spec.group, cols = search->spec.cols;
    const struct gemm gemm = {.m = search->spec.rows,
                              .n = search->count * search->spec.group,
                              .k = cols,
                              .alpha = 1.0f,
                              .a = search->d,
                              .b = search->h + first,
                              .c = product,
                              .lda = cols,
                              .ldb = cols,
                              .ldc = search->count * search->spec.group};

    return gemm_run(stream, &gemm);
}

static int search_blocks(struct gpu_stream *stream, struct launch_code_search *search, float *product, int64_t block)
{
    int64_t groups = search->spec.cols / search->spec.group;

    TRY(cuda_ok(stream->device, launch_code_turn(search->turned, search->table, &search->spec, stream->stream),
                "code_search"));
    for (int64_t first = 0; first < groups; first += block) {
        search->first = first;
        search->count = groups - first < block ? groups - first : block;
        if (search->h != NULL) {
            TRY(codebook_multiply(stream, search, product));
        }
        TRY(cuda_ok(stream->device, launch_code_search(search, stream->stream), "code_search"));
    }
    return 0;
}

static int sum_gains(struct gpu_stream *stream, const double *gains, int64_t rows, double *gain)
{
    AUTO_FREE double *host = NULL;
    double sum = 0;

    TRY(mem_buffer(&host, (size_t)rows));
    TRY(memory_download(stream, host, gains, (size_t)rows * sizeof(double)));
    for (int64_t r = 0; r < rows; r++) {
        sum += host[r];
    }
    *gain = sum;
    return 0;
}

static int run_search(struct gpu_stream *stream, struct launch_code_search *search, double *gain)
{
    SCRATCH_SCOPE(stream);
    const struct launch_code *spec = &search->spec;
    int64_t groups = spec->cols / spec->group, block = LAUNCH_CODE_COLS / spec->group;
    int64_t vectors = spec->books * spec->codes;

    block = block < groups ? block : groups;
    int64_t product = search->h != NULL ? spec->rows * block * spec->group : 0;
    TRY(scratch_reserve(stream, scratch_size(vectors * spec->group, sizeof(float)) +
                                    scratch_size(block * vectors, sizeof(float)) +
                                    scratch_size(product, sizeof(float)) + scratch_size(spec->rows, sizeof(double))));
    search->turned = scratch_take(stream, vectors * spec->group, sizeof(float));
    search->costs = scratch_take(stream, block * vectors, sizeof(float));
    float *products = scratch_take(stream, product, sizeof(float));
    search->product = products;
    search->gains = scratch_take(stream, spec->rows, sizeof(double));
    TRY(memory_fill_zero(stream, search->gains, (size_t)spec->rows * sizeof(double)));
    TRY(search_blocks(stream, search, products, block));
    return sum_gains(stream, search->gains, spec->rows, gain);
}

int cuda_code_search(struct gpu_stream *stream, const struct tensor *entries, const struct tensor *d,
                     const struct tensor *scale, const struct tensor *table, const struct tensor *h,
                     const struct tensor *importance, const struct gpu_codebook *spec, double *gain)
{
    struct launch_code_search search = {.spec = codebook_launch(d, spec),
                                        .entries = entries->data,
                                        .d = d->data,
                                        .scale = data_of(scale),
                                        .table = table->data,
                                        .h = data_of(h),
                                        .importance = data_of(importance),
                                        .beam = spec->beam > 0 ? spec->beam : 1};

    TRY(cuda_begin(stream->device));
    return run_search(stream, &search, gain);
}
