#pragma once
/* safetensors: the container, read with every check of the specification and written as the reference does.
 * Reads use pread (a truncated file is an error, not SIGBUS). Header JSON is parsed by a streaming parser with a
 * budget, never as a DOM. Public format: huggingface/safetensors README and safetensors/src/tensor.rs. */

#include "base/cleanup.h"
#include "gpu/tensor.h"

#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_HEADER_MAX 100000000u
#define SAFETENSORS_RANK_MAX 8

struct safetensors_entry {
    const char *name; /* NUL-terminated, owned by the file */
    enum dtype dtype;
    int rank; /* 0..SAFETENSORS_RANK_MAX: more than a struct tensor has, for what is only copied */
    int64_t shape[SAFETENSORS_RANK_MAX]; /* unused dimensions are 1 */
    uint64_t begin, end;                 /* absolute byte offsets in the file */
};

struct safetensors; /* an open file: fd and index; immutable, so any thread may read */

/* Takes fd (closed by close, also on failure). label is for messages. ERR_INVALID_MODEL names what is wrong. */
int safetensors_open_fd_take(int fd, const char *label, struct safetensors **out);
void safetensors_close(struct safetensors *file);
CLEANUP_FREE(safetensors, struct safetensors, safetensors_close)
size_t safetensors_count(const struct safetensors *file);
const struct safetensors_entry *safetensors_at(const struct safetensors *file, size_t i); /* by offset order */
const struct safetensors_entry *safetensors_find(const struct safetensors *file, const char *name); /* or NULL */
/* __metadata__ value or NULL. */
const char *safetensors_metadata(const struct safetensors *file, const char *key);
/* Read `size` bytes at `offset` inside the entry's data. */
int safetensors_read(const struct safetensors *file, const struct safetensors_entry *entry, uint64_t offset,
                     void *buffer, size_t size);
int64_t safetensors_file_bytes(const struct safetensors *file);
size_t safetensors_header_bytes(const struct safetensors *file);
/* sha256 of the header bytes, hex: the identity of names, types and shapes. */
const char *safetensors_header_digest(const struct safetensors *file);
int safetensors_fd(const struct safetensors *file); /* borrowed */

/* Writing: declare every tensor, begin (header), write the data in any order, finish. */
struct safetensors_writer;
/* Creates path (truncated). */
int safetensors_writer_new(const char *path, struct safetensors_writer **out);
/* Before begin only. Rank 0..SAFETENSORS_RANK_MAX. */
int safetensors_writer_declare(struct safetensors_writer *writer, const char *name, enum dtype dtype, int rank,
                               const int64_t *shape);
int safetensors_writer_metadata(struct safetensors_writer *writer, const char *key, const char *value);
/* Sort by alignment descending then name, write the header ({"format":"pt"} always in __metadata__), size the file. */
int safetensors_writer_begin(struct safetensors_writer *writer);
/* Write size bytes at offset inside the named tensor. After begin, any thread, several at once: ranges of different
 * tensors, or of one as long as they do not overlap. */
int safetensors_writer_put(struct safetensors_writer *writer, const char *name, uint64_t offset, const void *data,
                           size_t size);
/* After begin: where the named tensor's bytes begin in the file. Any thread. */
int safetensors_writer_place(const struct safetensors_writer *writer, const char *name, uint64_t *offset);
/* After begin: how many bytes from the file's first on have their final value. At the same time as any put, but one
 * thread at a time. */
uint64_t safetensors_writer_final_bytes(struct safetensors_writer *writer);
/* fsync and close; every tensor must have been written completely. */
int safetensors_writer_finish(struct safetensors_writer *writer);
void safetensors_writer_free(struct safetensors_writer *writer); /* after finish, or to abandon (file is left) */
CLEANUP_FREE(safetensors_writer, struct safetensors_writer, safetensors_writer_free)
