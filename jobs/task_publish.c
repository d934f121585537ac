/* From finished blocks to an artifact that anybody may load: export, blobs, then one transaction that makes it exist.
 *
 * The files say nothing of time, ids or paths: the same request on the same checkpoint gives the same bytes, however
 * often the way there was interrupted. An attempt that died between blobs and transaction leaves only unreferenced
 * blobs. */

#include "jobs/task.h"

#include "jobs/job.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "jobs/rows.h"
#include "jobs/signature.h"
#include "pipeline/check.h"
#include "pipeline/mixture.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FRACTION_EXPORT 0.97

static json_t *number_or_null(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

/* What the result came from, as far as it decides the bytes. */
static json_t *provenance(const struct task *task)
{
    const struct spec_calibration *c = &task->spec.calibration;
    bool calibrated = task->calibration.sequences > 0;
    bool evaluated = task->evaluation.sequences > 0;

    const struct gpu_info *info = &task->device;
    char kind[32];

    service_device_kind(info, kind);
    json_t *origin = json_pack(
        "{s:s?, s:I, s:I, s:b, s:b, s:s?, s:I, s:s, s:s, s:s, s:s, s:I}", "calibration_digest",
        calibrated ? task->calibration.digest : NULL, "calibration_sequences", (json_int_t)task->calibration.sequences,
        "sequence_length", (json_int_t)task->calibration.length, "packing", (int)c->packing, "shuffle", (int)c->shuffle,
        "evaluation_digest", evaluated ? task->evaluation.digest : NULL, "seed", (json_int_t)task->spec.seed, "device",
        kind, "device_name", info->name, "device_detail", info->detail, "libraries", info->libraries,
        "micro_batch_tokens", (json_int_t)info->batch_tokens);
    if (origin != NULL && model_is_bare(task->model)) {
        json_object_set_new(origin, "mode", json_string(spec_modes[SPEC_MODEL_FREE]));
        json_object_set_new(origin, "architecture", json_null()); /* unknown */
    }
    if (origin != NULL && task->spec.recipe.mixture != NULL) {
        json_object_set_new(origin, "mixed_precision", mixture_json(task->spec.recipe.mixture));
    }
    json_t *gate = task_gate_json(task);
    if (origin != NULL && gate != NULL) {
        json_object_set_new(origin, "gate", gate);
    }
    return origin;
}

static int export_tick(void *data, double fraction)
{
    struct task *task = data;
    double total = FRACTION_EXPORT + (0.999 - FRACTION_EXPORT) * fraction;

    task->fraction = total > task->fraction ? total : task->fraction;
    return task_tick_phase(task, 0, "exporting");
}

struct block_paths {
    char **list;
    int count;
};

static void paths_deinit(struct block_paths *paths)
{
    for (int i = 0; i < paths->count; i++) {
        free(paths->list[i]);
    }
    free(paths->list);
}

CLEANUP_DEINIT(block_paths, struct block_paths, paths_deinit)

static int paths_init(const struct task *task, const json_t *blocks, struct block_paths *paths)
{
    size_t count = json_array_size(blocks);
    char path[SERVICE_PATH_MAX];

    TRY(mem_array(&paths->list, count + 1));
    for (size_t i = 0; i < count; i++) {
        const char *file = json_string_value(json_object_get(json_array_get(blocks, i), "file"));
        TRY(fs_path(path, sizeof(path), "%s/%s", task->directory, file != NULL ? file : ""));
        TRY(mem_strdup(&paths->list[i], path));
        paths->count = (int)i + 1;
    }
    return 0;
}

static int export_files(struct task *task, const char *directory, json_t **files)
{
    AUTO(block_paths) struct block_paths paths = {0};
    AUTO_FREE struct format_module *modules = NULL;
    AUTO_JSON json_t *blocks = NULL;
    AUTO_JSON json_t *parameters = recipe_parameters_json(&task->spec.recipe);
    AUTO_JSON json_t *origin = provenance(task);
    int count = 0;

    if (parameters == NULL || origin == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a manifest");
    }
    TRY(fs_remove_tree(directory));
    TRY(store_blocks_list(task->service->store, task->id, &blocks));
    TRY(paths_init(task, blocks, &paths));
    TRY(recipe_modules(&task->spec.recipe, task->spec.format, task->model, &modules, &count));
    const struct format_export request = {
        .format = task->spec.format,
        .config = {.modules = modules,
                   .count = count,
                   .model = task->model,
                   .method = task->spec.recipe.name,
                   .parameters = parameters,
                   .cache = task->spec.recipe.cache,
                   .targets = task->spec.targets.count > 0 ? &task->spec.targets : NULL},
        .block_files = (const char *const *)paths.list,
        .block_count = paths.count,
        .directory = directory,
        .max_shard_bytes = task->spec.output.max_shard_bytes,
        .provenance = origin,
        .threads = task->service->supervisor.threads,
        .tick = export_tick,
        .tick_data = task,
    };
    return format_export(&request, files);
}

/* Every file moves into the blob store; the export has just hashed and synced it. *count: how many are held there. */
static int adopt_files(struct task *task, const char *directory, const json_t *files, size_t *count)
{
    char path[SERVICE_PATH_MAX];
    char sha256[DIGEST_HEX_SIZE];
    int64_t size;
    size_t i;
    json_t *file;

    json_array_foreach((json_t *)files, i, file)
    {
        const char *name = json_string_value(json_object_get(file, "path"));
        TRY(fs_path(path, sizeof(path), "%s/%s", directory, name));
        int rc =
            blob_adopt(task->service->store, path, json_string_value(json_object_get(file, "sha256")), sha256, &size);
        if (rc != 0) {
            return err_pass(rc, "store %s", name);
        }
        *count = i + 1;
    }
    return 0;
}

/* The artifact refers to them now, or there is none. */
static void let_go_of_files(struct task *task, const json_t *files, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        blob_let_go(task->service->store, json_string_value(json_object_get(json_array_get(files, i), "sha256")));
    }
}

struct sizes {
    int64_t bytes, weights; /* of all files; of those that hold tensors */
    const char *manifest;   /* digest of the manifest */
};

static struct sizes add_up(const json_t *files)
{
    struct sizes sizes = {0};
    size_t i;
    json_t *file;

    json_array_foreach((json_t *)files, i, file)
    {
        const char *path = json_string_value(json_object_get(file, "path"));
        int64_t bytes = json_integer_value(json_object_get(file, "bytes"));
        sizes.bytes += bytes;
        sizes.weights += format_holds_tensors(path) ? bytes : 0;
        if (strcmp(path, FORMAT_MANIFEST_FILE) == 0) {
            sizes.manifest = json_string_value(json_object_get(file, "sha256"));
        }
    }
    return sizes;
}

json_t *task_evaluation_json(const struct evaluation_result *e)
{
    if (!e->done) {
        return json_null();
    }
    return json_pack(
        "{s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I}", "perplexity_before", number_or_null(e->perplexity_before),
        "perplexity_after", number_or_null(e->perplexity_after), "kl_divergence_mean", number_or_null(e->kl_mean),
        "top1_agreement", number_or_null(e->top1_agreement), "generation", gate_generation(&e->generation), "tokens",
        (json_int_t)e->tokens, "sequences", (json_int_t)e->sequences, "sequence_length", (json_int_t)e->length);
}

static json_t *environment_json(const struct task *task)
{
    const struct gpu_info *info = &task->device;
    char kind[32];

    service_device_kind(info, kind);
    return json_pack("{s:s, s:{s:s, s:s, s:s, s:s}, s:i}", "version", QUANTD_VERSION, "device", "id", info->id, "kind",
                     kind, "name", info->name, "detail", info->detail, "threads", info->threads);
}

static json_t *result_json(struct task *task, const char *artifact, const json_t *rows, double bits, double ratio,
                           const struct evaluation_result *e)
{
    const struct mixture *mixture = artifact != NULL ? task->spec.recipe.mixture : NULL;

    return json_pack("{s:s?, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "artifact_id", artifact,
                     "bits_per_weight", number_or_null(bits), "compression_ratio", number_or_null(ratio),
                     "perplexity_before", e->done ? number_or_null(e->perplexity_before) : json_null(),
                     "perplexity_after", e->done ? number_or_null(e->perplexity_after) : json_null(),
                     "kl_divergence_mean", e->done ? number_or_null(e->kl_mean) : json_null(), "top1_agreement",
                     e->done ? number_or_null(e->top1_agreement) : json_null(), "worst_layers", rows_worst(rows),
                     "evaluation", task_evaluation_json(e), "mixed_precision",
                     mixture != NULL ? mixture_summary(mixture) : json_null(), "environment", environment_json(task),
                     "suggestions", json_array_size(rows) > 0 ? task_suggestions(task, rows) : json_null());
}

/* The last move, with the job's last columns. result and made are taken; artifact: NULL where there is none. */
static int succeed(struct task *task, int64_t bytes, json_t *result, json_t *made, const json_t *artifact)
{
    struct task_columns columns;

    int rc = result == NULL || made == NULL ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a result")
                                            : task_columns_init(task, &columns);
    if (rc == 0) {
        columns.row.memory = task_memory(task, bytes);
        columns.row.result = result;
        const struct job_change change = {.fence = task->fence,
                                          .set =
                                              JOB_SET_PROGRESS | JOB_SET_CHECKPOINT | JOB_SET_MEMORY | JOB_SET_RESULT,
                                          .row = &columns.row,
                                          .made = made,
                                          .artifact = artifact};
        rc = job_move(task->service->store, task->id, JOB_SUCCEED, &change, NULL);
        task_columns_deinit(&columns);
    }
    json_decref(result);
    json_decref(made);
    return rc;
}

/* What the attempt made. */
struct artifact_made {
    char id[ID_SIZE];
    json_t *files, *signature; /* signature: NULL = it is not signed */
    size_t held;               /* of the files, as blobs */
};

/* The artifact object, the job's last columns and its last event, committed together. */
static int publish(struct task *task, const struct artifact_made *made, const json_t *rows,
                   const struct evaluation_result *evaluation)
{
    const struct sizes sizes = add_up(made->files);
    json_t *totals = rows_totals(rows);
    bool any = json_array_size(rows) > 0; /* else weights are what they were */
    double bits = any ? json_number_value(json_object_get(totals, "bits_per_weight"))
                      : 8.0 * dtype_rows[model_dtype(task->model)].bytes;
    double ratio = sizes.weights > 0 ? (double)model_bytes(task->model) / (double)sizes.weights : 1;
    json_int_t now = clock_unix_seconds();

    json_decref(totals);
    task->fraction = 1;
    AUTO_JSON json_t *artifact =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:s, s:O, s:I, s:s?, s:O?, s:f, s:f, s:I}", "id",
                  made->id, "object", "artifact", "job_id", task->id, "model_id", task->spec.model, "name",
                  task->spec.name, "method", task->spec.recipe.name, "format", task->spec.format->name, "architecture",
                  model_config(task->model)->arch->name, "parameters", (json_int_t)model_parameters(task->model),
                  "dtype", dtype_rows[model_dtype(task->model)].name, "files", made->files, "bytes",
                  (json_int_t)sizes.bytes, "manifest_sha256", sizes.manifest, "signature", made->signature,
                  "bits_per_weight", bits, "compression_ratio", ratio, "created_at", now);
    if (artifact == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an artifact");
    }
    return succeed(task, sizes.bytes, result_json(task, made->id, rows, bits, ratio, evaluation),
                   json_pack("{s:s}", "artifact_id", made->id), artifact);
}

/* An analysis ends with its report alone. */
static int publish_report(struct task *task)
{
    const struct evaluation_result none = {0};
    json_t *rows = json_array();

    task->fraction = 1;
    int rc = succeed(task, 0, result_json(task, NULL, rows, NAN, NAN, &none), json_pack("{s:n}", "artifact_id"), NULL);
    json_decref(rows);
    return rc;
}

static void tell_metrics(struct task *task, const struct evaluation_result *evaluation)
{
    if (evaluation->done) {
        json_t *data = task_evaluation_json(evaluation);
        (void)store_event_append(task->service->store, task->id, "metric", data); /* the report has it too */
        json_decref(data);
    }
}

static int sign_files(struct task *task, const char *directory, struct artifact_made *made)
{
    bool wanted = false;

    TRY(signature_wanted(task->service, task->spec.output.sign, &wanted));
    if (!wanted) {
        return 0;
    }
    TRY(task_tick_phase(task, task->fraction, "signing"));
    int rc = signature_add_file(task->service, made->id, directory, made->files, &made->signature);
    return rc != 0 ? err_pass(rc, "sign") : 0;
}

static int make_files(struct task *task, struct artifact_made *made)
{
    char directory[SERVICE_PATH_MAX];

    TRY(service_job_path(task->service, task->id, SERVICE_ARTIFACT, directory));
    int rc = export_files(task, directory, &made->files);
    if (rc != 0) {
        return err_pass(rc, "export");
    }
    TRY(sign_files(task, directory, made));
    TRY(task_check_stop(task));
    return adopt_files(task, directory, made->files, &made->held);
}

int task_check_signing(const struct task *task)
{
    bool wanted = false;

    return signature_wanted(task->service, task->spec.output.sign, &wanted);
}

int task_publish(struct task *task)
{
    const struct evaluation_result *evaluation = &task->result;
    AUTO_JSON json_t *rows = NULL;
    double mark = clock_monotonic_seconds();
    struct artifact_made made = {.files = NULL};

    if (recipe_analyses(&task->spec.recipe)) {
        return publish_report(task);
    }
    if (task->spec.recipe.mixture != NULL) { /* it may have been chosen in another process */
        TRY(mixture_load(task->spec.recipe.mixture, task->directory));
    }
    tell_metrics(task, evaluation);
    id_new("art", made.id);
    int rc = make_files(task, &made);
    if (rc == 0) {
        rc = store_layers_list(task->service->store, task->id, &rows);
    }
    task->times.seconds[PHASE_EXPORT] += clock_monotonic_seconds() - mark;
    if (rc == 0) {
        rc = publish(task, &made, rows, evaluation);
    }
    let_go_of_files(task, made.files, made.held);
    json_decref(made.files);
    json_decref(made.signature);
    return rc;
}
