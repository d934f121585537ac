/* One place on the device, one thread at a time: a block is read while the one before it computes, and has been widened
 * out of there when the next begins to be read. Pieces go through two halves of pinned memory, one being read while the
 * other is on its way. A thread that fails leaves nothing: whoever wants the bytes then reads them and meets the error.
 */

#include "models/block_reader.h"

#include "base/err.h"
#include "base/log.h"
#include "models/block.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES ((uint64_t)8 << 20) /* between two looks at `stop` */
#define ALIGNMENT 256

struct block_reader {
    const struct model *model;
    const struct gpu *gpu;
    struct gpu_stream *stream; /* uploads wait for no computation */
    struct gpu_event *used;    /* the user's work on the block before has ended */
    char *pinned[2];           /* host, PIECE_BYTES each */
    int half;                  /* the one to read into */
    char *bytes;               /* device */
    struct model_tensor *list; /* of the open block; in this order in `bytes` */
    size_t count;
    bool running, whole;
    pthread_t thread;
    atomic_bool stop;
};

static uint64_t stored_bytes(const struct model_tensor *tensor)
{
    return tensor->entry->end - tensor->entry->begin;
}

static uint64_t padded(uint64_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

int block_reader_bytes(const struct model *model, int64_t *bytes)
{
    struct model_tensor *list = calloc(block_tensors_max(model), sizeof(*list));
    uint64_t max = 0;

    if (list == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of tensors");
    }
    for (int64_t i = 0; i < model_config(model)->num_layers; i++) {
        uint64_t sum = 0;
        size_t count = block_tensors(model, i, list);
        for (size_t k = 0; k < count; k++) {
            sum += padded(stored_bytes(&list[k])); /* no more than the files are long */
        }
        max = sum > max ? sum : max;
    }
    free(list);
    *bytes = (int64_t)max;
    return 0;
}

int block_reader_new(const struct model *model, const struct gpu *gpu, struct block_reader **out)
{
    struct block_reader *reader = calloc(1, sizeof(*reader));
    void *pinned = NULL, *bytes = NULL;
    int64_t size = 0;

    if (reader == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a reader");
    }
    reader->model = model;
    reader->gpu = gpu;
    reader->list = calloc(block_tensors_max(model), sizeof(*reader->list));
    int rc = reader->list != NULL ? gpu->ops->stream_new(gpu->device, &reader->stream)
                                  : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of tensors");
    rc = rc != 0 ? rc : gpu->ops->event_new(gpu->device, &reader->used);
    rc = rc != 0 ? rc : gpu->ops->host_alloc(gpu->device, 2 * PIECE_BYTES, &pinned);
    reader->pinned[0] = pinned;
    rc = rc != 0 ? rc : block_reader_bytes(model, &size);
    rc = rc != 0 ? rc : gpu->ops->alloc(gpu->device, (size_t)size, false, &bytes);
    reader->bytes = bytes;
    if (rc != 0) {
        block_reader_free(reader);
        return err_pass(rc, "memory to read a block ahead");
    }
    reader->pinned[1] = reader->pinned[0] + PIECE_BYTES;
    *out = reader;
    return 0;
}

static void join(struct block_reader *reader)
{
    if (reader->running) {
        (void)pthread_join(reader->thread, NULL);
        reader->running = false;
    }
}

void block_reader_free(struct block_reader *reader)
{
    if (reader != NULL) {
        const struct gpu *gpu = reader->gpu;
        atomic_store(&reader->stop, true);
        join(reader);
        if (reader->stream != NULL) {
            gpu->ops->stream_free(reader->stream); /* waits for what is on its way */
        }
        gpu->ops->event_free(reader->used);
        gpu->ops->host_free(gpu->device, reader->pinned[0]);
        gpu->ops->free(gpu->device, reader->bytes);
        free(reader->list);
        free(reader);
    }
}

/* The other half may still be on its way when this one has been read, and is not when this one leaves. */
static int read_piece(struct block_reader *reader, const struct model_tensor *tensor, uint64_t at, size_t size,
                      char *to)
{
    const struct gpu_ops *ops = reader->gpu->ops;
    char *half = reader->pinned[reader->half];

    reader->half = 1 - reader->half;
    int rc = safetensors_read(tensor->file, tensor->entry, at, half, size);
    rc = rc != 0 ? rc : ops->stream_sync(reader->stream);
    return rc != 0 ? rc : ops->upload_pinned(reader->stream, to + at, half, size);
}

static int read_tensor(struct block_reader *reader, const struct model_tensor *tensor, char *to)
{
    uint64_t bytes = stored_bytes(tensor);
    int rc = 0;

    for (uint64_t at = 0; rc == 0 && at < bytes && !atomic_load(&reader->stop); at += PIECE_BYTES) {
        uint64_t left = bytes - at;
        rc = read_piece(reader, tensor, at, (size_t)(left < PIECE_BYTES ? left : PIECE_BYTES), to);
    }
    return rc;
}

/* Reader thread; the others look at `whole` when it is joined. */
static void *read_block(void *data)
{
    struct block_reader *reader = data;
    char *to = reader->bytes;
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < reader->count; i++) {
        rc = read_tensor(reader, &reader->list[i], to);
        to += padded(stored_bytes(&reader->list[i]));
    }
    rc = rc != 0 ? rc : reader->gpu->ops->stream_sync(reader->stream);
    if (rc != 0) {
        log_err(LOG_INFO, "block not read ahead", NULL);
    }
    reader->whole = rc == 0 && !atomic_load(&reader->stop);
    return NULL;
}

void block_reader_start(struct block_reader *reader, int64_t index, struct gpu_stream *user)
{
    join(reader);
    reader->whole = false;
    reader->count = 0;
    if (index < model_config(reader->model)->num_layers && reader->gpu->ops->event_record(user, reader->used) == 0 &&
        reader->gpu->ops->event_wait(reader->stream, reader->used) == 0) { /* else it is read when it is wanted */
        reader->count = block_tensors(reader->model, index, reader->list);
        reader->running = pthread_create(&reader->thread, NULL, read_block, reader) == 0;
    }
}

const void *block_reader_find(struct block_reader *reader, const char *name)
{
    const char *at = reader->bytes;

    join(reader);
    for (size_t i = 0; reader->whole && i < reader->count; i++) {
        if (strcmp(reader->list[i].name, name) == 0) {
            return at;
        }
        at += padded(stored_bytes(&reader->list[i]));
    }
    return NULL;
}
