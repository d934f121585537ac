/* The ladder of a gate, rung by rung.
 *
 * The column `gate` says which rung is at work and how those before it came out. A rung that does not pass is left in
 * one fenced transaction: its outcome, the number of the next rung, the end of its blocks, and the event. An attempt
 * that dies before that judges the rung once more, from blocks that are all there; one that dies after it begins the
 * next. What does not depend on the rung stays: token logs, the float model's activations of the evaluation set, its
 * continuations. */

#include "jobs/task.h"

#include "base/err.h"
#include "base/log.h"
#include "jobs/metrics.h"
#include "jobs/tuning_warn.h"

#include <stdlib.h>
#include <string.h>

#define FLOAT_STORE "eval_float"

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));

    return text != NULL ? text : "";
}

int task_gate_read(struct task *task, const struct job_row *row)
{
    const json_t *saved = json_object_get(row->gate, "float_model");
    json_int_t rung = json_integer_value(json_object_get(row->gate, "rung"));

    if (!task->spec.gate.asked || row->gate == NULL) {
        return 0;
    }
    task->gate = json_deep_copy(row->gate);
    if (task->gate == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a job");
    }
    if (rung < 0 || rung > task->spec.gate.ladder_count) {
        return err_raise(ERR_INTERNAL, "the job is at rung %lld of a ladder of %d", (long long)rung,
                         task->spec.gate.ladder_count);
    }
    snprintf(task->float_saved.store, sizeof(task->float_saved.store), "%s", FLOAT_STORE);
    snprintf(task->float_saved.file, sizeof(task->float_saved.file), "%s", text_of(saved, "file"));
    snprintf(task->float_saved.sha256, sizeof(task->float_saved.sha256), "%s", text_of(saved, "sha256"));
    if (rung > 0) {
        task->float_model = task->float_saved;
    }
    spec_use_rung(&task->spec, (int)rung);
    return 0;
}

void task_gate_keep(struct task *task, const struct saved_block *block)
{
    for (int i = 0; task->spec.gate.asked && i < block->activation_count; i++) {
        if (strcmp(block->activations[i].store, FLOAT_STORE) == 0 && task->spec.rung == 0) {
            task->float_saved = block->activations[i];
        }
    }
}

/* The column with a rung's outcome, in place of what an earlier attempt said of the same rung, and its evaluation,
 * which is the report's as long as there is no result. next: the rung that is at work from then on. */
static json_t *gate_column(const struct task *task, const json_t *outcome, int next)
{
    const struct saved_activations *saved = &task->float_saved;
    json_t *rungs = json_array();
    const json_t *before = json_object_get(task->gate, "rungs");

    for (size_t i = 0; i < (size_t)task->spec.rung && i < json_array_size(before); i++) {
        json_array_append(rungs, json_array_get(before, i));
    }
    json_array_append(rungs, (json_t *)outcome);
    return json_pack("{s:i, s:O, s:o, s:o, s:{s:s, s:s}}", "rung", next, "passed", json_object_get(outcome, "passed"),
                     "rungs", rungs, "evaluation", task_evaluation_json(&task->result), "float_model", "file",
                     saved->file, "sha256", saved->sha256);
}

/* Whether an earlier attempt committed the same: nothing new has happened then. */
static bool is_committed(const struct task *task, const json_t *column)
{
    return task->gate != NULL && json_equal(task->gate, column);
}

/* What comes next, for those who watch. */
static const char *gate_action(const struct task *task, bool passed)
{
    bool more = task->spec.rung < task->spec.gate.ladder_count;

    return passed ? "publish" : more ? "next_rung" : task->spec.gate.on_fail == GATE_WARN ? "warn" : "fail";
}

static json_t *gate_event(const struct task *task, const json_t *outcome, const char *action)
{
    json_t *event = json_deep_copy(outcome);

    if (event != NULL) {
        json_object_set_new(event, "rungs_total", json_integer(task->spec.gate.ladder_count + 1));
        json_object_set_new(event, "action", json_string(action));
    }
    return event;
}

/* One transaction; `next` beyond the rung also ends its blocks. */
static int commit_outcome(struct task *task, const json_t *outcome, const char *action, int next)
{
    bool leaves = next != task->spec.rung;
    AUTO_JSON json_t *column = gate_column(task, outcome, next);
    AUTO_JSON json_t *event = gate_event(task, outcome, action);
    struct task_columns columns;

    if (column == NULL || event == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a gate's outcome");
    }
    if (!leaves && is_committed(task, column)) {
        return 0;
    }
    if (leaves) {
        task->layers_done = task->modules_done = 0;
    }
    TRY(task_columns_init(task, &columns));
    columns.row.gate = column;
    columns.row.warnings = task->warnings;
    const struct job_update update = {
        .id = task->id,
        .from = STATUS_ANY,
        .fence = task->fence,
        .set = JOB_SET_GATE | JOB_SET_WARNINGS | JOB_SET_PROGRESS | JOB_SET_CHECKPOINT,
        .row = &columns.row,
        .clears_blocks = leaves,
        .event = "gate",
        .event_data = event,
    };
    int rc = store_job_update(task->service->store, &update, NULL);
    task_columns_deinit(&columns);
    if (rc == 0) {
        json_decref(task->gate);
        task->gate = MOVE(column);
    }
    return rc != 0 ? err_pass(rc, "commit a gate's outcome") : 0;
}

/* What the run warned of is not so for the next rung. */
static void drop_warning(struct task *task, const char *code)
{
    for (size_t i = json_array_size(task->warnings); i > 0; i--) {
        if (strcmp(text_of(json_array_get(task->warnings, i - 1), "code"), code) == 0) {
            json_array_remove(task->warnings, i - 1);
        }
    }
}

static int next_rung(struct task *task, const json_t *outcome)
{
    int next = task->spec.rung + 1;

    drop_warning(task, "evaluation_not_finite");
    drop_warning(task, tuning_kept_nothing);
    drop_warning(task, tuning_diverged);
    TRY(commit_outcome(task, outcome, "next_rung", next));
    task->float_model = task->float_saved;
    spec_use_rung(&task->spec, next);
    log_info("gate not passed, next rung", LOG_S("job", task->id), LOG_I("rung", next));
    return task_look_up_blocks(task);
}

/* The last rung's failure, by the request's word. */
static int end_ladder(struct task *task, const json_t *outcome)
{
    char reasons[800], message[900];

    gate_reasons(outcome, reasons, sizeof(reasons));
    (void)snprintf(message, sizeof(message), "the quantized model does not pass evaluation.gate%s: %s",
                   task->spec.rung > 0 ? " at the last rung of its ladder" : "", reasons);
    if (task->spec.gate.on_fail == GATE_WARN) {
        return task_warn(task, "evaluation_gate_failed", message);
    }
    return err_set_param(err_raise(ERR_EVALUATION_GATE, "%s", message), "/evaluation/gate");
}

int task_gate_judge(struct task *task, bool *again)
{
    const struct gate *gate = &task->spec.gate;

    *again = false;
    if (!gate->asked) {
        return 0;
    }
    if (!task->result.done) {
        return err_raise(ERR_INTERNAL, "a gate without an evaluation");
    }
    AUTO_JSON json_t *outcome = gate_judge(gate, task->spec.rung, &task->spec.recipe, &task->result);
    if (outcome == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a gate's outcome");
    }
    bool passed = json_is_true(json_object_get(outcome, "passed"));
    const char *action = gate_action(task, passed);
    if (!passed) {
        metrics_gate_failed();
    }
    *again = strcmp(action, "next_rung") == 0;
    if (*again) {
        return next_rung(task, outcome);
    }
    TRY(commit_outcome(task, outcome, action, task->spec.rung));
    return passed ? 0 : end_ladder(task, outcome);
}

json_t *task_gate_json(const struct task *task)
{
    if (task->gate == NULL) {
        return NULL;
    }
    return json_pack("{s:O, s:O, s:O}", "passed", json_object_get(task->gate, "passed"), "rung",
                     json_object_get(task->gate, "rung"), "rungs", json_object_get(task->gate, "rungs"));
}
