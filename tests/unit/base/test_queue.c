/* Mailboxes: order, bounds, timeouts, closing, and many threads at once. */

#include "tests/unit/unit.h"

#include "base/ids.h"
#include "base/queue.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

START_TEST(first_in_first_out_and_bounded)
{
    int items[4];
    struct queue *queue = queue_new(3);

    for (int round = 0; round < 5; round++) { /* around the ring */
        ck_assert(queue_push(queue, &items[0]));
        ck_assert(queue_try_push(queue, &items[1]));
        ck_assert(queue_try_push(queue, &items[2]));
        ck_assert(!queue_try_push(queue, &items[3]));
        ck_assert_ptr_eq(queue_pop(queue, 0), &items[0]);
        ck_assert(queue_try_push(queue, &items[3]));
        for (int i = 1; i < 4; i++) {
            ck_assert_ptr_eq(queue_pop(queue, -1), &items[i]);
        }
        ck_assert_ptr_null(queue_pop(queue, 0));
    }
    queue_free(queue);
    queue_free(NULL);
    ck_assert_ptr_null(queue_new(0));
    ck_assert_ptr_null(queue_new(SIZE_MAX));
}
END_TEST

START_TEST(a_pop_gives_up_in_time)
{
    struct queue *queue = queue_new(1);
    int64_t begin = clock_monotonic_ms();

    ck_assert_ptr_null(queue_pop(queue, 1030));
    int64_t took = clock_monotonic_ms() - begin;
    ck_assert_int_ge(took, 1029);
    ck_assert_int_lt(took, 5000);
    queue_free(queue);
}
END_TEST

START_TEST(closing_drains_and_refuses)
{
    int items[2];
    struct queue *queue = queue_new(2);

    ck_assert(queue_push(queue, &items[0]));
    queue_close(queue);
    queue_close(queue);
    ck_assert(!queue_push(queue, &items[1]));
    ck_assert(!queue_try_push(queue, &items[1]));
    ck_assert_ptr_eq(queue_pop(queue, -1), &items[0]);
    ck_assert_ptr_null(queue_pop(queue, -1));
    queue_free(queue);
}
END_TEST

static void *blocked_pop(void *queue)
{
    return queue_pop(queue, -1);
}

static void *blocked_push(void *queue)
{
    static int item;
    return queue_push(queue, &item) ? &item : NULL;
}

START_TEST(closing_wakes_everybody)
{
    struct queue *empty = queue_new(1), *full = queue_new(1);
    pthread_t threads[4];
    void *result;
    int item;

    ck_assert(queue_push(full, &item));
    for (int i = 0; i < 4; i++) {
        pthread_create(&threads[i], NULL, i < 2 ? blocked_pop : blocked_push, i < 2 ? empty : full);
    }
    ck_assert_ptr_null(queue_pop(empty, 50));
    queue_close(empty);
    queue_close(full);
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], &result);
        ck_assert_ptr_null(result);
    }
    queue_free(empty);
    queue_free(full);
}
END_TEST

enum { THREADS = 4, EACH = 5000 };

struct crowd {
    struct queue *queue;
    _Atomic int64_t sum, count;
};

static int numbers[THREADS * EACH];

struct producer {
    struct crowd *crowd;
    int *items;
};

static void *push_all(void *data)
{
    struct producer *producer = data;
    for (int i = 0; i < EACH; i++) {
        if (!queue_push(producer->crowd->queue, &producer->items[i])) {
            break;
        }
    }
    return NULL;
}

static void *pop_all(void *data)
{
    struct crowd *crowd = data;
    const int *last[THREADS] = {0};

    for (int *item; (item = queue_pop(crowd->queue, -1)) != NULL;) {
        atomic_fetch_add(&crowd->sum, *item);
        atomic_fetch_add(&crowd->count, 1);
        size_t producer = (size_t)(item - numbers) / EACH; /* one producer's items come in its order */
        ck_assert(last[producer] == NULL || last[producer] < item);
        last[producer] = item;
    }
    return NULL;
}

START_TEST(many_threads_lose_nothing)
{
    struct crowd crowd = {.queue = queue_new(7)};
    struct producer producers[THREADS];
    pthread_t in[THREADS], out[THREADS];
    int64_t sum = 0;

    for (int i = 0; i < THREADS * EACH; i++) {
        numbers[i] = i;
        sum += i;
    }
    for (int i = 0; i < THREADS; i++) {
        producers[i] = (struct producer){&crowd, numbers + (ptrdiff_t)i * EACH};
        pthread_create(&out[i], NULL, pop_all, &crowd);
        pthread_create(&in[i], NULL, push_all, &producers[i]);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(in[i], NULL);
    }
    queue_close(crowd.queue);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(out[i], NULL);
    }
    ck_assert_int_eq(atomic_load(&crowd.count), (int64_t)THREADS * EACH);
    ck_assert_int_eq(atomic_load(&crowd.sum), sum);
    queue_free(crowd.queue);
}
END_TEST

UNIT_MAIN("queue", first_in_first_out_and_bounded, a_pop_gives_up_in_time, closing_drains_and_refuses,
          closing_wakes_everybody, many_threads_lose_nothing)
