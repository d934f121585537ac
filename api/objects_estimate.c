/* What a job would take and make; how to quantize a model. */

#include "api/schema_rows.h"

static const struct schema_row obstacle_rows[] = {
    MEMBER(code, STRING), MEMBER(param, STRING, HELP("JSON Pointer into the job; empty: the job as such.")),
    MEMBER(detail, STRING), MEMBER(hint, STRING, NULLABLE, HELP("What to change.")), END};
static const struct schema schema_obstacle = {.name = "Obstacle", .rows = obstacle_rows};

static const struct schema_row output_rows[] = {
    MEMBER(format, STRING, HELP("The one that would be chosen, where the job names none.")),
    MEMBER(parameters_quantized, INT),
    MEMBER(source_bytes, INT, HELP("Of the checkpoint's tensors.")),
    MEMBER(artifact_bytes, INT, NULLABLE, HELP("Of the artifact's tensors; null: there is no artifact.")),
    MEMBER(bits_per_weight, NUMBER, NULLABLE,
           HELP("Of what is quantized, with scales, zero points and tables; null: nothing is.")),
    MEMBER(compression_ratio, NUMBER, NULLABLE),
    END};
static const struct schema schema_output = {.name = "EstimatedOutput", .rows = output_rows};

static const struct schema_row phase_rows[] = {
    MEMBER(phase, STRING, HELP("loading, calibrating, quantizing, evaluating, packing.")),
    MEMBER(device_bytes, INT, HELP("The most that the device's buffers take in it.")),
    MEMBER(host_bytes, INT,
           HELP("The most that is added to the process; where the device has no memory of its own, its buffers too.")),
    END};
static const struct schema schema_estimated_phase = {.name = "EstimatedPhase", .rows = phase_rows};

static const struct schema_row memory_rows[] = {
    MEMBER(device, STRING),
    MEMBER(minimum_bytes, INT, HELP("Without which the job cannot run: a sequence at a time, nothing read ahead.")),
    MEMBER(expected_bytes, INT, HELP("Of the device's buffers at their peak.")),
    MEMBER(upper_bound, BOOL, HELP("The peak is at most that, since it is of a device with memory of its own.")),
    MEMBER(total_bytes, INT, NULLABLE),
    MEMBER(free_bytes, INT, NULLABLE, HELP("Now, of the host where the device has no memory of its own.")),
    MEMBER(process_bytes, INT, HELP("Resident now, before the job.")),
    MEMBER(host_expected_bytes, INT, HELP("Resident at the peak of the job.")),
    MEMBER(host_free_bytes, INT, NULLABLE),
    LIST(phases, schema_estimated_phase),
    MEMBER(activations_bytes, INT, NULLABLE, HELP("Kept between passes; null: there are none.")),
    MEMBER(activations_in_memory_bytes, INT, HELP("Of these in the host's memory.")),
    MEMBER(activations_budget_bytes, INT, HELP("Of host memory, beyond which activations go to the disk.")),
    END};
static const struct schema schema_estimated_memory = {.name = "EstimatedMemory", .rows = memory_rows};

static const struct schema_row disk_rows[] = {
    MEMBER(blocks_bytes, INT, HELP("Finished blocks, until the artifact is published.")),
    MEMBER(artifact_bytes, INT),
    MEMBER(spilled_bytes, INT, HELP("Activations beyond their budget of memory.")),
    MEMBER(saved_bytes, INT, HELP("Copies of activations that a resumed job begins with, at most.")),
    MEMBER(needed_bytes, INT, HELP("The most that is there at a time.")),
    MEMBER(reserved_bytes, INT, HELP("What jobs that have not ended have still to write.")),
    MEMBER(free_bytes, INT),
    END};
static const struct schema schema_disk = {.name = "EstimatedDisk", .rows = disk_rows};

static const struct schema_row sets_rows[] = {
    MEMBER(known, BOOL,
           HELP("The request says how many sequences there are; else a guess from the files' sizes, and "
                "of a stream a single sequence.")),
    MEMBER(sequences, INT, HELP("Of the calibration set, without those held back.")),
    MEMBER(sequence_length, INT),
    MEMBER(evaluation_sequences, INT),
    MEMBER(evaluation_sequence_length, INT),
    END};
static const struct schema schema_estimated_sets = {.name = "EstimatedSets", .rows = sets_rows};

static const char *const bases[] = {"profile", "jobs", NULL};
static const struct schema_row time_rows[] = {
    MEMBER(seconds, NUMBER, HELP("From the job's start to its end.")),
    MEMBER(basis, ENUM, .choices = bases,
           HELP("jobs: rates of jobs that this machine finished; profile: of a short measurement, which may be off by "
                "several times.")),
    MEMBER(phases, OBJECT, HELP("Seconds of each phase, by the names of a report's phases; other: the rest.")), END};
static const struct schema schema_estimated_time = {.name = "EstimatedTime", .rows = time_rows};

static const struct schema_row estimate_rows[] = {
    CONST(object, "estimate"),
    MEMBER(possible, BOOL, HELP("There are no problems.")),
    LIST(problems, schema_obstacle),
    LIST(warnings, schema_warning),
    MEMBER(method, STRING, HELP("Of method auto: the one that was chosen.")),
    OBJECT(recommendation, schema_chosen, NULLABLE, HELP("Null: the request names its method.")),
    MEMBER(mode, STRING, HELP("architecture, or model_free: from names and shapes alone.")),
    MEMBER(parameters, INT, HELP("Of the model.")),
    OBJECT(output, schema_output, NULLABLE, HELP("Null, as the next ones: problems leave it open.")),
    OBJECT(sets, schema_estimated_sets, NULLABLE, HELP("What passes through the model.")),
    OBJECT(memory, schema_estimated_memory, NULLABLE),
    OBJECT(disk, schema_disk, NULLABLE),
    OBJECT(time, schema_estimated_time, NULLABLE, HELP("Null also where the device could not be measured.")),
    END};
const struct schema schema_estimate = {
    .name = "Estimate", .help = "What a job would take and make.", .rows = estimate_rows};

const struct schema schema_recommendation_request = {.name = "RecommendationRequest", .rows = NULL}; /* the service's */

static const struct schema_row accelerator_rows[] = {
    MEMBER(name, STRING, HELP("given: the request has its numbers.")),
    MEMBER(memory_bytes, NUMBER),
    MEMBER(bandwidth_bytes_per_second, NUMBER),
    MEMBER(bf16_tflops, NUMBER, HELP("10^12 operations a second of dense products.")),
    MEMBER(int8_tflops, NUMBER, HELP("0: it has no such products.")),
    MEMBER(fp8_tflops, NUMBER),
    END};
static const struct schema schema_accelerator = {.name = "Accelerator", .rows = accelerator_rows};

static const char *const bounds[] = {"weights", "kv_cache", "arithmetic", NULL};
static const struct schema_row float_rows[] = {
    MEMBER(weights_bytes, NUMBER),
    MEMBER(kv_cache_bytes, NUMBER, HELP("Of the batch at its full length, in 16 bits.")),
    MEMBER(total_bytes, NUMBER),
    MEMBER(fits, BOOL, HELP("In nine tenths of the accelerator's memory.")),
    MEMBER(decode_seconds, NUMBER, HELP("Of a token of each sequence, at least.")),
    MEMBER(prefill_seconds, NUMBER, HELP("Of a prompt, at least.")),
    MEMBER(decode_bound, ENUM, .choices = bounds, HELP("What decides.")),
    MEMBER(prefill_bound, ENUM, .choices = bounds),
    MEMBER(explanation, STRING),
    END};
static const struct schema schema_float = {.name = "FloatServing", .help = "The model in 16 bits.", .rows = float_rows};

static const struct schema_row choice_rows[] = {
    MEMBER(name, STRING),
    MEMBER(reason, STRING),
    MEMBER(job, OBJECT, HELP("A job as POST /v1/quantization/jobs takes it.")),
    MEMBER(bits_per_weight, NUMBER, NULLABLE, HELP("Null: weights stay as they are.")),
    MEMBER(weights_bytes, NUMBER),
    MEMBER(kv_cache_bytes, NUMBER),
    MEMBER(total_bytes, NUMBER),
    MEMBER(fits, BOOL),
    MEMBER(decode_speedup, NUMBER, NULLABLE, HELP("At most; null, as the next two: its kernels promise none.")),
    MEMBER(prefill_speedup, NUMBER, NULLABLE),
    MEMBER(request_speedup, NUMBER, NULLABLE, HELP("Of a prompt and what follows it.")),
    MEMBER(decode_bound, ENUM, .choices = bounds),
    MEMBER(kernels, STRING),
    MEMBER(caution, STRING, NULLABLE),
    MEMBER(runtimes, STRINGS),
    END};
static const struct schema schema_choice = {.name = "RecommendedJob", .rows = choice_rows};

static const struct schema_row left_out_rows[] = {MEMBER(name, STRING), MEMBER(reason, STRING), END};
static const struct schema schema_left_out = {.name = "LeftOut", .rows = left_out_rows};

static const struct schema_row recommendation_rows[] = {
    CONST(object, "recommendation"),
    MEMBER(goal, STRING),
    MEMBER(title, STRING),
    MEMBER(note, STRING, HELP("What to know before any of them.")),
    OBJECT(accelerator, schema_accelerator),
    MEMBER(runtime, STRING),
    MEMBER(batch, INT),
    MEMBER(prompt_tokens, INT),
    MEMBER(output_tokens, INT),
    MEMBER(context_tokens, INT, HELP("A prompt, and what is generated after it.")),
    OBJECT(float, schema_float),
    LIST(choices, schema_choice, HELP("The best first.")),
    LIST(left_out, schema_left_out),
    MEMBER(speed_note, STRING, NULLABLE, HELP("That none of them will make it much faster.")),
    MEMBER(fit_note, STRING, NULLABLE,
           HELP("That none of them fits into the accelerator's memory, and what would do.")),
    END};
const struct schema schema_recommendation = {
    .name = "Recommendation", .help = "How to quantize a model for a goal.", .rows = recommendation_rows};
