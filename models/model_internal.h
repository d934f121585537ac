#pragma once
/* What the files of struct model share. Not for other folders. */

#include "base/arena.h"
#include "base/digest.h"
#include "models/model.h"

#include <dirent.h>
#include <stdatomic.h>
#include <sys/stat.h>

#define MODEL_PATH_MAX 4096

struct model_shard {
    const char *name;
    struct safetensors *file;
    struct stat identity; /* when it was opened */
};

enum model_head { MODEL_HEAD_UNKNOWN, MODEL_HEAD_TIED, MODEL_HEAD_OWN };

/* What is found out when it is first asked for; any thread may. */
struct model_lazy {
    _Atomic int head; /* enum model_head, of a config that says tied; model_scan.c */
};

/* Of a bare model (bare.h). */
struct bare_name {
    const char *name; /* a module's path */
    size_t index;     /* of all modules, as plans_module_at has them */
};
struct bare {
    struct arch arch;   /* its name alone */
    const char *reason; /* why there is no row */
    enum dtype dtype;   /* of most elements of its modules */
    struct bare_name *by_name;
    size_t count;
};

struct model {
    int root_fd, dir_fd;
    const char *relative;
    struct arena arena; /* every string */
    json_t *json;
    struct model_config config;
    struct plans *plans;
    struct arch_layout layout;
    char layers[MODEL_NAME_MAX], embedding_module[MODEL_NAME_MAX], head_module[MODEL_NAME_MAX];
    char embedding[MODEL_NAME_MAX], norm[MODEL_NAME_MAX], head[MODEL_NAME_MAX]; /* tensors outside the layers */
    char norm_bias[MODEL_NAME_MAX], positions[MODEL_NAME_MAX];                  /* empty: the model has none */
    char head_bias[MODEL_NAME_MAX];                                             /* likewise */
    char tokens[MODEL_TOKENS][MODEL_NAME_MAX], tokens_module[MODEL_NAME_MAX];   /* likewise */
    const char **extras;                                                        /* NULL-terminated */
    struct model_lazy *lazy;
    struct bare *bare;          /* NULL: a row describes its architecture */
    struct model_shard *shards; /* by name */
    size_t shard_count;
    struct model_tensor *tensors; /* by shard, offset */
    struct model_tensor *by_name;
    size_t tensor_count;
    const char **side_files; /* by name, NULL-terminated */
    char digest[DIGEST_HEX_SIZE];
    int64_t bytes, parameters;
};

/* qsort's and bsearch's order of strings, and of struct model_tensor by name. */
int model_by_text(const void *a, const void *b);
int model_by_tensor(const void *a, const void *b);

CLEANUP_FREE(folder, DIR, (void)closedir)

/* Elements of a tensor. */
static inline uint64_t model_elements(const struct safetensors_entry *entry)
{
    return (entry->end - entry->begin) / dtype_rows[entry->dtype].bytes;
}

/* model_index.c: the index of shards. */
#define MODEL_INDEX_FILE "model.safetensors.index.json"
struct model_listed {
    const char *tensor, *shard; /* of the model's arena */
};
struct model_index {
    struct model_listed *items;
    size_t count, capacity;
    bool seen; /* weight_map */
};
/* Into a zeroed index; *found: whether the checkpoint has one. model_index_deinit is due after a failure, too. */
int model_index_read(struct model *model, struct model_index *index, bool *found);
/* The distinct names of its shards, sorted. The caller frees *out; the names are the arena's. */
int model_index_shards(const struct model_index *index, const char ***out, size_t *count);
/* Every tensor that it lists must be listed once and lie in the open shard that it names. Sorts the index. */
int model_index_check(const struct model *model, const struct model_index *index);
void model_index_deinit(struct model_index *index);
CLEANUP_DEINIT(model_index, struct model_index, model_index_deinit)

/* model_files.c: the directory. */
/* Open a regular file; *info may be NULL. */
int model_files_open(const struct model *model, const char *name, int *fd, struct stat *info);
/* Find and open the shards, through the index when there is one, and list their tensors. */
int model_files_load_shards(struct model *model);

/* model_side.c: list the files that go into an artifact in addition to weights and config.json. */
int model_side_list(struct model *model);

/* model_names.c: which of the layouts of its class a checkpoint has, and the names that follow. */
int model_names_find(struct model *model);

/* model_stored.c: which form the linears of experts have, where the family allows several; plans for another than the
 * configuration's own are made then. */
int model_stored_find(struct model *model);

/* model_extras.c. */
/* Whether a tensor belongs to a part that passes through. */
bool model_is_extra(const struct model *model, const char *name);
/* List these parts. */
int model_extras_list(struct model *model);

/* bare.c: for a model whose architecture no row describes. */
/* In place of arch_parse_config: name the architecture. */
int bare_configure(struct model *model, const char *reason);
/* In place of model_check_tensors and plans_new, once the shards are listed. ERR_ALREADY_QUANTIZED, ERR_INVALID_MODEL.
 */
int bare_load(struct model *model);
void bare_free(struct bare *bare);
/* The layer of a module, by its path, and *module; or -1. */
int64_t bare_find(const struct model *model, const char *name, int *module);
/* Whether a tensor is the weight of a module that is not optional. */
bool bare_is_solved(const struct model *model, const char *tensor);

/* model_check.c: tensors against the configuration. */
int model_check_tensors(const struct model *model);
