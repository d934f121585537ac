/* One attempt: what must be there before the first block, the run itself, and the way around a damaged checkpoint.
 *
 * Everything that the result depends on comes from the request, the model and the token logs; an attempt that goes on
 * after another's blocks therefore ends in the same bytes. */

#include "jobs/task.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/log.h"
#include "jobs/blocks.h"
#include "jobs/machine.h"
#include "jobs/records.h"
#include "jobs/tuning_warn.h"
#include "jobs/worker.h"
#include "pipeline/check.h"
#include "pipeline/mixture.h"
#include "pipeline/moments_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void task_add_warning(struct task *task, const char *code, const char *message)
{
    json_array_append_new(task->warnings, json_pack("{s:s, s:s}", "code", code, "message", message));
}

static int task_read_row(struct task *task, const struct job_row *row)
{
    struct validation_errors errors = {0};
    const struct job_checkpoint *checkpoint = &row->checkpoint;

    /* What the last attempt knew, until this one has looked for itself. */
    task->layers_done = checkpoint->blocks;
    task->layers_total = row->progress.layers_total;
    task->modules_done = row->progress.modules_done;
    task->modules_total = row->progress.modules_total;
    task->attempt = row->attempt;
    task->charged = checkpoint->charged;
    task->moved_forward = checkpoint->attempt;
    snprintf(task->device_before, sizeof(task->device_before), "%s",
             checkpoint->device != NULL ? checkpoint->device : "");
    task->last_layer_saved_at = checkpoint->saved_at;
    task->elapsed_before = row->progress.elapsed_seconds;
    task->device_peak = row->memory.gpu_peak_bytes;
    task_times_load(checkpoint->phases, &task->times);
    task->times_before = task->times;
    task->warnings = json_is_array(row->warnings) ? json_deep_copy(row->warnings) : json_array();
    task->calibration_records = row->calibration;
    task->evaluation_records = row->evaluation;
    if (task->warnings == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job");
    }
    TRY(spec_parse(row->request, &errors, &task->spec));
    if (json_object_get(json_object_get(row->request, "calibration"), "report_tokens") == NULL) {
        task->spec.calibration.report_tokens = 0; /* of a version that measured on all */
    }
    return task_gate_read(task, row);
}

int task_look_up_blocks(struct task *task)
{
    AUTO_FREE struct format_module *modules = NULL;
    AUTO_JSON json_t *blocks = NULL;
    AUTO_JSON json_t *rows = NULL;
    int count;

    TRY(recipe_bind(&task->spec.recipe, task->model));
    TRY(patterns_check(task->spec.recipe.patterns));
    TRY(task->spec.recipe.mixture != NULL ? mixture_assume(&task->spec.recipe, task->spec.format, task->model) : 0);
    TRY(recipe_modules(&task->spec.recipe, task->spec.format, task->model, &modules, &count));
    TRY(disk_plan(&task->spec.recipe, task->spec.format, task->model, modules, count, &task->spec.disk));
    free(task->blocks);
    task->blocks = NULL;
    TRY(store_blocks_list(task->service->store, task->id, &blocks));
    TRY(blocks_read(blocks, &task->blocks, &task->block_count));
    model_modification(task->model, task->source);
    task->other_source = blocks_of_other_source(blocks, task->source);
    TRY(store_layers_list(task->service->store, task->id, &rows));
    task->layers_total = model_config(task->model)->num_layers;
    task->layers_done = task->block_count;
    task->modules_total = count;
    task->modules_done = (int64_t)json_array_size(rows);
    if (task->block_count == task->layers_total && task->block_count > 0) {
        task_gate_keep(task, &task->blocks[task->block_count - 1]);
    }
    return 0;
}

static bool has_file(const char *id)
{
    return id[0] != '\0';
}

/* Token logs of the files that the request names, unless an earlier attempt finished them. */
static int ingest(struct task *task)
{
    const struct spec_calibration *c = &task->spec.calibration;
    const struct spec_evaluation *e = &task->spec.evaluation;

    if (has_file(c->file_id) && !task->calibration_records.ready) {
        const struct task_records records = {.file_id = c->file_id,
                                             .log = TASK_CALIBRATION_LOG,
                                             .what = "calibration",
                                             .text_field = c->text_field,
                                             .add_special_tokens = c->add_special_tokens};
        TRY(task_ingest(task, &records, &task->calibration_records));
    }
    if (has_file(e->file_id) && !task->evaluation_records.ready) {
        const struct task_records records = {.file_id = e->file_id,
                                             .log = TASK_EVALUATION_LOG,
                                             .what = "evaluation",
                                             .text_field = e->text_field,
                                             .add_special_tokens = e->add_special_tokens};
        TRY(task_ingest(task, &records, &task->evaluation_records));
    }
    return 0;
}

static int load_set(struct task *task, const char *log, const struct job_records *found,
                    const struct calibration_spec *spec, struct calibration_set *out)
{
    char path[SERVICE_PATH_MAX];

    TRY(fs_path(path, sizeof(path), "%s/%s", task->directory, log));
    return calibration_set_load(path, found->records, found->bytes, spec, out);
}

static void describe_set(struct job_records *records, const struct calibration_set *set)
{
    records->sequences = set->sequences;
    records->sequence_length = set->length;
    records->digest = set->digest;
}

/* A set that came out too small, with what is known of the lines that were to fill it. */
static int explain_shortage(const struct task *task, const char *what, int64_t length)
{
    const char *rejected = records_rejected(task->warnings, what);
    const struct err_record *shortage = err_last();
    char message[sizeof(shortage->message)];

    snprintf(message, sizeof(message), "%s", shortage->message);
    int rc = rejected != NULL ? err_raise(ERR_INSUFFICIENT_CALIBRATION, "%s; %s", message, rejected)
                              : ERR_INSUFFICIENT_CALIBRATION;
    char pointer[64];
    snprintf(pointer, sizeof(pointer), "/%s/file_id", what);
    rc = err_set_param(rc, pointer);
    return err_set_hint(
        rc,
        "the %s file must fill one sequence of %lld tokens with lines {\"%s\": \"...\"}, "
        "{\"messages\": [...]} or {\"input_ids\": [...]}; or lower %s.sequence_length",
        what, (long long)length,
        strcmp(what, "evaluation") == 0 ? task->spec.evaluation.text_field : task->spec.calibration.text_field, what);
}

/* The tail of the calibration set, when there is no evaluation file. */
static int hold_back(struct task *task)
{
    const struct spec_evaluation *e = &task->spec.evaluation;
    struct calibration_set *set = &task->calibration;
    int64_t max = e->max_tokens / set->length;
    int64_t count = (int64_t)llround(e->hold_back * (double)set->sequences);

    if (e->hold_back == 0) {
        return 0;
    }
    count = count < 1 ? 1 : count;
    count = count > max ? max : count;
    if ((count < 1 || count >= set->sequences) && task->spec.gate.asked) {
        int rc = err_raise(ERR_INSUFFICIENT_CALIBRATION,
                           "the calibration set of %lld sequences is too small to hold a tail back, which the gate "
                           "measures on",
                           (long long)set->sequences);
        return err_set_param(rc, "/evaluation/hold_back");
    }
    if (count < 1 || count >= set->sequences) {
        task_add_warning(task, "no_evaluation", "the calibration set is too small to hold a tail back for evaluation");
        return 0;
    }
    return calibration_set_split(set, count, &task->evaluation);
}

static int load_calibration(struct task *task)
{
    const struct spec_calibration *c = &task->spec.calibration;
    const struct calibration_spec rules = {
        .num_samples = c->num_samples,
        .sequence_length = spec_sequence_length(&task->spec, model_config(task->model)),
        .packing = c->packing,
        .shuffle = c->shuffle,
        .seed = (uint64_t)task->spec.seed,
    };

    int rc = load_set(task, TASK_CALIBRATION_LOG, &task->calibration_records, &rules, &task->calibration);
    if (rc == ERR_INSUFFICIENT_CALIBRATION && has_file(c->file_id)) {
        return explain_shortage(task, "calibration", rules.sequence_length);
    }
    if (rc != 0) {
        return rc;
    }
    if (c->num_samples > 0 && task->calibration.sequences < c->num_samples) {
        char message[160];
        snprintf(message, sizeof(message), "the records make %lld sequences of %lld tokens, %lld were asked for",
                 (long long)task->calibration.sequences, (long long)rules.sequence_length, (long long)c->num_samples);
        task_add_warning(task, "few_samples", message);
    }
    if (!has_file(task->spec.evaluation.file_id) && !recipe_analyses(&task->spec.recipe)) {
        rc = hold_back(task); /* an analysis changes nothing that could be evaluated */
    }
    describe_set(&task->calibration_records, &task->calibration);
    return rc;
}

static int load_evaluation(struct task *task)
{
    const struct spec_evaluation *e = &task->spec.evaluation;
    int64_t length =
        e->sequence_length > 0 ? e->sequence_length : spec_sequence_length(&task->spec, model_config(task->model));
    int64_t windows = e->max_tokens / length;
    const struct calibration_spec rules = {
        .num_samples = windows > 0 ? windows : 1, .sequence_length = length, .packing = true};

    int rc = load_set(task, TASK_EVALUATION_LOG, &task->evaluation_records, &rules, &task->evaluation);
    return rc == ERR_INSUFFICIENT_CALIBRATION ? explain_shortage(task, "evaluation", length) : rc;
}

static int load_sets(struct task *task)
{
    if (spec_has_calibration(&task->spec)) {
        TRY(load_calibration(task));
    }
    if (has_file(task->spec.evaluation.file_id)) {
        TRY(load_evaluation(task));
    }
    if (task->evaluation.sequences > 0) {
        describe_set(&task->evaluation_records, &task->evaluation);
    }
    return 0;
}

/* What was found out goes into the row before the work begins. */
static int save_preparation(struct task *task)
{
    const struct job_row row = {
        .calibration = task->calibration_records,
        .evaluation = task->evaluation_records,
        .warnings = task->warnings,
        .memory = task_memory(task, 0),
    };
    const struct job_update update = {
        .id = task->id,
        .from = STATUS_ANY,
        .fence = task->fence,
        .set = JOB_SET_RECORDS | JOB_SET_WARNINGS | JOB_SET_MEMORY,
        .row = &row,
    };

    return store_job_update(task->service->store, &update, NULL);
}

/* Blocks that another device or library made stay as they are; the rest may round otherwise. */
static int say_device_changed(struct task *task)
{
    char text[TASK_DEVICE_SIZE], message[900];
    const char *device = task_device(task, text);

    if (task->layers_done == 0 || task->device_before[0] == '\0' || strcmp(task->device_before, device) == 0) {
        return 0;
    }
    snprintf(message, sizeof(message),
             "the first %lld blocks were made on %s; the job goes on with %s, which may round otherwise",
             (long long)task->layers_done, task->device_before, device);
    return task_warn(task, "device_changed", message);
}

/* What the job is, and what is done of it. */
static int open_job(struct task *task, const struct job_row *row)
{
    TRY(task_read_row(task, row));
    TRY(service_job_path(task->service, task->id, NULL, task->directory));
    TRY(fs_make_dirs(task->directory));
    TRY(runner_device_of(task->runner, task->spec.resources.device, &task->device));
    TRY(service_model_open_object(task->service, NULL, task->spec.model, spec_reading(&task->spec), &task->model));
    return task_look_up_blocks(task);
}

/* What the job is calibrated and evaluated with. */
static int open_records(struct task *task)
{
    size_t warned = json_array_size(task->warnings);

    TRY(ingest(task));
    TRY(load_sets(task));
    while (task->layers_done > 0 && json_array_size(task->warnings) > warned) { /* said by the attempt that began it */
        json_array_remove(task->warnings, json_array_size(task->warnings) - 1);
    }
    return 0;
}

/* With the sets as they came out. */
static int task_plan(struct task *task)
{
    const struct job_sets sets = {.sequences = task->calibration.sequences,
                                  .length = task->calibration.length,
                                  .eval_sequences = task->evaluation.sequences,
                                  .eval_length = task->evaluation.length,
                                  .known = true};

    int rung = task->spec.rung; /* of a ladder, the memory that the largest takes; an attempt may begin further on */

    spec_use_rung(&task->spec, 0);
    int rc = job_plan_ladder(task->service, &task->spec, &sets, task->model, &task->device, &task->plan);
    spec_use_rung(&task->spec, rung);
    return rc;
}

static int task_prepare_all(struct task *task, const struct job_row *row)
{
    TRY(open_job(task, row));
    task->fraction = task_fraction(task, 0.95 * (double)task->layers_done / (double)task->layers_total);
    TRY(task_tick_phase(task, task->fraction, "loading"));
    TRY(open_records(task));
    TRY(task_plan(task));
    TRY(say_device_changed(task));
    return save_preparation(task);
}

int task_prepare(struct task *task, const struct job_row *row)
{
    task->started = clock_monotonic_seconds();
    task->phase = "loading";
    int rc = task_prepare_all(task, row);
    return rc != 0 ? err_pass(rc, "prepare") : 0;
}

int64_t task_passing_sequences(const struct task *task)
{
    return spec_passing_sequences(&task->spec, task->calibration.sequences, task->calibration.length);
}

static int run_pipeline(struct task *task, const struct calibration_set *calibration)
{
    int64_t budget = task->spec.resources.host_memory_bytes;
    const struct gate *gate = &task->spec.gate;
    const struct pipeline pipeline = {
        .recipe = &task->spec.recipe,
        .format = task->spec.format,
        .model = task->model,
        .directory = task->directory,
        .calibration = calibration,
        .evaluation = task->evaluation.sequences > 0 ? &task->evaluation : NULL,
        .generation = {.prompts = gate->generates ? gate->prompts : 0,
                       .prompt_tokens = gate->prompt_tokens,
                       .tokens = gate->tokens},
        .float_model = task->float_model,
        .seed = (uint64_t)task->spec.seed,
        .host_memory_bytes = budget > 0 ? budget : task->service->supervisor.host_memory_bytes,
        .blocks = task->blocks,
        .block_count = task->block_count,
        .rows_before = task->modules_done,
        .receive = task_receive,
        .receiver = task,
    };
    return worker_run(task->runner, &task->device, &pipeline);
}

/* By the rung's own part of the calibration set. */
static int run_passes(struct task *task)
{
    const struct calibration_set *all = &task->calibration;
    struct calibration_set sample = {0};
    int64_t passing = task_passing_sequences(task);

    if (passing == all->sequences) {
        return run_pipeline(task, passing > 0 ? all : NULL);
    }
    TRY(calibration_set_sample(all, passing, &sample));
    int rc = run_pipeline(task, &sample);
    calibration_set_deinit(&sample);
    return rc;
}

/* Blocks from `from` on are no longer what was committed, or of another build: they are solved again. */
static int go_back(struct task *task, int64_t from, const char *code, const char *why)
{
    char message[400];

    TRY(store_blocks_clear(task->service->store, task->id, from));
    TRY(task_look_up_blocks(task));
    if (from == 0) {
        task->times = task->times_before = (struct pipeline_times){0};
        snprintf(message, sizeof(message), "%s; the job started over from its first block", why);
    } else {
        snprintf(message, sizeof(message), "%s; the job went on after block %lld", why, (long long)from - 1);
    }
    TRY(task_warn(task, code, message));
    return save_preparation(task);
}

/* What an earlier attempt left is looked at before anything builds on it. */
static int keep_usable(struct task *task)
{
    int64_t usable;
    char why[256];

    if (task->other_source) { /* blocks of two checkpoints would be a model of neither */
        return go_back(task, 0, "source_changed", "the checkpoint's files were modified after blocks were done");
    }
    int rc = checkpoint_usable(task->directory, task->blocks, task->block_count, &usable);
    if (rc != ERR_SOURCE_CORRUPT && rc != ERR_UNSUPPORTED) {
        return rc;
    }
    log_err(LOG_WARN, "checkpoint not usable", task->id);
    if (rc == ERR_SOURCE_CORRUPT) {
        snprintf(why, sizeof(why), "the file of block %lld was damaged or gone", (long long)usable);
    } else {
        snprintf(why, sizeof(why), "%.250s", err_last()->message);
    }
    return go_back(task, usable, rc == ERR_UNSUPPORTED ? "checkpoint_version" : "checkpoint_damaged", why);
}

static int tick_outside(void *data)
{
    struct task *task = data;

    return task_tick_phase(task, task->fraction, "loading");
}

/* A job that ran from its first block to its end in one attempt says how fast the machine is. */
static void learn_rates(const struct task *task, bool complete)
{
    if (complete && task->elapsed_before == 0 && task->spec.rung == 0) { /* the plan's work is that rung's */
        machine_learn(task->service, &task->device, task->spec.recipe.name, &task->plan, &task->times,
                      clock_monotonic_seconds() - task->started);
    }
}

/* What came of learning on blocks and on the complete model. */
static int warn_learning(struct task *task)
{
    AUTO_JSON json_t *blocks = NULL;
    char text[TUNING_WARNING_SIZE];

    if (recipe_tuner(&task->spec.recipe) == NULL) {
        return 0;
    }
    TRY(store_blocks_list(task->service->store, task->id, &blocks));
    for (int model = 0; model <= 1; model++) {
        const char *code = tuning_warning(blocks, &task->spec.recipe, model == 1, text);
        TRY(code != NULL ? task_warn(task, code, text) : 0);
    }
    return 0;
}

/* The blocks of one rung, as far as they are not there yet, and the evaluation. */
static int run_rung(struct task *task)
{
    TRY(keep_usable(task));
    int rc = run_passes(task);
    if (rc == ERR_SOURCE_CORRUPT && task->block_count > 0) {
        log_err(LOG_WARN, "checkpoint damaged, starting over", task->id);
        TRY(go_back(task, 0, "checkpoint_damaged", "a checkpoint file was damaged while the job ran"));
        rc = run_passes(task);
    }
    return rc != 0 ? rc : warn_learning(task);
}

int task_run(struct task *task)
{
    bool again = true, complete = task->layers_done == 0;
    int rungs = 0;

    TRY(task_check_signing(task)); /* the daemon may have lost its key since the job was accepted */
    if (task->layers_done == 0) {  /* what is only copied would be found out by the export, which is hours later */
        TRY(model_check_outside(task->model, tick_outside, task));
    }
    while (again) {
        TRY(run_rung(task));
        TRY(task_gate_judge(task, &again));
        rungs++;
    }
    moments_remove(task->directory, model_config(task->model)->num_layers);
    TRY(task_publish(task));
    learn_rates(task, complete && rungs == 1);
    return 0;
}

void task_deinit(struct task *task)
{
    calibration_set_deinit(&task->calibration);
    calibration_set_deinit(&task->evaluation);
    model_close(task->model);
    spec_deinit(&task->spec);
    json_decref(task->warnings);
    json_decref(task->gate);
    free(task->blocks);
}
