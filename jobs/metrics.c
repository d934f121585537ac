/* Counters of jobs. A method's are at its place in the list of methods; those of a name that is not in the list, as a
 * job may have that another version left, are at the end under the name "other". */

#include "jobs/metrics.h"

#include "base/metrics.h"
#include "gpu/gpu.h"
#include "jobs/service.h"
#include "quantizers/quantizer.h"

#include <string.h>

#define METHODS_MAX 63 /* and "other" */

static const struct metrics_bounds wait_bounds = {12, {0.1, 1, 5, 15, 60, 300, 900, 3600, 10800, 43200, 86400, 604800}};
static const struct metrics_bounds layer_bounds = {13, {0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 900, 3600}};
static const struct metrics_bounds attempt_bounds = {9, {0.01, 0.03, 0.1, 0.3, 0.5, 1, 2, 3, 5}};
static const struct metrics_bounds error_bounds = {
    14, {1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1}};

static metrics_counter finished[METHODS_MAX + 1][STATUS_COUNT];
static struct metrics_histogram layer_seconds[METHODS_MAX + 1], layer_errors[METHODS_MAX + 1];
static struct metrics_histogram waits;
static metrics_counter attempts[DELIVERY_FAILED + 1];
static struct metrics_histogram attempt_seconds;
static metrics_counter checkpoint_bytes, leases_lost, gates_failed;

/* name: of a method, or of steps with a plus between, of which the last one counts. */
static size_t method_index(const char *name)
{
    const struct quantizer *const *list = quantizer_list();
    const char *plus = name != NULL ? strrchr(name, '+') : NULL;

    name = plus != NULL ? plus + 1 : name;

    for (size_t i = 0; name != NULL && i < METHODS_MAX && list[i] != NULL; i++) {
        if (strcmp(list[i]->name, name) == 0) {
            return i;
        }
    }
    return METHODS_MAX;
}

void metrics_job_claimed(const struct job_row *job)
{
    if (job->attempt == 1 && job->queued_at > 0) { /* a later attempt has no time of its own in the queue */
        int64_t waited = clock_unix_seconds() - job->queued_at;
        metrics_observe(&waits, &wait_bounds, waited > 0 ? (double)waited : 0);
    }
}

void metrics_job_finished(const char *method, enum job_status status)
{
    atomic_fetch_add(&finished[method_index(method)][status], 1);
}

void metrics_block_committed(const struct report_row *rows, int row_count, int64_t bytes)
{
    for (int i = 0; i < row_count; i++) {
        size_t method = method_index(rows[i].method);
        metrics_observe(&layer_seconds[method], &layer_bounds, rows[i].seconds);
        metrics_observe(&layer_errors[method], &error_bounds, rows[i].relative_mse);
    }
    if (bytes > 0) {
        atomic_fetch_add(&checkpoint_bytes, (uint64_t)bytes);
    }
}

void metrics_lease_lost(void)
{
    atomic_fetch_add(&leases_lost, 1);
}

void metrics_gate_failed(void)
{
    atomic_fetch_add(&gates_failed, 1);
}

void metrics_webhook_attempt(enum delivery_status status, double seconds)
{
    atomic_fetch_add(&attempts[status], 1);
    metrics_observe(&attempt_seconds, &attempt_bounds, seconds);
}

/* The methods of this build, and "other" at METHODS_MAX; NULL: there is none at this place. */
static const char *method_name(size_t index)
{
    const struct quantizer *const *list = quantizer_list();
    size_t count = 0;

    while (list[count] != NULL && count < METHODS_MAX) {
        count++;
    }
    return index < count ? list[index]->name : index == METHODS_MAX ? "other" : NULL;
}

static void write_layers(FILE *out, const char *name, const char *help, const struct metrics_bounds *bounds,
                         const struct metrics_histogram *histograms)
{
    metrics_family(out, name, "histogram", help);
    for (size_t i = 0; i <= METHODS_MAX; i++) {
        const char *method = method_name(i);
        if (method != NULL) {
            const struct metrics_label labels[] = {{"method", method}, {NULL, NULL}};
            metrics_distribution(out, name, labels, bounds, &histograms[i]);
        }
    }
}

static void write_finished(FILE *out)
{
    metrics_family(out, "quantd_jobs_finished_total", "counter", "Jobs that ended, by the method of their last step.");
    for (size_t i = 0; i <= METHODS_MAX; i++) {
        for (int status = 0; status < STATUS_COUNT && method_name(i) != NULL; status++) {
            if (job_status_is_final(status)) {
                const struct metrics_label labels[] = {
                    {"method", method_name(i)}, {"outcome", job_status_name(status)}, {NULL, NULL}};
                metrics_count(out, "quantd_jobs_finished_total", labels, finished[i][status]);
            }
        }
    }
}

static void write_jobs(struct service *service, FILE *out)
{
    int64_t counts[STATUS_COUNT];

    if (store_job_counts(service->store, NULL, counts) != 0) {
        return; /* the family is left out: no number is better than a wrong one */
    }
    metrics_family(out, "quantd_jobs", "gauge", "Stored jobs.");
    for (int status = 0; status < STATUS_COUNT; status++) {
        const struct metrics_label labels[] = {{"status", job_status_name(status)}, {NULL, NULL}};
        metrics_number(out, "quantd_jobs", labels, (double)counts[status]);
    }
}

static void write_devices(const struct supervisor *supervisor, FILE *out)
{
    metrics_family(out, "quantd_gpu_memory_bytes", "gauge",
                   "Memory of a device: all of it (total), and at most used by the job that runs on it (job_peak).");
    for (int i = 0; i < supervisor->count; i++) {
        const struct runner *runner = &supervisor->runners[i];
        const struct metrics_label total[] = {{"gpu", runner->device.id}, {"kind", "total"}, {NULL, NULL}};
        const struct metrics_label peak[] = {{"gpu", runner->device.id}, {"kind", "job_peak"}, {NULL, NULL}};
        metrics_number(out, "quantd_gpu_memory_bytes", total, (double)runner->device.memory_total);
        metrics_number(out, "quantd_gpu_memory_bytes", peak, (double)atomic_load(&runner->device_peak));
    }
}

static void write_webhooks(FILE *out)
{
    static const char *const outcomes[] = {
        [DELIVERY_PENDING] = "retried", [DELIVERY_DELIVERED] = "delivered", [DELIVERY_FAILED] = "failed"};

    metrics_family(
        out, "quantd_webhook_deliveries_total", "counter",
        "Attempts at messages to webhooks: delivered, to be tried again (retried), or not any more (failed).");
    for (size_t i = 0; i < sizeof(outcomes) / sizeof(outcomes[0]); i++) {
        const struct metrics_label labels[] = {{"outcome", outcomes[i]}, {NULL, NULL}};
        metrics_count(out, "quantd_webhook_deliveries_total", labels, attempts[i]);
    }
    metrics_family(out, "quantd_webhook_delivery_duration_seconds", "histogram",
                   "Time of one attempt at a message to a webhook.");
    metrics_distribution(out, "quantd_webhook_delivery_duration_seconds", NULL, &attempt_bounds, &attempt_seconds);
}

void metrics_write(struct service *service, FILE *out)
{
    write_jobs(service, out);
    write_finished(out);
    metrics_family(out, "quantd_job_queue_wait_seconds", "histogram",
                   "Time from the queue to the first attempt at a job.");
    metrics_distribution(out, "quantd_job_queue_wait_seconds", NULL, &wait_bounds, &waits);
    write_layers(out, "quantd_layer_duration_seconds", "Time to quantize one module of a block.", &layer_bounds,
                 layer_seconds);
    write_layers(out, "quantd_layer_relative_mse", "Relative squared error of one module's weights.", &error_bounds,
                 layer_errors);
    write_devices(&service->supervisor, out);
    metrics_family(out, "quantd_checkpoint_bytes_total", "counter", "Bytes of finished blocks that were stored.");
    metrics_count(out, "quantd_checkpoint_bytes_total", NULL, checkpoint_bytes);
    metrics_family(out, "quantd_lease_lost_total", "counter", "Attempts whose job was no longer theirs.");
    metrics_count(out, "quantd_lease_lost_total", NULL, leases_lost);
    metrics_family(out, "quantd_gate_failures_total", "counter",
                   "Quantized models that did not pass their job's gate.");
    metrics_count(out, "quantd_gate_failures_total", NULL, gates_failed);
    write_webhooks(out);
    store_metrics(service->store, out);
}
