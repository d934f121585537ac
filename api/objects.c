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
    MEMBER(follows, BOOL, HELP("It works on what another method solved: last in a list of methods, never alone.")),
    MEMBER(parameters, OBJECT, HELP("JSON Schema of \"quantization\" in a job.")),
    MEMBER(formats, STRINGS,
           HELP("Formats that carry what it makes with its defaults, or what a method that it follows makes.")),
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

/* --- errors (RFC 9457) */

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
