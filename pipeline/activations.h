#pragma once
/* Activations of a complete token set between blocks: [rows, width] F32, kept on the device within a budget, else in
 * host memory within another, else on disk. Their values do not depend on the place.
 *
 * A store has an IN side (what the open block reads: the last block's committed output) and an OUT side (what it
 * writes). In memory both are one buffer; on disk they are two files, so that a block dropped halfway costs nothing.
 * activations_commit makes OUT durable under a name of its own; a resume loads exactly those bytes. */

#include "gpu/gpu.h"

#include "base/digest.h"

#include <stdint.h>

struct activations;

/* Bytes of activations that may stay in memory, shared by all stores of a job, and the device and stream that a store
 * in device memory is moved with; both outlive it. */
struct activations_budget {
    int64_t limit, used;               /* of the host */
    int64_t device_limit, device_used; /* 0: none on the device, as where its memory is the host's */
    const struct gpu *gpu;
    struct gpu_stream *stream;
};

enum activations_side { ACTIVATIONS_IN, ACTIVATIONS_OUT };

/* directory: where files go ("jobs/<id>"); name: file stem. Memory within the budgets, else disk. */
int activations_new(const char *directory, const char *name, int64_t rows, int64_t width,
                    struct activations_budget *budget, struct activations **out);
size_t activations_bytes(const struct activations *store);
void activations_free(
    struct activations *store); /* gives the budget back; uncommitted files are removed; NULL is fine */
/* Copy rows [first, first + tensor rows) between a device tensor and a side. Writes go to ACTIVATIONS_OUT. */
int activations_read(struct activations *store, enum activations_side side, int64_t first, const struct tensor *to,
                     const struct gpu *gpu, struct gpu_stream *stream);
int activations_write(struct activations *store, int64_t first, const struct tensor *from, const struct gpu *gpu,
                      struct gpu_stream *stream);
/* For work in place, on what the device holds itself: `rows`, shaped as above, becomes a view of rows from `first` on,
 * so that what is done to it is done to the store, and activations_write of it has nothing to do. Other stores are read
 * into it as it is (activations_open), or leave it to be written (activations_place). */
int activations_open(struct activations *store, enum activations_side side, int64_t first, struct tensor *rows,
                     const struct gpu *gpu, struct gpu_stream *stream);
void activations_place(const struct activations *store, int64_t first, struct tensor *rows, const struct gpu *gpu);
/* OUT becomes durable as "<name>-<block>.act" and is the next block's IN. *file gets the name, sha256 its digest. */
int activations_commit(struct activations *store, int64_t block, char file[64], char sha256[DIGEST_HEX_SIZE]);
/* IN := a committed file, verified against sha256. ERR_SOURCE_CORRUPT when it does not match, ERR_NOT_FOUND when
 * it is not there. */
int activations_load(struct activations *store, const char *file, const char *sha256);
/* Without durability: OUT becomes IN (the first block's input). */
int activations_turn(struct activations *store);
/* Remove the committed files of this store other than `keep` (NULL = all). */
int activations_sweep(struct activations *store, const char *keep);
