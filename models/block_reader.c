/* One place on the device, one thread at a time: a block is read while the one before it computes, and has been widened
 * out of there when the next begins to be read. Pieces go through two halves of pinned memory, one being read while the
 * other is on its way. A thread that fails leaves nothing: whoever needs the bytes then reads them and meets the error.
 */

#include "models/block_reader.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/log.h"
#include "base/mem.h"
#include "models/block.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES ((uint64_t)8 << 20) /* between two checks of `stop` */
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
    bool running, complete;
    pthread_t thread;
    atomic_bool stop;
};

static uint64_t stored_bytes(const struct model_tensor *tensor)
{
    return tensor->entry->end - tensor->entry->begin;
}

static uint64_t reader_padded(uint64_t bytes)
{
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

int block_reader_bytes(const struct model *model, int64_t *bytes)
{
    AUTO_FREE struct model_tensor *list = NULL;
    uint64_t max = 0;

    TRY(mem_array(&list, block_tensors_max(model)));
    for (int64_t i = 0; i < model_config(model)->num_layers; i++) {
        uint64_t sum = 0;
        size_t count = block_tensors(model, i, list);
        for (size_t k = 0; k < count; k++) {
            sum += reader_padded(stored_bytes(&list[k])); /* no more than the files are long */
        }
        max = sum > max ? sum : max;
    }
    *bytes = (int64_t)max;
    return 0;
}

static void reader_join(struct block_reader *reader)
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
        reader_join(reader);
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

static int reader_allocate(struct block_reader *reader)
{
    const struct gpu *gpu = reader->gpu;
    void *pinned = NULL, *bytes = NULL;
    int64_t size = 0;

    TRY(mem_array(&reader->list, block_tensors_max(reader->model)));
    TRY(gpu->ops->stream_new(gpu->device, &reader->stream));
    TRY(gpu->ops->event_new(gpu->device, &reader->used));
    TRY(gpu->ops->host_alloc(gpu->device, 2 * PIECE_BYTES, &pinned));
    reader->pinned[0] = pinned;
    reader->pinned[1] = reader->pinned[0] + PIECE_BYTES;
    TRY(block_reader_bytes(reader->model, &size));
    TRY(gpu->ops->alloc(gpu->device, (size_t)size, false, &bytes));
    reader->bytes = bytes;
    return 0;
}

int block_reader_new(const struct model *model, const struct gpu *gpu, struct block_reader **out)
{
    AUTO(block_reader) struct block_reader *reader = NULL;

    TRY(mem_new(&reader));
    reader->model = model;
    reader->gpu = gpu;
    int rc = reader_allocate(reader);
    if (rc != 0) {
        return err_pass(rc, "memory to read a block ahead");
    }
    *out = MOVE(reader);
    return 0;
}

/* The other half may still be on its way when this one has been read, and is not when this one leaves. */
static int read_piece(struct block_reader *reader, const struct model_tensor *tensor, uint64_t at, size_t size,
                      char *to)
{
    const struct gpu_ops *ops = reader->gpu->ops;
    char *half = reader->pinned[reader->half];

    reader->half = 1 - reader->half;
    TRY(safetensors_read(tensor->file, tensor->entry, at, half, size));
    TRY(ops->stream_sync(reader->stream));
    return ops->upload_pinned(reader->stream, to + at, half, size);
}

static int read_tensor(struct block_reader *reader, const struct model_tensor *tensor, char *to)
{
    uint64_t bytes = stored_bytes(tensor);

    for (uint64_t at = 0; at < bytes && !atomic_load(&reader->stop); at += PIECE_BYTES) {
        uint64_t left = bytes - at;
        TRY(read_piece(reader, tensor, at, (size_t)(left < PIECE_BYTES ? left : PIECE_BYTES), to));
    }
    return 0;
}

static int read_tensors(struct block_reader *reader)
{
    char *to = reader->bytes;

    for (size_t i = 0; i < reader->count; i++) {
        TRY(read_tensor(reader, &reader->list[i], to));
        to += reader_padded(stored_bytes(&reader->list[i]));
    }
    return reader->gpu->ops->stream_sync(reader->stream);
}

/* Reader thread; the others read `complete` when it is joined. */
static void *read_block(void *data)
{
    struct block_reader *reader = data;
    int rc = read_tensors(reader);

    if (rc != 0) {
        log_err(LOG_INFO, "block not read ahead", NULL);
    }
    reader->complete = rc == 0 && !atomic_load(&reader->stop);
    return NULL;
}

void block_reader_start(struct block_reader *reader, int64_t index, struct gpu_stream *user)
{
    reader_join(reader);
    reader->complete = false;
    reader->count = 0;
    if (index < model_config(reader->model)->num_layers && reader->gpu->ops->event_record(user, reader->used) == 0 &&
        reader->gpu->ops->event_wait(reader->stream, reader->used) == 0) { /* else it is read when it is needed */
        reader->count = block_tensors(reader->model, index, reader->list);
        reader->running = pthread_create(&reader->thread, NULL, read_block, reader) == 0;
    }
}

const void *block_reader_find(struct block_reader *reader, const char *name)
{
    const char *at = reader->bytes;

    reader_join(reader);
    for (size_t i = 0; reader->complete && i < reader->count; i++) {
        if (strcmp(reader->list[i].name, name) == 0) {
            return at;
        }
        at += reader_padded(stored_bytes(&reader->list[i]));
    }
    return NULL;
}
