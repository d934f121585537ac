/* Grids, codes and dequantized weights: descriptions for the kernels of grid.cu. */

#include "gpu/cuda/cuda.h"

static struct launch_grid grid_launch(const struct tensor *w, const struct gpu_grid *spec)
{
    return (struct launch_grid){
        .bits = spec->bits,
        .sym = spec->sym,
        .signs = spec->signs,
        .mse = spec->mse,
        .steps = spec->steps,
        .candidates = spec->mse ? (int)(spec->max_shrink * spec->steps + 1e-9) * (spec->signs ? 2 : 1) : 1,
        .scale_dtype = spec->scale_dtype,
        .rows = matrix_rows(w),
        .cols = matrix_cols(w),
        .group = spec->group_size,
        .norm = (float)spec->norm};
}

int cuda_grid(struct gpu_stream *stream, const struct tensor *scale, const struct tensor *zero, const struct tensor *w,
              const struct tensor *importance, const struct gpu_grid *spec)
{
    TRY(cuda_begin(stream->device));
    struct launch_grid grid = grid_launch(w, spec);
    return cuda_ok(stream->device,
                   launch_grid(scale->data, zero->data, w->data, importance != NULL ? importance->data : NULL, &grid,
                               stream->stream),
                   "grid");
}

int cuda_round(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w,
               const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec)
{
    TRY(cuda_begin(stream->device));
    struct launch_grid grid = grid_launch(w, spec);
    return cuda_ok(stream->device, launch_round(codes->data, w->data, scale->data, zero->data, &grid, stream->stream),
                   "round");
}

int cuda_dequantize(struct gpu_stream *stream, const struct tensor *w, const struct tensor *codes,
                    const struct tensor *scale, const struct tensor *zero, const struct gpu_grid *spec)
{
    TRY(cuda_begin(stream->device));
    struct launch_grid grid = grid_launch(w, spec);
    return cuda_ok(stream->device,
                   launch_dequantize(w->data, codes->data, scale->data, zero->data, &grid, stream->stream),
                   "dequantize");
}
