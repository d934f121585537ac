/* A finished block's way to its file, beside the block that computes: codes leave the device on a stream of their own,
 * are packed, written, synced and hashed. One block at a time, by a thread that lives as long as that takes. The rows
 * that make the file count are the run's business (checkpoint.c). */

#include "pipeline/run.h"

#include "base/digest.h"
#include "base/err.h"
#include "base/fs.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct results {
    const struct gpu *gpu;
    struct gpu_stream *stream;
    struct block_items items;
    char path[600], sha256[DIGEST_HEX_SIZE];
    bool open, threaded; /* a block is under way; by a thread */
    pthread_t thread;
    atomic_bool ready;
    int rc; /* with `error`: of the block, once it is ready */
    struct err_record error;
};

int results_new(const struct gpu *gpu, struct results **out)
{
    struct results *results = calloc(1, sizeof(*results));

    if (results == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for results");
    }
    int rc = gpu->ops->stream_new(gpu->device, &results->stream);
    if (rc != 0) {
        free(results);
        return err_pass(rc, "a stream for results");
    }
    results->gpu = gpu;
    *out = results;
    return 0;
}

static void join(struct results *results)
{
    if (results->open && results->threaded) {
        (void)pthread_join(results->thread, NULL);
    }
    results->open = false;
}

void results_free(struct results *results)
{
    if (results != NULL) {
        join(results); /* whatever became of it: nobody asks, and what ended the run is the caller's error */
        results->gpu->ops->stream_free(results->stream);
        free(results);
    }
}

static int bring_codes(struct results *results)
{
    const struct gpu *gpu = results->gpu;
    struct block_items *items = &results->items;
    int rc = 0;

    for (int i = 0; i < items->count; i++) {
        struct tensor *codes = &items->codes[i];
        if (rc == 0 && codes->data != NULL) {
            rc = gpu->ops->download(results->stream, items->list[i].codes, codes->data, tensor_bytes(codes));
        }
        gpu_tensor_free(gpu, codes);
    }
    return rc;
}

static void *save(void *data)
{
    struct results *results = data;

    int rc = bring_codes(results);
    rc = rc != 0 ? rc : qtensor_save(results->path, results->items.list, results->items.count, results->sha256);
    results->rc = rc;
    err_take(&results->error);
    block_items_deinit(&results->items, results->gpu);
    atomic_store(&results->ready, true);
    return NULL;
}

int results_start(struct results *results, const char *path, struct gpu_stream *maker, struct block_items *items)
{
    int rc = fs_path(results->path, sizeof(results->path), "%s", path);

    rc = rc != 0 ? rc : results->gpu->ops->stream_follow(results->stream, maker);
    if (rc != 0) {
        return rc;
    }
    results->items = *items;
    *items = (struct block_items){.count = 0};
    results->open = true;
    atomic_store(&results->ready, false);
    results->threaded = pthread_create(&results->thread, NULL, save, results) == 0;
    if (!results->threaded) {
        (void)save(results);
    }
    return 0;
}

bool results_ready(const struct results *results)
{
    return results->open && atomic_load(&results->ready);
}

int results_wait(struct results *results, char sha256[DIGEST_HEX_SIZE])
{
    if (!results->open) {
        return 0;
    }
    join(results);
    memcpy(sha256, results->sha256, DIGEST_HEX_SIZE);
    if (results->rc != 0) {
        err_restore(&results->error);
    }
    return results->rc;
}
