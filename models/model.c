/* An open checkpoint: config.json, then the shards' headers, then their agreement. No weight is read here.
 *
 * Everything is opened relative to the model root's descriptor and stays open, so what the job reads later is what was
 * checked now; model_check_unchanged detects when the file of a descriptor was replaced. */

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/text.h"
#include "models/model_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CONFIG_MAX ((size_t)4 << 20)
#define CONFIG_DEPTH 32
#define TOKENIZER_MAX ((size_t)256 << 20)
#define ARENA_MAX ((size_t)256 << 20)

/* Read a small file into *text, which the caller frees; ERR_NOT_FOUND when it is absent. */
static int model_read(const struct model *model, const char *name, size_t max, char **text, size_t *size)
{
    AUTO_FREE char *read = NULL;
    AUTO_CLOSE int fd = -1;

    TRY(model_files_open(model, name, &fd, NULL));
    int rc = fs_read_fd(fd, max, &read, size);
    if (rc == ERR_PAYLOAD_TOO_LARGE) {
        return err_raise(ERR_INVALID_MODEL, "%s: %s", name, err_last()->message);
    }
    TRY(rc);
    if (text_is_lfs_pointer(read, *size)) {
        rc = err_raise(ERR_INVALID_MODEL, "%s is a pointer file of git-lfs: the file itself was not downloaded", name);
        return err_set_hint(rc, "run \"git lfs pull\" in the checkpoint's folder");
    }
    *text = MOVE(read);
    return 0;
}

/* What the row of its architecture says, or that there is none. */
static int parse_config(struct model *model, enum model_reading reading)
{
    if (reading == MODEL_BARE) {
        TRY(arch_check_float(model->json));
        return bare_configure(model, "the request asks for the mode model_free");
    }
    int rc = arch_parse_config(model->json, &model->config);
    if (rc == ERR_UNSUPPORTED_ARCHITECTURE && reading != MODEL_KNOWN) {
        const struct err_record why = *err_last();
        if (reading == MODEL_AUTO && arch_is_named(model->json)) { /* one with values that its row refuses */
            err_restore(&why);
            return err_set_hint(rc, "%s; mode model_free takes it by names and shapes alone", why.hint);
        }
        return bare_configure(model, why.message);
    }
    TRY(rc);
    return plans_new(&model->config, &model->plans);
}

static int load_config(struct model *model, enum model_reading reading, struct digest *digest)
{
    AUTO_FREE char *text = NULL;
    size_t size = 0;
    int rc = model_read(model, "config.json", CONFIG_MAX, &text, &size);

    if (rc == ERR_NOT_FOUND) {
        return err_raise(ERR_INVALID_MODEL, "the checkpoint has no config.json");
    }
    TRY(rc);
    rc = json_parse(text, size, CONFIG_DEPTH, &model->json);
    if (rc == ERR_INVALID_JSON) {
        return err_raise(ERR_INVALID_MODEL, "config.json: %s", err_last()->message);
    }
    TRY(rc);
    digest_update(digest, text, size);
    TRY(parse_config(model, reading));
    return 0;
}

static void model_measure(struct model *model)
{
    for (size_t i = 0; i < model->tensor_count; i++) {
        const struct model_tensor *tensor = &model->tensors[i];
        bool spare = model->config.tie_word_embeddings && strcmp(tensor->name, model->head) == 0;
        bool table = model_is_rotary_table(model, tensor->name);
        model->bytes += (int64_t)(tensor->entry->end - tensor->entry->begin);
        model->parameters += spare || table ? 0 : (int64_t)model_elements(tensor->entry);
    }
}

static void digest_shards(const struct model *model, struct digest *digest)
{
    for (size_t i = 0; i < model->shard_count; i++) {
        const struct model_shard *shard = &model->shards[i];
        char line[512];
        int length = snprintf(line, sizeof(line), "\n%s %lld %s", shard->name,
                              (long long)safetensors_file_bytes(shard->file), safetensors_header_digest(shard->file));
        digest_update(digest, line, (size_t)length);
    }
}

static int model_load(struct model *model, enum model_reading reading)
{
    AUTO(digest) struct digest *digest = digest_new();

    if (digest == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a digest");
    }
    TRY(load_config(model, reading, digest));
    TRY(model_files_load_shards(model));
    if (model->bare != NULL) {
        TRY(bare_load(model));
    } else {
        TRY(model_names_find(model));
        TRY(model_stored_find(model));
        TRY(model_check_tensors(model));
        TRY(model_extras_list(model));
    }
    TRY(model_side_list(model));
    model_measure(model);
    digest_shards(model, digest);
    digest_finish(MOVE(digest), model->digest);
    return 0;
}

static int open_folder(struct model *model, int root_fd, const char *relative, enum model_reading reading)
{
    TRY(mem_new(&model->lazy));
    model->relative = arena_strndup(&model->arena, relative, strlen(relative));
    TRY(arena_check(&model->arena));
    model->root_fd = fcntl(root_fd, F_DUPFD_CLOEXEC, 0);
    if (model->root_fd < 0) {
        return err_raise_errno(errno, "cannot keep the model root open");
    }
    TRY(fs_open_beneath(root_fd, relative, O_RDONLY | O_DIRECTORY, &model->dir_fd));
    return model_load(model, reading);
}

int model_open(int root_fd, const char *relative, struct model **out)
{
    return model_open_as(root_fd, relative, MODEL_KNOWN, out);
}

int model_open_as(int root_fd, const char *relative, enum model_reading reading, struct model **out)
{
    AUTO(model) struct model *model = NULL;

    TRY(mem_new(&model));
    relative = relative[0] == '\0' ? "." : relative;
    model->dir_fd = model->root_fd = -1;
    arena_init(&model->arena, ARENA_MAX);
    int rc = open_folder(model, root_fd, relative, reading);
    if (rc != 0) {
        return err_pass(rc, "open the model %s", relative);
    }
    *out = MOVE(model);
    return 0;
}

void model_close(struct model *model)
{
    if (model == NULL) {
        return;
    }
    for (size_t i = 0; i < model->shard_count; i++) {
        safetensors_close(model->shards[i].file);
    }
    free(model->shards);
    free(model->tensors);
    free(model->by_name);
    free(model->side_files);
    free(model->extras);
    free(model->lazy);
    plans_free(model->plans);
    bare_free(model->bare);
    json_decref(model->json);
    if (model->dir_fd >= 0) {
        close(model->dir_fd);
    }
    if (model->root_fd >= 0) {
        close(model->root_fd);
    }
    arena_deinit(&model->arena);
    free(model);
}

const struct model_config *model_config(const struct model *model)
{
    return &model->config;
}

const json_t *model_config_json(const struct model *model)
{
    return model->json;
}

int model_root_fd(const struct model *model)
{
    return model->root_fd;
}

const char *model_relative(const struct model *model)
{
    return model->relative;
}

int model_open_file(const struct model *model, const char *name, int *fd)
{
    size_t folder = strlen(MODEL_TEMPLATES_FOLDER "/");
    bool within = strncmp(name, MODEL_TEMPLATES_FOLDER "/", folder) == 0;

    if (name[within ? folder : 0] == '\0' || strchr(name + (within ? folder : 0), '/') != NULL) {
        return err_raise(ERR_INVALID_PARAMETER, "\"%.200s\" is not a plain file name", name);
    }
    return model_files_open(model, name, fd, NULL);
}

const char *model_digest(const struct model *model)
{
    return model->digest;
}

void model_modification(const struct model *model, char hex[DIGEST_HEX_SIZE])
{
    char sums[2][DIGEST_HEX_SIZE] = {""}, line[512]; /* each shard's line begins with the digest of those before it */

    for (size_t i = 0; i < model->shard_count; i++) {
        const struct model_shard *shard = &model->shards[i];
        const struct timespec *at = &shard->identity.st_mtim;
        int length = snprintf(line, sizeof(line), "%s %.380s %lld.%09ld", sums[i % 2], shard->name,
                              (long long)at->tv_sec, at->tv_nsec);
        digest_bytes(line, (size_t)length, sums[(i + 1) % 2]);
    }
    memcpy(hex, sums[model->shard_count % 2], DIGEST_HEX_SIZE);
}

int64_t model_bytes(const struct model *model)
{
    return model->bytes;
}

int64_t model_parameters(const struct model *model)
{
    const struct model_tensor head = model_find(model, model->head);
    bool own = atomic_load(&model->lazy->head) == MODEL_HEAD_OWN;

    return model->parameters + (own ? (int64_t)model_elements(head.entry) : 0);
}

enum dtype model_dtype(const struct model *model)
{
    char name[MODEL_NAME_MAX];

    if (model->bare != NULL) {
        return model->bare->dtype;
    }
    model_part_name(model, 0, &plans_layer(model->plans, 0)->modules[0], false, name);
    return model_find(model, name).entry->dtype; /* model_check_tensors saw it */
}

size_t model_tensor_count(const struct model *model)
{
    return model->tensor_count;
}

struct model_tensor model_tensor_at(const struct model *model, size_t i)
{
    return model->tensors[i];
}

struct model_tensor model_find(const struct model *model, const char *name)
{
    const struct model_tensor key = {.name = name};
    const struct model_tensor *found =
        bsearch(&key, model->by_name, model->tensor_count, sizeof(*model->by_name), model_by_tensor);

    return found != NULL ? *found : (struct model_tensor){.name = name};
}

const char *const *model_side_files(const struct model *model)
{
    return model->side_files;
}

static bool same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

int model_check_unchanged(const struct model *model)
{
    for (size_t i = 0; i < model->shard_count; i++) {
        const struct stat *then = &model->shards[i].identity;
        struct stat now;
        if (fstat(safetensors_fd(model->shards[i].file), &now) != 0) {
            return err_raise_errno(errno, "cannot stat %s", model->shards[i].name);
        }
        if (now.st_dev != then->st_dev || now.st_ino != then->st_ino || now.st_size != then->st_size ||
            !same_time(now.st_mtim, then->st_mtim) || !same_time(now.st_ctim, then->st_ctim)) {
            return err_raise(ERR_SOURCE_CHANGED, "%.200s changed since the checkpoint was opened",
                             model->shards[i].name);
        }
    }
    return 0;
}

int model_read_tokenizer(const struct model *model, char **json, size_t *size)
{
    return model_read(model, "tokenizer.json", TOKENIZER_MAX, json, size);
}
