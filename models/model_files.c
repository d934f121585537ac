/* The checkpoint's directory: shards through their index, side files, each opened beneath the model root.
 *
 * With an index, the index decides: its shards are opened and others are left alone; every tensor it lists must lie in
 * the shard it names. Without one, model.safetensors is the checkpoint. A directory where both ways would give
 * different weights is refused, because loaders disagree on which wins. */

#include "base/err.h"
#include "base/fs.h"
#include "base/json_stream.h"
#include "models/model_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define INDEX_FILE "model.safetensors.index.json"
#define SINGLE_FILE "model.safetensors"
#define INDEX_MAX ((size_t)64 << 20)
#define SHARDS_MAX 1024
#define HEADERS_MAX ((size_t)128 << 20) /* of all shards; a header costs about twice its size in memory */
#define LISTED_MAX ((size_t)1 << 20)
#define SIDE_FILES_MAX 1024

struct listed {
    const char *tensor, *shard;
};

struct index {
    struct listed *items;
    size_t count, capacity;
    bool seen; /* weight_map */
};

int model_files_open(const struct model *model, const char *name, int *fd, struct stat *info)
{
    char path[MODEL_PATH_MAX];
    struct stat found;
    int opened;

    int rc = fs_path(path, sizeof(path), "%s/%s", model->relative, name);
    rc = rc != 0 ? rc : fs_open_beneath(model->root_fd, path, O_RDONLY | O_NONBLOCK, &opened);
    if (rc != 0) {
        return rc;
    }
    if (fstat(opened, &found) != 0 || !S_ISREG(found.st_mode)) {
        close(opened);
        return err_raise(ERR_INVALID_MODEL, "%.200s is not a regular file", name);
    }
    if (info != NULL) {
        *info = found;
    }
    *fd = opened;
    return 0;
}

/* A name that can only mean a weight file in this directory. */
static bool is_shard_name(const char *name, size_t length)
{
    static const char suffix[] = ".safetensors";
    size_t tail = sizeof(suffix) - 1;

    return length > tail && length <= 255 && memchr(name, '/', length) == NULL && memchr(name, '\\', length) == NULL &&
           memchr(name, '\0', length) == NULL && name[0] != '.' && memcmp(name + length - tail, suffix, tail) == 0;
}

static int add_listed(struct model *model, struct index *index, const char *tensor, struct json_stream *stream)
{
    if (!is_shard_name(stream->text, stream->length)) {
        return err_raise(ERR_INVALID_MODEL,
                         INDEX_FILE ": tensor \"%.160s\" lies in \"%.*s\", which is not the plain name "
                                    "of a safetensors file",
                         tensor, (int)(stream->length < 100 ? stream->length : 100), stream->text);
    }
    if (index->count == index->capacity) {
        size_t wanted = index->capacity == 0 ? 512 : index->capacity * 2;
        struct listed *larger = wanted <= LISTED_MAX ? realloc(index->items, wanted * sizeof(*larger)) : NULL;
        if (larger == NULL) {
            return err_raise(wanted <= LISTED_MAX ? ERR_HOST_OUT_OF_MEMORY : ERR_INVALID_MODEL,
                             INDEX_FILE " lists %zu tensors, too many", wanted);
        }
        index->items = larger;
        index->capacity = wanted;
    }
    const char *shard = arena_strndup(&model->arena, stream->text, stream->length);
    index->items[index->count++] = (struct listed){tensor, shard};
    return arena_check(&model->arena);
}

static int malformed(const struct json_stream *stream)
{
    return err_raise(ERR_INVALID_MODEL, INDEX_FILE ": byte %zu: %s", stream->at,
                     stream->error != NULL ? stream->error : "a value of another type was expected");
}

static int parse_weight_map(struct model *model, struct index *index, struct json_stream *stream)
{
    enum json_token token = json_stream_next(stream);

    if (index->seen || token != JSON_TOKEN_OBJECT_BEGIN) {
        return index->seen ? err_raise(ERR_INVALID_MODEL, INDEX_FILE ": weight_map appears twice") : malformed(stream);
    }
    index->seen = true;
    while ((token = json_stream_next(stream)) == JSON_TOKEN_KEY) {
        if (memchr(stream->text, '\0', stream->length) != NULL) {
            return err_raise(ERR_INVALID_MODEL, INDEX_FILE ": a tensor name holds a NUL");
        }
        const char *tensor = arena_strndup(&model->arena, stream->text, stream->length);
        int rc = arena_check(&model->arena);
        if (rc == 0 && json_stream_next(stream) != JSON_TOKEN_STRING) {
            rc = malformed(stream);
        }
        rc = rc != 0 ? rc : add_listed(model, index, tensor, stream);
        if (rc != 0) {
            return rc;
        }
    }
    return token == JSON_TOKEN_OBJECT_END ? 0 : malformed(stream);
}

static int parse_index(struct model *model, struct index *index, struct json_stream *stream)
{
    static const char key[] = "weight_map";
    enum json_token token = json_stream_next(stream);

    if (token != JSON_TOKEN_OBJECT_BEGIN) {
        return malformed(stream);
    }
    while ((token = json_stream_next(stream)) == JSON_TOKEN_KEY) {
        int rc = 0;
        if (stream->length == sizeof(key) - 1 && memcmp(stream->text, key, stream->length) == 0) {
            rc = parse_weight_map(model, index, stream);
        } else if (!json_stream_skip(stream, json_stream_next(stream))) {
            rc = malformed(stream);
        }
        if (rc != 0) {
            return rc;
        }
    }
    if (token != JSON_TOKEN_OBJECT_END || json_stream_next(stream) != JSON_TOKEN_END) {
        return malformed(stream);
    }
    return index->count > 0 ? 0 : err_raise(ERR_INVALID_MODEL, INDEX_FILE " lists no tensors");
}

/* 1: read; 0: there is no index. */
static int read_index(struct model *model, struct index *index)
{
    struct json_stream stream;
    char *text = NULL;
    size_t size = 0;
    int fd = -1;

    int rc = model_files_open(model, INDEX_FILE, &fd, NULL);
    if (rc != 0) {
        return rc == ERR_NOT_FOUND ? 0 : err_pass(rc, "open the index");
    }
    rc = fs_read_fd(fd, INDEX_MAX, &text, &size);
    close(fd);
    if (rc != 0) {
        return rc == ERR_PAYLOAD_TOO_LARGE ? err_raise(ERR_INVALID_MODEL, INDEX_FILE ": %s", err_last()->message) : rc;
    }
    json_stream_init(&stream, text, size);
    rc = parse_index(model, index, &stream);
    json_stream_deinit(&stream);
    free(text);
    return rc != 0 ? rc : 1;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The index's distinct shard names, sorted; what they point to lives in the arena. */
static int shard_names(const struct index *index, const char ***out, size_t *count)
{
    const char **names = calloc(index->count, sizeof(*names));

    if (names == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %zu names", index->count);
    }
    for (size_t i = 0; i < index->count; i++) {
        names[i] = index->items[i].shard;
    }
    qsort(names, index->count, sizeof(*names), by_text);
    size_t kept = 0;
    for (size_t i = 0; i < index->count; i++) {
        if (kept == 0 || strcmp(names[kept - 1], names[i]) != 0) {
            names[kept++] = names[i];
        }
    }
    *out = names;
    *count = kept;
    return 0;
}

static bool ends_with(const char *name, const char *suffix)
{
    size_t length = strlen(name), tail = strlen(suffix);

    return length > tail && strcmp(name + length - tail, suffix) == 0;
}

/* A file of the folder with one of these endings, "" when there is none; the first in the order of names. */
static void find_file(const struct model *model, const char *const *suffixes, char out[256])
{
    int fd = openat(model->dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *entry;

    out[0] = '\0';
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        for (size_t i = 0; suffixes[i] != NULL; i++) {
            if (ends_with(entry->d_name, suffixes[i]) && (out[0] == '\0' || strcmp(entry->d_name, out) < 0)) {
                (void)snprintf(out, 256, "%s", entry->d_name);
            }
        }
    }
    if (dir != NULL) {
        closedir(dir);
    } else if (fd >= 0) {
        close(fd);
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
                            strncmp(name, "adapter", 7) == 0 ? "an adapter is no whole model: merge it into its base"
                            : ends_with(name, ".safetensors")
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
    model->shards = calloc(count, sizeof(*model->shards));
    if (model->shards == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %zu shards", count);
    }
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
        rc = rc != 0 ? rc : safetensors_open_fd_take(fd, names[i], &shard->file);
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

static int by_tensor(const void *a, const void *b)
{
    return strcmp(((const struct model_tensor *)a)->name, ((const struct model_tensor *)b)->name);
}

static int list_tensors(struct model *model)
{
    size_t count = 0, at = 0;

    for (size_t i = 0; i < model->shard_count; i++) {
        count += safetensors_count(model->shards[i].file);
    }
    model->tensors = calloc(count + 1, sizeof(*model->tensors));
    model->by_name = calloc(count + 1, sizeof(*model->by_name));
    if (model->tensors == NULL || model->by_name == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %zu tensors", count);
    }
    for (size_t i = 0; i < model->shard_count; i++) {
        const struct safetensors *file = model->shards[i].file;
        for (size_t k = 0; k < safetensors_count(file); k++, at++) {
            const struct safetensors_entry *entry = safetensors_at(file, k);
            model->tensors[at] = (struct model_tensor){entry->name, file, entry};
        }
    }
    model->tensor_count = count;
    memcpy(model->by_name, model->tensors, count * sizeof(*model->tensors));
    qsort(model->by_name, count, sizeof(*model->by_name), by_tensor);
    for (size_t i = 1; i < count; i++) {
        if (strcmp(model->by_name[i - 1].name, model->by_name[i].name) == 0) {
            return err_raise(ERR_INVALID_MODEL, "tensor \"%.160s\" lies in two shards", model->by_name[i].name);
        }
    }
    return 0;
}

static int by_listed(const void *a, const void *b)
{
    return strcmp(((const struct listed *)a)->tensor, ((const struct listed *)b)->tensor);
}

static int by_shard(const void *a, const void *b)
{
    return strcmp(((const struct model_shard *)a)->name, ((const struct model_shard *)b)->name);
}

/* Every tensor of the index once, where the index says. */
static int check_index(const struct model *model, const struct index *index)
{
    qsort(index->items, index->count, sizeof(*index->items), by_listed);
    for (size_t i = 0; i < index->count; i++) {
        const struct listed *item = &index->items[i];
        if (i > 0 && strcmp(index->items[i - 1].tensor, item->tensor) == 0) {
            return err_raise(ERR_INVALID_MODEL, INDEX_FILE ": tensor \"%.160s\" is listed twice", item->tensor);
        }
        const struct model_shard key = {.name = item->shard};
        const struct model_shard *shard =
            bsearch(&key, model->shards, model->shard_count, sizeof(*model->shards), by_shard);
        if (shard == NULL || safetensors_find(shard->file, item->tensor) == NULL) {
            return err_raise(ERR_INVALID_MODEL, INDEX_FILE ": tensor \"%.160s\" is not in %.100s", item->tensor,
                             item->shard);
        }
    }
    return 0;
}

/* A single file beside an index that does not name it: two checkpoints in one place. */
static int check_single(const struct model *model)
{
    int fd;

    for (size_t i = 0; i < model->shard_count; i++) {
        if (strcmp(model->shards[i].name, SINGLE_FILE) == 0) {
            return 0;
        }
    }
    int rc = model_files_open(model, SINGLE_FILE, &fd, NULL);
    if (rc == ERR_NOT_FOUND) {
        return 0;
    }
    if (rc == 0) {
        close(fd);
        rc = err_raise(ERR_INVALID_MODEL, "there is both " SINGLE_FILE " and an index of other files");
    }
    return rc;
}

int model_files_load_shards(struct model *model)
{
    static const char *const single[] = {SINGLE_FILE};
    struct index index = {0};
    const char **names = NULL;
    size_t count = 0;

    int rc = read_index(model, &index);
    if (rc == 0) {
        int fd;
        rc = model_files_open(model, SINGLE_FILE, &fd, NULL);
        if (rc == 0) {
            close(fd);
        }
        rc = rc == ERR_NOT_FOUND ? refuse_without_weights(model) : rc;
        rc = rc != 0 ? rc : open_shards(model, single, 1);
    } else if (rc == 1) {
        rc = shard_names(&index, &names, &count);
        rc = rc != 0 ? rc : open_shards(model, names, count);
        rc = rc != 0 ? rc : check_single(model);
        rc = rc != 0 ? rc : check_index(model, &index);
    }
    rc = rc != 0 ? rc : list_tensors(model);
    free(names);
    free(index.items);
    return rc;
}

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
static bool is_needed(const char *folder, const char *name)
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

/* One that is there must be readable below the root, or it would be missing without a word. */
static int check_needed(const struct model *model, const char *path)
{
    int fd = -1;
    int rc = model_files_open(model, path, &fd, NULL);

    if (rc == 0) {
        close(fd);
        return 0;
    }
    if (rc == ERR_NO_DESCRIPTORS || rc == ERR_HOST_OUT_OF_MEMORY) {
        return rc;
    }
    rc = err_raise(ERR_INVALID_MODEL, "%.200s is there, but is no regular file below the model root", path);
    return err_set_hint(rc, "put the file itself, or a link that stays below the root, in its place, or remove it");
}

static int add_side(struct model *model, int dir_fd, const char *folder, const char *name, size_t *count)
{
    char path[300];
    struct stat info;

    if (name[0] == '.' || is_weight(name)) {
        return 0;
    }
    bool needed = is_needed(folder, name);
    if (!needed && (fstatat(dir_fd, name, &info, 0) != 0 || !S_ISREG(info.st_mode))) {
        return 0;
    }
    if (*count == SIDE_FILES_MAX) {
        return err_raise(ERR_INVALID_MODEL, "the checkpoint's folder has more than %d files", SIDE_FILES_MAX);
    }
    int rc = fs_path(path, sizeof(path), "%s%s", folder, name);
    rc = rc != 0 || !needed ? rc : check_needed(model, path);
    if (rc != 0) {
        return rc;
    }
    model->side_files[(*count)++] = arena_strndup(&model->arena, path, strlen(path));
    return arena_check(&model->arena);
}

/* The files of an open folder, which is closed; `folder` goes before their names. */
static int list_folder(struct model *model, int fd, const char *folder, size_t *count)
{
    const struct dirent *entry;
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    int rc = 0;

    if (dir == NULL) {
        rc = err_raise_errno(errno, "cannot list the checkpoint's folder");
        if (fd >= 0) {
            close(fd);
        }
        return rc;
    }
    while (rc == 0 && (entry = readdir(dir)) != NULL) {
        rc = add_side(model, dirfd(dir), folder, entry->d_name, count);
    }
    closedir(dir);
    return rc;
}

int model_files_list_side(struct model *model)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
    size_t count = 0;

    model->side_files = calloc(SIDE_FILES_MAX + 1, sizeof(*model->side_files));
    if (model->side_files == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for file names");
    }
    int rc = list_folder(model, openat(model->dir_fd, ".", flags), "", &count);
    int templates = openat(model->dir_fd, MODEL_TEMPLATES_FOLDER, flags | O_NOFOLLOW);
    if (rc == 0 && templates >= 0) {
        rc = list_folder(model, templates, MODEL_TEMPLATES_FOLDER "/", &count);
    } else if (templates >= 0) {
        close(templates);
    } else if (rc == 0 && errno != ENOENT) {
        rc = err_raise(ERR_INVALID_MODEL, MODEL_TEMPLATES_FOLDER " is there, but is not a folder of its own");
    }
    qsort(model->side_files, count, sizeof(*model->side_files), by_text);
    return rc;
}
