/* A thread pool for the units of an export. A unit's bytes have one place in the artifact and depend on nothing but the
 * unit, so the artifact does not depend on which thread takes it when. The caller's thread works too, and calls the
 * tick between its pieces; an error, or a tick that says so, stops the others after their current piece. */

#include "formats/export.h"

#include "base/err.h"
#include "base/mem.h"
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#define THREADS_MAX 8
#define PART_BYTES ((int64_t)64 << 20) /* of a copied piece: a multiple of every element's size */
#define MEMORY_MIN ((int64_t)1 << 30)
#define MEMORY_SHARE 16 /* of the machine's */

struct export_pool {
    struct pool *threads;
    struct export_reader *readers; /* one a thread */
    int count;
    struct export_progress progress;
    const struct export_unit *units; /* of the current write */
    export_sink sink;
    void *data;
    pthread_mutex_t lock; /* of what follows */
    int rc;               /* the first that was not 0 */
    struct err_record error;
};

static int export_pool_by_place(const void *a, const void *b)
{
    const struct export_unit *x = a, *y = b;

    return x->place != y->place ? (x->place > y->place) - (x->place < y->place)
                                : (x->first > y->first) - (x->first < y->first);
}

/* The one or two units of the module whose first piece is i, at *n of the list; returns how many pieces it has. */
static size_t export_pool_list_module(const struct export_plan *plan, size_t i, size_t end, struct export_unit *list,
                                      size_t *n)
{
    const struct export_piece *piece = &plan->pieces[i];
    size_t count = 0, ahead = 0;

    for (; i + count < end && piece[count].module == piece->module; count++) {
        ahead += piece[count].ahead;
    }
    if (ahead > 0) {
        list[(*n)++] = (struct export_unit){.first = i, .count = count, .ahead = true};
    }
    if (ahead < count) {
        list[(*n)++] = (struct export_unit){.first = i, .count = count};
    }
    return count;
}

/* The units of a piece that belongs to no module. */
static void export_pool_list_piece(const struct export_plan *plan, size_t i, struct export_unit *list, size_t *n)
{
    const struct export_piece *piece = &plan->pieces[i];
    int64_t at = 0, size = 0;

    do {
        int64_t left = piece->dense >= 0 ? 0 : piece->bytes - at;
        int64_t most = piece->part_count > 0 ? piece->slice : PART_BYTES;
        size = left < most ? left : most;
        list[(*n)++] = (struct export_unit){.first = i, .count = 1, .at = at, .size = size};
        at += size;
    } while (size > 0 && at < piece->bytes);
}

int export_units_list(const struct export_plan *plan, size_t begin, size_t end, struct export_unit **units,
                      size_t *count)
{
    size_t max = 0, n = 0;

    for (size_t i = begin; i < end; i++) {
        const struct export_piece *piece = &plan->pieces[i];
        max += 1 + (size_t)(piece->bytes / (piece->part_count > 0 ? piece->slice : PART_BYTES));
    }
    struct export_unit *list;
    TRY(mem_array(&list, max));
    for (size_t i = begin; i < end;) {
        if (plan->pieces[i].module >= 0) {
            i += export_pool_list_module(plan, i, end, list, &n);
        } else {
            export_pool_list_piece(plan, i++, list, &n);
        }
    }
    *units = list;
    *count = n;
    return 0;
}

/* What a thread may have at once: a module's codes, and a packed tensor with what some formats make on the way to it.
 */
static int64_t export_pool_thread_bytes(const struct format_export *request, const struct export_plan *plan)
{
    int64_t max = 0;

    for (size_t i = 0; i < plan->count; i++) {
        const struct export_piece *piece = &plan->pieces[i];
        const struct format_module *module = piece->module >= 0 ? &request->config.modules[piece->module] : NULL;
        int64_t bytes = module != NULL ? module->rows * module->cols + 3 * piece->bytes : 0;
        bytes = piece->part_count > 0 ? 4 * piece->slice : bytes; /* the matrix, a module of it, and its floats */
        max = bytes > max ? bytes : max;
    }
    return max;
}

static int export_pool_size(const struct format_export *request, const struct export_plan *plan)
{
    int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
    int64_t memory = pages > 0 && page > 0 ? pages * page / MEMORY_SHARE : 0;
    cpu_set_t set;

    memory = memory > MEMORY_MIN ? memory : MEMORY_MIN;
    int64_t each = export_pool_thread_bytes(request, plan), fit = each > 0 ? memory / each : THREADS_MAX;
    int threads = request->threads > 0                           ? request->threads
                  : sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set)
                                                                 : 1;
    threads = threads < THREADS_MAX ? threads : THREADS_MAX;
    threads = fit < threads ? (int)fit : threads;
    return threads > 1 ? threads : 1;
}

int export_pool_new(const struct format_export *request, const struct export_plan *plan, struct export_pool **out)
{
    AUTO(export_pool) struct export_pool *pool = NULL;

    TRY(mem_new(&pool));
    pthread_mutex_init(&pool->lock, NULL);
    pool->progress.request = request;
    pool->progress.total = plan->total_bytes;
    pool->threads = pool_new(export_pool_size(request, plan));
    if (pool->threads == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an export's threads");
    }
    int count = pool_threads(pool->threads);
    TRY(mem_array(&pool->readers, (size_t)count));
    for (; pool->count < count; pool->count++) {
        export_reader_init(&pool->readers[pool->count], request, plan, &pool->progress, pool->count == 0);
    }
    *out = MOVE(pool);
    return 0;
}

void export_pool_free(struct export_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    for (int i = 0; i < pool->count; i++) {
        export_reader_deinit(&pool->readers[i]);
    }
    pool_free(pool->threads);
    free(pool->readers);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

static void export_pool_fail(struct export_pool *pool, int rc)
{
    pthread_mutex_lock(&pool->lock);
    if (pool->rc == 0) {
        pool->rc = rc;
        err_take(&pool->error);
        atomic_store(&pool->progress.stop, true);
    }
    pthread_mutex_unlock(&pool->lock);
}

static void export_pool_take_unit(void *ctx, int64_t task)
{
    struct export_pool *pool = ctx;

    if (atomic_load(&pool->progress.stop)) {
        return;
    }
    int rc = export_read_unit(&pool->readers[pool_worker()], &pool->units[task], pool->sink, pool->data);
    if (rc != 0) {
        export_pool_fail(pool, rc);
    }
}

int export_pool_write(struct export_pool *pool, struct export_unit *units, size_t count, export_sink sink, void *data)
{
    qsort(units, count, sizeof(*units), export_pool_by_place);
    pool->units = units;
    pool->sink = sink;
    pool->data = data;
    pool_run(pool->threads, (int64_t)count, export_pool_take_unit, pool);
    if (pool->rc != 0) {
        err_restore(&pool->error);
        return pool->rc;
    }
    return export_tick(&pool->progress);
}
