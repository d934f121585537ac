/* Parts of the report that say where errors come from. */

#include "api/schema_rows.h"

static const struct schema_row anatomy_part_rows[] = {
    MEMBER(kind, STRING, OPTIONAL, HELP("The path below the layer; numbers of experts are stars.")),
    MEMBER(layer, INT, OPTIONAL),
    MEMBER(modules, INT),
    MEMBER(mean_error, NUMBER),
    MEMBER(error_share, NUMBER, HELP("Of the job's error: errors weighed by parameters.")),
    MEMBER(parameter_share, NUMBER),
    END};
static const struct schema schema_anatomy_part = {.name = "AnatomyPart", .rows = anatomy_part_rows};

static const char *const anatomy_causes[] = {"tokens",   "dead_columns",    "static_inputs", "clipping",
                                             "channels", "outlier_weights", "rounding",      NULL};
static const struct schema_row anatomy_worst_rows[] = {
    MEMBER(module, STRING),
    MEMBER(layer, INT),
    MEMBER(error, NUMBER),
    MEMBER(error_share, NUMBER),
    MEMBER(parameter_share, NUMBER),
    MEMBER(cause, ENUM, .choices = anatomy_causes),
    MEMBER(sentence, STRING, HELP("What it loses, why, and what would help.")),
    END};
static const struct schema schema_anatomy_worst = {.name = "AnatomyWorst", .rows = anatomy_worst_rows};

static const struct schema_row anatomy_rows[] = {
    MEMBER(summary, STRING),
    MEMBER(metric, STRING, HELP("The column that errors are: output_relative_mse, or relative_mse without inputs.")),
    MEMBER(rounding_share, NUMBER, NULLABLE, HELP("Of the job's error.")),
    MEMBER(clipping_share, NUMBER, NULLABLE),
    LIST(kinds, schema_anatomy_part),
    LIST(blocks, schema_anatomy_part),
    LIST(worst, schema_anatomy_worst),
    END};
const struct schema schema_anatomy = {.name = "Anatomy", .rows = anatomy_rows};

static const struct schema_row suggestion_rows[] = {
    MEMBER(patch, OBJECT, HELP("A JSON merge patch (RFC 7396) of \"request\", which is a valid job then.")),
    MEMBER(reason, STRING),
    MEMBER(modules, LIST, HELP("Those whose error falls, 24 at most.")),
    MEMBER(module_count, INT),
    MEMBER(error_ratio, NUMBER, NULLABLE, HELP("What is left of their error, as expected; null: not predicted.")),
    MEMBER(error_removed, NUMBER, NULLABLE, HELP("Of the job's error.")),
    MEMBER(bytes_added, INT),
    MEMBER(basis, STRING, HELP("How the expectation was found.")),
    END};
const struct schema schema_suggestion = {.name = "Suggestion", .rows = suggestion_rows};

static const struct schema_row tuning_point_rows[] = {
    MEMBER(step, INT), MEMBER(rate, NUMBER, HELP("The share of the rates that steps had.")),
    MEMBER(loss, NUMBER, NULLABLE, HELP("On the step's own sequences.")), END};
static const struct schema schema_tuning_point = {.name = "TuningPoint", .rows = tuning_point_rows};

static const struct schema_row tuned_block_rows[] = {
    MEMBER(layer, INT),
    MEMBER(steps, INT),
    MEMBER(sequences, INT, HELP("That were learned from.")),
    MEMBER(held_out_sequences, INT, HELP("That losses were measured on instead; 0: on some that were learned from.")),
    MEMBER(first_loss, NUMBER, NULLABLE,
           HELP("As solved: the mean over tokens of the error of the block's output, relative to the float model's.")),
    MEMBER(best_loss, NUMBER, NULLABLE, HELP("Of what was kept.")),
    MEMBER(last_loss, NUMBER, NULLABLE),
    MEMBER(best_step, INT, HELP("0: the solver's result was kept.")),
    MEMBER(seconds, NUMBER),
    MEMBER(gpu_bytes, INT, HELP("Memory of values and gradients of the sequences that are learned from at once.")),
    MEMBER(note, STRING, NULLABLE, HELP("What went otherwise.")),
    LIST(curve, schema_tuning_point, HELP("Losses of steps, 50 at most, evenly spaced.")),
    END};
static const struct schema schema_tuned_block = {.name = "TunedBlock", .rows = tuned_block_rows};

static const struct schema_row tuned_model_rows[] = {
    MEMBER(layer, INT, HELP("The last one, after which it was done.")),
    MEMBER(steps, INT),
    MEMBER(sequences, INT, HELP("That were learned from.")),
    MEMBER(held_out_sequences, INT, HELP("That losses were measured on; 0: on those that were learned from.")),
    MEMBER(first_loss, NUMBER, NULLABLE, HELP("Mean KL divergence of a token from the float model, before.")),
    MEMBER(best_loss, NUMBER, NULLABLE, HELP("Of what was kept.")),
    MEMBER(last_loss, NUMBER, NULLABLE),
    MEMBER(best_step, INT, HELP("0: nothing was changed.")),
    MEMBER(seconds, NUMBER),
    MEMBER(gpu_bytes, INT, HELP("Memory of values and gradients of the sequences that are learned from at once.")),
    MEMBER(note, STRING, NULLABLE, HELP("What went otherwise.")),
    LIST(curve, schema_tuning_point, HELP("Measured losses after epochs, 50 at most.")),
    END};
static const struct schema schema_tuned_model = {.name = "TunedModel", .rows = tuned_model_rows};

static const struct schema_row tuning_report_rows[] = {
    LIST(blocks, schema_tuned_block), MEMBER(seconds, NUMBER),
    MEMBER(loss_ratio, NUMBER, NULLABLE, HELP("The mean of best_loss / first_loss.")),
    OBJECT(end_to_end, schema_tuned_model, NULLABLE, HELP("Learning on the complete model, after all blocks.")), END};
const struct schema schema_tuning = {.name = "Tuning", .rows = tuning_report_rows};
