/* The checkpoint's weight files, each opened beneath the model root.
 *
 * With an index (model_index.c), the index decides: its shards are opened and others are left alone; every tensor it
 * lists must lie in the shard it names. Without one, model.safetensors is the checkpoint. A directory where both ways
 * would give different weights is refused, because loaders disagree on which wins. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "models/model_internal.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define INDEX_FILE MODEL_INDEX_FILE
#define SINGLE_FILE "model.safetensors"
#define SHARDS_MAX 1024
#define HEADERS_MAX ((size_t)128 << 20) /* of all shards; a header costs about twice its size in memory */

int model_files_open(const struct model *model, const char *name, int *fd, struct stat *info)
{
    char path[MODEL_PATH_MAX];
    struct stat found;
    AUTO_CLOSE int opened = -1;

    TRY(fs_path(path, sizeof(path), "%s/%s", model->relative, name));
    TRY(fs_open_beneath(model->root_fd, path, O_RDONLY | O_NONBLOCK, &opened));
    if (fstat(opened, &found) != 0 || !S_ISREG(found.st_mode)) {
        return err_raise(ERR_INVALID_MODEL, "%.200s is not a regular file", name);
    }
    if (info != NULL) {
        *info = found;
    }
    *fd = cleanup_move_fd(&opened);
    return 0;
}

int model_by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool file_ends_with(const char *name, const char *suffix)
{
    size_t length = strlen(name), tail = strlen(suffix);

    return length > tail && strcmp(name + length - tail, suffix) == 0;
}

/* A file of the folder with one of these endings, "" when there is none; the first in the order of names. */
static void find_file(const struct model *model, const char *const *suffixes, char out[256])
{
    AUTO_CLOSE int fd = openat(model->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    AUTO(folder) DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *entry;

    if (dir != NULL) {
        (void)cleanup_move_fd(&fd); /* the folder's from here on */
    }
    out[0] = '\0';
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        for (size_t i = 0; suffixes[i] != NULL; i++) {
            if (file_ends_with(entry->d_name, suffixes[i]) && (out[0] == '\0' || strcmp(entry->d_name, out) < 0)) {
                (void)snprintf(out, 256, "%s", entry->d_name);
            }
        }
    }
}

/* There is neither an index nor model.safetensors: say what there is in their place. */
static int refuse_without_weights(const struct model *model)
{
    static const char *const pickles[] = {".bin", ".pt", ".pth", ".ckpt", ".pkl", NULL};
    static const char *const others[] = {".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", ".npz", NULL};
    char name[256];

    find_file(model, others, name);
    if (name[0] != '\0') {
        int rc = err_raise(ERR_INVALID_MODEL,
                           "there is no " SINGLE_FILE " and no " INDEX_FILE "; the folder has %.100s", name);
        return err_set_hint(rc, "%s",
                            strncmp(name, "adapter", 7) == 0
                                ? "an adapter is not a complete model: merge it into its base"
                            : file_ends_with(name, ".safetensors")
                                ? "an index names the shards of a checkpoint; a single file is called " SINGLE_FILE
                                : "convert it to the Hugging Face layout with safetensors");
    }
    find_file(model, pickles, name);
    if (name[0] != '\0') {
        int rc =
            err_raise(ERR_INVALID_MODEL,
                      "the checkpoint has pickled weights only (%.100s); pickles are not read, because reading one "
                      "can run code",
                      name);
        return err_set_hint(rc, "convert it: load it where you trust it and save it with safe_serialization=True");
    }
    return err_raise(ERR_INVALID_MODEL, "the checkpoint has no weights: no " SINGLE_FILE " and no " INDEX_FILE);
}

static int open_shards(struct model *model, const char *const *names, size_t count)
{
    if (count > SHARDS_MAX) {
        return err_raise(ERR_INVALID_MODEL, "the checkpoint has %zu shards, more than %d", count, SHARDS_MAX);
    }
    TRY(mem_array(&model->shards, count));
    size_t headers = 0;
    for (size_t i = 0; i < count; i++) {
        struct model_shard *shard = &model->shards[i];
        int fd;
        shard->name = names[i];
        int rc = model_files_open(model, names[i], &fd, &shard->identity);
        if (rc == ERR_NOT_FOUND) {
            return err_raise(ERR_INVALID_MODEL, "the weight file %.200s is missing, which " INDEX_FILE " names",
                             names[i]);
        }
        if (rc == 0) {
            rc = safetensors_open_fd_take(fd, names[i], &shard->file);
        }
        if (rc != 0) {
            return err_pass(rc, "shard %s", names[i]);
        }
        model->shard_count++;
        headers += safetensors_header_bytes(shard->file);
        if (headers > HEADERS_MAX) {
            return err_raise(ERR_INVALID_MODEL,
                             "the headers of the first %zu of %zu shards have %zu bytes, more than %zu", i + 1, count,
                             headers, HEADERS_MAX);
        }
    }
    return 0;
}

int model_by_tensor(const void *a, const void *b)
{
    return strcmp(((const struct model_tensor *)a)->name, ((const struct model_tensor *)b)->name);
}

static int list_model_tensors(struct model *model)
{
    size_t count = 0, at = 0;

    for (size_t i = 0; i < model->shard_count; i++) {
        count += safetensors_count(model->shards[i].file);
    }
    TRY(mem_array(&model->tensors, count));
    TRY(mem_array(&model->by_name, count));
    for (size_t i = 0; i < model->shard_count; i++) {
        const struct safetensors *file = model->shards[i].file;
        for (size_t k = 0; k < safetensors_count(file); k++, at++) {
            const struct safetensors_entry *entry = safetensors_at(file, k);
            model->tensors[at] = (struct model_tensor){entry->name, file, entry};
        }
    }
    model->tensor_count = count;
    memcpy(model->by_name, model->tensors, count * sizeof(*model->tensors));
    qsort(model->by_name, count, sizeof(*model->by_name), model_by_tensor);
    for (size_t i = 1; i < count; i++) {
        if (strcmp(model->by_name[i - 1].name, model->by_name[i].name) == 0) {
            return err_raise(ERR_INVALID_MODEL, "tensor \"%.160s\" lies in two shards", model->by_name[i].name);
        }
    }
    return 0;
}

/* A single file next to an index that does not name it: two checkpoints in one place. */
static int check_single(const struct model *model)
{
    AUTO_CLOSE int fd = -1;

    for (size_t i = 0; i < model->shard_count; i++) {
        if (strcmp(model->shards[i].name, SINGLE_FILE) == 0) {
            return 0;
        }
    }
    int rc = model_files_open(model, SINGLE_FILE, &fd, NULL);
    if (rc != 0) {
        return rc == ERR_NOT_FOUND ? 0 : rc;
    }
    return err_raise(ERR_INVALID_MODEL, "there is both " SINGLE_FILE " and an index of other files");
}

static int load_single(struct model *model)
{
    static const char *const single[] = {SINGLE_FILE};
    AUTO_CLOSE int fd = -1;

    int rc = model_files_open(model, SINGLE_FILE, &fd, NULL);
    if (rc != 0) {
        return rc == ERR_NOT_FOUND ? refuse_without_weights(model) : rc;
    }
    return open_shards(model, single, 1);
}

int model_files_load_shards(struct model *model)
{
    AUTO(model_index) struct model_index index = {0};
    AUTO_FREE const char **names = NULL;
    size_t count = 0;
    bool found = false;

    TRY(model_index_read(model, &index, &found));
    if (!found) {
        TRY(load_single(model));
        return list_model_tensors(model);
    }
    TRY(model_index_shards(&index, &names, &count));
    TRY(open_shards(model, names, count));
    TRY(check_single(model));
    TRY(model_index_check(model, &index));
    return list_model_tensors(model);
}
