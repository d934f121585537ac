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
