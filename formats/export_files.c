/* The small files of an artifact: index, config.json with its quantization_config, the source's side files, the
 * manifest.
 *
 * Nothing here depends on the time, the machine or the directory: the same job writes the same bytes. */

#include "formats/export.h"

#include "base/digest.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "base/model_signature.h"
#include "formats/runtimes.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPY_BYTES ((size_t)1 << 20)

/* As text with the fewest digits that read back to the same numbers: jansson's 17 turn 1e-05
 * into 1.0000000000000001e-05. */
static char *export_files_dump(const json_t *object)
{
    for (int digits = 15; digits < 17; digits++) {
        json_error_t error;
        AUTO_FREE char *text = json_dumps(object, JSON_INDENT(2) | JSON_REAL_PRECISION(digits));
        AUTO_JSON json_t *again = text == NULL ? NULL : json_loads(text, 0, &error);
        if (again != NULL && json_equal(again, object)) {
            return MOVE(text);
        }
    }
    return json_dumps(object, JSON_INDENT(2));
}

static int export_files_write_json(const struct format_export *request, const char *name, const json_t *object)
{
    AUTO_FREE char *text = NULL;
    char path[EXPORT_PATH_MAX];

    TRY(fs_path(path, sizeof(path), "%s/%s", request->directory, name));
    text = object == NULL ? NULL : export_files_dump(object);
    if (text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %s", name);
    }
    size_t length = strlen(text);
    text[length] = '\n'; /* over the NUL: fs_write_atomic takes a size */
    return fs_write_atomic(path, text, length + 1);
}

int export_write_index(const struct format_export *request, const struct export_plan *plan)
{
    json_t *map = json_object();
    char name[64];

    for (size_t i = 0; i < plan->count; i++) {
        export_shard_name(plan, plan->pieces[i].shard, name);
        json_object_set_new(map, plan->pieces[i].name, json_string(name));
    }
    AUTO_JSON json_t *index =
        json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)plan->total_bytes, "weight_map", map);
    return export_files_write_json(request, "model.safetensors.index.json", index);
}

/* The source's config with the members that the artifact changes; NULL when memory is out. */
static json_t *export_files_config(const struct format_export *request, bool tied, const json_t *quantization)
{
    const struct model *model = request->config.model;
    AUTO_JSON json_t *config = json_deep_copy(model_config_json(model));
    int rc = config == NULL;

    if (rc == 0 && model_config(model)->tie_word_embeddings && !tied) {
        rc = json_object_set_new(config, "tie_word_embeddings", json_false());
    }
    if (rc == 0 && quantization != NULL) {
        rc = json_object_set(config, "quantization_config", (json_t *)quantization);
    }
    return rc == 0 ? MOVE(config) : NULL;
}

int export_write_config(const struct format_export *request)
{
    bool plain = request->format->config == NULL, tied;
    AUTO_JSON json_t *quantization = NULL, *config = NULL;

    TRY(model_tied(request->config.model, &tied));
    quantization = plain ? NULL : request->format->config(&request->config);
    config = plain || quantization != NULL ? export_files_config(request, tied, quantization) : NULL;
    if (config == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for config.json");
    }
    TRY(export_files_write_json(request, FORMAT_CONFIG_FILE, config));
    bool side = !plain && request->format->side_file != NULL;
    return side ? export_files_write_json(request, request->format->side_file, quantization) : 0;
}

static int export_files_copy_bytes(int from, int to, unsigned char *buffer)
{
    int64_t at = 0;

    for (;;) {
        ssize_t n = pread(from, buffer, COPY_BYTES, (off_t)at);
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return err_raise_errno(errno, "cannot read a side file");
        }
        if (n == 0) {
            return 0;
        }
        TRY(fs_pwrite_full(to, buffer, (size_t)n, at));
        at += n;
    }
}

static int export_files_copy(const struct format_export *request, const char *name, unsigned char *buffer)
{
    AUTO_CLOSE int from = -1, to = -1;
    char path[EXPORT_PATH_MAX];
    struct stat info;

    TRY(fs_path(path, sizeof(path), "%s/%s", request->directory, name));
    TRY(model_open_file(request->config.model, name, &from));
    if (fstat(from, &info) != 0 || !S_ISREG(info.st_mode)) {
        return err_raise(ERR_SOURCE_CORRUPT, "%s of the model is not a regular file", name);
    }
    to = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (to < 0) {
        return err_raise_errno(errno, "cannot create %s", path);
    }
    TRY(export_files_copy_bytes(from, to, buffer));
    return fs_sync(to);
}

/* Written here, or never to be copied: weights, the signature of the source, hidden files, and files that another
 * format's loader would read. */
static bool export_files_is_own(const char *name)
{
    for (const struct format *const *row = format_list(); *row != NULL; row++) {
        if ((*row)->side_file != NULL && strcmp(name, (*row)->side_file) == 0) {
            return true;
        }
    }
    return strcmp(name, FORMAT_CONFIG_FILE) == 0 || strcmp(name, FORMAT_MANIFEST_FILE) == 0 ||
           strcmp(name, MODEL_SIGNATURE_FILE) == 0 || name[0] == '.' || strstr(name, ".safetensors") != NULL;
}

int export_copy_side_files(const struct format_export *request)
{
    AUTO_FREE unsigned char *buffer = NULL;
    char folder[EXPORT_PATH_MAX];

    TRY(mem_buffer(&buffer, COPY_BYTES));
    for (const char *const *name = model_side_files(request->config.model); name != NULL && *name != NULL; name++) {
        if (export_files_is_own(*name)) {
            continue;
        }
        if (strchr(*name, '/') != NULL) { /* the one folder that an artifact may have */
            TRY(fs_path(folder, sizeof(folder), "%s/" MODEL_TEMPLATES_FOLDER, request->directory));
            TRY(fs_make_dirs(folder));
        }
        TRY(export_files_copy(request, *name, buffer));
    }
    return 0;
}

static int export_files_hash(const struct format_export *request, const char *name, struct export_sum *sum)
{
    char path[EXPORT_PATH_MAX];

    TRY(fs_path(path, sizeof(path), "%s/%s", request->directory, name));
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    return fd < 0 ? err_raise_errno(errno, "cannot open %s", path) : digest_file(fd, sum->sha256, &sum->bytes);
}

/* Append a file's entry. known: its sum, or NULL. */
static int export_files_describe(const struct format_export *request, const char *name, const struct export_sum *known,
                                 json_t *files)
{
    struct export_sum sum = {0};

    if (known != NULL) {
        sum = *known;
    } else {
        TRY(export_files_hash(request, name, &sum));
    }
    json_t *file = json_pack("{s:s, s:I, s:s}", "path", name, "bytes", (json_int_t)sum.bytes, "sha256", sum.sha256);
    return json_array_append_new(files, file) == 0
               ? 0
               : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the list of files");
}

/* The sum of a shard, known from writing it, or NULL. */
static const struct export_sum *export_files_known_sum(const struct export_plan *plan, const struct export_sum *sums,
                                                       const char *name)
{
    char shard[64];

    for (int i = 0; sums != NULL && i < plan->shards; i++) {
        export_shard_name(plan, i, shard);
        if (strcmp(shard, name) == 0) {
            return &sums[i];
        }
    }
    return NULL;
}

static int export_files_is_listed(const struct dirent *entry)
{
    return entry->d_name[0] != '.' && strcmp(entry->d_name, FORMAT_MANIFEST_FILE) != 0;
}

static int export_files_by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* The files of the artifact, or those of its folder, which is made durable, too. */
static int export_files_describe_folder(const struct format_export *request, const char *folder,
                                        const struct export_plan *plan, const struct export_sum *sums, json_t *files)
{
    char path[EXPORT_PATH_MAX];
    struct dirent **entries;
    int rc = 0;

    TRY(fs_path(path, sizeof(path), "%s/%s", request->directory, folder));
    int count = scandir(path, &entries, export_files_is_listed, export_files_by_name);
    if (count < 0) {
        return err_raise_errno(errno, "cannot list %s", path);
    }
    for (int i = 0; i < count; i++) {
        const char *entry = entries[i]->d_name;
        bool deeper = folder[0] == '\0' && strcmp(entry, MODEL_TEMPLATES_FOLDER) == 0;
        char name[sizeof(MODEL_TEMPLATES_FOLDER) + sizeof(entries[i]->d_name)];
        snprintf(name, sizeof(name), "%s%s", folder, entry);
        if (rc == 0 && deeper) {
            rc = export_files_describe_folder(request, MODEL_TEMPLATES_FOLDER "/", plan, sums, files);
        } else if (rc == 0) {
            rc = export_files_describe(request, name, export_files_known_sum(plan, sums, name), files);
        }
        free(entries[i]);
    }
    free(entries);
    TRY(rc);
    return folder[0] == '\0' ? 0 : fs_sync_dir(path);
}

static json_t *export_files_manifest(const struct format_export *request, json_t *files)
{
    const struct format_config *config = &request->config;
    json_t *parameters = config->parameters != NULL ? json_deep_copy(config->parameters) : json_object();
    json_t *provenance = request->provenance != NULL ? json_deep_copy(request->provenance) : json_object();

    json_t *manifest =
        json_pack("{s:s, s:i, s:s, s:s, s:s?, s:o, s:{s:s, s:s}, s:i, s:o, s:O}", "object", "quantd.manifest",
                  "manifest_version", 1, "quantd_version", QUANTD_VERSION, "format", request->format->name, "method",
                  config->method, "parameters", parameters, "source", "digest", model_digest(config->model), "dtype",
                  dtype_rows[model_dtype(config->model)].name, "quantized_modules", config->count, "provenance",
                  provenance, "files", files);
    if (manifest != NULL && config->targets != NULL) {
        json_object_set_new(manifest, "targets", runtime_targets_json(config->targets, request->format, config));
    }
    return manifest;
}

static int export_files_compare_paths(const void *a, const void *b)
{
    return strcmp(json_string_value(json_object_get(*(json_t *const *)a, "path")),
                  json_string_value(json_object_get(*(json_t *const *)b, "path")));
}

/* *out = a new array with the same items in byte order of their paths. */
static int export_files_sort(const json_t *files, json_t **out)
{
    size_t count = json_array_size(files);
    AUTO_FREE json_t **items = NULL;
    AUTO_JSON json_t *sorted = json_array();

    TRY(mem_array(&items, count));
    for (size_t i = 0; i < count; i++) {
        items[i] = json_array_get(files, i);
    }
    qsort(items, count, sizeof(*items), export_files_compare_paths);
    for (size_t i = 0; i < count; i++) {
        if (json_array_append(sorted, items[i]) != 0) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the list of files");
        }
    }
    *out = MOVE(sorted);
    return 0;
}

int export_write_manifest(const struct format_export *request, const struct export_plan *plan,
                          const struct export_sum *sums, json_t **out)
{
    AUTO_JSON json_t *files = json_array(), *manifest = NULL;

    TRY(export_files_describe_folder(request, "", plan, sums, files));
    manifest = export_files_manifest(request, files);
    TRY(export_files_write_json(request, FORMAT_MANIFEST_FILE, manifest));
    TRY(export_files_describe(request, FORMAT_MANIFEST_FILE, NULL, files));
    TRY(fs_sync_dir(request->directory));
    return export_files_sort(files, out);
}
