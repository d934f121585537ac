#pragma once
/* The parts of an export. Private to formats/. */

#include "base/cleanup.h"
#include "base/digest.h"
#include "formats/common.h"
#include "models/safetensors.h"

#include <stdatomic.h>

#define EXPORT_PATH_MAX 4096
#define EXPORT_NAME_MAX 256

/* A module's weight or bias that is stored in a tensor with others: from the job's result, or from the source. */
struct export_part {
    struct model_part stored;
    int module; /* index in config.modules, or -1 */
    int dense;  /* index in plan.dense, or -1; with neither, the source's */
};

/* One tensor of the artifact: a source tensor as it is, or one of the tensors that a module becomes. */
struct export_piece {
    char name[EXPORT_NAME_MAX];
    enum dtype dtype;
    int rank;
    int64_t shape[SAFETENSORS_RANK_MAX];
    int64_t bytes;
    int shard;
    int module;    /* index in config.modules, or -1 */
    int dense;     /* index in plan.dense, or -1; with neither, `source` is copied */
    int index;     /* of the module's tensors */
    bool ahead;    /* of a module, and its place in a file is before any module's codes */
    size_t source; /* of the model's tensors */
    /* Of a tensor that holds several modules: those that the job made or changed, put into what the source has,
     * `slice` bytes at a time, one matrix. alone: the piece is its one part, by itself. */
    size_t first_part, part_count;
    int64_t slice;
    bool alone;
};

/* Where a module's result is stored. */
struct export_place {
    int block; /* of block_files; -1 = not found yet */
    int item;
};

/* A float tensor that the job changed or made: it replaces the source's, or is new. */
struct export_dense {
    char name[EXPORT_NAME_MAX];
    struct export_place place;
    int64_t rows, cols;
    enum dtype dtype; /* for a new one; else the source's */
    bool placed;
};

struct export_plan {
    struct export_piece *pieces; /* in checkpoint order, so shards are ascending */
    size_t count;
    int shards;
    int64_t total_bytes;
    struct export_place *places; /* [config.count] */
    struct export_dense *dense;
    size_t dense_count;
    struct export_part *parts;
    size_t part_count;
};

/* Everything that will be written, from headers alone. ERR_SOURCE_CORRUPT when a block file lacks a module or
 * disagrees. */
int export_plan_make(const struct format_export *request, struct export_plan *plan);
void export_plan_deinit(struct export_plan *plan);
CLEANUP_DEINIT(export_plan, struct export_plan, export_plan_deinit)
/* Digest and size of a shard. */
struct export_sum {
    char sha256[DIGEST_HEX_SIZE];
    int64_t bytes;
};
/* "model.safetensors" or "model-00001-of-00003.safetensors" */
void export_shard_name(const struct export_plan *plan, int shard, char out[64]);

/* What one thread takes at a time: the pieces that one module becomes (so that it is read once), or a part of a piece
 * that is copied. Pieces ahead of the codes are a unit of their own, since a file is hashed from its first byte
 * on. */
struct export_unit {
    size_t first, count; /* of the plan's pieces; those with the same `ahead` are meant */
    bool ahead;
    int64_t at, size; /* of a copied piece, or of one with parts; else 0 and everything */
    uint64_t place;   /* in its file; the caller's to set, units are taken in its order */
};
/* The units of pieces [begin, end), in the plan's order; caller frees. ERR_HOST_OUT_OF_MEMORY. */
int export_units_list(const struct export_plan *plan, size_t begin, size_t end, struct export_unit **units,
                      size_t *count);

/* Takes bytes [at, at + size) of a piece; parts hold complete elements. Called by several threads at once. */
typedef int (*export_sink)(void *data, const struct export_piece *piece, uint64_t at, const void *bytes, size_t size);

/* How far all threads of an export are. */
struct export_progress {
    const struct format_export *request;
    int64_t total;
    _Atomic int64_t done; /* bytes */
    _Atomic bool stop;    /* one has failed: the others stop */
};
/* Tell the request's tick. The calling thread only. */
int export_tick(struct export_progress *progress);

/* What one thread needs to read units. Zeroed is fine to deinit. */
struct export_reader {
    const struct format_export *request;
    const struct export_plan *plan;
    struct export_progress *progress;
    bool ticks;                /* is this the calling thread's? */
    struct qtensor_file *file; /* the open block, or NULL */
    int block;
    struct qtensor module; /* the loaded module; its index or -1 */
    int module_index;
    bool without_codes;    /* how it was loaded */
    unsigned char *buffer; /* of copies and packed tensors, as large as the largest so far */
    size_t capacity;
};
void export_reader_init(struct export_reader *reader, const struct format_export *request,
                        const struct export_plan *plan, struct export_progress *progress, bool ticks);
void export_reader_deinit(struct export_reader *reader);
/* All bytes of one unit. ERR_INTERRUPTED when progress says stop. */
int export_read_unit(struct export_reader *reader, const struct export_unit *unit, export_sink sink, void *data);

/* The threads of an export, a reader each. Memory: a module and what it becomes for each of them. */
struct export_pool;
int export_pool_new(const struct format_export *request, const struct export_plan *plan, struct export_pool **out);
void export_pool_free(struct export_pool *pool); /* NULL is fine */
CLEANUP_FREE(export_pool, struct export_pool, export_pool_free)
/* Every unit through sink, lower places first. Ticks are this thread's. The first error of any thread, as it was. */
int export_pool_write(struct export_pool *pool, struct export_unit *units, size_t count, export_sink sink, void *data);

#define EXPORT_HASH_PIECE ((size_t)1 << 20)

/* A SHA-256 on a thread of its own, which hashes pieces while the next ones are made. One thread feeds it. */
struct export_hash;
int export_hash_new(struct export_hash **out);
unsigned char *export_hash_buffer(struct export_hash *hash);  /* EXPORT_HASH_PIECE bytes for the next piece; may wait */
void export_hash_feed(struct export_hash *hash, size_t size); /* hash that many bytes of the buffer */
void export_hash_finish_take(struct export_hash *hash, char sha256[DIGEST_HEX_SIZE]);
void export_hash_free(struct export_hash *hash); /* to abandon; NULL is fine */
CLEANUP_FREE(export_hash, struct export_hash, export_hash_free)

/* Finalizes a shard: a thread hashes its bytes as they are written, starts their write-back, then syncs and closes the
 * file. */
struct export_finalizer;
/* Takes the writer, which was begun, also on failure. */
int export_finalizer_new_take(struct safetensors_writer *writer, const char *path, struct export_finalizer **out);
struct safetensors_writer *
export_finalizer_writer(struct export_finalizer *finalizer);        /* borrowed; for put and place */
void export_finalizer_wrote(struct export_finalizer *finalizer);    /* there are more bytes to hash; any thread */
void export_finalizer_complete(struct export_finalizer *finalizer); /* all bytes have been written */
/* Wait until it is done, after export_finalizer_complete: digest and size of the file. Frees. */
int export_finalizer_finish_take(struct export_finalizer *finalizer, struct export_sum *sum);
void export_finalizer_free(struct export_finalizer *finalizer); /* to abandon; NULL is fine */
CLEANUP_FREE(export_finalizer, struct export_finalizer, export_finalizer_free)

/* export_files.c: everything but the shards. */
int export_write_index(const struct format_export *request, const struct export_plan *plan);
int export_write_config(const struct format_export *request);
int export_copy_side_files(const struct format_export *request);
/* Hash every file but the shards whose sums are known (NULL: none is), write the manifest, sync the directory, and
 * answer the list. */
int export_write_manifest(const struct format_export *request, const struct export_plan *plan,
                          const struct export_sum *sums, json_t **files);
