/* Rates are seconds over work, both summed over jobs with each earlier one counting half as much, so that a machine
 * that changed is known again after a few jobs. Solving has a rate for each method, since operations differ; all other
 * phases do the same whatever the method.
 *
 * Products of small matrices run slower, and those of experts have fewer rows, so rates of what computes are kept by
 * the width of the job's linears, with and without experts: between two widths they are interpolated, beyond them they
 * change as the first measurement's products do, which were measured at three widths. Without a rate, a phase is taken
 * to run at a share of what that measurement reached. */

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
#define SIDES 3
#define SIDE_MAX 2048 /* of the products' weight; rows: a micro-batch's */
#define ROWS 1024
#define COPY_FLOATS ((int64_t)1 << 22)
#define FILE_BYTES ((size_t)8 << 20)
#define TRIES 3
#define EXPERTS_SLOWER 1.2 /* passes through experts, whose products have fewer rows; measured */
#define SAME_WIDTH 1.1     /* widths that differ by less share a rate */
#define WIDTHS_MAX 16

static const int64_t sides[SIDES] = {256, 768, SIDE_MAX};
static const char *const side_names[SIDES] = {"256", "768", "2048"};

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

/* What the first measurement reached. */
struct machine_profile {
    double products[SIDES], copies, file; /* operations a second, by side; bytes */
};

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
    struct tensor x, w, y, from, to; /* x, w, y: memory for the largest side */
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
    const int64_t x[2] = {ROWS, SIDE_MAX}, w[2] = {SIDE_MAX, SIDE_MAX}, copy = COPY_FLOATS;

    TRY(gpu_open(device, service->supervisor.threads, &b->gpu));
    TRY(b->gpu.ops->stream_new(b->gpu.device, &b->stream));
    TRY(gpu_tensor_new(&b->gpu, DTYPE_F32, 2, x, &b->x));
    TRY(gpu_tensor_new(&b->gpu, DTYPE_F32, 2, w, &b->w));
    TRY(gpu_tensor_new(&b->gpu, DTYPE_F32, 2, x, &b->y));
    TRY(gpu_tensor_new(&b->gpu, DTYPE_F32, 1, &copy, &b->from));
    return gpu_tensor_new(&b->gpu, DTYPE_F32, 1, &copy, &b->to);
}

/* The best of some tries; the first warms caches and clocks. */
static int machine_time_products(struct machine_bench *b, int64_t side, double *rate)
{
    const struct gpu_ops *ops = b->gpu.ops;
    struct tensor x = tensor_2d(b->x.data, DTYPE_F32, ROWS, side), w = tensor_2d(b->w.data, DTYPE_F32, side, side);
    struct tensor y = tensor_2d(b->y.data, DTYPE_F32, ROWS, side);

    for (int i = 0; i < TRIES; i++) {
        double start = clock_monotonic_seconds();
        TRY(ops->linear(b->stream, &y, &x, &w, NULL));
        TRY(ops->stream_sync(b->stream));
        double seconds = clock_monotonic_seconds() - start;
        *rate = fmax(*rate, 2.0 * ROWS * (double)side * (double)side / fmax(seconds, 1e-9));
    }
    return 0;
}

static int machine_time_copies(struct machine_bench *b, double *rate)
{
    const struct gpu_ops *ops = b->gpu.ops;

    for (int i = 0; i < TRIES; i++) {
        double start = clock_monotonic_seconds();
        TRY(ops->convert(b->stream, &b->to, &b->from));
        TRY(ops->stream_sync(b->stream));
        double seconds = clock_monotonic_seconds() - start;
        *rate = fmax(*rate, (double)(COPY_FLOATS * 4) / fmax(seconds, 1e-9));
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

static int machine_measure(const struct service *service, const char *device, struct machine_profile *out)
{
    AUTO(machine_bench) struct machine_bench bench = {.stream = NULL};
    struct machine_profile made = {.copies = 0};

    TRY(machine_bench_open(service, device, &bench));
    for (int i = 0; i < SIDES; i++) {
        TRY(machine_time_products(&bench, sides[i], &made.products[i]));
        if (i > 0) { /* where other processes have the processor, only a short product finds it free */
            made.products[i] = fmax(made.products[i], made.products[i - 1]);
        }
    }
    TRY(machine_time_copies(&bench, &made.copies));
    TRY(machine_time_file(service, &made.file));
    *out = made;
    return 0;
}

static bool profile_read(const json_t *profile, struct machine_profile *out)
{
    const json_t *products = json_object_get(profile, unit_names[UNIT_PRODUCTS]);
    bool known = true;

    for (int i = 0; i < SIDES; i++) {
        out->products[i] = json_number_value(json_object_get(products, side_names[i]));
        known = known && out->products[i] > 0;
    }
    out->copies = json_number_value(json_object_get(profile, unit_names[UNIT_COPIES]));
    out->file = json_number_value(json_object_get(profile, unit_names[UNIT_FILE]));
    return known && out->copies > 0 && out->file > 0;
}

static void profile_write(json_t *profile, const struct machine_profile *made)
{
    json_t *products = json_object();

    for (int i = 0; i < SIDES; i++) {
        json_object_set_new(products, side_names[i], json_real(made->products[i]));
    }
    json_object_set_new(profile, unit_names[UNIT_PRODUCTS], products);
    json_object_set_new(profile, unit_names[UNIT_COPIES], json_real(made->copies));
    json_object_set_new(profile, unit_names[UNIT_FILE], json_real(made->file));
}

/* What a device's rates are kept under: "cpu", "cpu bfloat16", "cuda:0". */
static const char *machine_key(const struct gpu_info *device, char out[64])
{
    bool rounded = strcmp(device->products, "bfloat16") == 0;

    snprintf(out, 64, "%s%s", device->id, rounded ? " bfloat16" : "");
    return out;
}

/* The device's first rates, measured where the file has none. Under the lock. */
static bool machine_profile(struct service *service, json_t *all, const struct gpu_info *device,
                            struct machine_profile *out)
{
    char key[64];
    json_t *profile = machine_member(machine_member(all, machine_key(device, key)), "profile");
    struct err_record record;

    if (profile_read(profile, out)) {
        return true;
    }
    err_take(&record);
    int rc = machine_measure(service, device->id, out);
    if (rc != 0) {
        log_err(LOG_WARN, "the device is not measured", device->id);
    }
    err_restore(&record);
    if (rc == 0) {
        profile_write(profile, out);
        machine_write(service, all);
    }
    return rc == 0;
}

/* At `at` on the line through two points, both axes in logarithms. */
static double machine_between(double x1, double y1, double x2, double y2, double at)
{
    double share = x2 > x1 ? log(at / x1) / log(x2 / x1) : 0;

    return exp((1 - share) * log(y1) + share * log(y2));
}

/* Products of linears of that width. */
static double profile_products(const struct machine_profile *profile, double width)
{
    int i = 0;

    if (width <= (double)sides[0]) {
        return profile->products[0];
    }
    while (i + 1 < SIDES && width > (double)sides[i + 1]) {
        i++;
    }
    return i + 1 == SIDES ? profile->products[i]
                          : machine_between((double)sides[i], profile->products[i], (double)sides[i + 1],
                                            profile->products[i + 1], width);
}

static double profile_rate(const struct machine_profile *profile, enum pipeline_phase phase, double width)
{
    const double reached[] = {[UNIT_PRODUCTS] = profile_products(profile, width),
                              [UNIT_COPIES] = profile->copies,
                              [UNIT_FILE] = profile->file};

    return raw_rates[phase].share * reached[raw_rates[phase].unit];
}

/* --- rates */

/* The key of a phase's rate. */
static const char *rate_key(enum pipeline_phase phase, const char *method, char out[128])
{
    snprintf(out, 128, "%s%s%s", pipeline_phase_names[phase], phase == PHASE_SOLVE ? "/" : "",
             phase == PHASE_SOLVE ? method : "");
    return out;
}

/* By what a rate is known. */
struct rate_shape {
    double width; /* 0: it does not depend on shapes */
    bool experts;
    double slower; /* seconds of experts for each of others, while only one of the two has run; 0: no difference */
};

static struct rate_shape shape_of(enum pipeline_phase phase, const struct run_plan *plan)
{
    bool computes = raw_rates[phase].unit == UNIT_PRODUCTS;

    return (struct rate_shape){.width = computes ? plan->width : 0,
                               .experts = computes && plan->experts,
                               .slower = phase == PHASE_FORWARD || phase == PHASE_EVALUATE ? EXPERTS_SLOWER : 0};
}

static double entry_width(const json_t *entry)
{
    return json_number_value(json_object_get(entry, "width"));
}

static double entry_rate(const json_t *entry)
{
    double work = json_number_value(json_object_get(entry, "work"));

    return work > 0 ? json_number_value(json_object_get(entry, "seconds")) / work : 0;
}

/* Of the entries those around a width, with or without experts as the shape has it; NULL: there is none. */
static void entries_around(const json_t *entries, const struct rate_shape *shape, bool experts, const json_t **below,
                           const json_t **above)
{
    const json_t *entry;
    size_t i;

    *below = *above = NULL;
    json_array_foreach((json_t *)entries, i, entry)
    {
        double width = entry_width(entry);
        if (json_is_true(json_object_get(entry, "experts")) != experts || entry_rate(entry) <= 0) {
            continue;
        }
        if (width <= shape->width && (*below == NULL || width > entry_width(*below))) {
            *below = entry;
        }
        if (width >= shape->width && (*above == NULL || width < entry_width(*above))) {
            *above = entry;
        }
    }
}

/* Seconds for each unit of work; 0: nothing is known. */
static double rate_of(const json_t *entries, const struct rate_shape *shape, const struct machine_profile *profile)
{
    const json_t *below, *above;
    double factor = 1;

    entries_around(entries, shape, shape->experts, &below, &above);
    if (below == NULL && above == NULL) {
        entries_around(entries, shape, !shape->experts, &below, &above);
        factor = shape->slower == 0 ? 1 : shape->experts ? shape->slower : 1 / shape->slower;
    }
    if (below == NULL && above == NULL) {
        return 0;
    }
    if (below != NULL && above != NULL) {
        return factor * machine_between(entry_width(below), entry_rate(below), entry_width(above), entry_rate(above),
                                        shape->width);
    }
    const json_t *one = below != NULL ? below : above;
    double products = shape->width > 0 ? profile_products(profile, shape->width) : 1;
    return factor * entry_rate(one) * (shape->width > 0 ? profile_products(profile, entry_width(one)) / products : 1);
}

/* The entry of the shape, made where there is none; of too many the nearest. Borrowed. */
static json_t *entry_of(json_t *entries, const struct rate_shape *shape)
{
    json_t *entry, *nearest = NULL;
    double least = INFINITY;
    size_t i;

    json_array_foreach(entries, i, entry)
    {
        double width = entry_width(entry);
        double off = shape->width > 0 && width > 0 ? fabs(log(width / shape->width)) : fabs(width - shape->width);
        if (json_is_true(json_object_get(entry, "experts")) == shape->experts && off < least) {
            least = off;
            nearest = entry;
        }
    }
    if (nearest != NULL && (least < log(SAME_WIDTH) || json_array_size(entries) >= WIDTHS_MAX)) {
        return nearest;
    }
    json_array_append_new(entries, json_pack("{s:f, s:b}", "width", shape->width, "experts", (int)shape->experts));
    return json_array_get(entries, json_array_size(entries) - 1);
}

static void rate_add(json_t *rates, const char *key, const struct rate_shape *shape, double seconds, double work)
{
    json_t *entries = json_object_get(rates, key);

    if (work <= 0 || seconds < 0) {
        return;
    }
    if (!json_is_array(entries)) {
        entries = json_array();
        json_object_set_new(rates, key, entries);
    }
    json_t *entry = entry_of(entries, shape);
    double before = json_number_value(json_object_get(entry, "seconds"));
    double done = json_number_value(json_object_get(entry, "work"));
    json_object_set_new(entry, "seconds", json_real(KEEP * before + seconds));
    json_object_set_new(entry, "work", json_real(KEEP * done + work));
}

void machine_estimate(struct service *service, const struct gpu_info *device, const char *method,
                      const struct run_plan *plan, struct machine_time *out)
{
    struct machine_time made = {.known = true, .from_jobs = true};
    const struct rate_shape any = {0};
    struct machine_profile first = {.copies = 0};
    bool guessed[PHASE_COUNT] = {false};
    char key[128];

    pthread_mutex_lock(&machine_lock);
    AUTO_JSON json_t *all = machine_read(service);
    made.known = machine_profile(service, all, device, &first);
    pthread_mutex_unlock(&machine_lock);
    const json_t *rates = json_object_get(json_object_get(all, machine_key(device, key)), "rates");
    for (int i = 0; made.known && i < PHASE_COUNT; i++) {
        const struct rate_shape shape = shape_of(i, plan);
        double rate = rate_of(json_object_get(rates, rate_key(i, method, key)), &shape, &first);
        guessed[i] = rate == 0 && plan->work[i] > 0;
        rate = rate > 0 ? rate : 1 / profile_rate(&first, i, plan->width);
        made.phases[i] = rate * plan->work[i];
        made.seconds += made.phases[i];
    }
    made.other = rate_of(json_object_get(rates, OTHER_KEY), &any, &first);
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
    const struct rate_shape any = {0};
    double other = elapsed;
    char key[128];

    pthread_mutex_lock(&machine_lock);
    AUTO_JSON json_t *all = machine_read(service);
    json_t *rates = machine_member(machine_member(all, machine_key(device, key)), "rates");
    for (int i = 0; i < PHASE_COUNT; i++) {
        const struct rate_shape shape = shape_of(i, plan);
        rate_add(rates, rate_key(i, method, key), &shape, times->seconds[i], plan->work[i]);
        other -= times->seconds[i];
    }
    rate_add(rates, OTHER_KEY, &any, fmax(other, 1e-3), 1);
    machine_write(service, all);
    pthread_mutex_unlock(&machine_lock);
}
