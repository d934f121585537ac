#pragma once
/* A model, its blocks' files, and exports of them into folders next to them. */

#include "base/digest.h"
#include "tests/unit/formats/checkpoint.h"
#include "tests/unit/json.h"

#include <dirent.h>

struct rig {
    char dir[256];
    struct model *model;
    struct format_module *modules;
    int count, blocks;
    int threads; /* of exports */
    char paths[8][320];
    const char *files[8];
};

static inline void make_blocks(struct rig *rig)
{
    rig->blocks = rig->count / LLAMA_MODULES;
    for (int b = 0; b < rig->blocks; b++) {
        struct qtensor items[LLAMA_MODULES];
        char hex[65];
        for (int i = 0; i < LLAMA_MODULES; i++) {
            const struct format_module *m = &rig->modules[b * LLAMA_MODULES + i];
            qtensor_random(m->name, &m->scheme, m->rows, m->cols, (uint32_t)(b * 100 + i), &items[i]);
        }
        snprintf(rig->paths[b], sizeof(rig->paths[b]), "%s/block-%d", rig->dir, b);
        rig->files[b] = rig->paths[b];
        ck_assert_rc_ok(qtensor_save(rig->paths[b], items, LLAMA_MODULES, NULL, hex));
        for (int i = 0; i < LLAMA_MODULES; i++) {
            qtensor_deinit(&items[i]);
        }
    }
}

static inline void rig_fill(struct rig *rig, const char *source, const char *format, int bits, int64_t group, bool sym)
{
    rig->model = checkpoint_open(source == NULL ? rig->dir : TEST_DATA, source == NULL ? "source" : source);
    enum dtype scale = format_find(format)->scale_dtype(model_dtype(rig->model));
    rig->count = checkpoint_modules(rig->model, bits, group, sym, scale, &rig->modules);
    make_blocks(rig);
}

/* The checkpoint made on the spot, with something out of the ordinary. */
static inline void rig_init_faulty(struct rig *rig, const struct checkpoint_fault *fault, const char *format, int bits,
                                   int64_t group, bool sym)
{
    char path[300];

    *rig = (struct rig){0};
    scratch_make(rig->dir);
    snprintf(path, sizeof(path), "%s/source", rig->dir);
    checkpoint_make_faulty(path, fault);
    rig_fill(rig, NULL, format, bits, group, sym);
}

/* source NULL: the checkpoint made on the spot; else a folder of the test data. */
static inline void rig_init(struct rig *rig, const char *source, const char *format, int bits, int64_t group, bool sym)
{
    if (source == NULL) {
        rig_init_faulty(rig, &(struct checkpoint_fault){0}, format, bits, group, sym);
        return;
    }
    *rig = (struct rig){0};
    scratch_make(rig->dir);
    rig_fill(rig, source, format, bits, group, sym);
}

static inline void rig_deinit(struct rig *rig)
{
    free(rig->modules);
    model_close(rig->model);
    scratch_remove(rig->dir);
}

static inline int export_to(struct rig *rig, const char *format, const char *folder, int64_t shard,
                            int (*tick)(void *data, double fraction), void *data, json_t **files)
{
    char directory[300];
    json_t *provenance = json_of("{'seed': 7, 'tiny': 1e-05}");

    snprintf(directory, sizeof(directory), "%s/%s", rig->dir, folder);
    const struct format_export request = {
        .format = format_find(format),
        .config = {.modules = rig->modules, .count = rig->count, .model = rig->model, .method = "rtn"},
        .block_files = rig->files,
        .block_count = rig->blocks,
        .directory = directory,
        .max_shard_bytes = shard,
        .threads = rig->threads,
        .provenance = provenance,
        .tick = tick,
        .tick_data = data};
    int rc = format_export(&request, files);
    json_decref(provenance);
    return rc;
}

static inline json_t *load(const struct rig *rig, const char *folder, const char *name)
{
    char path[512], *text;
    size_t size;

    snprintf(path, sizeof(path), "%s/%s/%s", rig->dir, folder, name);
    ck_assert_rc_ok(fs_read_file(path, (size_t)1 << 24, &text, &size));
    json_t *value = json_loadb(text, size, JSON_REJECT_DUPLICATES, NULL);
    ck_assert_ptr_nonnull(value);
    free(text);
    return value;
}

static inline struct safetensors *open_shard(const struct rig *rig, const char *folder, const char *name)
{
    struct safetensors *file;
    char path[512];

    snprintf(path, sizeof(path), "%s/%s/%s", rig->dir, folder, name);
    ck_assert_rc_ok(safetensors_open_fd_take(open(path, O_RDONLY | O_CLOEXEC), name, &file));
    return file;
}

/* The list is true of the directory: every file there, no other, sizes and digests right, sorted. */
static inline void check_files(const struct rig *rig, const char *folder, const json_t *files)
{
    char path[512], sha256[DIGEST_HEX_SIZE];
    const char *last = "";
    size_t i, there = 0;
    json_t *file;
    int64_t size;

    json_array_foreach((json_t *)files, i, file)
    {
        ck_assert_int_gt(strcmp(text_at(file, "path"), last), 0);
        last = text_at(file, "path");
        snprintf(path, sizeof(path), "%s/%s/%s", rig->dir, folder, last);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ck_assert_rc_ok(digest_file(fd, sha256, &size));
        close(fd);
        ck_assert_str_eq(text_at(file, "sha256"), sha256);
        ck_assert_int_eq(int_at(file, "bytes"), size);
    }
    snprintf(path, sizeof(path), "%s/%s", rig->dir, folder);
    DIR *stream = opendir(path);
    for (const struct dirent *entry; (entry = readdir(stream)) != NULL;) {
        there += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    }
    closedir(stream);
    ck_assert_uint_eq(there, json_array_size(files));
    json_t *manifest = load(rig, folder, "quantd_manifest.json"); /* the same, less itself */
    ck_assert_uint_eq(json_array_size(json_object_get(manifest, "files")), json_array_size(files) - 1);
    json_array_foreach(json_object_get(manifest, "files"), i, file)
    {
        size_t k = 0;
        while (!json_equal(json_array_get(files, k), file)) {
            ck_assert_uint_lt(++k, json_array_size(files));
        }
    }
    ck_assert_str_eq(text_at(json_object_get(manifest, "source"), "digest"), model_digest(rig->model));
    ck_assert_str_eq(text_at(manifest, "method"), "rtn");
    ck_assert_int_eq(int_at(manifest, "quantized_modules"), rig->count);
    ck_assert_int_eq(int_at(json_object_get(manifest, "provenance"), "seed"), 7);
    json_decref(manifest);
}
