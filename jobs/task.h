#pragma once
/* One attempt at one job, from the claimed row to the published artifact. Owned by a runner's thread; only
 * `cancelled` and `pause` are written by others. task.c prepares and runs, task_ingest.c turns files into token logs,
 * task_messages.c takes the pipeline's messages, task_publish.c makes the artifact. */

#include "jobs/job_plan.h"
#include "jobs/service.h"
#include "pipeline/pipeline.h"

#define TASK_CALIBRATION_LOG "calibration.tok"
#define TASK_EVALUATION_LOG "evaluation.tok"
#define TASK_DEVICE_SIZE 384

/* Whether a client wants the task to stop and keep its place: at the end of the open block, or at once. */
enum task_pause { PAUSE_NONE, PAUSE_AFTER_BLOCK, PAUSE_NOW };

struct task {
    struct service *service;
    struct runner *runner;
    struct gpu_info device; /* that the job runs on; id "": not chosen yet */
    char id[ID_SIZE];
    int64_t fence;
    int64_t attempt;
    int64_t charged;       /* attempts that ended without a finished block, since the last that had one */
    int64_t moved_forward; /* the last attempt that finished a block; 0: none did */
    struct job_spec spec;
    struct model *model;
    char source[DIGEST_HEX_SIZE]; /* model_modification */
    bool other_source;            /* there are blocks of another one */
    char directory[SERVICE_PATH_MAX];
    struct job_records calibration_records, evaluation_records; /* columns of the job's row */
    json_t *warnings;
    struct run_plan plan;       /* of a run from the first block on, once the sets are known */
    struct saved_block *blocks; /* committed ones, by index */
    int64_t block_count;
    struct calibration_set calibration, evaluation; /* sequences == 0: none */
    struct pipeline_times times, times_before;      /* of all attempts; without the run that goes on */
    struct evaluation_result result;
    json_t *gate; /* the job's column: how its rungs came out; NULL: none has yet */
    /* The float model's activations of the evaluation set, after the last block; file "": there are none. */
    struct saved_activations float_saved; /* by rung 0 */
    struct saved_activations float_model; /* which the run need not compute */
    char device_before[TASK_DEVICE_SIZE]; /* of the attempt that finished blocks, "" = none or unknown */
    int64_t device_peak, host_peak;       /* bytes at most, by the messages of all attempts and of this one */

    /* progress */
    double fraction, first_fraction; /* of the job; where this attempt began */
    const char
        *phase; /* "loading", "measuring", "quantizing", "evaluating", "exporting": never back within an attempt */
    const char *step; /* what it is at; of a block it comes round with each */
    int64_t block;    /* the open one, from 1; 0 = none */
    struct tune_progress learning;
    int64_t layers_done, layers_total, modules_done, modules_total;
    int64_t last_layer_saved_at;
    double started, elapsed_before; /* monotonic seconds; running time of earlier attempts */
    int64_t last_flush_ms;

    atomic_bool cancelled;
    atomic_int pause; /* enum task_pause */
};

/* task: zeroed but for its service, runner, id and fence, which others read. row: as claimed; the task's texts are in
 * it. Opens the model, tokenizes what is not tokenized, draws the sets, looks up what is done. On failure task_deinit
 * is still due.
 */
int task_prepare(struct task *task, const struct job_row *row);
/* Of the rung that the task is at: its modules, and the blocks that are committed. */
int task_look_up_blocks(struct task *task);
/* Pipeline, export, publication. 0 = the job is succeeded. */
int task_run(struct task *task);
void task_deinit(struct task *task);
/* Of the calibration set: those that pass through the model. */
int64_t task_passing_sequences(const struct task *task);

/* --- task_ingest.c */
/* A file of records. */
struct task_records {
    const char *file_id, *log; /* where its ids go, within the job's folder */
    const char *what;          /* "calibration", "evaluation" */
    const char *text_field;
    bool add_special_tokens;
};
/* Tokenize a file; sets records, tokens, bytes and ready in found and adds warnings for what was not taken or not
 * meant. */
int task_ingest(struct task *task, const struct task_records *records, struct job_records *found);

/* --- task_messages.c */
/* Any thread. */
void task_order(struct task *task, enum supervisor_order order);
/* Why the task should stop now: ERR_CANCELLED, ERR_INTERRUPTED, ERR_TIMEOUT; 0 = go on. */
int task_check_stop(struct task *task);
/* What the pipeline says; data is the task. */
int task_receive(void *task, const struct message *message);
/* What a fraction of the rung's blocks is of the job. */
double task_fraction(const struct task *task, double of_rung);
/* Outside the loop over blocks. */
int task_tick_phase(struct task *task, double fraction, const char *phase);
/* A warning of the job. */
int task_warn(struct task *task, const char *code, const char *text);
/* Columns of the job's row as they are now. */
struct job_progress task_progress(const struct task *task);
struct job_memory task_memory(const struct task *task, int64_t artifact_bytes);
/* A row with phase, progress and checkpoint, and what it points to. Valid as long as the task is. */
struct task_columns {
    struct job_row row;
    json_t *phases;
    char device[TASK_DEVICE_SIZE];
};
int task_columns_init(const struct task *task, struct task_columns *columns);
void task_columns_deinit(struct task_columns *columns);
/* What a result may depend on of a device: name, kernels, libraries, micro-batch. In `out`, or of the task. */
const char *task_device(const struct task *task, char out[TASK_DEVICE_SIZE]);
/* {"forward":{"seconds","flops"},...} and back. */
json_t *task_times_json(const struct pipeline_times *times);
/* What an evaluation measured; json_null: there was none. New reference. */
json_t *task_evaluation_json(const struct evaluation_result *e);
void task_times_load(const json_t *json, struct pipeline_times *times);

/* --- task_gate.c */
/* From the job's row: at which rung it is, and what earlier ones left. */
int task_gate_read(struct task *task, const struct job_row *row);
/* Judge a run that is done by the request's gate, and commit the outcome with its event. *again: the next rung is the
 * task's now, and is to be run. ERR_EVALUATION_GATE: no rung is left, and the job is to fail. */
int task_gate_judge(struct task *task, bool *again);
/* Where the finished blocks leave the float model's activations. */
void task_gate_keep(struct task *task, const struct saved_block *block);
/* {"passed","rung","rungs"} for manifests; NULL where there is no gate. New reference. */
json_t *task_gate_json(const struct task *task);

/* --- task_publish.c */
/* ERR_NO_SIGNING_KEY: what the job is to make could not be signed. */
int task_check_signing(const struct task *task);
int task_publish(struct task *task);

/* --- task_suggest.c */
/* What would lower the errors of these rows of the report (suggest.h). NULL: no memory. New reference. */
json_t *task_suggestions(struct task *task, const json_t *rows);
