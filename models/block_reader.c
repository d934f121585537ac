/* One buffer, one thread at a time: a block is read while the one before it computes, and has been uploaded when the
 * next begins to be read. A thread that fails leaves nothing: whoever wants the bytes then reads them and meets the
 * error. */

#include "models/block_reader.h"

#include "base/err.h"
#include "base/log.h"
#include "models/block.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_BYTES ((uint64_t)4 << 20) /* between two looks at `stop` */
#define ALIGNMENT 64

struct block_reader {
    const struct model *model;
    const struct gpu *gpu;
    char *bytes;
    struct model_tensor list[BLOCK_TENSORS_MAX]; /* of the open block; in this order in `bytes` */
    int count;
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

int64_t block_reader_bytes(const struct model *model)
{
    struct model_tensor list[BLOCK_TENSORS_MAX];
    uint64_t most = 0;

    for (int64_t i = 0; i < model_config(model)->num_layers; i++) {
        uint64_t sum = 0;
        int count = block_tensors(model, i, list);
        for (int k = 0; k < count; k++) {
            sum += padded(stored_bytes(&list[k])); /* no more than the files are long */
        }
        most = sum > most ? sum : most;
    }
    return (int64_t)most;
}

int block_reader_new(const struct model *model, const struct gpu *gpu, struct block_reader **out)
{
    void *bytes;
    int rc = gpu->ops->host_alloc(gpu->device, (size_t)block_reader_bytes(model), &bytes);

    if (rc != 0) {
        return err_pass(rc, "memory to read a block ahead");
    }
    struct block_reader *reader = calloc(1, sizeof(*reader));
    if (reader == NULL) {
        gpu->ops->host_free(gpu->device, bytes);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a reader");
    }
    reader->model = model;
    reader->gpu = gpu;
    reader->bytes = bytes;
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
        atomic_store(&reader->stop, true);
        join(reader);
        reader->gpu->ops->host_free(reader->gpu->device, reader->bytes);
        free(reader);
    }
}

static int read_tensor(struct block_reader *reader, const struct model_tensor *tensor, char *to)
{
    uint64_t bytes = stored_bytes(tensor);
    int rc = 0;

    for (uint64_t at = 0; rc == 0 && at < bytes && !atomic_load(&reader->stop); at += PIECE_BYTES) {
        uint64_t left = bytes - at;
        rc = safetensors_read(tensor->file, tensor->entry, at, to + at,
                              (size_t)(left < PIECE_BYTES ? left : PIECE_BYTES));
    }
    return rc;
}

/* Reader thread; the others look at `whole` when it is joined. */
static void *read_block(void *data)
{
    struct block_reader *reader = data;
    char *to = reader->bytes;
    int rc = 0;

    for (int i = 0; rc == 0 && i < reader->count; i++) {
        rc = read_tensor(reader, &reader->list[i], to);
        to += padded(stored_bytes(&reader->list[i]));
    }
    if (rc != 0) {
        log_err(LOG_INFO, "block not read ahead", NULL);
    }
    reader->whole = rc == 0 && !atomic_load(&reader->stop);
    return NULL;
}

void block_reader_start(struct block_reader *reader, int64_t index)
{
    join(reader);
    reader->whole = false;
    reader->count = 0;
    if (index < model_config(reader->model)->num_layers) {
        reader->count = block_tensors(reader->model, index, reader->list);
        reader->running = pthread_create(&reader->thread, NULL, read_block, reader) == 0;
    }
}

const void *block_reader_find(struct block_reader *reader, const char *name)
{
    const char *at = reader->bytes;

    join(reader);
    for (int i = 0; reader->whole && i < reader->count; i++) {
        if (strcmp(reader->list[i].name, name) == 0) {
            return at;
        }
        at += padded(stored_bytes(&reader->list[i]));
    }
    return NULL;
}
