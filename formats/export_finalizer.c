/* The end of a shard. SHA-256 has one order, that of the file, and one speed, which is lower than that of several
 * threads that write; so it begins while they write. The thread here reads the bytes that are complete from the page
 * cache, gives them to the hash, and starts their write-back, so that little is left to do after the last one. */

#include "formats/export.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#define FLUSH_BYTES ((uint64_t)8 << 20)

struct export_finalizer {
    struct safetensors_writer *writer;
    int fd;
    struct export_hash *hash;
    uint64_t read, flushed; /* bytes from the file's first on */
    pthread_mutex_t lock;   /* of what follows */
    pthread_cond_t changed;
    bool wrote, complete, stop;
    pthread_t thread;
    bool threaded;
    int rc; /* of the thread */
    struct err_record error;
};

/* Only a hint; the sync at the end is what counts. */
static void finalizer_flush(struct export_finalizer *finalizer)
{
    if (finalizer->read - finalizer->flushed >= FLUSH_BYTES) {
        (void)sync_file_range(finalizer->fd, (off64_t)finalizer->flushed,
                              (off64_t)(finalizer->read - finalizer->flushed), SYNC_FILE_RANGE_WRITE);
        finalizer->flushed = finalizer->read;
    }
}

static bool finalizer_is_stopped(struct export_finalizer *finalizer)
{
    pthread_mutex_lock(&finalizer->lock);
    bool stop = finalizer->stop;
    pthread_mutex_unlock(&finalizer->lock);
    return stop;
}

static int finalizer_read_to(struct export_finalizer *finalizer, uint64_t end)
{
    while (finalizer->read < end && !finalizer_is_stopped(finalizer)) {
        size_t size = end - finalizer->read < EXPORT_HASH_PIECE ? (size_t)(end - finalizer->read) : EXPORT_HASH_PIECE;
        TRY(fs_pread_full(finalizer->fd, export_hash_buffer(finalizer->hash), size, (int64_t)finalizer->read));
        export_hash_feed(finalizer->hash, size);
        finalizer->read += size;
        finalizer_flush(finalizer);
    }
    return 0;
}

/* Wait for bytes to hash; *complete: no more will come. False: stop. */
static bool finalizer_wait(struct export_finalizer *finalizer, bool *complete)
{
    pthread_mutex_lock(&finalizer->lock);
    while (!finalizer->wrote && !finalizer->complete && !finalizer->stop) {
        pthread_cond_wait(&finalizer->changed, &finalizer->lock);
    }
    bool stop = finalizer->stop;
    finalizer->wrote = false;
    *complete = finalizer->complete;
    pthread_mutex_unlock(&finalizer->lock);
    return !stop;
}

static int finalizer_follow(struct export_finalizer *finalizer)
{
    for (bool complete = false; !complete;) {
        if (!finalizer_wait(finalizer, &complete)) {
            return 0;
        }
        TRY(finalizer_read_to(finalizer, safetensors_writer_final_bytes(finalizer->writer)));
    }
    return safetensors_writer_finish(finalizer->writer);
}

static void *finalizer_main(void *data)
{
    struct export_finalizer *finalizer = data;

    finalizer->rc = finalizer_follow(finalizer);
    err_take(&finalizer->error);
    return NULL;
}

int export_finalizer_new_take(struct safetensors_writer *writer, const char *path, struct export_finalizer **out)
{
    AUTO(safetensors_writer) struct safetensors_writer *owned = writer;
    AUTO(export_finalizer) struct export_finalizer *finalizer = NULL;

    TRY(mem_new(&finalizer));
    pthread_mutex_init(&finalizer->lock, NULL);
    pthread_cond_init(&finalizer->changed, NULL);
    finalizer->writer = MOVE(owned);
    finalizer->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (finalizer->fd < 0) {
        return err_raise_errno(errno, "cannot open %s", path);
    }
    TRY(export_hash_new(&finalizer->hash));
    /* Without a thread it is done at the end. */
    finalizer->threaded = pthread_create(&finalizer->thread, NULL, finalizer_main, finalizer) == 0;
    *out = MOVE(finalizer);
    return 0;
}

struct safetensors_writer *export_finalizer_writer(struct export_finalizer *finalizer)
{
    return finalizer->writer;
}

static void finalizer_set(struct export_finalizer *finalizer, bool *flag)
{
    pthread_mutex_lock(&finalizer->lock);
    *flag = true;
    pthread_cond_signal(&finalizer->changed);
    pthread_mutex_unlock(&finalizer->lock);
}

void export_finalizer_wrote(struct export_finalizer *finalizer)
{
    finalizer_set(finalizer, &finalizer->wrote);
}

void export_finalizer_complete(struct export_finalizer *finalizer)
{
    finalizer_set(finalizer, &finalizer->complete);
}

static void finalizer_join(struct export_finalizer *finalizer)
{
    if (finalizer->threaded) {
        (void)pthread_join(finalizer->thread, NULL);
    }
    finalizer->threaded = false;
}

int export_finalizer_finish_take(struct export_finalizer *finalizer, struct export_sum *sum)
{
    if (!finalizer->threaded) {
        (void)finalizer_main(finalizer);
    }
    finalizer_join(finalizer);
    int rc = finalizer->rc;
    if (rc == 0) {
        export_hash_finish_take(MOVE(finalizer->hash), sum->sha256);
        sum->bytes = (int64_t)finalizer->read;
    } else {
        err_restore(&finalizer->error);
    }
    export_finalizer_free(finalizer);
    return rc;
}

void export_finalizer_free(struct export_finalizer *finalizer)
{
    if (finalizer == NULL) {
        return;
    }
    finalizer_set(finalizer, &finalizer->stop);
    finalizer_join(finalizer);
    if (finalizer->fd >= 0) {
        close(finalizer->fd);
    }
    safetensors_writer_free(finalizer->writer);
    export_hash_free(finalizer->hash);
    pthread_cond_destroy(&finalizer->changed);
    pthread_mutex_destroy(&finalizer->lock);
    free(finalizer);
}
