/* SHA-256 on a thread of its own. It has one order and one speed, and an artifact is not done before it is; meanwhile
 * another thread reads the pieces into the ring here and starts their write-back. */

#include "formats/export.h"

#include "base/err.h"
#include "base/mem.h"

#include <pthread.h>
#include <stdlib.h>

#define PIECES 8 /* as much as is hashed while the disk takes a request */

struct export_hash {
    struct digest *digest;
    unsigned char *ring; /* [PIECES][EXPORT_HASH_PIECE] */
    size_t sizes[PIECES];
    pthread_mutex_t lock; /* of what follows, and of the sizes */
    pthread_cond_t changed;
    uint64_t filled, hashed; /* pieces from the first on */
    bool ended, stop;
    pthread_t thread;
    bool threaded;
};

/* Wait for a piece to hash. False: there are no more. */
static bool export_hash_wait(struct export_hash *hash, const unsigned char **piece, size_t *size)
{
    pthread_mutex_lock(&hash->lock);
    while (hash->hashed == hash->filled && !hash->ended && !hash->stop) {
        pthread_cond_wait(&hash->changed, &hash->lock);
    }
    bool more = hash->hashed < hash->filled && !hash->stop;
    *piece = hash->ring + hash->hashed % PIECES * EXPORT_HASH_PIECE;
    *size = hash->sizes[hash->hashed % PIECES];
    pthread_mutex_unlock(&hash->lock);
    return more;
}

static void *export_hash_main(void *data)
{
    struct export_hash *hash = data;
    const unsigned char *piece;
    size_t size;

    while (export_hash_wait(hash, &piece, &size)) {
        digest_update(hash->digest, piece, size);
        pthread_mutex_lock(&hash->lock);
        hash->hashed++;
        pthread_cond_signal(&hash->changed);
        pthread_mutex_unlock(&hash->lock);
    }
    return NULL;
}

int export_hash_new(struct export_hash **out)
{
    AUTO(export_hash) struct export_hash *hash = NULL;

    TRY(mem_new(&hash));
    pthread_mutex_init(&hash->lock, NULL);
    pthread_cond_init(&hash->changed, NULL);
    hash->digest = digest_new();
    if (hash->digest == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a digest");
    }
    TRY(mem_buffer(&hash->ring, PIECES * EXPORT_HASH_PIECE));
    /* Without a thread the caller of export_hash_feed hashes. */
    hash->threaded = pthread_create(&hash->thread, NULL, export_hash_main, hash) == 0;
    *out = MOVE(hash);
    return 0;
}

unsigned char *export_hash_buffer(struct export_hash *hash)
{
    pthread_mutex_lock(&hash->lock);
    while (hash->filled - hash->hashed == PIECES) {
        pthread_cond_wait(&hash->changed, &hash->lock);
    }
    unsigned char *buffer = hash->ring + hash->filled % PIECES * EXPORT_HASH_PIECE;
    pthread_mutex_unlock(&hash->lock);
    return buffer;
}

void export_hash_feed(struct export_hash *hash, size_t size)
{
    if (!hash->threaded) {
        digest_update(hash->digest, hash->ring, size); /* nothing is ever filled: the buffer is the first */
        return;
    }
    pthread_mutex_lock(&hash->lock);
    hash->sizes[hash->filled++ % PIECES] = size;
    pthread_cond_signal(&hash->changed);
    pthread_mutex_unlock(&hash->lock);
}

/* Have the thread end, after all that was fed or at once. */
static void export_hash_end_thread(struct export_hash *hash, bool *how)
{
    pthread_mutex_lock(&hash->lock);
    *how = true;
    pthread_cond_signal(&hash->changed);
    pthread_mutex_unlock(&hash->lock);
    if (hash->threaded) {
        (void)pthread_join(hash->thread, NULL);
    }
    hash->threaded = false;
}

void export_hash_finish_take(struct export_hash *hash, char sha256[DIGEST_HEX_SIZE])
{
    export_hash_end_thread(hash, &hash->ended);
    digest_finish(hash->digest, sha256);
    hash->digest = NULL;
    export_hash_free(hash);
}

void export_hash_free(struct export_hash *hash)
{
    if (hash == NULL) {
        return;
    }
    export_hash_end_thread(hash, &hash->stop);
    digest_free(hash->digest);
    free(hash->ring);
    pthread_cond_destroy(&hash->changed);
    pthread_mutex_destroy(&hash->lock);
    free(hash);
}
