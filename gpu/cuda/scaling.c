/* Scaling and quantized inputs: descriptions for the kernels of scaling.cu. */

#include "gpu/cuda/cuda.h"

int cuda_scale(struct gpu_stream *stream, const struct tensor *w, const struct tensor *rows, const struct tensor *cols)
{
    int64_t count = matrix_rows(w), width = matrix_cols(w);

    TRY(cuda_begin(stream->device));
    return cuda_ok(stream->device,
                   launch_scale(w->data, rows != NULL ? rows->data : NULL, cols != NULL ? cols->data : NULL, count,
                                width, stream->stream),
                   "scale");
}

int cuda_quantize_input(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                        const struct tensor *outliers, const struct gpu_input *spec)
{
    int64_t cols = matrix_cols(x);

    TRY(cuda_begin(stream->device));
    const struct launch_input input = {.element = spec->element,
                                       .dynamic = spec->dynamic,
                                       .half = spec->half,
                                       .rows = matrix_rows(x),
                                       .cols = cols,
                                       .group_size = spec->dynamic && spec->group_size > 0 ? spec->group_size : cols,
                                       .scale = spec->scale};
    return cuda_ok(
        stream->device,
        launch_quantize_input(y->data, x->data, outliers != NULL ? outliers->data : NULL, &input, stream->stream),
        "quantize_input");
}
