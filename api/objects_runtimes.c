/* What runtimes load, and those that a job names. */

#include "api/schema_rows.h"

static const struct schema_row job_target_rows[] = {
    MEMBER(runtime, STRING),
    MEMBER(version, STRING, NULLABLE, HELP("As the request has it, \">=0.32\"; null: from checked_version on.")),
    MEMBER(checked_version, STRING, HELP("The newest that the table of runtimes is about.")),
    MEMBER(tensor_parallel_size, INT),
    MEMBER(load, STRING, HELP("The command that serves the artifact in FOLDER, or the call that loads it.")),
    END};
const struct schema schema_job_target = {
    .name = "JobTarget", .help = "A runtime that the artifact is made for.", .rows = job_target_rows};

static const char *const symmetries[] = {"any", "symmetric", "asymmetric", NULL};
static const struct schema_row runtime_loads_rows[] = {
    MEMBER(format, STRING),
    MEMBER(form, STRING, HELP("How weights, or keys and values, are stored: int, int8_inputs, fp8, ...")),
    MEMBER(since, STRING, HELP("The oldest version that is known to load it.")),
    MEMBER(until, STRING, NULLABLE, HELP("The newest; null: still so in checked_version.")),
    MEMBER(bits, INTS, HELP("Empty: any.")),
    MEMBER(symmetry, ENUM, .choices = symmetries),
    MEMBER(group_sizes, INTS, HELP("-1: one scale for each output. Empty: any.")),
    MEMBER(outputs_multiple, INT, NULLABLE, HELP("Of the outputs of a linear on each device.")),
    MEMBER(inputs_multiple, INT, NULLABLE),
    MEMBER(whole_blocks, BOOL, HELP("Linears that are loaded as one must end where a block ends.")),
    MEMBER(experts, BOOL, HELP("Those of mixtures of experts too.")),
    MEMBER(tensor_parallel, BOOL),
    MEMBER(expands, BOOL, HELP("Weights become float weights when they are loaded, so that no memory is saved.")),
    MEMBER(architecture, STRING, NULLABLE, HELP("Of this one alone; null: of any.")),
    MEMBER(needs, STRING, NULLABLE, HELP("Packages and arguments.")),
    MEMBER(hardware, STRING, NULLABLE),
    MEMBER(kernels, STRING, HELP("What multiplies.")),
    END};
static const struct schema schema_runtime_loads = {
    .name = "RuntimeLoads", .help = "A condition under which a runtime loads a format.", .rows = runtime_loads_rows};

static const struct schema_row runtime_rows[] = {
    CONST(object, "runtime"),
    MEMBER(name, STRING, HELP("As in output.targets of a job.")),
    MEMBER(title, STRING),
    MEMBER(oldest_version, STRING, HELP("What older ones load is not known.")),
    MEMBER(checked_version, STRING),
    MEMBER(load, STRING, HELP("The command that serves the artifact in FOLDER, or the call that loads it.")),
    MEMBER(tensor_parallel, BOOL, HELP("It can divide a model over devices.")),
    LIST(loads, schema_runtime_loads),
    END};
static const struct schema schema_runtime = {.name = "Runtime", .rows = runtime_rows};

static const struct schema_row runtime_list_rows[] = {CONST(object, "list"), LIST(data, schema_runtime),
                                                      MEMBER(has_more, BOOL), END};
const struct schema schema_runtime_list = {.name = "RuntimeList", .rows = runtime_list_rows};
