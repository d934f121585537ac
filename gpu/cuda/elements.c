/* Weights as a scale times an element of a fixed set: descriptions for the kernels of elements.cu. */

#include "gpu/cuda/cuda.h"

#include <string.h>

static struct launch_tiles tiles_of_spec(const struct tensor *w, const struct gpu_tiles *spec)
{
    struct launch_tiles tiles = {.element = spec->element,
                                 .rows = matrix_rows(w),
                                 .cols = matrix_cols(w),
                                 .tile_rows = spec->rows,
                                 .tile_cols = spec->cols,
                                 .groups = tiles_of(matrix_cols(w), spec->cols)};

    memcpy(tiles.levels, dtype_nf4_levels, sizeof(tiles.levels));
    return tiles;
}

int cuda_tile_range(struct gpu_stream *stream, const struct tensor *max, const struct tensor *w,
                    const struct gpu_tiles *spec)
{
    TRY(cuda_begin(stream->device));
    const struct launch_tiles tiles = tiles_of_spec(w, spec);
    return cuda_ok(stream->device, launch_tile_range(max->data, w->data, &tiles, stream->stream), "tile_range");
}

int cuda_tile_encode(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w,
                     const struct tensor *scale, const struct gpu_tiles *spec)
{
    TRY(cuda_begin(stream->device));
    const struct launch_tiles tiles = tiles_of_spec(w, spec);
    return cuda_ok(stream->device, launch_tile_encode(codes->data, w->data, scale->data, &tiles, stream->stream),
                   "tile_encode");
}

int cuda_tile_decode(struct gpu_stream *stream, const struct tensor *w, const struct tensor *codes,
                     const struct tensor *scale, const struct gpu_tiles *spec)
{
    TRY(cuda_begin(stream->device));
    const struct launch_tiles tiles = tiles_of_spec(w, spec);
    return cuda_ok(stream->device, launch_tile_decode(w->data, codes->data, scale->data, &tiles, stream->stream),
                   "tile_decode");
}
