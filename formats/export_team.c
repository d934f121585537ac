/* Units of an export over several threads. A unit's bytes have one place in the artifact and depend on nothing but the
 * unit, so that which thread takes it when shows nowhere. The caller's thread works too, and tells the tick between its
 * pieces; an error, or a tick that says so, stops the others after what they are at. */

#include "formats/export.h"

#include "base/err.h"
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#define THREADS_MAX 8
#define STRETCH_BYTES ((int64_t)64 << 20) /* of a copied piece: a multiple of every element's size */
#define MEMORY_LEAST ((int64_t)1 << 30)
#define MEMORY_SHARE 16 /* of the machine's */

struct export_team {
    struct pool *pool;
    struct export_reader *readers; /* one a thread */
    int count;
    struct export_progress progress;
    const struct export_unit *units; /* of the write on its way */
    export_sink sink;
    void *data;
    pthread_mutex_t lock; /* of what follows */
    int rc;               /* the first that was not 0 */
    struct err_record error;
};

static int by_place(const void *a, const void *b)
{
    const struct export_unit *x = a, *y = b;

    return x->place != y->place ? (x->place > y->place) - (x->place < y->place)
                                : (x->first > y->first) - (x->first < y->first);
}

/* The one or two units of the module whose first piece is i, at *n of the list; returns how many pieces it has. */
static size_t list_module(const struct export_plan *plan, size_t i, size_t end, struct export_unit *list, size_t *n)
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

/* The units of a piece that is no module's. */
static void list_piece(const struct export_plan *plan, size_t i, struct export_unit *list, size_t *n)
{
    const struct export_piece *piece = &plan->pieces[i];
    int64_t at = 0, size = 0;

    do {
        int64_t left = piece->dense >= 0 ? 0 : piece->bytes - at;
        size = left < STRETCH_BYTES ? left : STRETCH_BYTES;
        list[(*n)++] = (struct export_unit){.first = i, .count = 1, .at = at, .size = size};
        at += size;
    } while (size > 0 && at < piece->bytes);
}

int export_units_list(const struct export_plan *plan, size_t begin, size_t end, struct export_unit **units,
                      size_t *count)
{
    size_t most = 0, n = 0;

    for (size_t i = begin; i < end; i++) {
        most += 1 + (size_t)(plan->pieces[i].bytes / STRETCH_BYTES);
    }
    struct export_unit *list = calloc(most + 1, sizeof(*list));
    if (list == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the export's units");
    }
    for (size_t i = begin; i < end;) {
        if (plan->pieces[i].module >= 0) {
            i += list_module(plan, i, end, list, &n);
        } else {
            list_piece(plan, i++, list, &n);
        }
    }
    *units = list;
    *count = n;
    return 0;
}

/* What a thread may have at once: a module's codes, and a packed tensor with what some formats make on the way to it.
 */
static int64_t thread_bytes(const struct format_export *request, const struct export_plan *plan)
{
    int64_t most = 0;

    for (size_t i = 0; i < plan->count; i++) {
        const struct export_piece *piece = &plan->pieces[i];
        const struct format_module *module = piece->module >= 0 ? &request->config.modules[piece->module] : NULL;
        int64_t bytes = module != NULL ? module->rows * module->cols + 3 * piece->bytes : 0;
        most = bytes > most ? bytes : most;
    }
    return most;
}

static int team_size(const struct format_export *request, const struct export_plan *plan)
{
    int64_t pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
    int64_t memory = pages > 0 && page > 0 ? pages * page / MEMORY_SHARE : 0;
    cpu_set_t set;

    memory = memory > MEMORY_LEAST ? memory : MEMORY_LEAST;
    int64_t each = thread_bytes(request, plan), fit = each > 0 ? memory / each : THREADS_MAX;
    int threads = request->threads > 0                           ? request->threads
                  : sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set)
                                                                 : 1;
    threads = threads < THREADS_MAX ? threads : THREADS_MAX;
    threads = fit < threads ? (int)fit : threads;
    return threads > 1 ? threads : 1;
}

int export_team_new(const struct format_export *request, const struct export_plan *plan, struct export_team **out)
{
    struct export_team *team = calloc(1, sizeof(*team));

    if (team == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an export");
    }
    pthread_mutex_init(&team->lock, NULL);
    team->progress.request = request;
    team->progress.total = plan->total_bytes;
    team->pool = pool_new(team_size(request, plan));
    team->count = team->pool != NULL ? pool_threads(team->pool) : 0;
    team->readers = calloc((size_t)team->count + 1, sizeof(*team->readers));
    if (team->pool == NULL || team->readers == NULL) {
        team->count = 0;
        export_team_free(team);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an export's threads");
    }
    for (int i = 0; i < team->count; i++) {
        export_reader_init(&team->readers[i], request, plan, &team->progress, i == 0);
    }
    *out = team;
    return 0;
}

void export_team_free(struct export_team *team)
{
    if (team == NULL) {
        return;
    }
    for (int i = 0; i < team->count; i++) {
        export_reader_deinit(&team->readers[i]);
    }
    pool_free(team->pool);
    free(team->readers);
    pthread_mutex_destroy(&team->lock);
    free(team);
}

static void export_team_fail(struct export_team *team, int rc)
{
    pthread_mutex_lock(&team->lock);
    if (team->rc == 0) {
        team->rc = rc;
        err_take(&team->error);
        atomic_store(&team->progress.stop, true);
    }
    pthread_mutex_unlock(&team->lock);
}

static void take_unit(void *ctx, int64_t task)
{
    struct export_team *team = ctx;

    if (atomic_load(&team->progress.stop)) {
        return;
    }
    int rc = export_read_unit(&team->readers[pool_worker()], &team->units[task], team->sink, team->data);
    if (rc != 0) {
        export_team_fail(team, rc);
    }
}

int export_team_write(struct export_team *team, struct export_unit *units, size_t count, export_sink sink, void *data)
{
    qsort(units, count, sizeof(*units), by_place);
    team->units = units;
    team->sink = sink;
    team->data = data;
    pool_run(team->pool, (int64_t)count, take_unit, team);
    if (team->rc != 0) {
        err_restore(&team->error);
        return team->rc;
    }
    return export_tick(&team->progress);
}
