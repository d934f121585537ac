/* The team behind the handlers. Stacks are a fixed megabyte: JSON of the allowed depth fits several times over. Signals
 * are blocked, so that they go to the loop thread. */

#include "api/worker.h"

#include "base/err.h"
#include "base/queue.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#define WORKER_STACK ((size_t)1 << 20)

struct worker_team {
    struct queue *queue;
    void (*work)(void *data, void *item);
    void *data;
    int count;
    pthread_t threads[];
};

static void *worker_main(void *argument)
{
    struct worker_team *team = argument;
    for (void *item = queue_pop(team->queue, -1); item != NULL; item = queue_pop(team->queue, -1)) {
        team->work(team->data, item);
    }
    return NULL;
}

static int start_threads(struct worker_team *team, int threads)
{
    pthread_attr_t attributes;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, WORKER_STACK);
    int failed = 0;
    while (team->count < threads && failed == 0) {
        failed = pthread_create(&team->threads[team->count], &attributes, worker_main, team);
        team->count += failed == 0;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return failed == 0 ? 0 : err_raise_errno(failed, "cannot start a worker thread");
}

int worker_team_new(int threads, size_t capacity, void (*work)(void *data, void *item), void *data,
                    struct worker_team **out)
{
    struct worker_team *team = calloc(1, sizeof(*team) + (size_t)threads * sizeof(pthread_t));
    struct queue *queue = queue_new(capacity);
    if (team == NULL || queue == NULL) {
        queue_free(queue);
        free(team);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the workers");
    }
    team->queue = queue;
    team->work = work;
    team->data = data;
    int rc = start_threads(team, threads);
    if (rc < 0) {
        worker_team_free(team);
        return rc;
    }
    *out = team;
    return 0;
}

bool worker_team_push(struct worker_team *team, void *item)
{
    return queue_try_push(team->queue, item);
}

void worker_team_free(struct worker_team *team)
{
    if (team == NULL) {
        return;
    }
    queue_close(team->queue);
    for (int i = 0; i < team->count; i++) {
        pthread_join(team->threads[i], NULL);
    }
    queue_free(team->queue);
    free(team);
}
