/* The small files of an artifact: index, config.json with its quantization_config, the source's side files, the
 * manifest.
 *
 * Nothing here depends on the time, the machine or the directory: the same job writes the same bytes. */

#include "formats/export.h"

#include "base/digest.h"
#include "base/err.h"
#include "base/fs.h"

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
        char *text = json_dumps(object, JSON_INDENT(2) | JSON_REAL_PRECISION(digits));
        json_t *again = text == NULL ? NULL : json_loads(text, 0, &error);
        bool same = again != NULL && json_equal(again, object);
        json_decref(again);
        if (same) {
            return text;
        }
        free(text);
    }
    return json_dumps(object, JSON_INDENT(2));
}

static int write_json(const struct format_export *request, const char *name, const json_t *object)
{
    char path[EXPORT_PATH_MAX];

    int rc = fs_path(path, sizeof(path), "%s/%s", request->directory, name);
    if (rc != 0) {
        return rc;
    }
    char *text = object == NULL ? NULL : export_files_dump(object);
    if (text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %s", name);
    }
    size_t length = strlen(text);
    text[length] = '\n'; /* over the NUL: fs_write_atomic takes a size */
    rc = fs_write_atomic(path, text, length + 1);
    free(text);
    return rc;
}

int export_write_index(const struct format_export *request, const struct export_plan *plan)
{
    json_t *map = json_object();
    char name[64];

    for (size_t i = 0; i < plan->count; i++) {
        export_shard_name(plan, plan->pieces[i].shard, name);
        json_object_set_new(map, plan->pieces[i].name, json_string(name));
    }
    json_t *index =
        json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)plan->total_bytes, "weight_map", map);
    int rc = write_json(request, "model.safetensors.index.json", index);
    json_decref(index);
    return rc;
}

/* The source's config with what is no longer true of it; NULL when memory is out. */
static json_t *reword_config(const struct format_export *request, bool tied, const json_t *quantization)
{
    const struct model *model = request->config.model;
    json_t *config = json_deep_copy(model_config_json(model));
    int rc = config == NULL;

    if (rc == 0 && model_config(model)->tie_word_embeddings && !tied) {
        rc = json_object_set_new(config, "tie_word_embeddings", json_false());
    }
    if (rc == 0 && quantization != NULL) {
        rc = json_object_set(config, "quantization_config", (json_t *)quantization);
    }
    if (rc != 0) {
        json_decref(config);
        return NULL;
    }
    return config;
}

int export_write_config(const struct format_export *request)
{
    bool plain = request->format->config == NULL, tied;

    int rc = model_tied(request->config.model, &tied);
    if (rc != 0) {
        return rc;
    }
    json_t *quantization = plain ? NULL : request->format->config(&request->config);
    json_t *config = plain || quantization != NULL ? reword_config(request, tied, quantization) : NULL;
    if (config == NULL) {
        json_decref(quantization);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for config.json");
    }
    rc = write_json(request, FORMAT_CONFIG_FILE, config);
    if (rc == 0 && !plain && request->format->side_file != NULL) {
        rc = write_json(request, request->format->side_file, quantization);
    }
    json_decref(quantization);
    json_decref(config);
    return rc;
}

static int copy_bytes(int from, int to, unsigned char *buffer)
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
        int rc = fs_pwrite_full(to, buffer, (size_t)n, at);
        if (rc != 0) {
            return rc;
        }
        at += n;
    }
}

static int copy_file(const struct format_export *request, const char *name, unsigned char *buffer)
{
    char path[EXPORT_PATH_MAX];
    struct stat info;
    int from;

    int rc = fs_path(path, sizeof(path), "%s/%s", request->directory, name);
    rc = rc != 0 ? rc : model_open_file(request->config.model, name, &from);
    if (rc != 0) {
        return rc;
    }
    if (fstat(from, &info) != 0 || !S_ISREG(info.st_mode)) {
        close(from);
        return err_raise(ERR_SOURCE_CORRUPT, "%s of the model is no regular file", name);
    }
    int to = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (to < 0) {
        rc = err_raise_errno(errno, "cannot create %s", path);
    } else {
        rc = copy_bytes(from, to, buffer);
        rc = rc != 0 ? rc : fs_sync(to);
        close(to);
    }
    close(from);
    return rc;
}

/* Written here anew, or never to be copied: weights, hidden files, and what another format's loader would believe. */
static bool is_ours(const char *name)
{
    for (const struct format *const *row = format_list(); *row != NULL; row++) {
        if ((*row)->side_file != NULL && strcmp(name, (*row)->side_file) == 0) {
            return true;
        }
    }
    return strcmp(name, FORMAT_CONFIG_FILE) == 0 || strcmp(name, FORMAT_MANIFEST_FILE) == 0 || name[0] == '.' ||
           strstr(name, ".safetensors") != NULL;
}

static bool has_folder(const char *name)
{
    return strchr(name, '/') != NULL;
}

/* The one folder that an artifact may have. */
static int make_folder(const struct format_export *request)
{
    char path[EXPORT_PATH_MAX];

    int rc = fs_path(path, sizeof(path), "%s/" MODEL_TEMPLATES_FOLDER, request->directory);
    return rc != 0 ? rc : fs_make_dirs(path);
}

int export_copy_side_files(const struct format_export *request)
{
    unsigned char *buffer = malloc(COPY_BYTES);
    int rc = buffer == NULL ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a copy buffer") : 0;

    for (const char *const *name = model_side_files(request->config.model); rc == 0 && name != NULL && *name != NULL;
         name++) {
        if (!is_ours(*name)) {
            rc = has_folder(*name) ? make_folder(request) : 0;
            rc = rc != 0 ? rc : copy_file(request, *name, buffer);
        }
    }
    free(buffer);
    return rc;
}

static int hash_file(const struct format_export *request, const char *name, struct export_sum *sum)
{
    char path[EXPORT_PATH_MAX];

    int rc = fs_path(path, sizeof(path), "%s/%s", request->directory, name);
    if (rc != 0) {
        return rc;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) {
        return err_raise_errno(errno, "cannot open %s", path);
    }
    rc = digest_file(fd, sum->sha256, &sum->bytes);
    close(fd);
    return rc;
}

static int export_files_describe(const char *name, const struct export_sum *sum, json_t *files)
{
    json_t *file = json_pack("{s:s, s:I, s:s}", "path", name, "bytes", (json_int_t)sum->bytes, "sha256", sum->sha256);

    return json_array_append_new(files, file) == 0
               ? 0
               : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the list of files");
}

/* What is known of this file from writing it, or NULL. */
static const struct export_sum *known_sum(const struct export_plan *plan, const struct export_sum *sums,
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

static int describe_file(const struct format_export *request, const char *name, const struct export_sum *known,
                         json_t *files)
{
    struct export_sum sum = {0};
    int rc = known == NULL ? hash_file(request, name, &sum) : 0;

    return rc != 0 ? rc : export_files_describe(name, known != NULL ? known : &sum, files);
}

static int is_file(const struct dirent *entry)
{
    return entry->d_name[0] != '.' && strcmp(entry->d_name, FORMAT_MANIFEST_FILE) != 0;
}

static int by_bytes(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* The files of the artifact, or those of its folder, which is made durable, too. */
static int describe_folder(const struct format_export *request, const char *folder, const struct export_plan *plan,
                           const struct export_sum *sums, json_t *files)
{
    char path[EXPORT_PATH_MAX];
    struct dirent **entries;

    int rc = fs_path(path, sizeof(path), "%s/%s", request->directory, folder);
    if (rc != 0) {
        return rc;
    }
    int count = scandir(path, &entries, is_file, by_bytes);
    if (count < 0) {
        return err_raise_errno(errno, "cannot list %s", path);
    }
    for (int i = 0; i < count; i++) {
        const char *entry = entries[i]->d_name;
        bool deeper = folder[0] == '\0' && strcmp(entry, MODEL_TEMPLATES_FOLDER) == 0;
        char name[sizeof(MODEL_TEMPLATES_FOLDER) + sizeof(entries[i]->d_name)];
        snprintf(name, sizeof(name), "%s%s", folder, entry);
        if (rc == 0 && deeper) {
            rc = describe_folder(request, MODEL_TEMPLATES_FOLDER "/", plan, sums, files);
        } else if (rc == 0) {
            rc = describe_file(request, name, known_sum(plan, sums, name), files);
        }
        free(entries[i]);
    }
    free(entries);
    return rc != 0 || folder[0] == '\0' ? rc : fs_sync_dir(path);
}

static json_t *manifest(const struct format_export *request, json_t *files)
{
    const struct format_config *config = &request->config;
    json_t *parameters = config->parameters != NULL ? json_deep_copy(config->parameters) : json_object();
    json_t *provenance = request->provenance != NULL ? json_deep_copy(request->provenance) : json_object();

    return json_pack("{s:s, s:i, s:s, s:s, s:s?, s:o, s:{s:s, s:s}, s:i, s:o, s:O}", "object", "quantd.manifest",
                     "manifest_version", 1, "quantd_version", QUANTD_VERSION, "format", request->format->name, "method",
                     config->method, "parameters", parameters, "source", "digest", model_digest(config->model), "dtype",
                     dtype_rows[model_dtype(config->model)].name, "quantized_modules", config->count, "provenance",
                     provenance, "files", files);
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(json_string_value(json_object_get(*(json_t *const *)a, "path")),
                  json_string_value(json_object_get(*(json_t *const *)b, "path")));
}

/* A new array with the same items in byte order of their paths. */
static json_t *sort_files(const json_t *files)
{
    size_t count = json_array_size(files);
    json_t **items = calloc(count, sizeof(*items));
    json_t *sorted = json_array();

    for (size_t i = 0; items != NULL && i < count; i++) {
        items[i] = json_array_get(files, i);
    }
    if (items != NULL) {
        qsort(items, count, sizeof(*items), compare_paths);
    }
    for (size_t i = 0; items != NULL && i < count; i++) {
        json_array_append(sorted, items[i]);
    }
    free(items);
    return sorted;
}

int export_write_manifest(const struct format_export *request, const struct export_plan *plan,
                          const struct export_sum *sums, json_t **out)
{
    json_t *files = json_array();

    int rc = describe_folder(request, "", plan, sums, files);
    if (rc == 0) {
        json_t *object = manifest(request, files);
        rc = write_json(request, FORMAT_MANIFEST_FILE, object);
        json_decref(object);
    }
    rc = rc != 0 ? rc : describe_file(request, FORMAT_MANIFEST_FILE, NULL, files);
    rc = rc != 0 ? rc : fs_sync_dir(request->directory);
    if (rc == 0) {
        *out = sort_files(files);
    }
    json_decref(files);
    return rc;
}
