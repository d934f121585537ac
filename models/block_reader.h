#pragma once
/* The stored bytes of one block, read by a thread of their own and uploaded on a stream of their own while another
 * block computes. Never needed: what it does not have is read from the files as ever, to the same bits. */

#include "base/cleanup.h"
#include "models/model.h"

struct block_reader;

/* Takes memory of the device for the largest block, and 16 MiB of the host that the device copies from by itself. */
int block_reader_new(const struct model *model, const struct gpu *gpu, struct block_reader **out);
void block_reader_free(struct block_reader *reader); /* waits for a piece at most; NULL is fine */
CLEANUP_FREE(block_reader, struct block_reader, block_reader_free)
/* What it takes of the device, whatever block. */
int block_reader_bytes(const struct model *model, int64_t *bytes);

/* Drop what is there and begin to read block `index`; a block that does not exist is not an error. The bytes of the
 * last one stay until the device has done all that is queued on `user` by now. */
void block_reader_start(struct block_reader *reader, int64_t index, struct gpu_stream *user);
/* A tensor's bytes as stored, on the device, or NULL. Waits for the thread. They stay until block_reader_start or
 * _free. */
const void *block_reader_find(struct block_reader *reader, const char *name);
