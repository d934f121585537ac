/* Writes a finished block to its file while the next block computes: codes leave the device on a stream of their own,
 * are packed, written, synced and hashed, and freed memory goes back to the system. One block at a time, by a thread
 * that lives as long as that takes. The rows that commit the file are checkpoint.c's. */

#include "pipeline/block_writer.h"

#include "base/err.h"
#include "base/fs.h"

#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct block_writer {
    const struct gpu *gpu;
    struct gpu_stream *stream;
    struct gpu_event *made; /* the codes of the block being written are computed */
    struct block_outputs outputs;
    char path[600], sha256[DIGEST_HEX_SIZE];
    bool open, threaded; /* a block is being written; by a thread */
    pthread_t thread;
    atomic_bool ready;
    int rc; /* with `error`: of the block, once it is ready */
    struct err_record error;
};

void block_outputs_deinit(struct block_outputs *outputs, const struct gpu *gpu)
{
    for (int i = 0; i < outputs->count; i++) {
        qtensor_deinit(&outputs->list[i]);
        gpu_tensor_free(gpu, &outputs->codes[i]);
    }
    free(outputs->list);
    free(outputs->codes);
    qtensor_spill_free(outputs->spill);
    *outputs = (struct block_outputs){.count = 0};
}

int block_outputs_reserve(struct block_outputs *outputs)
{
    int capacity = outputs->count < outputs->capacity ? outputs->capacity : 2 * outputs->capacity + 16;
    struct qtensor *list = realloc(outputs->list, (size_t)capacity * sizeof(*list));
    outputs->list = list != NULL ? list : outputs->list;
    struct tensor *codes = realloc(outputs->codes, (size_t)capacity * sizeof(*codes));
    outputs->codes = codes != NULL ? codes : outputs->codes;
    if (list == NULL || codes == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %d outputs of a block", capacity);
    }
    outputs->capacity = capacity;
    return 0;
}

void block_outputs_add_take(struct block_outputs *outputs, const struct qtensor *result, const struct tensor *codes)
{
    outputs->list[outputs->count] = *result;
    outputs->codes[outputs->count++] = *codes;
}

int block_outputs_find(const struct block_outputs *outputs, const char *name)
{
    for (int i = 0; i < outputs->count; i++) {
        if (strcmp(outputs->list[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

int block_outputs_download(struct block_outputs *outputs, int i, const struct gpu *gpu, struct gpu_stream *stream)
{
    struct tensor *codes = &outputs->codes[i];

    if (codes->data != NULL) {
        TRY(qtensor_allocate_codes(&outputs->list[i])); /* here, not where the device would wait for it */
        TRY(gpu->ops->download(stream, outputs->list[i].codes, codes->data, tensor_bytes(codes)));
        gpu_tensor_free(gpu, codes);
    }
    return 0;
}

int block_outputs_spill(struct block_outputs *outputs, int first, const char *directory, const struct gpu *gpu,
                        struct gpu_stream *stream)
{
    if (outputs->spill == NULL && first < outputs->count) {
        TRY(qtensor_spill_new(directory, &outputs->spill));
    }
    for (int i = first; i < outputs->count; i++) {
        TRY(block_outputs_download(outputs, i, gpu, stream));
        TRY(qtensor_spill_put(outputs->spill, &outputs->list[i]));
    }
    return 0;
}

static void writer_join(struct block_writer *writer)
{
    if (writer->open && writer->threaded) {
        (void)pthread_join(writer->thread, NULL);
    }
    writer->open = false;
}

void block_writer_free(struct block_writer *writer)
{
    if (writer != NULL) {
        writer_join(writer); /* its failure, too, is dropped: what ended the run is the caller's error */
        writer->gpu->ops->stream_free(writer->stream);
        writer->gpu->ops->event_free(writer->made);
        free(writer);
    }
}

int block_writer_new(const struct gpu *gpu, struct block_writer **out)
{
    struct block_writer *writer = calloc(1, sizeof(*writer));

    if (writer == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the block writer");
    }
    writer->gpu = gpu;
    int rc = gpu->ops->stream_new(gpu->device, &writer->stream);
    if (rc == 0) {
        rc = gpu->ops->event_new(gpu->device, &writer->made);
    }
    if (rc != 0) {
        block_writer_free(writer);
        return err_pass(rc, "the block writer's stream");
    }
    *out = writer;
    return 0;
}

static int writer_save(struct block_writer *writer)
{
    struct block_outputs *outputs = &writer->outputs;

    for (int i = 0; i < outputs->count; i++) {
        TRY(block_outputs_download(outputs, i, writer->gpu, writer->stream));
    }
    return qtensor_save(writer->path, outputs->list, outputs->count, outputs->spill, writer->sha256);
}

static void *writer_main(void *data)
{
    struct block_writer *writer = data;

    writer->rc = writer_save(writer);
    err_take(&writer->error);
    block_outputs_deinit(&writer->outputs, writer->gpu);
    (void)malloc_trim(0); /* a block's worth of freed memory goes back, so that peaks do not add up */
    atomic_store(&writer->ready, true);
    return NULL;
}

int block_writer_start(struct block_writer *writer, const char *path, struct gpu_stream *maker,
                       struct block_outputs *outputs)
{
    TRY(fs_path(writer->path, sizeof(writer->path), "%s", path));
    TRY(writer->gpu->ops->event_record(maker, writer->made));
    TRY(writer->gpu->ops->event_wait(writer->stream, writer->made));
    writer->outputs = *outputs;
    *outputs = (struct block_outputs){.count = 0};
    writer->open = true;
    atomic_store(&writer->ready, false);
    writer->threaded = pthread_create(&writer->thread, NULL, writer_main, writer) == 0;
    if (!writer->threaded) {
        (void)writer_main(writer);
    }
    return 0;
}

bool block_writer_ready(const struct block_writer *writer)
{
    return writer->open && atomic_load(&writer->ready);
}

int block_writer_wait(struct block_writer *writer, char sha256[DIGEST_HEX_SIZE])
{
    if (!writer->open) {
        return 0;
    }
    writer_join(writer);
    memcpy(sha256, writer->sha256, DIGEST_HEX_SIZE);
    if (writer->rc != 0) {
        err_restore(&writer->error);
    }
    return writer->rc;
}
