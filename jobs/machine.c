/* Rates are seconds over work, both summed over jobs with each earlier one counting half as much, so that a machine
 * that changed is known again after a few jobs. Solving has a rate for each method, since operations differ; all other
 * phases do the same whatever the method. Without a rate, a phase is taken to run at a share of what the device reached
 * in the first measurement. */

#include "jobs/machine.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/mem.h"

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MACHINE_FILE "machine.json"
#define MACHINE_BYTES_MAX ((size_t)1 << 20)
#define KEEP 0.5     /* of what was summed before */
#define MATTERS 0.05 /* of a job's time: a phase of less needs no rate of its own */
#define OTHER_KEY "other"
#define OTHER_SECONDS 0.2 /* before any job has said it */
#define SIDE 768          /* of the products' weight; rows: a micro-batch's */
#define ROWS 1024
#define COPY_FLOATS ((int64_t)1 << 22)
#define FILE_BYTES ((size_t)8 << 20)
#define TRIES 3

/* Of what the first measurement reached: of products for operations, of copies and of a file for bytes. */
enum machine_unit { UNIT_PRODUCTS, UNIT_COPIES, UNIT_FILE };
static const struct {
    enum machine_unit unit;
    double share;
} raw_rates[PHASE_COUNT] = {
    [PHASE_LOAD] = {UNIT_COPIES, 0.2},         [PHASE_FORWARD] = {UNIT_PRODUCTS, 0.5},
    [PHASE_STATISTICS] = {UNIT_PRODUCTS, 0.6}, [PHASE_SOLVE] = {UNIT_PRODUCTS, 0.3},
    [PHASE_MEASURE] = {UNIT_PRODUCTS, 0.5},    [PHASE_EVALUATE] = {UNIT_PRODUCTS, 0.5},
    [PHASE_CHECKPOINT] = {UNIT_FILE, 1},       [PHASE_EXPORT] = {UNIT_FILE, 0.5},
};
static const char *const unit_names[] = {"products_per_second", "copied_bytes_per_second", "written_bytes_per_second"};

static pthread_mutex_t machine_lock = PTHREAD_MUTEX_INITIALIZER; /* the file, and one measurement at a time */

/* --- the file */

static int machine_path(const struct service *service, char path[SERVICE_PATH_MAX])
{
    return fs_path(path, SERVICE_PATH_MAX, "%s/%s", store_data_dir(service->store), MACHINE_FILE);
}

/* An empty object where there is none, or its text is not JSON. New reference. */
static json_t *machine_read(const struct service *service)
{
    char path[SERVICE_PATH_MAX];
    AUTO_FREE char *data = NULL;
    size_t size = 0;
    struct err_record record;

    err_take(&record);
    json_t *all = machine_path(service, path) == 0 && fs_read_file(path, MACHINE_BYTES_MAX, &data, &size) == 0
                      ? json_loadb(data, size, 0, NULL)
                      : NULL;
    err_restore(&record);
    if (!json_is_object(all)) {
        json_decref(all);
        all = json_object();
    }
    return all;
}

static void machine_write(const struct service *service, const json_t *all)
{
    char path[SERVICE_PATH_MAX];
    struct err_record record;
    AUTO_FREE char *text = json_dumps(all, JSON_INDENT(1) | JSON_SORT_KEYS);

    err_take(&record);
    if (text != NULL && (machine_path(service, path) != 0 || fs_write_atomic(path, text, strlen(text)) != 0)) {
        log_err(LOG_WARN, "rates of the machine are not kept", NULL);
    }
    err_restore(&record);
}

/* The object at a key, made where there is none. Borrowed. */
static json_t *machine_member(json_t *object, const char *key)
{
    json_t *found = json_object_get(object, key);

    if (!json_is_object(found)) {
        found = json_object();
        json_object_set_new(object, key, found);
    }
    return found;
}

/* --- the first measurement */

struct machine_bench {
    struct gpu gpu;
    struct gpu_stream *stream;
    struct tensor x, w, y, from, to;
};

static void machine_bench_deinit(struct machine_bench *b)
{
    struct tensor *const all[] = {&b->x, &b->w, &b->y, &b->from, &b->to};

    if (b->gpu.ops == NULL) {
        return;
    }
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        gpu_tensor_free(&b->gpu, all[i]);
    }
    if (b->stream != NULL) {
        b->gpu.ops->stream_free(b->stream);
    }
    gpu_close(&b->gpu);
}
CLEANUP_DEINIT(machine_bench, struct machine_bench, machine_bench_deinit)

static int machine_bench_open(const struct service *service, const char *device, struct machine_bench *b)
{
    const int64_t x[2] = {ROWS, SIDE}, w[2] = {SIDE, SIDE}, copy = COPY_FLOATS;

    TRY(gpu_open(device, service->supervisor.threads, &b->gpu));
    TRY(b->gpu.ops->stream_new(b->gpu.device, &b->stream));
    TRY(gpu_tensor_new(&b->gpu, DTYPE_F32, 2, x, &b->x));
    TRY(gpu_tensor_new(&b->gpu, DTYPE_F32, 2, w, &b->w));
    TRY(gpu_tensor_new(&b->gpu, DTYPE_F32, 2, x, &b->y));
    TRY(gpu_tensor_new(&b->gpu, DTYPE_F32, 1, &copy, &b->from));
    return gpu_tensor_new(&b->gpu, DTYPE_F32, 1, &copy, &b->to);
}

/* The best of some tries; the first warms caches and clocks. */
static int machine_time_device(struct machine_bench *b, double *products, double *copies)
{
    const struct gpu_ops *ops = b->gpu.ops;

    for (int i = 0; i < TRIES; i++) {
        double start = clock_monotonic_seconds();
        TRY(ops->linear(b->stream, &b->y, &b->x, &b->w, NULL));
        TRY(ops->stream_sync(b->stream));
        double middle = clock_monotonic_seconds();
        TRY(ops->convert(b->stream, &b->to, &b->from));
        TRY(ops->stream_sync(b->stream));
        double end = clock_monotonic_seconds();
        *products = fmax(*products, 2.0 * ROWS * SIDE * SIDE / fmax(middle - start, 1e-9));
        *copies = fmax(*copies, (double)(COPY_FLOATS * 4) / fmax(end - middle, 1e-9));
    }
    return 0;
}

static int machine_time_file(const struct service *service, double *rate)
{
    char path[SERVICE_PATH_MAX];
    AUTO_FREE char *data = NULL;

    TRY(mem_array(&data, FILE_BYTES));
    TRY(fs_path(path, sizeof(path), "%s/machine.tmp", store_data_dir(service->store)));
    double start = clock_monotonic_seconds();
    AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        return err_raise(ERR_STORAGE, "cannot create %s", path);
    }
    (void)unlink(path); /* it goes with its descriptor */
    TRY(fs_pwrite_full(fd, data, FILE_BYTES, 0));
    TRY(fs_sync(fd));
    *rate = (double)FILE_BYTES / fmax(clock_monotonic_seconds() - start, 1e-9);
    return 0;
}

static int machine_measure(const struct service *service, const char *device, double rates[3])
{
    AUTO(machine_bench) struct machine_bench bench = {.stream = NULL};

    TRY(machine_bench_open(service, device, &bench));
    TRY(machine_time_device(&bench, &rates[UNIT_PRODUCTS], &rates[UNIT_COPIES]));
    return machine_time_file(service, &rates[UNIT_FILE]);
}

/* The device's first rates, measured where the file has none. Under the lock. */
static bool machine_profile(struct service *service, json_t *all, const char *device, double rates[3])
{
    json_t *profile = machine_member(machine_member(all, device), "profile");
    bool known = true;
    struct err_record record;

    for (int i = 0; i < 3; i++) {
        rates[i] = json_number_value(json_object_get(profile, unit_names[i]));
        known = known && rates[i] > 0;
    }
    if (known) {
        return true;
    }
    err_take(&record);
    int rc = machine_measure(service, device, rates);
    if (rc != 0) {
        log_err(LOG_WARN, "the device is not measured", device);
    }
    err_restore(&record);
    for (int i = 0; rc == 0 && i < 3; i++) {
        json_object_set_new(profile, unit_names[i], json_real(rates[i]));
    }
    if (rc == 0) {
        machine_write(service, all);
    }
    return rc == 0;
}

/* --- rates */

/* The key of a phase's rate. */
static const char *rate_key(enum pipeline_phase phase, const char *method, char out[128])
{
    snprintf(out, 128, "%s%s%s", pipeline_phase_names[phase], phase == PHASE_SOLVE ? "/" : "",
             phase == PHASE_SOLVE ? method : "");
    return out;
}

/* 0: there is none. */
static double rate_of(const json_t *rates, const char *key)
{
    const json_t *rate = json_object_get(rates, key);
    double work = json_number_value(json_object_get(rate, "work"));

    return work > 0 ? json_number_value(json_object_get(rate, "seconds")) / work : 0;
}

static void rate_add(json_t *rates, const char *key, double seconds, double work)
{
    json_t *rate = machine_member(rates, key);
    double before = json_number_value(json_object_get(rate, "seconds"));
    double done = json_number_value(json_object_get(rate, "work"));

    if (work > 0 && seconds >= 0) {
        json_object_set_new(rate, "seconds", json_real(KEEP * before + seconds));
        json_object_set_new(rate, "work", json_real(KEEP * done + work));
    }
}

void machine_estimate(struct service *service, const struct gpu_info *device, const char *method,
                      const struct run_plan *plan, struct machine_time *out)
{
    struct machine_time made = {.known = true, .from_jobs = true};
    double first[3] = {0};
    bool guessed[PHASE_COUNT] = {false};
    char key[128];

    pthread_mutex_lock(&machine_lock);
    AUTO_JSON json_t *all = machine_read(service);
    made.known = machine_profile(service, all, device->id, first);
    pthread_mutex_unlock(&machine_lock);
    const json_t *rates = json_object_get(json_object_get(all, device->id), "rates");
    for (int i = 0; made.known && i < PHASE_COUNT; i++) {
        double rate = rate_of(rates, rate_key(i, method, key));
        guessed[i] = rate == 0 && plan->work[i] > 0;
        rate = rate > 0 ? rate : 1 / (raw_rates[i].share * first[raw_rates[i].unit]);
        made.phases[i] = rate * plan->work[i];
        made.seconds += made.phases[i];
    }
    made.other = rate_of(rates, OTHER_KEY);
    made.from_jobs = made.other > 0;
    made.other = made.from_jobs ? made.other : OTHER_SECONDS;
    made.seconds += made.other;
    for (int i = 0; i < PHASE_COUNT; i++) {
        made.from_jobs = made.from_jobs && (!guessed[i] || made.phases[i] < MATTERS * made.seconds);
    }
    *out = made;
}

void machine_learn(struct service *service, const struct gpu_info *device, const char *method,
                   const struct run_plan *plan, const struct pipeline_times *times, double elapsed)
{
    double other = elapsed;
    char key[128];

    pthread_mutex_lock(&machine_lock);
    AUTO_JSON json_t *all = machine_read(service);
    json_t *rates = machine_member(machine_member(all, device->id), "rates");
    for (int i = 0; i < PHASE_COUNT; i++) {
        rate_add(rates, rate_key(i, method, key), times->seconds[i], plan->work[i]);
        other -= times->seconds[i];
    }
    rate_add(rates, OTHER_KEY, fmax(other, 1e-3), 1);
    machine_write(service, all);
    pthread_mutex_unlock(&machine_lock);
}
