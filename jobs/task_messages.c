/* What the world hears of a running job, and how the job hears of the world.
 *
 * News goes to the store at most once a second, fenced; the answer carries the job's status, so that a cancellation is
 * seen even when nobody could be told of it. The fraction never goes back within an attempt. */

#include "jobs/task.h"

#include "base/err.h"
#include "base/host.h"
#include "jobs/blocks.h"
#include "jobs/metrics.h"
#include "jobs/rows.h"
#include "jobs/tuning.h"
#include "jobs/view.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define FLUSH_MS 1000
#define FRACTION_PIPELINE 0.97 /* the rest is the export's */
#define DRAIN_MARGIN_MS 3000   /* before the drain's deadline, to write what must be written */

static double elapsed(const struct task *task)
{
    return task->elapsed_before + clock_monotonic_seconds() - task->started;
}

void task_order(struct task *task, enum supervisor_order order)
{
    switch (order) {
    case ORDER_CANCEL:
        atomic_store(&task->cancelled, true);
        break;
    case ORDER_PAUSE:
        atomic_store(&task->pause, PAUSE_AFTER_BLOCK);
        break;
    case ORDER_PAUSE_NOW:
        atomic_store(&task->pause, PAUSE_NOW);
        break;
    case ORDER_RESUME:
        atomic_store(&task->pause, PAUSE_NONE);
        break;
    }
}

/* A pause waits for the open block, where there is one. */
static bool pause_is_due(struct task *task)
{
    int wanted = atomic_load(&task->pause);

    return wanted == PAUSE_NOW || (wanted == PAUSE_AFTER_BLOCK && task->block == 0);
}

static int stop_for_pause(void)
{
    return err_raise(ERR_INTERRUPTED, "paused by request");
}

int task_check_stop(struct task *task)
{
    if (atomic_load(&task->cancelled)) {
        return err_raise(ERR_CANCELLED, "cancelled by request");
    }
    if (pause_is_due(task)) {
        return stop_for_pause();
    }
    if (service_draining(task->service)) {
        int64_t left = atomic_load(&task->service->supervisor.drain_deadline_ms) - clock_monotonic_ms();
        if (left < DRAIN_MARGIN_MS) {
            return err_raise(ERR_INTERRUPTED, "the daemon shuts down");
        }
    }
    if (elapsed(task) > (double)task->spec.timeout_seconds) {
        return err_raise(ERR_TIMEOUT, "the job ran for more than its %lld seconds",
                         (long long)task->spec.timeout_seconds);
    }
    return 0;
}

/* Seconds to go, or negative while nothing can be said. */
static double eta(const struct task *task)
{
    double made = task->fraction - task->first_fraction;
    double spent = clock_monotonic_seconds() - task->started;
    return made < 0.01 ? -1 : spent * (1 - task->fraction) / made;
}

struct job_progress task_progress(const struct task *task)
{
    double left = eta(task);
    bool known = left >= 0;

    return (struct job_progress){
        .known = true,
        .block = task->block,
        .step = task->step,
        .fraction = round(task->fraction * 1e4) / 1e4,
        .layers_done = task->layers_done,
        .layers_total = task->layers_total,
        .modules_done = task->modules_done,
        .modules_total = task->modules_total,
        .tokens_calibrated = task_passing_sequences(task) * task->calibration.length,
        .elapsed_seconds = round(elapsed(task) * 1e3) / 1e3,
        .eta_seconds = known ? (int64_t)ceil(left) : 0,
        .estimated_finish_at = known ? clock_unix_seconds() + (int64_t)ceil(left) : 0,
    };
}

struct job_memory task_memory(const struct task *task, int64_t artifact_bytes)
{
    int64_t host = host_peak();

    return (struct job_memory){
        .source_bytes = model_bytes(task->model),
        .artifact_bytes = artifact_bytes,
        .gpu_peak_bytes = task->device_peak,
        .host_peak_bytes = host > task->host_peak ? host : task->host_peak,
        .estimated_gpu_bytes = job_plan_device(&task->spec, &task->plan, task->model, &task->device),
    };
}

json_t *task_times_json(const struct pipeline_times *times)
{
    json_t *phases = json_object();

    for (int i = 0; i < PHASE_COUNT; i++) {
        json_object_set_new(phases, pipeline_phase_names[i],
                            json_pack("{s:f, s:f}", "seconds", times->seconds[i], "flops", times->flops[i]));
    }
    return phases;
}

void task_times_load(const json_t *json, struct pipeline_times *times)
{
    for (int i = 0; i < PHASE_COUNT; i++) {
        const json_t *phase = json_object_get(json, pipeline_phase_names[i]);
        times->seconds[i] = json_number_value(json_object_get(phase, "seconds"));
        times->flops[i] = json_number_value(json_object_get(phase, "flops"));
    }
}

const char *task_device(const struct task *task, char out[TASK_DEVICE_SIZE])
{
    const struct gpu_info *info = &task->device;

    if (info->id[0] == '\0') { /* it was never chosen */
        return task->device_before;
    }
    snprintf(out, TASK_DEVICE_SIZE, "%.100s (%.120s%s%.90s; %lld tokens at once)", info->name, info->detail,
             info->libraries[0] != '\0' ? "; " : "", info->libraries, (long long)info->batch_tokens);
    return out;
}

int task_columns_init(const struct task *task, struct task_columns *columns)
{
    bool any = task->layers_done > 0;

    *columns = (struct task_columns){.row = {.phase = task->phase}};
    columns->phases = task_times_json(&task->times);
    if (columns->phases == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job's columns");
    }
    columns->row.progress = task_progress(task);
    columns->row.checkpoint = (struct job_checkpoint){
        .blocks = task->layers_done,
        .saved_at = any ? task->last_layer_saved_at : 0,
        .charged = task->charged,
        .attempt = task->moved_forward,
        .phases = columns->phases,
        .device = task_device(task, columns->device),
    };
    return 0;
}

void task_columns_deinit(struct task_columns *columns)
{
    json_decref(columns->phases);
}

/* A change of the job's row that only the worker of this claim may make. */
static struct job_update own_update(const struct task *task, unsigned set, const struct job_row *row)
{
    return (struct job_update){.id = task->id, .from = STATUS_ANY, .fence = task->fence, .set = set, .row = row};
}

static int task_flush(struct task *task)
{
    const struct job_row columns = {
        .phase = task->phase, .progress = task_progress(task), .memory = task_memory(task, 0)};
    struct job_update update = own_update(task, JOB_SET_PHASE | JOB_SET_PROGRESS | JOB_SET_MEMORY, &columns);
    AUTO(job_row) struct job_row row = {0};
    AUTO_JSON json_t *event = view_progress(&columns.progress);

    task->last_flush_ms = clock_monotonic_ms();
    if (event == NULL || json_object_set_new(event, "phase", json_string(task->phase)) != 0 ||
        json_object_set_new(event, "tuning", tuning_progress(&task->learning)) != 0) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for progress");
    }
    update.event = "progress";
    update.event_data = event;
    TRY(store_job_update(task->service->store, &update, &row));
    if (row.status == STATUS_CANCELLING) {
        task_order(task, ORDER_CANCEL);
    } else if (row.status == STATUS_PAUSING && atomic_load(&task->pause) == PAUSE_NONE) {
        task_order(task, ORDER_PAUSE);
    }
    return 0;
}

/* A ladder's rungs share what there is, as if all had to run: which is passed is not known before. */
double task_fraction(const struct task *task, double of_rung)
{
    double rungs = task->spec.gate.ladder_count + 1;

    return (task->spec.rung * FRACTION_PIPELINE + of_rung) / rungs;
}

static int tick(struct task *task, double fraction)
{
    if (fraction > FRACTION_PIPELINE) {
        fraction = FRACTION_PIPELINE;
    }
    if (fraction > task->fraction) {
        task->fraction = fraction;
    }
    bool first = task->last_flush_ms == 0;
    if (first) {
        task->first_fraction = task->fraction;
    }
    TRY(task_check_stop(task));
    if (first || clock_monotonic_ms() - task->last_flush_ms >= FLUSH_MS) {
        TRY(task_flush(task));
        TRY(task_check_stop(task));
    }
    return 0;
}

int task_tick_phase(struct task *task, double fraction, const char *phase)
{
    task->phase = phase;
    task->step = phase;
    task->learning = (struct tune_progress){.steps = 0};
    task->block = 0;
    return tick(task, fraction);
}

static int progress(struct task *task, const struct message_progress *progress)
{
    bool over = progress->block >= task->layers_total;
    bool measures = strcmp(progress->step, "measuring") == 0; /* before the first block: no pause waits for one */

    task->phase = measures ? "measuring" : over ? "evaluating" : "quantizing";
    task->step = progress->step;
    task->learning = progress->learning;
    task->block = over || measures ? 0 : progress->block + 1;
    double of_rung = progress->fraction < FRACTION_PIPELINE ? progress->fraction : FRACTION_PIPELINE;
    return tick(task, task_fraction(task, of_rung));
}

/* What a watcher wants of a finished block: its modules with their errors. */
static json_t *layer_event(const struct task *task, int64_t index, const json_t *rows)
{
    static const char *const names[] = {"module", "relative_mse", "output_relative_mse", "fallback", "seconds"};
    json_t *modules = json_array();
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)rows, i, row)
    {
        json_t *module = json_object();
        for (size_t n = 0; n < sizeof(names) / sizeof(names[0]); n++) {
            json_object_set(module, names[n], json_object_get(row, names[n]));
        }
        json_array_append_new(modules, module);
    }
    return json_pack("{s:I, s:I, s:o}", "layer", (json_int_t)index, "layers_total", (json_int_t)task->layers_total,
                     "modules", modules);
}

/* One transaction of the block, its rows of the report and the job's own columns. */
static int task_commit_block(struct task *task, const struct message_block *done)
{
    struct task_columns columns;
    AUTO_JSON json_t *rows = rows_json(done->rows, done->row_count);
    AUTO_JSON json_t *block = blocks_json(done, task->source);
    AUTO_JSON json_t *event = layer_event(task, done->saved.index, rows);

    if (rows == NULL || block == NULL || event == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a block's row");
    }
    TRY(task_columns_init(task, &columns));
    columns.row.memory = task_memory(task, 0);
    struct job_update update = own_update(task, JOB_SET_PROGRESS | JOB_SET_CHECKPOINT | JOB_SET_MEMORY, &columns.row);
    if (!done->again) {
        update.event = "layer";
        update.event_data = event;
    }
    int rc = store_block_commit(task->service->store, &update, block, rows);
    task_columns_deinit(&columns);
    return rc;
}

/* 0: not known. */
static int64_t task_block_bytes(const struct task *task, const struct saved_block *block)
{
    char path[SERVICE_PATH_MAX + sizeof(block->file)];
    struct stat found;

    (void)snprintf(path, sizeof(path), "%s/%s", task->directory, block->file);
    return stat(path, &found) == 0 ? (int64_t)found.st_size : 0;
}

/* Between two commits a run can stop. */
static int stop_at_boundary(struct task *task)
{
    if (atomic_load(&task->pause) != PAUSE_NONE) {
        return stop_for_pause();
    }
    return service_draining(task->service) ? err_raise(ERR_INTERRUPTED, "the daemon shuts down") : 0;
}

static int block_done(struct task *task, const struct message_block *done)
{
    int64_t charged = task->charged, moved_forward = task->moved_forward, index = done->saved.index;

    if (done->again) {
        int rc = task_commit_block(task, done);
        return rc != 0 ? err_pass(rc, "commit block %lld again", (long long)index) : stop_at_boundary(task);
    }
    task->charged = 0;
    task->moved_forward = task->attempt;
    task->layers_done = index + 1;
    task->modules_done += done->row_count;
    task->last_layer_saved_at = clock_unix_seconds();
    if (index + 1 == task->layers_total) {
        task_gate_keep(task, &done->saved);
    }
    int rc = task_commit_block(task, done);
    if (rc != 0) {
        task->charged = charged;
        task->moved_forward = moved_forward;
        task->layers_done = index;
        task->modules_done -= done->row_count;
        return err_pass(rc, "commit block %lld", (long long)index);
    }
    metrics_block_committed(done->rows, done->row_count, task_block_bytes(task, &done->saved));
    return stop_at_boundary(task);
}

static bool is_known(const json_t *warnings, const json_t *warning)
{
    size_t i;
    json_t *known;

    json_array_foreach((json_t *)warnings, i, known)
    {
        if (json_equal(known, warning)) {
            return true;
        }
    }
    return false;
}

/* One transaction: among the job's warnings, which the report shows as well, and an event. */
int task_warn(struct task *task, const char *code, const char *text)
{
    AUTO_JSON json_t *warning = json_pack("{s:s, s:s}", "code", code, "message", text);

    if (warning == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a warning");
    }
    if (is_known(task->warnings, warning)) { /* of one module after another */
        return 0;
    }
    json_array_append(task->warnings, warning);
    const struct job_row row = {.warnings = task->warnings};
    struct job_update update = own_update(task, JOB_SET_WARNINGS, &row);
    update.event = "warning";
    update.event_data = warning;
    int rc = store_job_update(task->service->store, &update, NULL);
    return rc != 0 ? err_pass(rc, "tell %s", code) : 0;
}

static void add_times(const struct pipeline_times *before, const struct pipeline_times *run, struct pipeline_times *out)
{
    for (int i = 0; i < PHASE_COUNT; i++) {
        out->seconds[i] = before->seconds[i] + run->seconds[i];
        out->flops[i] = before->flops[i] + run->flops[i];
    }
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

int task_receive(void *data, const struct message *message)
{
    struct task *task = data;

    add_times(&task->times_before, &message->times, &task->times);
    task->device_peak = larger(task->device_peak, message->device_peak_bytes);
    task->host_peak = larger(task->host_peak, message->host_peak_bytes);
    atomic_store(&task->runner->device_peak, task->device_peak);
    switch (message->kind) {
    case MESSAGE_PROGRESS:
        return progress(task, &message->progress);
    case MESSAGE_BLOCK_DONE:
        return block_done(task, &message->block);
    case MESSAGE_WARNING:
        return task_warn(task, message->warning.code, message->warning.text);
    case MESSAGE_DONE:
        task->result = message->done;
        task->times_before = task->times;
        return 0;
    case MESSAGE_FAILED: /* the worker gives its code back */
        task->times_before = task->times;
        return 0;
    case MESSAGE_COUNT:
        break;
    }
    return err_raise(ERR_INTERNAL, "a message of kind %d", (int)message->kind);
}
