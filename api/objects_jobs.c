/* The objects of the API, member by member: jobs, their events and reports. objects.c says more. */

#include "api/schema_rows.h"

static const struct schema_row retry_rows[] = {
    MEMBER(quantization, OBJECT, OPTIONAL,
           HELP("Parameters to change; they must not contradict the blocks that are finished.")),
    MEMBER(output, OBJECT, OPTIONAL),
    MEMBER(evaluation, OBJECT, OPTIONAL,
           HELP("Its gate alone: other limits, or more rungs after those that were tried.")),
    MEMBER(resources, OBJECT, OPTIONAL),
    MEMBER(max_attempts, INT, OPTIONAL),
    MEMBER(timeout_seconds, INT, OPTIONAL, HELP("Running time allowed from the retry on.")),
    END};
const struct schema schema_retry_request = {
    .name = "RetryRequest", .help = "What a retry changes of the job's request.", .rows = retry_rows};

const char *const schema_job_statuses[] = {"awaiting_calibration",
                                           "queued",
                                           "running",
                                           "pausing",
                                           "paused",
                                           "cancelling",
                                           "succeeded",
                                           "failed",
                                           "cancelled",
                                           "expired",
                                           NULL};

static const struct schema_row warning_rows[] = {MEMBER(code, STRING), MEMBER(message, STRING), END};
const struct schema schema_warning = {.name = "Warning", .rows = warning_rows};

#define PROGRESS_MEMBERS                                                                                              \
    MEMBER(block, INT, NULLABLE, HELP("The open one, from 1; null: none is.")),                                       \
        MEMBER(step, STRING, NULLABLE,                                                                                \
               HELP("Of a block: loading, calibrating, quantizing, tuning, evaluating; else as the phase, "           \
                    "or tuning while the complete model learns.")),                                                   \
        MEMBER(fraction, NUMBER, NULLABLE, HELP("0 to 1; never goes back within an attempt.")),                       \
        MEMBER(layers_done, INT, NULLABLE), MEMBER(layers_total, INT, NULLABLE), MEMBER(modules_done, INT, NULLABLE), \
        MEMBER(modules_total, INT, NULLABLE), MEMBER(tokens_calibrated, INT, NULLABLE),                               \
        MEMBER(elapsed_seconds, NUMBER, NULLABLE), MEMBER(eta_seconds, INT, NULLABLE)
static const struct schema_row progress_rows[] = {PROGRESS_MEMBERS, END};
static const struct schema schema_progress = {.name = "Progress", .rows = progress_rows};

#define PHASE_HELP                                                                                           \
    HELP("loading, measuring, quantizing, evaluating, exporting, signing; null: it does not run. While the " \
         "complete model learns it is evaluating.")
static const struct schema_row tuning_step_rows[] = {
    MEMBER(step, INT, HELP("The last that was made, of a block or of the complete model.")),
    MEMBER(steps, INT, HELP("Of so many.")),
    MEMBER(rate, NUMBER, HELP("The share of the learning rates that is left.")),
    MEMBER(loss, NUMBER, NULLABLE, HELP("Of that step; null: not finite.")),
    MEMBER(first_loss, NUMBER, NULLABLE, HELP("As it was solved.")),
    END};
static const struct schema schema_tuning_step = {.name = "TuningStep", .rows = tuning_step_rows};
static const struct schema_row progress_event_rows[] = {
    PROGRESS_MEMBERS, MEMBER(phase, STRING, PHASE_HELP),
    OBJECT(tuning, schema_tuning_step, NULLABLE, HELP("Null: nothing learns at the time.")), END};
const struct schema schema_progress_event = {
    .name = "ProgressEvent", .help = "The data of a progress event.", .rows = progress_event_rows};

static const struct schema_row memory_rows[] = {
    MEMBER(source_bytes, INT),
    MEMBER(artifact_bytes, INT, NULLABLE),
    MEMBER(gpu_peak_bytes, INT, NULLABLE),
    MEMBER(host_peak_bytes, INT, NULLABLE, HELP("Of the process that ran it; null until it has run.")),
    MEMBER(estimated_gpu_bytes, INT,
           HELP("At the peak, of the device's buffers, as POST /v1/quantization/estimates says.")),
    END};
static const struct schema schema_memory = {.name = "Memory", .rows = memory_rows};

static const struct schema_row checkpoint_rows[] = {MEMBER(layer, INT, HELP("The last finished block.")),
                                                    MEMBER(saved_at, TIME, NULLABLE), END};
static const struct schema schema_checkpoint = {.name = "Checkpoint", .rows = checkpoint_rows};

static const struct schema_row worst_layer_rows[] = {MEMBER(module, STRING), MEMBER(relative_mse, NUMBER, NULLABLE),
                                                     MEMBER(output_relative_mse, NUMBER, NULLABLE), END};
static const struct schema schema_worst_layer = {.name = "WorstLayer", .rows = worst_layer_rows};

static const struct schema_row chosen_candidate_rows[] = {MEMBER(name, STRING),
                                                          MEMBER(modules, INT, HELP("How many linears got it.")), END};
static const struct schema schema_chosen_candidate = {.name = "ChosenCandidate", .rows = chosen_candidate_rows};

static const struct schema_row mixed_precision_rows[] = {
    MEMBER(bits_per_weight, NUMBER, HELP("Of all quantized linears, as the artifact stores them.")),
    MEMBER(predicted_kl, NUMBER, HELP("What the sensitivity pass expects of the choice, in nats for each token.")),
    MEMBER(exact, BOOL, HELP("No other choice within the budget has a smaller prediction.")),
    LIST(candidates, schema_chosen_candidate), END};
static const struct schema schema_mixed_precision = {
    .name = "MixedPrecisionResult", .help = "What was chosen of the candidates.", .rows = mixed_precision_rows};

static const struct schema_row result_rows[] = {ID(artifact_id, "art", NULLABLE),
                                                MEMBER(artifact_deleted_at, TIME, NULLABLE),
                                                MEMBER(bits_per_weight, NUMBER, NULLABLE),
                                                MEMBER(compression_ratio, NUMBER, NULLABLE),
                                                MEMBER(perplexity_before, NUMBER, NULLABLE),
                                                MEMBER(perplexity_after, NUMBER, NULLABLE),
                                                MEMBER(kl_divergence_mean, NUMBER, NULLABLE),
                                                MEMBER(top1_agreement, NUMBER, NULLABLE),
                                                LIST(worst_layers, schema_worst_layer),
                                                OBJECT(mixed_precision, schema_mixed_precision, NULLABLE),
                                                END};
static const struct schema schema_result = {.name = "JobResult", .rows = result_rows};

static const struct schema_row job_error_rows[] = {MEMBER(code, STRING),
                                                   MEMBER(message, STRING, NULLABLE),
                                                   MEMBER(param, STRING, NULLABLE),
                                                   MEMBER(layer, INT, NULLABLE),
                                                   MEMBER(module, STRING, NULLABLE),
                                                   MEMBER(hint, STRING, NULLABLE),
                                                   MEMBER(retryable, BOOL),
                                                   END};
static const struct schema schema_job_error = {.name = "JobError", .rows = job_error_rows};

static const struct schema_row job_output_rows[] = {
    MEMBER(format, STRING, NULLABLE),
    MEMBER(max_shard_bytes, INT),
    MEMBER(sign, BOOL, NULLABLE, HELP("Null: signed if the daemon has a key.")),
    MEMBER(targets, STRINGS, NULLABLE, HELP("Runtimes that must load the artifact, as the request names them.")),
    MEMBER(tensor_parallel_size, INT, HELP("Devices that they divide the model over.")),
    END};
static const struct schema schema_job_output = {.name = "JobOutput", .rows = job_output_rows};

static const struct schema_row job_calibration_rows[] = {
    ID(file_id, "file", NULLABLE),
    MEMBER(stream, BOOL),
    MEMBER(num_samples, INT),
    MEMBER(sequence_length, INT),
    MEMBER(text_field, STRING),
    MEMBER(add_special_tokens, BOOL),
    MEMBER(packing, BOOL),
    MEMBER(shuffle, BOOL),
    MEMBER(report_tokens, INT, HELP("That errors are measured on where codes depend on no inputs; 0: all.")),
    MEMBER(records, INT, NULLABLE, HELP("Accepted so far: where an upload goes on.")),
    MEMBER(tokens, INT, NULLABLE),
    MEMBER(sequences, INT, NULLABLE),
    MEMBER(digest, DIGEST, NULLABLE),
    END};
static const struct schema schema_job_calibration = {.name = "JobCalibration", .rows = job_calibration_rows};

static const struct schema_row job_evaluation_rows[] = {ID(file_id, "file", NULLABLE),
                                                        MEMBER(hold_back, NUMBER),
                                                        MEMBER(max_tokens, INT),
                                                        MEMBER(sequence_length, INT),
                                                        MEMBER(text_field, STRING),
                                                        MEMBER(add_special_tokens, BOOL),
                                                        OBJECT(gate, schema_job_gate, NULLABLE),
                                                        END};
static const struct schema schema_job_evaluation = {.name = "JobEvaluation", .rows = job_evaluation_rows};

static const struct schema_row job_resources_rows[] = {MEMBER(device, STRING), MEMBER(host_memory_bytes, INT), END};
static const struct schema schema_job_resources = {.name = "JobResources", .rows = job_resources_rows};

static const struct schema_row job_links_rows[] = {
    MEMBER(self, STRING),
    MEMBER(events, STRING),
    MEMBER(layers, STRING),
    MEMBER(report, STRING),
    MEMBER(calibration, STRING, NULLABLE, HELP("While the job waits for records.")),
    MEMBER(cancel, STRING, NULLABLE, HELP("Until the job has ended, or stops already.")),
    MEMBER(pause, STRING, NULLABLE, HELP("Of a job that waits or runs.")),
    MEMBER(resume, STRING, NULLABLE, HELP("Of a paused job.")),
    MEMBER(retry, STRING, NULLABLE, HELP("Of a job that failed or was cancelled.")),
    MEMBER(artifact, STRING, NULLABLE, HELP("What the job made.")),
    END};
static const struct schema schema_job_links = {
    .name = "JobLinks", .help = "Paths of what can be asked or done next.", .rows = job_links_rows};

static const char *const modes[] = {"auto", "architecture", "model_free", NULL};

static const struct schema_row chosen_rows[] = {MEMBER(goal, STRING),
                                                MEMBER(accelerator, ANY, HELP("A name, or numbers.")),
                                                MEMBER(runtime, STRING),
                                                MEMBER(batch, INT),
                                                MEMBER(prompt_tokens, INT),
                                                MEMBER(output_tokens, INT),
                                                MEMBER(choice, STRING, HELP("The way that was taken, by its name.")),
                                                MEMBER(reason, STRING),
                                                MEMBER(caution, STRING, NULLABLE),
                                                END};
const struct schema schema_chosen = {
    .name = "ChosenWay", .help = "Of method auto: what was asked for, and what it led to.", .rows = chosen_rows};

static const struct schema_row job_rows[] = {
    ID(id, "job"),
    CONST(object, "quantization.job"),
    MEMBER(name, STRING),
    MEMBER(project, STRING),
    ID(model, "mdl"),
    MEMBER(method, STRING, HELP("A method, or several joined by \"+\" in the order in which they run.")),
    MEMBER(status, ENUM, .choices = schema_job_statuses),
    MEMBER(status_reason, STRING, NULLABLE),
    MEMBER(phase, STRING, NULLABLE, PHASE_HELP),
    OBJECT(memory, schema_memory, NULLABLE),
    MEMBER(attempt, INT),
    OBJECT(error, schema_job_error, NULLABLE),
    MEMBER(created_at, TIME),
    MEMBER(queued_at, TIME, NULLABLE),
    MEMBER(started_at, TIME, NULLABLE),
    MEMBER(finished_at, TIME, NULLABLE),
    MEMBER(cancelled_at, TIME, NULLABLE),
    MEMBER(mode, ENUM, .choices = modes, HELP("model_free: from names and shapes alone.")),
    MEMBER(quantization, OBJECT, HELP("The method's parameters, with every default filled in.")),
    OBJECT(output, schema_job_output),
    LIST(targets, schema_job_target, HELP("output.targets with the versions that were checked.")),
    OBJECT(evaluation, schema_job_evaluation),
    OBJECT(gate, schema_gate, NULLABLE),
    OBJECT(resources, schema_job_resources),
    MEMBER(seed, INT),
    MEMBER(priority, INTEGER),
    MEMBER(max_attempts, INT),
    MEMBER(timeout_seconds, INT),
    MEMBER(expires_after_seconds, INT, NULLABLE),
    ID(webhook_id, "wh", NULLABLE, HELP("The webhook that the request names.")),
    MEMBER(metadata, TEXTS, NULLABLE),
    OBJECT(recommendation, schema_chosen, NULLABLE, HELP("Null: the request names its method.")),
    MEMBER(traceparent, STRING, NULLABLE, HELP("Of the request that made the job.")),
    MEMBER(tracestate, STRING, NULLABLE),
    MEMBER(worker_id, STRING, NULLABLE),
    OBJECT(calibration, schema_job_calibration),
    OBJECT(progress, schema_progress, NULLABLE),
    OBJECT(result, schema_result, NULLABLE),
    OBJECT(checkpoint, schema_checkpoint, NULLABLE),
    LIST(warnings, schema_warning),
    MEMBER(estimated_finish_at, TIME, NULLABLE),
    OBJECT(links, schema_job_links),
    MEMBER(expires_at, TIME, NULLABLE, HELP("When a job that waits for its calibration expires.")),
    MEMBER(queue_position, INT, NULLABLE, HELP("1: the next. Of a queued job that is asked for by its id.")),
    MEMBER(estimated_start_at, TIME, NULLABLE, HELP("Of the next job in the queue.")),
    END};
const struct schema schema_job = {.name = "Job", .help = "A quantization job.", .rows = job_rows};
PAGE(schema_job_list, "JobList", schema_job, "job");

static const struct schema_row record_error_rows[] = {MEMBER(line, INT), MEMBER(code, STRING), MEMBER(detail, STRING),
                                                      END};
static const struct schema schema_record_error = {.name = "RecordError", .rows = record_error_rows};

static const struct schema_row calibration_rows[] = {
    CONST(object, "quantization.calibration"),
    MEMBER(accepted, INT, HELP("Records of this upload that are on disk.")),
    MEMBER(rejected, INT),
    MEMBER(tokens, INT, HELP("Of all records so far.")),
    MEMBER(next_offset, INT, HELP("Records accepted so far: the offset of the next upload.")),
    MEMBER(needed, INT, HELP("Tokens that are still missing.")),
    LIST(errors, schema_record_error),
    LIST(warnings, schema_warning),
    MEMBER(status, ENUM, .choices = schema_job_statuses),
    END};
const struct schema schema_calibration = {
    .name = "CalibrationUpload", .help = "What became of an upload.", .rows = calibration_rows};

static const char *const event_kinds[] = {"status",  "progress", "layer", "metric", "log",
                                          "warning", "artifact", "gate",  NULL};
static const struct schema_row event_rows[] = {CONST(object, "event"),
                                               MEMBER(seq, INT),
                                               MEMBER(type, ENUM, .choices = event_kinds),
                                               MEMBER(created_at, TIME),
                                               MEMBER(traceparent, STRING, NULLABLE, HELP("As of its job.")),
                                               MEMBER(data, OBJECT,
                                                      HELP("By type: of progress a ProgressEvent, of warning a "
                                                           "Warning, of layer, gate and others their own.")),
                                               END};
const struct schema schema_event = {.name = "Event", .rows = event_rows};

static const struct schema_row event_list_rows[] = {CONST(object, "list"),           LIST(data, schema_event),
                                                    MEMBER(first_id, INT, NULLABLE), MEMBER(last_id, INT, NULLABLE),
                                                    MEMBER(has_more, BOOL),          END};
const struct schema schema_event_list = {.name = "EventList", .rows = event_list_rows};

static const struct schema_row layer_list_rows[] = {CONST(object, "list"),           LIST(data, schema_layer),
                                                    MEMBER(first_id, INT, NULLABLE), MEMBER(last_id, INT, NULLABLE),
                                                    MEMBER(has_more, BOOL),          END};
const struct schema schema_layer_list = {.name = "LayerList", .rows = layer_list_rows};

static const struct schema_row report_device_rows[] = {MEMBER(id, STRING), MEMBER(kind, STRING), MEMBER(name, STRING),
                                                       MEMBER(detail, STRING), END};
static const struct schema schema_report_device = {.name = "ReportDevice", .rows = report_device_rows};

static const struct schema_row environment_rows[] = {MEMBER(version, STRING), OBJECT(device, schema_report_device),
                                                     MEMBER(threads, INT), END};
static const struct schema schema_environment = {.name = "Environment", .rows = environment_rows};

static const struct schema_row evaluation_rows[] = {MEMBER(perplexity_before, NUMBER, NULLABLE),
                                                    MEMBER(perplexity_after, NUMBER, NULLABLE),
                                                    MEMBER(kl_divergence_mean, NUMBER, NULLABLE),
                                                    MEMBER(top1_agreement, NUMBER, NULLABLE),
                                                    OBJECT(generation, schema_generation, NULLABLE),
                                                    MEMBER(tokens, INT),
                                                    MEMBER(sequences, INT),
                                                    MEMBER(sequence_length, INT),
                                                    END};
static const struct schema schema_evaluation = {.name = "Evaluation", .rows = evaluation_rows};

static const struct schema_row totals_rows[] = {MEMBER(modules, INT),
                                                MEMBER(parameters_quantized, INT),
                                                MEMBER(bits_per_weight, NUMBER, NULLABLE),
                                                MEMBER(mean_relative_mse, NUMBER, NULLABLE),
                                                MEMBER(mean_output_relative_mse, NUMBER, NULLABLE),
                                                MEMBER(solve_seconds, NUMBER),
                                                MEMBER(fallbacks, INT),
                                                MEMBER(source_bytes, INT, NULLABLE),
                                                MEMBER(artifact_bytes, INT, NULLABLE),
                                                MEMBER(host_peak_bytes, INT, NULLABLE),
                                                MEMBER(compression_ratio, NUMBER, NULLABLE),
                                                MEMBER(elapsed_seconds, NUMBER, NULLABLE),
                                                MEMBER(phases, OBJECT, HELP("Seconds and speed by phase.")),
                                                END};
static const struct schema schema_totals = {.name = "Totals", .rows = totals_rows};

static const struct schema_row report_calibration_rows[] = {
    MEMBER(records, INT, NULLABLE),
    MEMBER(tokens, INT, NULLABLE),
    MEMBER(digest, DIGEST, NULLABLE),
    MEMBER(sequences, INT, NULLABLE),
    MEMBER(sequence_length, INT, NULLABLE),
    MEMBER(report_tokens, INT, NULLABLE, HELP("That output errors were measured on; null: none was measured.")),
    END};
static const struct schema schema_report_calibration = {.name = "ReportCalibration", .rows = report_calibration_rows};

static const struct schema_row report_rows[] = {
    CONST(object, "quantization.report"),
    MEMBER(version, INT),
    ID(job_id, "job"),
    MEMBER(status, ENUM, .choices = schema_job_statuses),
    MEMBER(method, STRING),
    MEMBER(mode, ENUM, .choices = modes, HELP("model_free: no calibration was used.")),
    MEMBER(request, OBJECT, HELP("The job's request, with every default filled in.")),
    OBJECT(environment, schema_environment),
    OBJECT(totals, schema_totals),
    OBJECT(evaluation, schema_evaluation, NULLABLE),
    OBJECT(gate, schema_gate, NULLABLE),
    OBJECT(calibration, schema_report_calibration),
    OBJECT(mixed_precision, schema_mixed_precision, NULLABLE),
    MEMBER(kv_cache, LIST, NULLABLE, HELP("Scales of keys and values by layer.")),
    MEMBER(analysis, OBJECT, NULLABLE, HELP("Rows and schemes of a method that only analyses.")),
    OBJECT(tuning, schema_tuning, NULLABLE, HELP("How blocks learned; null: the method does not learn.")),
    OBJECT(anatomy, schema_anatomy, NULLABLE, HELP("Where the error comes from; null without rows.")),
    LIST(suggestions, schema_suggestion, NULLABLE,
         HELP("What would lower it, the best for its bytes first; empty: nothing would. Null: the job has not "
              "succeeded, or an earlier version ran it.")),
    LIST(warnings, schema_warning),
    OBJECT(error, schema_job_error, NULLABLE),
    LIST(layers, schema_layer),
    END};
const struct schema schema_report = {.name = "Report", .rows = report_rows};

static const struct schema_row compared_job_rows[] = {ID(id, "job"),
                                                      MEMBER(name, STRING),
                                                      ID(model, "mdl"),
                                                      MEMBER(method, STRING),
                                                      MEMBER(status, ENUM, .choices = schema_job_statuses),
                                                      MEMBER(quantization, OBJECT),
                                                      OBJECT(totals, schema_totals),
                                                      OBJECT(evaluation, schema_evaluation, NULLABLE),
                                                      END};
static const struct schema schema_compared_job = {.name = "ComparedJob", .rows = compared_job_rows};

static const struct schema_row compared_module_rows[] = {
    MEMBER(layer, INT), MEMBER(module, STRING),
    MEMBER(values, LIST,
           HELP("One for each job, in the order of \"jobs\": members of its row of the report; null "
                "where it has no such module.")),
    END};
static const struct schema schema_compared_module = {.name = "ComparedModule", .rows = compared_module_rows};

static const struct schema_row comparison_rows[] = {CONST(object, "quantization.comparison"),
                                                    LIST(jobs, schema_compared_job),
                                                    LIST(modules, schema_compared_module), END};
const struct schema schema_comparison = {
    .name = "Comparison", .help = "Jobs next to each other.", .rows = comparison_rows};
