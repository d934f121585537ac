/* A shard's end. SHA-256 has one order, that of the file, and one speed, which is less than what several threads write
 * with; so it begins while they write. The thread here follows the bytes that are settled, in the page cache where they
 * still are, hands them to the hash, and asks the disk to begin with them, so that little is left when the last is
 * written. */

#include "formats/export.h"

#include "base/err.h"
#include "base/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#define FLUSH_BYTES ((uint64_t)8 << 20)

struct export_seal {
    struct safetensors_writer *writer;
    int fd;
    struct export_hash *hash;
    uint64_t read, flushed; /* bytes from the file's first on */
    pthread_mutex_t lock;   /* of what follows */
    pthread_cond_t changed;
    bool news, whole, stop;
    pthread_t thread;
    bool threaded;
    int rc; /* of the thread */
    struct err_record error;
};

/* Only a hint; the sync at the end is what counts. */
static void flush(struct export_seal *seal)
{
    if (seal->read - seal->flushed >= FLUSH_BYTES) {
        (void)sync_file_range(seal->fd, (off64_t)seal->flushed, (off64_t)(seal->read - seal->flushed),
                              SYNC_FILE_RANGE_WRITE);
        seal->flushed = seal->read;
    }
}

static bool is_stopped(struct export_seal *seal)
{
    pthread_mutex_lock(&seal->lock);
    bool stop = seal->stop;
    pthread_mutex_unlock(&seal->lock);
    return stop;
}

static int read_to(struct export_seal *seal, uint64_t end)
{
    int rc = 0;

    while (rc == 0 && seal->read < end && !is_stopped(seal)) {
        size_t size = end - seal->read < EXPORT_HASH_PIECE ? (size_t)(end - seal->read) : EXPORT_HASH_PIECE;
        rc = fs_pread_full(seal->fd, export_hash_room(seal->hash), size, (int64_t)seal->read);
        if (rc == 0) {
            export_hash_feed(seal->hash, size);
            seal->read += size;
            flush(seal);
        }
    }
    return rc;
}

/* Wait for something to do; *whole: it is the last. False: leave off. */
static bool wait_for_news(struct export_seal *seal, bool *whole)
{
    pthread_mutex_lock(&seal->lock);
    while (!seal->news && !seal->whole && !seal->stop) {
        pthread_cond_wait(&seal->changed, &seal->lock);
    }
    bool stop = seal->stop;
    seal->news = false;
    *whole = seal->whole;
    pthread_mutex_unlock(&seal->lock);
    return !stop;
}

static int follow(struct export_seal *seal)
{
    bool whole = false;
    int rc = 0;

    while (rc == 0 && !whole) {
        if (!wait_for_news(seal, &whole)) {
            return 0;
        }
        rc = read_to(seal, safetensors_writer_final_bytes(seal->writer));
    }
    return rc != 0 ? rc : safetensors_writer_finish(seal->writer);
}

static void *seal_main(void *data)
{
    struct export_seal *seal = data;

    seal->rc = follow(seal);
    err_take(&seal->error);
    return NULL;
}

int export_seal_new_take(struct safetensors_writer *writer, const char *path, struct export_seal **out)
{
    struct export_seal *seal = calloc(1, sizeof(*seal));

    if (seal == NULL) {
        safetensors_writer_free(writer);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory to write %s", path);
    }
    pthread_mutex_init(&seal->lock, NULL);
    pthread_cond_init(&seal->changed, NULL);
    seal->writer = writer;
    seal->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    int rc = seal->fd < 0 ? err_raise_errno(errno, "cannot open %s", path) : export_hash_new(&seal->hash);
    if (rc != 0) {
        export_seal_free(seal);
        return rc;
    }
    /* Without a thread it is done at the end. */
    seal->threaded = pthread_create(&seal->thread, NULL, seal_main, seal) == 0;
    *out = seal;
    return 0;
}

struct safetensors_writer *export_seal_writer(struct export_seal *seal)
{
    return seal->writer;
}

static void tell(struct export_seal *seal, bool *what)
{
    pthread_mutex_lock(&seal->lock);
    *what = true;
    pthread_cond_signal(&seal->changed);
    pthread_mutex_unlock(&seal->lock);
}

void export_seal_news(struct export_seal *seal)
{
    tell(seal, &seal->news);
}

void export_seal_whole(struct export_seal *seal)
{
    tell(seal, &seal->whole);
}

static void export_seal_end_thread(struct export_seal *seal)
{
    if (seal->threaded) {
        (void)pthread_join(seal->thread, NULL);
    }
    seal->threaded = false;
}

int export_seal_finish_take(struct export_seal *seal, struct export_sum *sum)
{
    if (!seal->threaded) {
        (void)seal_main(seal);
    }
    export_seal_end_thread(seal);
    int rc = seal->rc;
    if (rc == 0) {
        export_hash_finish_take(seal->hash, sum->sha256);
        seal->hash = NULL;
        sum->bytes = (int64_t)seal->read;
    } else {
        err_restore(&seal->error);
    }
    export_seal_free(seal);
    return rc;
}

void export_seal_free(struct export_seal *seal)
{
    if (seal == NULL) {
        return;
    }
    tell(seal, &seal->stop);
    export_seal_end_thread(seal);
    if (seal->fd >= 0) {
        close(seal->fd);
    }
    safetensors_writer_free(seal->writer);
    export_hash_free(seal->hash);
    pthread_cond_destroy(&seal->changed);
    pthread_mutex_destroy(&seal->lock);
    free(seal);
}
