#pragma once
/* What a finished block leaves, and one block at a time on its way to its file, next to the run that goes on. */

#include "base/digest.h"
#include "models/arch.h"
#include "models/qtensor.h"

/* A block's quantized linears, then float tensors that a rewrite changed, and the scales of keys and values. */
#define BLOCK_OUTPUTS_MAX (2 * LINEAR_COUNT + LINEAR_COUNT + NORM_COUNT + 2)
struct block_outputs {
    struct qtensor list[BLOCK_OUTPUTS_MAX];
    struct tensor codes[BLOCK_OUTPUTS_MAX]; /* on the device: what list[i].codes waits for; data NULL: it does not */
    int count;
};
void block_outputs_deinit(struct block_outputs *outputs, const struct gpu *gpu);

struct block_writer;
int block_writer_new(const struct gpu *gpu, struct block_writer **out);
void block_writer_free(struct block_writer *writer); /* waits and says nothing of how it went; NULL is fine */
/* Takes the outputs over; codes on the device are read after all that is queued on `maker` by now. None may be on its
 * way. */
int block_writer_start(struct block_writer *writer, const char *path, struct gpu_stream *maker,
                       struct block_outputs *outputs);
bool block_writer_ready(const struct block_writer *writer); /* block_writer_wait will not wait */
int block_writer_wait(struct block_writer *writer, char sha256[DIGEST_HEX_SIZE]);
