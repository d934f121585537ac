/* The thread pool: every task once, workers numbered apart, equal results for any size, many callers, nested pools. */

#include "tests/unit/unit.h"

#include "base/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

enum { TASKS = 5000, MEMBERS = 4 };

struct marks {
    struct pool *pool;
    _Atomic int seen[TASKS];
    _Atomic int inside[MEMBERS]; /* threads inside a task, by worker number: never 2 */
    _Atomic int clash;
};

static void mark(void *ctx, int64_t task)
{
    struct marks *marks = ctx;
    int worker = pool_worker();

    if (worker < 0 || worker >= pool_threads(marks->pool) || atomic_fetch_add(&marks->inside[worker], 1) != 0) {
        atomic_store(&marks->clash, 1);
    }
    atomic_fetch_add(&marks->seen[task], 1);
    atomic_fetch_sub(&marks->inside[worker], 1);
}

START_TEST(each_task_runs_once)
{
    static struct marks marks;

    for (int threads = 1; threads <= MEMBERS; threads++) {
        marks.pool = pool_new(threads);
        ck_assert_int_eq(pool_threads(marks.pool), threads);
        for (int64_t tasks = 0; tasks <= TASKS; tasks = tasks * 3 + 1) {
            for (int i = 0; i < TASKS; i++) {
                atomic_store(&marks.seen[i], 0);
            }
            pool_run(marks.pool, tasks, mark, &marks);
            for (int i = 0; i < TASKS; i++) {
                ck_assert_int_eq(atomic_load(&marks.seen[i]), i < tasks ? 1 : 0);
            }
        }
        ck_assert_int_eq(atomic_load(&marks.clash), 0);
        pool_free(marks.pool);
    }
    pool_free(NULL);
    ck_assert_int_eq(pool_worker(), 0);
}
END_TEST

START_TEST(zero_threads_means_every_core)
{
    struct pool *pool = pool_new(0);
    ck_assert_int_ge(pool_threads(pool), 1);
    pool_free(pool);
}
END_TEST

static void *run_many(void *data)
{
    for (int i = 0; i < 200; i++) {
        pool_run(((struct marks *)data)->pool, i % 3, mark, data); /* 0, 1 and 2 tasks */
        pool_run(((struct marks *)data)->pool, 50, mark, data);
    }
    return NULL;
}

START_TEST(callers_take_turns)
{
    static struct marks marks;
    pthread_t threads[3];

    marks.pool = pool_new(MEMBERS);
    for (int i = 0; i < 3; i++) {
        pthread_create(&threads[i], NULL, run_many, &marks);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    ck_assert_int_eq(atomic_load(&marks.clash), 0);
    ck_assert_int_eq(atomic_load(&marks.seen[49]), 600);
    pool_free(marks.pool);
}
END_TEST

struct nest {
    struct marks inner;
    _Atomic int wrong;
};

static void run_inner(void *ctx, int64_t task)
{
    struct nest *nest = ctx;
    int mine = pool_worker();

    (void)task;
    pool_run(nest->inner.pool, 3, mark, &nest->inner);
    if (pool_worker() != mine) {
        atomic_store(&nest->wrong, 1);
    }
}

/* A task of one pool may run another: the numbers of the two never mix. */
START_TEST(pools_nest)
{
    static struct nest nest;
    struct pool *outer = pool_new(MEMBERS);

    nest.inner.pool = pool_new(2);
    pool_run(outer, 100, run_inner, &nest);
    ck_assert_int_eq(atomic_load(&nest.wrong), 0);
    ck_assert_int_eq(atomic_load(&nest.inner.clash), 0);
    ck_assert_int_eq(atomic_load(&nest.inner.seen[2]), 100);
    pool_free(nest.inner.pool);
    pool_free(outer);
}
END_TEST

UNIT_MAIN("pool", each_task_runs_once, zero_threads_means_every_core, callers_take_turns, pools_nest)
