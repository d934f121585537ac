/* The checkpoint's side files: what an artifact carries along with its weights, such as the tokenizer. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "models/model_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define SIDE_FILES_MAX 1024

/* Weights in any format, the indexes over them, and config.json, which every artifact writes itself. */
static bool is_weight(const char *name)
{
    static const char *const suffixes[] = {".safetensors", ".index.json", ".bin", ".pt",   ".pth", ".ckpt", ".gguf",
                                           ".h5",          ".msgpack",    ".npz", ".onnx", ".pkl", ".ot"};
    size_t length = strlen(name);

    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        size_t tail = strlen(suffixes[i]);
        if (length >= tail && strcmp(name + length - tail, suffixes[i]) == 0) {
            return true;
        }
    }
    return strcmp(name, "config.json") == 0;
}

/* Files that say how text becomes tokens and how tokens are drawn: without one of them an artifact is another model. */
static bool side_is_needed(const char *folder, const char *name)
{
    static const char *const names[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "tokenizer.model",
                                        "vocab.json",
                                        "merges.txt",
                                        "chat_template.jinja",
                                        "chat_template.json",
                                        "generation_config.json"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(name, names[i]) == 0) {
            return true;
        }
    }
    return folder[0] != '\0';
}

/* One that exists must be readable below the root, or it would be missing without an error. */
static int check_needed(const struct model *model, const char *path)
{
    AUTO_CLOSE int fd = -1;
    int rc = model_files_open(model, path, &fd, NULL);

    if (rc == 0 || rc == ERR_NO_DESCRIPTORS || rc == ERR_HOST_OUT_OF_MEMORY) {
        return rc;
    }
    rc = err_raise(ERR_INVALID_MODEL, "%.200s exists, but is not a regular file below the model root", path);
    return err_set_hint(rc, "put the file itself, or a link that stays below the root, in its place, or remove it");
}

static int add_side(struct model *model, int dir_fd, const char *folder, const char *name, size_t *count)
{
    char path[300];
    struct stat info;

    if (name[0] == '.' || is_weight(name)) {
        return 0;
    }
    bool needed = side_is_needed(folder, name);
    if (!needed && (fstatat(dir_fd, name, &info, 0) != 0 || !S_ISREG(info.st_mode))) {
        return 0;
    }
    if (*count == SIDE_FILES_MAX) {
        return err_raise(ERR_INVALID_MODEL, "the checkpoint's folder has more than %d files", SIDE_FILES_MAX);
    }
    TRY(fs_path(path, sizeof(path), "%s%s", folder, name));
    if (needed) {
        TRY(check_needed(model, path));
    }
    model->side_files[(*count)++] = arena_strndup(&model->arena, path, strlen(path));
    return arena_check(&model->arena);
}

/* The files of an open folder, whose descriptor is taken; `folder` goes before their names. */
static int list_folder_take(struct model *model, int fd, const char *folder, size_t *count)
{
    AUTO_CLOSE int taken = fd;
    AUTO(folder) DIR *dir = taken >= 0 ? fdopendir(taken) : NULL;
    const struct dirent *entry;

    if (dir == NULL) {
        return err_raise_errno(errno, "cannot list the checkpoint's folder");
    }
    (void)cleanup_move_fd(&taken); /* the folder's from here on */
    while ((entry = readdir(dir)) != NULL) {
        TRY(add_side(model, dirfd(dir), folder, entry->d_name, count));
    }
    return 0;
}

int model_side_list(struct model *model)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
    size_t count = 0;

    TRY(mem_array(&model->side_files, SIDE_FILES_MAX + 1));
    TRY(list_folder_take(model, openat(model->dir_fd, ".", flags), "", &count));
    int templates = openat(model->dir_fd, MODEL_TEMPLATES_FOLDER, flags | O_NOFOLLOW);
    if (templates >= 0) {
        TRY(list_folder_take(model, templates, MODEL_TEMPLATES_FOLDER "/", &count));
    } else if (errno != ENOENT) {
        return err_raise(ERR_INVALID_MODEL, MODEL_TEMPLATES_FOLDER " exists, but is not a folder of its own");
    }
    qsort(model->side_files, count, sizeof(*model->side_files), model_by_text);
    return 0;
}
