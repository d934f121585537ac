/* The worker of a job in a thread of its own, on a device of the daemon.
 *
 * The thread computes; its messages are taken, and what they commit is written, on the thread of whoever called. So the
 * device does not wait for the database: progress is left in one place, where a newer one replaces it, a block is
 * answered when the run asks for the answer, and only warnings and the last message are waited for. As with a process,
 * progress is handed over again while the run is silent, so that a cancellation, a shutdown or a timeout shows there.
 */

#include "jobs/worker.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/trace.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#define LISTEN_MS 100 /* until progress is taken, and a silent run is asked whether it should stop */

/* A message that is to be answered. */
struct letter {
    enum { LETTER_NONE, LETTER_POSTED, LETTER_ANSWERED } state;
    struct message message;
    struct err_record answer; /* code 0: none */
};

struct thread_run {
    const struct pipeline *pipeline; /* as the caller has it */
    struct pipeline told;            /* as the run has it */
    char trace_id[TRACE_ID_SIZE];
    pthread_t thread;

    pthread_mutex_t lock; /* of all below */
    pthread_cond_t posted, answered;
    struct letter block, other; /* a block was posted before any other that waits */
    struct message progress;
    bool heard, news;       /* there is progress; it was not handed over yet */
    struct err_record stop; /* code 0: the run may continue */
    bool ended;             /* pipeline_run has come back */
    struct err_record outcome;
};

static int open_lock(struct thread_run *run)
{
    pthread_condattr_t attributes;

    if (pthread_condattr_init(&attributes) != 0) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the thread of a run");
    }
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&run->posted, &attributes);
    pthread_cond_init(&run->answered, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&run->lock, NULL);
    return 0;
}

static void close_lock(struct thread_run *run)
{
    pthread_cond_destroy(&run->posted);
    pthread_cond_destroy(&run->answered);
    pthread_mutex_destroy(&run->lock);
}

/* --- the run's thread */

/* The record becomes this thread's. */
static int fail_with(const struct err_record *record)
{
    if (record->code != 0) {
        err_restore(record);
    }
    return record->code;
}

/* The caller looks for it every now and then: waking it might cost the run its core. */
static int post_progress(struct thread_run *run, const struct message *message)
{
    struct err_record stop;

    pthread_mutex_lock(&run->lock);
    run->progress = *message;
    run->heard = run->news = true;
    stop = run->stop;
    pthread_mutex_unlock(&run->lock);
    return fail_with(&stop);
}

static void post_letter(struct thread_run *run, struct letter *letter, const struct message *message)
{
    pthread_mutex_lock(&run->lock);
    letter->message = *message;
    letter->state = LETTER_POSTED;
    pthread_cond_signal(&run->posted);
    pthread_mutex_unlock(&run->lock);
}

static int letter_answer(struct thread_run *run, struct letter *letter, bool wait, bool *answered)
{
    struct err_record answer = {.code = 0};

    pthread_mutex_lock(&run->lock);
    while (wait && letter->state == LETTER_POSTED) {
        pthread_cond_wait(&run->answered, &run->lock);
    }
    *answered = letter->state == LETTER_ANSWERED;
    if (*answered) {
        letter->state = LETTER_NONE;
        answer = letter->answer;
    }
    pthread_mutex_unlock(&run->lock);
    return fail_with(&answer);
}

static int thread_receive(void *data, const struct message *message)
{
    struct thread_run *run = data;
    bool answered;

    switch (message->kind) {
    case MESSAGE_PROGRESS:
        return post_progress(run, message);
    case MESSAGE_BLOCK_DONE:
        post_letter(run, &run->block, message);
        return 0;
    default:
        post_letter(run, &run->other, message);
        return letter_answer(run, &run->other, true, &answered);
    }
}

static int thread_answer(void *data, bool wait, bool *answered)
{
    struct thread_run *run = data;

    return letter_answer(run, &run->block, wait, answered);
}

static void *thread_main(void *data)
{
    struct thread_run *run = data;

    log_set_trace_id(run->trace_id);
    int rc = pipeline_run(&run->told);
    pthread_mutex_lock(&run->lock);
    run->outcome = *err_last();
    run->outcome.code = rc;
    run->ended = true;
    pthread_cond_signal(&run->posted);
    pthread_mutex_unlock(&run->lock);
    return NULL;
}

/* --- the caller's thread; each is called under the lock, and lets go of it while a message is taken */

static int thread_hand_over(struct thread_run *run, const struct message *message, struct err_record *answer)
{
    pthread_mutex_unlock(&run->lock);
    int rc = run->pipeline->receive(run->pipeline->receiver, message);
    *answer = *err_last();
    answer->code = rc;
    pthread_mutex_lock(&run->lock);
    return rc;
}

static void hand_letter(struct thread_run *run, struct letter *letter)
{
    struct err_record answer;

    (void)thread_hand_over(run, &letter->message, &answer); /* the run leaves it alone until it is answered */
    letter->answer = answer;
    letter->state = LETTER_ANSWERED;
    pthread_cond_signal(&run->answered);
}

static void hand_progress(struct thread_run *run)
{
    struct message progress = run->progress;
    struct err_record answer;

    run->news = false;
    if (run->stop.code == 0 && thread_hand_over(run, &progress, &answer) != 0) {
        run->stop = answer;
    }
}

/* In the order in which they were posted, except that a block comes before progress that is older. */
static bool hand_next(struct thread_run *run)
{
    if (run->block.state == LETTER_POSTED) {
        hand_letter(run, &run->block);
    } else if (run->news) {
        hand_progress(run);
    } else if (run->other.state == LETTER_POSTED) {
        hand_letter(run, &run->other);
    } else {
        return false;
    }
    return true;
}

static void thread_follow(struct thread_run *run)
{
    pthread_mutex_lock(&run->lock);
    while (!run->ended) {
        if (hand_next(run)) {
            continue;
        }
        int64_t until = clock_monotonic_ms() + LISTEN_MS;
        const struct timespec limit = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};
        int expired = pthread_cond_timedwait(&run->posted, &run->lock, &limit);
        run->news = run->news || (expired == ETIMEDOUT && run->heard);
    }
    pthread_mutex_unlock(&run->lock);
}

int worker_run_thread(const struct pipeline *pipeline)
{
    struct thread_run run = {.pipeline = pipeline, .told = *pipeline};

    run.told.receive = thread_receive;
    run.told.answer = thread_answer;
    run.told.receiver = &run;
    snprintf(run.trace_id, sizeof(run.trace_id), "%s", log_trace_id());
    TRY(open_lock(&run));
    int failed = pthread_create(&run.thread, NULL, thread_main, &run);
    if (failed == 0) {
        thread_follow(&run);
        (void)pthread_join(run.thread, NULL);
    }
    close_lock(&run);
    return failed == 0 ? fail_with(&run.outcome) : err_raise_errno(failed, "cannot start a thread for the run");
}
