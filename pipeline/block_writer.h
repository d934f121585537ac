#pragma once
/* The outputs of a block, and the writer that saves those of one block at a time while the run continues. */

#include "base/digest.h"
#include "models/qtensor.h"

/* A block's quantized linears, then float tensors that a rewrite changed, and the scales of keys and values. */
struct block_outputs {
    struct qtensor *list;
    struct tensor *codes; /* on the device, not yet in list[i].codes; data NULL: list[i].codes has them */
    int count, capacity;
    struct qtensor_spill *spill; /* where arrays of some are instead; NULL: all are in memory */
};
/* Capacity for one more; zeroed is empty. */
int block_outputs_reserve(struct block_outputs *outputs);
/* Take over a result and its codes, for which there is capacity. */
void block_outputs_add_take(struct block_outputs *outputs, const struct qtensor *result, const struct tensor *codes);
/* The number of the result of this name, or -1. */
int block_outputs_find(const struct block_outputs *outputs, const char *name);
/* Codes of a result that the device keeps come to the host. */
int block_outputs_download(struct block_outputs *outputs, int i, const struct gpu *gpu, struct gpu_stream *stream);
/* Move the arrays of all results from `first` on to a file in `directory`. */
int block_outputs_spill(struct block_outputs *outputs, int first, const char *directory, const struct gpu *gpu,
                        struct gpu_stream *stream);
void block_outputs_deinit(struct block_outputs *outputs, const struct gpu *gpu);

struct block_writer;
int block_writer_new(const struct gpu *gpu, struct block_writer **out);
void block_writer_free(struct block_writer *writer); /* waits; a failure is dropped; NULL is fine */
/* Takes the outputs over; codes on the device are read after all that is queued on `maker` by now. No other block may
 * be under way. */
int block_writer_start(struct block_writer *writer, const char *path, struct gpu_stream *maker,
                       struct block_outputs *outputs);
bool block_writer_ready(const struct block_writer *writer); /* block_writer_wait will not wait */
int block_writer_wait(struct block_writer *writer, char sha256[DIGEST_HEX_SIZE]);
