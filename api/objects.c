/* The objects of the API, member by member.
 *
 * What the service reads from tables of its own (requests, parameters of methods, rows of reports) is not repeated
 * here: service_schemas describes it. The end-to-end tests hold every answer to these tables, both ways: a member that
 * is missing and one that is not listed fail. */

#include "api/schema_rows.h"

const struct schema schema_any = {.name = NULL};
/* the service's */
const struct schema schema_model_request = {.name = "ModelRequest", .rows = NULL};
const struct schema schema_job_request = {.name = "JobRequest", .rows = NULL};
const struct schema schema_job_change = {.name = "JobChange", .rows = NULL};
const struct schema schema_layer = {.name = "Layer", .rows = NULL};
const struct schema schema_api_key_request = {.name = "ApiKeyRequest", .rows = NULL};
const struct schema schema_quota_request = {.name = "QuotaRequest", .rows = NULL};
const struct schema schema_webhook_request = {.name = "WebhookRequest", .rows = NULL};
const struct schema schema_webhook_change = {.name = "WebhookChange", .rows = NULL};

/* --- the service */

static const struct schema_row health_rows[] = {MEMBER(status, STRING), END};
const struct schema schema_health = {.name = "Health", .rows = health_rows};

static const struct schema_row device_rows[] = {MEMBER(id, STRING),        MEMBER(name, STRING), MEMBER(detail, STRING),
                                                MEMBER(memory_bytes, INT), MEMBER(threads, INT), END};
static const struct schema schema_device = {.name = "Device", .rows = device_rows};

static const struct schema_row format_rows[] = {MEMBER(name, STRING), MEMBER(title, STRING),
                                                MEMBER(description, STRING), MEMBER(runtimes, STRINGS), END};
static const struct schema schema_format = {.name = "Format", .rows = format_rows};

static const struct schema_row build_rows[] = {MEMBER(compiler, STRING), END};
static const struct schema schema_build = {.name = "Build", .rows = build_rows};

static const struct schema_row limits_rows[] = {
    MEMBER(max_queued, INT, HELP("Jobs that may wait at once.")),
    MEMBER(host_memory_bytes, INT, HELP("Activations kept in memory before they spill to disk.")),
    MEMBER(calibration_line_bytes, INT, HELP("Largest calibration record.")),
    MEMBER(calibration_record_tokens, INT, HELP("Most tokens of one calibration record.")), END};
static const struct schema schema_limits = {.name = "Limits", .rows = limits_rows};

static const struct schema_row signing_key_rows[] = {MEMBER(algorithm, STRING),
                                                     MEMBER(hint, DIGEST, HELP("SHA-256 of public_key.")),
                                                     MEMBER(public_key, STRING, HELP("In PEM.")), END};
static const struct schema schema_signing_key = {
    .name = "SigningKey", .help = "Whose signatures artifacts have.", .rows = signing_key_rows};

static const struct schema_row system_rows[] = {
    CONST(object, "system"),
    CONST(name, "quantd"),
    MEMBER(version, STRING),
    OBJECT(build, schema_build),
    LIST(devices, schema_device),
    MEMBER(device_notes, STRING, HELP("Why devices of this host are not used.")),
    LIST(formats, schema_format),
    MEMBER(architectures, STRINGS),
    MEMBER(draining, BOOL),
    MEMBER(jobs, COUNTS, NULLABLE, HELP("Number of jobs by status.")),
    OBJECT(signing_key, schema_signing_key, NULLABLE, HELP("Null: artifacts are not signed.")),
    OBJECT(limits, schema_limits),
    END};
const struct schema schema_system = {.name = "System", .rows = system_rows};

static const struct schema_row method_rows[] = {
    CONST(object, "method"),
    MEMBER(name, STRING),
    MEMBER(title, STRING),
    MEMBER(description, STRING),
    MEMBER(needs_calibration, BOOL),
    MEMBER(analysis, BOOL, HELP("It writes a report and no artifact.")),
    MEMBER(parameters, OBJECT, HELP("JSON Schema of \"quantization\" in a job.")),
    MEMBER(formats, STRINGS, HELP("Formats that carry what it makes with its defaults.")),
    MEMBER(runtimes, STRINGS, HELP("Programs that load these.")),
    END};
const struct schema schema_method = {.name = "Method", .rows = method_rows};

static const struct schema_row method_list_rows[] = {CONST(object, "list"), LIST(data, schema_method),
                                                     MEMBER(has_more, BOOL), END};
const struct schema schema_method_list = {.name = "MethodList", .rows = method_list_rows};

static const struct schema_row architecture_rows[] = {
    CONST(object, "architecture"),
    MEMBER(name, STRING, HELP("As in \"architectures\" of config.json.")),
    MEMBER(model_type, STRING),
    MEMBER(composites, STRINGS, HELP("Classes that hold such a language model next to other parts.")),
    MEMBER(parts, STRINGS, HELP("Of its layers, those included that a config.json may ask for.")),
    MEMBER(gguf, STRING, NULLABLE, HELP("The architecture's name in GGUF files.")),
    MEMBER(methods, STRINGS, HELP("Methods that do something on it.")),
    MEMBER(formats, STRINGS, HELP("Formats that carry it.")),
    END};
static const struct schema schema_architecture = {.name = "Architecture", .rows = architecture_rows};

static const char *const matches[] = {"part_has", "part", "last_part", "outside", NULL};
static const struct schema_row left_in_float_rows[] = {
    MEMBER(what, STRING),
    MEMBER(match, ENUM, .choices = matches, HELP("What of a module's path the words are compared with.")),
    MEMBER(words, STRINGS), END};
static const struct schema schema_left_in_float = {.name = "LeftInFloat",
                                                   .help = "Modules that no override names and that stay in float.",
                                                   .rows = left_in_float_rows};

static const struct schema_row model_free_rows[] = {MEMBER(methods, STRINGS), MEMBER(formats, STRINGS),
                                                    LIST(left_in_float, schema_left_in_float), END};
static const struct schema schema_model_free = {
    .name = "ModelFree", .help = "What applies to a model of unknown architecture.", .rows = model_free_rows};

static const struct schema_row architecture_list_rows[] = {CONST(object, "list"), LIST(data, schema_architecture),
                                                           MEMBER(has_more, BOOL),
                                                           OBJECT(model_free, schema_model_free), END};
const struct schema schema_architecture_list = {.name = "ArchitectureList", .rows = architecture_list_rows};

/* --- models and files */

static const struct schema_row model_layer_rows[] = {MEMBER(module, STRING), MEMBER(rows, INT), MEMBER(cols, INT),
                                                     MEMBER(bias, BOOL), END};
static const struct schema schema_model_layer = {
    .name = "ModelLayer", .help = "A linear of the model's first block.", .rows = model_layer_rows};

static const struct schema_row model_file_rows[] = {MEMBER(path, STRING), ID(file_id, "file"), MEMBER(bytes, INT),
                                                    MEMBER(sha256, DIGEST), END};
static const struct schema schema_model_file = {
    .name = "ModelFile", .help = "An uploaded file of a checkpoint.", .rows = model_file_rows};

static const struct schema_row model_rows[] = {
    ID(id, "mdl"),
    CONST(object, "model"),
    MEMBER(name, STRING),
    MEMBER(uri, STRING),
    MEMBER(architecture, STRING),
    MEMBER(parameters, INT),
    MEMBER(bytes, INT),
    MEMBER(tensors, INT, OPTIONAL),
    MEMBER(num_layers, INT, NULLABLE, HELP("Null, like the sizes below, where the architecture is not known.")),
    LIST(layers, schema_model_layer),
    MEMBER(hidden_size, INT, NULLABLE),
    MEMBER(intermediate_size, INT, NULLABLE),
    MEMBER(num_heads, INT, NULLABLE),
    MEMBER(num_kv_heads, INT, NULLABLE),
    MEMBER(vocab_size, INT, NULLABLE),
    MEMBER(max_position, INT, NULLABLE),
    MEMBER(dtype, STRING),
    MEMBER(tied, BOOL, NULLABLE, HELP("The output head is the embedding.")),
    MEMBER(digest, DIGEST, HELP("Of the checkpoint's files.")),
    MEMBER(supported, BOOL,
           HELP("There is a forward pass for it; else jobs are possible in the mode model_free alone.")),
    MEMBER(reasons, STRINGS, HELP("Why it is not supported.")),
    LIST(files, schema_model_file, NULLABLE, OPTIONAL, HELP("Of an uploaded checkpoint.")),
    MEMBER(created_at, TIME),
    END};
const struct schema schema_model = {.name = "Model", .help = "A registered checkpoint.", .rows = model_rows};
PAGE(schema_model_list, "ModelList", schema_model, "mdl");

static const char *const purposes[] = {"calibration", "evaluation", "model", NULL};

static const struct schema_row file_rows[] = {ID(id, "file"),
                                              CONST(object, "file"),
                                              MEMBER(purpose, ENUM, .choices = purposes),
                                              MEMBER(name, STRING, NULLABLE),
                                              MEMBER(bytes, INT),
                                              MEMBER(sha256, DIGEST),
                                              MEMBER(created_at, TIME),
                                              END};
const struct schema schema_file = {
    .name = "StoredFile", .help = "A stored data set, or a file of a checkpoint.", .rows = file_rows};
PAGE(schema_file_list, "StoredFileList", schema_file, "file");

static const char *const upload_statuses[] = {"in_progress", "completed", NULL};
static const struct schema_row upload_rows[] = {
    ID(id, "upl"),
    CONST(object, "upload"),
    MEMBER(purpose, ENUM, .choices = purposes),
    MEMBER(name, STRING, NULLABLE),
    MEMBER(status, ENUM, .choices = upload_statuses),
    MEMBER(bytes, INT, HELP("Of the complete file.")),
    MEMBER(offset, INT, HELP("Bytes that are stored: where the next piece begins.")),
    ID(file_id, "file", HELP("The file that it becomes when it is completed.")),
    MEMBER(sha256, DIGEST, NULLABLE, HELP("Known while the bytes become a file; the file has it afterwards.")),
    MEMBER(created_at, TIME),
    END};
const struct schema schema_upload = {.name = "Upload", .help = "A file that arrives in pieces.", .rows = upload_rows};
PAGE(schema_upload_list, "UploadList", schema_upload, "upl");

/* --- jobs */

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

static const struct schema_row progress_rows[] = {
    MEMBER(block, INT, NULLABLE),
    MEMBER(step, STRING, NULLABLE),
    MEMBER(fraction, NUMBER, NULLABLE, HELP("0 to 1; never goes back within an attempt.")),
    MEMBER(layers_done, INT, NULLABLE),
    MEMBER(layers_total, INT, NULLABLE),
    MEMBER(modules_done, INT, NULLABLE),
    MEMBER(modules_total, INT, NULLABLE),
    MEMBER(tokens_calibrated, INT, NULLABLE),
    MEMBER(elapsed_seconds, NUMBER, NULLABLE),
    MEMBER(eta_seconds, INT, NULLABLE),
    END};
static const struct schema schema_progress = {.name = "Progress", .rows = progress_rows};

static const struct schema_row memory_rows[] = {
    MEMBER(source_bytes, INT),    MEMBER(artifact_bytes, INT, NULLABLE), MEMBER(gpu_peak_bytes, INT, NULLABLE),
    MEMBER(host_peak_bytes, INT), MEMBER(estimated_gpu_bytes, INT),      END};
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
    MEMBER(phase, STRING, NULLABLE),
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
                                               MEMBER(data, OBJECT),
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
    MEMBER(records, INT, NULLABLE),   MEMBER(tokens, INT, NULLABLE),          MEMBER(digest, DIGEST, NULLABLE),
    MEMBER(sequences, INT, NULLABLE), MEMBER(sequence_length, INT, NULLABLE), END};
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

/* --- artifacts */

static const struct schema_row artifact_file_rows[] = {MEMBER(path, STRING), MEMBER(bytes, INT), MEMBER(sha256, DIGEST),
                                                       END};
static const struct schema schema_artifact_file = {.name = "ArtifactFile", .rows = artifact_file_rows};

static const struct schema_row artifact_signature_rows[] = {
    MEMBER(path, STRING, HELP("The bundle among the files: OpenSSF Model Signing v1.0.")), MEMBER(algorithm, STRING),
    MEMBER(key_hint, DIGEST, HELP("SHA-256 of the public key's PEM.")), MEMBER(signed_at, TIME), END};
static const struct schema schema_artifact_signature = {.name = "ArtifactSignature", .rows = artifact_signature_rows};

static const struct schema_row artifact_rows[] = {
    ID(id, "art"),
    CONST(object, "artifact"),
    ID(job_id, "job"),
    ID(model_id, "mdl"),
    MEMBER(name, STRING),
    MEMBER(method, STRING),
    MEMBER(format, STRING),
    MEMBER(architecture, STRING, OPTIONAL, HELP("Of the model; so are the next two. Older artifacts lack them.")),
    MEMBER(parameters, INT, OPTIONAL),
    MEMBER(dtype, STRING, OPTIONAL),
    LIST(files, schema_artifact_file),
    MEMBER(bytes, INT),
    MEMBER(manifest_sha256, DIGEST, NULLABLE),
    OBJECT(signature, schema_artifact_signature, NULLABLE),
    MEMBER(bits_per_weight, NUMBER),
    MEMBER(compression_ratio, NUMBER),
    MEMBER(created_at, TIME),
    END};
const struct schema schema_artifact = {.name = "Artifact", .help = "A published result.", .rows = artifact_rows};
PAGE(schema_artifact_list, "ArtifactList", schema_artifact, "art");

/* --- the Model Context Protocol */

static const struct schema_row mcp_message_rows[] = {CONST(jsonrpc, "2.0"), MEMBER(method, STRING, OPTIONAL),
                                                     MEMBER(id, ANY, OPTIONAL, HELP("A string or an integer.")),
                                                     MEMBER(params, OBJECT, OPTIONAL), END};
const struct schema schema_mcp_message = {
    .name = "McpMessage", .help = "A message of JSON-RPC 2.0.", .rows = mcp_message_rows};

static const struct schema_row mcp_answer_rows[] = {
    CONST(jsonrpc, "2.0"), MEMBER(id, ANY), MEMBER(result, OBJECT, OPTIONAL), MEMBER(error, OBJECT, OPTIONAL), END};
const struct schema schema_mcp_answer = {
    .name = "McpAnswer", .help = "A response of JSON-RPC 2.0.", .rows = mcp_answer_rows};

/* --- keys */

static const char *const key_scope_names[] = {"read", "write", "admin", NULL};
#define KEY_MEMBERS                                                                                                    \
    ID(id, "key"), CONST(object, "api_key"), MEMBER(name, STRING), MEMBER(project, STRING),                            \
        MEMBER(scope, ENUM, .choices = key_scope_names), MEMBER(created_at, TIME), MEMBER(expires_at, TIME, NULLABLE), \
        MEMBER(last_used_at, TIME, NULLABLE, HELP("To the minute.")), MEMBER(revoked_at, TIME, NULLABLE)
static const struct schema_row api_key_rows[] = {KEY_MEMBERS, END};
const struct schema schema_api_key = {.name = "ApiKey", .help = "A key, without its text.", .rows = api_key_rows};
static const struct schema_row new_api_key_rows[] = {
    KEY_MEMBERS, MEMBER(key, STRING, HELP("What its holder sends: Authorization: Bearer KEY. Shown only once.")), END};
const struct schema schema_new_api_key = {
    .name = "NewApiKey", .help = "A key that was just made.", .rows = new_api_key_rows};
PAGE(schema_api_key_list, "ApiKeyList", schema_api_key, "key");

/* --- projects */

#define LIMIT_MEMBERS(help_)                                                                                      \
    MEMBER(max_queued_jobs, INT, NULLABLE,                                                                        \
           HELP("Jobs that may wait: for calibration, in the queue, or paused. " help_)),                         \
        MEMBER(max_running_jobs, INT, NULLABLE, HELP("Jobs that may run at once.")),                              \
        MEMBER(max_stored_bytes, INT, NULLABLE,                                                                   \
               HELP("Of files, uploaded models and artifacts, with what is uploaded and what jobs will store.")), \
        MEMBER(max_upload_bytes, INT, NULLABLE, HELP("Of uploads that are not complete."))
static const struct schema_row effective_rows[] = {LIMIT_MEMBERS("Null: no limit."), END};
static const struct schema schema_effective = {
    .name = "EffectiveQuota", .help = "A quota with the daemon's defaults in it.", .rows = effective_rows};
static const struct schema_row usage_rows[] = {
    MEMBER(queued_jobs, INT),
    MEMBER(running_jobs, INT),
    MEMBER(stored_bytes, INT, HELP("The same bytes count once in a project.")),
    MEMBER(upload_bytes, INT, HELP("Of uploads that are not complete, by their lengths.")),
    MEMBER(reserved_bytes, INT, HELP("Of artifacts of jobs that have not ended, as estimated.")),
    END};
static const struct schema schema_usage = {.name = "Usage", .help = "What a project has.", .rows = usage_rows};
static const struct schema_row quota_rows[] = {CONST(object, "project.quota"),
                                               MEMBER(project, STRING),
                                               LIMIT_MEMBERS("Null: the daemon's default."),
                                               MEMBER(updated_at, TIME, NULLABLE, HELP("When it was set last.")),
                                               OBJECT(effective, schema_effective),
                                               OBJECT(usage, schema_usage),
                                               END};
const struct schema schema_quota = {.name = "Quota", .help = "What a project may have.", .rows = quota_rows};
static const struct schema_row quota_list_rows[] = {
    CONST(object, "list"),
    LIST(data, schema_quota),
    MEMBER(first_id, STRING, NULLABLE, HELP("The name of a project, as the next.")),
    MEMBER(last_id, STRING, NULLABLE),
    MEMBER(has_more, BOOL),
    END};
const struct schema schema_quota_list = {.name = "QuotaList", .rows = quota_list_rows};

/* --- errors (RFC 9457) */

static const char *const file_states[] = {"intact", "changed", "missing", NULL};
static const struct schema_row verified_rows[] = {
    MEMBER(path, STRING),
    MEMBER(state, ENUM, .choices = file_states),
    MEMBER(bytes, INT, HELP("As the manifest has it; so is the next one.")),
    MEMBER(sha256, DIGEST),
    MEMBER(actual_bytes, INT, NULLABLE),
    MEMBER(actual_sha256, DIGEST, NULLABLE),
    END};
static const struct schema schema_verified_file = {.name = "VerifiedFile", .rows = verified_rows};
static const char *const signature_states[] = {"valid", "invalid", "other_key", NULL};
static const struct schema_row verified_signature_rows[] = {
    MEMBER(state, ENUM, .choices = signature_states,
           HELP("other_key: the daemon has not the key that it was made with, and cannot tell.")),
    MEMBER(key_hint, DIGEST), MEMBER(detail, STRING, NULLABLE), END};
static const struct schema schema_verified_signature = {.name = "VerifiedSignature", .rows = verified_signature_rows};
static const struct schema_row verification_rows[] = {
    CONST(object, "artifact.verification"),
    ID(artifact_id, "art"),
    MEMBER(intact, BOOL, HELP("Every file is.")),
    MEMBER(bytes, INT, HELP("That were hashed.")),
    LIST(files, schema_verified_file),
    OBJECT(signature, schema_verified_signature, NULLABLE, HELP("Null: it is not signed.")),
    END};
const struct schema schema_verification = {
    .name = "Verification", .help = "What hashing an artifact's files again has shown.", .rows = verification_rows};

static const struct schema_row fault_rows[] = {
    MEMBER(code, STRING), MEMBER(param, STRING, NULLABLE, HELP("JSON Pointer, or ?name of a query parameter.")),
    MEMBER(detail, STRING), MEMBER(hint, STRING, NULLABLE, HELP("What to change.")), END};
static const struct schema schema_fault = {.name = "Fault", .rows = fault_rows};

static const struct schema_row problem_rows[] = {MEMBER(type, STRING),
                                                 MEMBER(title, STRING),
                                                 MEMBER(status, INT),
                                                 MEMBER(detail, STRING),
                                                 MEMBER(instance, STRING),
                                                 MEMBER(code, STRING),
                                                 MEMBER(param, STRING, NULLABLE),
                                                 MEMBER(hint, STRING, NULLABLE),
                                                 MEMBER(request_id, STRING),
                                                 MEMBER(retryable, BOOL),
                                                 LIST(errors, schema_fault),
                                                 END};
const struct schema schema_problem = {.name = "Problem", .rows = problem_rows};
