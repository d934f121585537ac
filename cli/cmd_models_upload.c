/* quantctl models upload: a checkpoint of this host to the server, as one model. */

#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/commands.h"
#include "cli/status.h"
#include "cli/upload.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MODEL_FILES_MAX 2000
#define MODEL_PATH_MAX 4096
#define MODEL_INDEX "model.safetensors.index.json"
#define MODEL_INDEX_MAX ((size_t)64 << 20)
#define MODEL_INDEX_MEMORY ((size_t)1 << 30)
#define MODEL_PARALLEL 4

struct model_upload_options {
    const char *name, *sha256;
    int64_t parallel;
};

#define AT(member) offsetof(struct model_upload_options, member)

static const struct option_row model_upload_rows[] = {
    {"name", 0, OPTION_TEXT, "NAME", AT(name),
     .help = "A name for lists and for submit --model (default: the folder's)"},
    {"expected-sha256", 0, OPTION_TEXT, "HEX", AT(sha256), .help = "Refuse a checkpoint with another digest"},
    {"parallel", 'j', OPTION_INT, "N", AT(parallel), .help = "Shards at a time (default: 4)", 1, HTTP_SLOTS_MAX},
    {0},
};

/* The files of a checkpoint: names and paths are the list's. */
struct model_files {
    struct upload_item *items;
    size_t count;
};

static void model_files_deinit(struct model_files *files)
{
    upload_items_deinit(files->items, files->count);
    for (size_t i = 0; i < files->count; i++) {
        free((char *)files->items[i].path);
    }
    free(files->items);
}

CLEANUP_DEINIT(model_files, struct model_files, model_files_deinit)

static int add_file(struct model_files *files, const char *folder, const char *name)
{
    AUTO_FREE char *copy = NULL;
    char path[MODEL_PATH_MAX];

    for (size_t i = 0; i < files->count; i++) {
        if (strcmp(files->items[i].name, name) == 0) {
            return 0;
        }
    }
    if (files->count == MODEL_FILES_MAX) {
        return status_fail(STATUS_LOCAL, "%.300s: more than %d files", folder, MODEL_FILES_MAX);
    }
    TRY(fs_path(path, sizeof(path), "%s/%s", folder, name));
    TRY(mem_strdup(&copy, path));
    struct upload_item *item = &files->items[files->count++];
    item->name = strrchr(copy, '/') + 1;
    item->path = MOVE(copy);
    return 0;
}

/* What goes along with the weights: all but weights in any format, and their indexes. */
static bool is_side_file(const char *folder, const char *name)
{
    static const char *const weights[] = {".safetensors", ".index.json", ".bin", ".pt",   ".pth", ".ckpt", ".gguf",
                                          ".h5",          ".msgpack",    ".npz", ".onnx", ".pkl", ".ot"};
    char path[MODEL_PATH_MAX];
    struct stat info;

    for (size_t i = 0; i < sizeof(weights) / sizeof(weights[0]); i++) {
        size_t length = strlen(name), tail = strlen(weights[i]);
        if (length >= tail && strcmp(name + length - tail, weights[i]) == 0) {
            return false;
        }
    }
    return name[0] != '.' && fs_path(path, sizeof(path), "%s/%s", folder, name) == 0 && stat(path, &info) == 0 &&
           S_ISREG(info.st_mode);
}

static int add_side_files(struct model_files *files, const char *folder)
{
    struct dirent **entries = NULL;
    int count = scandir(folder, &entries, NULL, alphasort), rc = 0;

    if (count < 0) {
        return status_fail(STATUS_LOCAL, "%.300s: %s", folder, strerror(errno));
    }
    for (int i = 0; i < count; i++) {
        if (rc == 0 && is_side_file(folder, entries[i]->d_name)) {
            rc = add_file(files, folder, entries[i]->d_name);
        }
        free(entries[i]);
    }
    free(entries);
    return rc;
}

/* The shards that the index names. */
static int add_shards(struct model_files *files, const char *folder, const char *index)
{
    AUTO_FREE char *text = NULL;
    AUTO_JSON json_t *tree = NULL;
    const struct json_budget budget = {8, MODEL_INDEX_MEMORY, JSON_REJECT_DUPLICATES};
    const char *tensor;
    json_t *shard;
    size_t size;

    if (fs_read_file(index, MODEL_INDEX_MAX, &text, &size) != 0 || json_parse_within(text, size, &budget, &tree) != 0) {
        return status_fail(STATUS_LOCAL, "%.300s: it cannot be read as JSON", index);
    }
    json_object_foreach(json_object_get(tree, "weight_map"), tensor, shard)
    {
        const char *name = json_string_value(shard);
        if (name == NULL || name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL) {
            return status_fail(STATUS_LOCAL, "%.300s: \"%.80s\" has no file in this folder", index, tensor);
        }
        TRY(add_file(files, folder, name));
    }
    return add_file(files, folder, MODEL_INDEX);
}

static int list_files(const char *folder, struct model_files *files)
{
    char config[MODEL_PATH_MAX], index[MODEL_PATH_MAX];
    struct stat info;

    TRY(fs_path(config, sizeof(config), "%s/config.json", folder));
    TRY(fs_path(index, sizeof(index), "%s/" MODEL_INDEX, folder));
    if (stat(config, &info) != 0) {
        return err_set_hint(status_fail(STATUS_LOCAL, "%.300s: %s", config, strerror(errno)),
                            "name the folder of a checkpoint: config.json, *.safetensors and the tokenizer");
    }
    TRY(mem_array(&files->items, MODEL_FILES_MAX));
    TRY(add_side_files(files, folder));
    return stat(index, &info) == 0 ? add_shards(files, folder, index) : add_file(files, folder, "model.safetensors");
}

/* "b" of "/a/b/"; NULL: it has no name. */
static const char *folder_name(char *folder)
{
    for (size_t size = strlen(folder); size > 1 && folder[size - 1] == '/'; size--) {
        folder[size - 1] = '\0';
    }
    const char *slash = strrchr(folder, '/'), *name = slash != NULL ? slash + 1 : folder;

    return name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0 ? NULL : name;
}

static int register_files(struct cli *cli, const struct model_upload_options *options, const char *name,
                          const struct model_files *files, json_t **model)
{
    AUTO_JSON json_t *list = json_array();

    for (size_t i = 0; i < files->count; i++) {
        (void)json_array_append_new(list, json_pack("{s:s, s:O}", "path", files->items[i].name, "file_id",
                                                    json_object_get(files->items[i].file, "id")));
    }
    AUTO_JSON json_t *body = json_pack("{s:s, s:s*, s:s*, s:O}", "uri", "upload:", "name", name, "expected_sha256",
                                       options->sha256, "files", list);
    if (body == NULL || json_array_size(list) != files->count) {
        return err_raise(ERR_CONFIG, "a name is not UTF-8");
    }
    return client_send(cli, "POST", objects_models.path, body, model);
}

/* Once the model has the bytes, its files would only fill lists. kept: those that the same command would continue with
 * stay. */
static void delete_files(struct cli *cli, const struct model_files *files, bool kept)
{
    for (size_t i = 0; i < files->count; i++) {
        AUTO(http_answer) struct http_answer answer = {0};
        char path[CLIENT_PATH_MAX];
        const char *id = json_get_string(files->items[i].file, "id");
        if (id != NULL && !(kept && files->items[i].upload[0] != '\0') &&
            objects_path(path, sizeof(path), &objects_files, id) == 0) {
            (void)client_raw(cli, &(struct http_call){.method = "DELETE", .path = path}, &answer);
        }
    }
}

static int models_upload_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct model_upload_options *options = given;
    AUTO(model_files) struct model_files files = {.items = NULL};
    AUTO_JSON json_t *model = NULL;
    const char *name = folder_name(arguments[0]);

    (void)count;
    TRY(list_files(arguments[0], &files));
    int parallel = options->parallel != OPTION_UNSET ? (int)options->parallel : MODEL_PARALLEL;
    int rc = upload_files(cli, files.items, files.count, "model", parallel);
    rc = rc == 0 ? register_files(cli, options, options->name != NULL ? options->name : name, &files, &model) : rc;
    if (rc != 0) {
        const struct err_record why = *err_last();
        delete_files(cli, &files, true);
        err_restore(&why);
        return rc;
    }
    delete_files(cli, &files, false);
    upload_forget(cli, files.items, files.count, "model");
    return objects_print(cli, &objects_models, model);
}

const struct command command_models_upload = {
    .name = "models upload",
    .arguments = "FOLDER",
    .summary = "Upload a checkpoint of this host and register it",
    .details =
        "Sent are config.json, the safetensors files (those that the index names, where there is one), the "
        "tokenizer and the folder's other small files. Large files are sent in pieces, several at once; after an "
        "interruption the same command continues.",
    .min = 1,
    .max = 1,
    .options = model_upload_rows,
    .size = sizeof(struct model_upload_options),
    .run = models_upload_run,
};
