#pragma once
/* What the files of struct model share. Not for other folders. */

#include "base/arena.h"
#include "base/digest.h"
#include "models/model.h"

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

struct model {
    int root_fd, dir_fd;
    const char *relative;
    struct arena arena; /* every string */
    json_t *json;
    struct model_config config;
    struct plans *plans;
    char embedding[MODEL_NAME_MAX], norm[MODEL_NAME_MAX], head[MODEL_NAME_MAX]; /* tensors outside the layers */
    struct model_lazy *lazy;
    struct model_shard *shards; /* by name */
    size_t shard_count;
    struct model_tensor *tensors; /* by shard, offset */
    struct model_tensor *by_name;
    size_t tensor_count;
    const char **side_files; /* by name, NULL-terminated */
    char digest[DIGEST_HEX_SIZE];
    int64_t bytes, parameters;
};

/* model_files.c: the directory. */
/* Open a regular file; *info may be NULL. */
int model_files_open(const struct model *model, const char *name, int *fd, struct stat *info);
/* Find and open the shards, through the index when there is one, and list their tensors. */
int model_files_load_shards(struct model *model);
int model_files_list_side(struct model *model);

/* model_check.c: tensors against the configuration. */
int model_check_tensors(const struct model *model);
