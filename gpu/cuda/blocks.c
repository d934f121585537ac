/* GGUF blocks: a description for the kernel of blocks.cu. */

#include "gpu/cuda/cuda.h"
#include "gpu/ggml_blocks.h"

int cuda_encode_blocks(struct gpu_stream *stream, const struct tensor *blocks, const struct tensor *w,
                       const struct tensor *importance, const struct gpu_blocks *spec)
{
    const struct ggml_block *block = ggml_block_find(spec->type);

    TRY(cuda_begin(stream->device));
    struct launch_blocks job = {.out = blocks->data,
                                .w = w->data,
                                .importance = importance != NULL ? importance->data : NULL,
                                .rows = matrix_rows(w),
                                .cols = matrix_cols(w),
                                .type = block->type,
                                .elements = (int)block->elements,
                                .bytes = (int)block->bytes,
                                .search = spec->search};
    for (int i = 0; i < 16; i++) {
        job.table[i] = ggml_iq4nl_levels[i];
    }
    return cuda_ok(stream->device, launch_blocks(&job, stream->stream), "encode_blocks");
}
