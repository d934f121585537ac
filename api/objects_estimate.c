/* What a job would take and make. */

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

static const struct schema_row parts_rows[] = {
    MEMBER(blocks, INT, HELP("The open block in F32, its codes, and the next one.")),
    MEMBER(solve, INT, HELP("Statistics of the widest input with their factor, and copies of the largest linear.")),
    MEMBER(microbatches, INT),
    MEMBER(reader, INT, HELP("A block as stored, read ahead.")),
    MEMBER(head, INT, HELP("Embeddings, head and logits, when there is no block.")),
    MEMBER(reserve, INT),
    END};
static const struct schema schema_parts = {.name = "EstimatedParts", .rows = parts_rows};

static const struct schema_row memory_rows[] = {
    MEMBER(device, STRING),
    MEMBER(minimum_bytes, INT, HELP("Without which the job cannot run: a sequence at a time, nothing read ahead.")),
    MEMBER(expected_bytes, INT, HELP("At most, where nothing is short; activations come on top.")),
    MEMBER(total_bytes, INT, NULLABLE),
    MEMBER(free_bytes, INT, NULLABLE, HELP("Now, of the host where the device has no memory of its own.")),
    OBJECT(parts, schema_parts),
    MEMBER(activations_bytes, INT, NULLABLE,
           HELP("Kept between passes, of sets whose size the job states; null: it states none.")),
    MEMBER(activations_budget_bytes, INT, HELP("Of host memory, beyond which activations go to the disk.")),
    END};
static const struct schema schema_estimated_memory = {.name = "EstimatedMemory", .rows = memory_rows};

static const struct schema_row disk_rows[] = {
    MEMBER(blocks_bytes, INT, HELP("Finished blocks, until the artifact is published.")), MEMBER(artifact_bytes, INT),
    MEMBER(needed_bytes, INT, HELP("While the artifact is written; activations beyond their budget come on top.")),
    MEMBER(free_bytes, INT), END};
static const struct schema schema_disk = {.name = "EstimatedDisk", .rows = disk_rows};

static const struct schema_row estimate_rows[] = {
    CONST(object, "estimate"),
    MEMBER(possible, BOOL, HELP("There are no problems.")),
    LIST(problems, schema_obstacle),
    LIST(warnings, schema_warning),
    MEMBER(method, STRING),
    MEMBER(mode, STRING, HELP("architecture, or model_free: from names and shapes alone.")),
    MEMBER(parameters, INT, HELP("Of the model.")),
    OBJECT(output, schema_output, NULLABLE, HELP("Null, as the next two: problems other than of room leave it open.")),
    OBJECT(memory, schema_estimated_memory, NULLABLE),
    OBJECT(disk, schema_disk, NULLABLE),
    END};
const struct schema schema_estimate = {
    .name = "Estimate", .help = "What a job would take and make.", .rows = estimate_rows};
