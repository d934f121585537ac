#pragma once
/* The parts of an export. Inside the storage floor only. */

#include "storage/format_common.h"

#define EXPORT_PATH_MAX 4096
#define EXPORT_NAME_MAX 256

/* One tensor of the artifact: a source tensor as it is, or one of the tensors that a module becomes. */
struct export_piece {
    char name[EXPORT_NAME_MAX];
    enum dtype dtype;
    int rank;
    int64_t shape[TENSOR_RANK_MAX];
    int64_t bytes;
    int shard;
    int module;    /* index in config.modules, or -1 */
    int dense;     /* index in plan.dense, or -1; with neither, `source` is copied */
    int index;     /* of the module's tensors */
    size_t source; /* of the model's tensors */
};

/* Where a module's result lies. */
struct export_place {
    int block; /* of block_files; -1 = not found yet */
    int item;
};

/* A float tensor that the job changed (or made): it stands in the source's place, or is new. */
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
};

/* Everything that will be written, from headers alone. ERR_SOURCE_CORRUPT when a block file lacks a module or
 * disagrees. */
int export_plan_make(const struct format_export *request, struct export_plan *plan);
void export_plan_deinit(struct export_plan *plan);
/* "model.safetensors" or "model-00001-of-00003.safetensors" */
void export_shard_name(const struct export_plan *plan, int shard, char out[64]);

/* Reads the pieces of a plan. Zeroed is fine to deinit; one thread. */
struct export_reader {
    const struct format_export *request;
    const struct export_plan *plan;
    struct qtensor_file *file; /* the open block, or NULL */
    int block;
    struct qtensor module; /* the loaded module; its index or -1 */
    int module_index;
    unsigned char *buffer;
    int64_t done; /* bytes, for the request's tick */
};
int export_reader_init(struct export_reader *reader, const struct format_export *request,
                       const struct export_plan *plan);
void export_reader_deinit(struct export_reader *reader);
/* Takes bytes [at, at + size) of a piece; stretches come in order and hold whole elements. */
typedef int (*export_sink)(void *data, uint64_t at, const void *bytes, size_t size);
/* All bytes of one piece. Fastest in the plan's order. */
int export_read_piece(struct export_reader *reader, const struct export_piece *piece, export_sink sink, void *data);

/* export_files.c: everything but the shards. */
int export_write_index(const struct format_export *request, const struct export_plan *plan);
int export_write_config(const struct format_export *request);
int export_copy_side_files(const struct format_export *request);
/* Hash every file, write the manifest, sync the directory, and answer the list. */
int export_write_manifest(const struct format_export *request, json_t **files);
