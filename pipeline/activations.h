#pragma once
/* Activations of a whole token set between blocks: [rows, width] F32, kept on the device within a budget, else in host
 * memory within another, else on disk. Where they are changes no bit of them.
 *
 * A chain has an IN side (what the open block reads: the last block's committed output) and an OUT side (what it
 * writes). In memory both are one buffer; on disk they are two files, so that a block dropped halfway costs nothing.
 * chain_commit makes OUT durable under a name of its own; a resume loads exactly those bytes. */

#include "gpu/gpu.h"

#include "base/digest.h"

#include <stdint.h>

struct chain;

/* Bytes of activations that may stay in memory, shared by all chains of a job, and the device and stream that a chain
 * in device memory is moved with; both outlive it. */
struct chain_budget {
    int64_t limit, used;               /* of the host */
    int64_t device_limit, device_used; /* 0: none on the device, as where its memory is the host's */
    const struct gpu *gpu;
    struct gpu_stream *stream;
};

enum chain_side { CHAIN_IN, CHAIN_OUT };

/* directory: where files go ("jobs/<id>"); name: file stem. Memory where a budget has room, else disk. */
int chain_new(const char *directory, const char *name, int64_t rows, int64_t width, struct chain_budget *budget,
              struct chain **out);
void chain_free(struct chain *chain); /* gives the budget back; uncommitted files are removed; NULL is fine */
/* Copy rows [first, first + tensor rows) between a device tensor and a side. Writes go to CHAIN_OUT. */
int chain_read(struct chain *chain, enum chain_side side, int64_t first, const struct tensor *to, const struct gpu *gpu,
               struct gpu_stream *stream);
int chain_write(struct chain *chain, int64_t first, const struct tensor *from, const struct gpu *gpu,
                struct gpu_stream *stream);
/* For work in place, on what the device holds itself: `rows`, shaped as above, becomes a view of rows from `first` on,
 * so that what is done to it is done to the chain, and chain_write of it has nothing to do. Other chains are read into
 * it as it is (chain_open), or leave it to be written (chain_place). */
int chain_open(struct chain *chain, enum chain_side side, int64_t first, struct tensor *rows, const struct gpu *gpu,
               struct gpu_stream *stream);
void chain_place(const struct chain *chain, int64_t first, struct tensor *rows, const struct gpu *gpu);
/* OUT becomes durable as "<name>-<block>.act" and is the next block's IN. *file gets the name, sha256 its digest. */
int chain_commit(struct chain *chain, int64_t block, char file[64], char sha256[DIGEST_HEX_SIZE]);
/* IN := a committed file, verified against sha256. ERR_SOURCE_CORRUPT when it does not match, ERR_NOT_FOUND when
 * it is not there. */
int chain_load(struct chain *chain, const char *file, const char *sha256);
/* Without durability: OUT becomes IN (the first block's input). */
int chain_turn(struct chain *chain);
/* Remove the committed files of this chain other than `keep` (NULL = all). */
int chain_sweep(struct chain *chain, const char *keep);
