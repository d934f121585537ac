/* Whole artifacts: what is in them, that a reader gets the quantized weights back, and that the bytes never vary. */

#include "tests/unit/storage/checkpoint.h"
#include "tests/unit/storage/support.h"

#include <dirent.h>
#include <sys/stat.h>

struct rig {
    char dir[256];
    struct model *model;
    struct format_module *modules;
    int count, blocks;
    char paths[8][320];
    const char *files[8];
};

static void make_blocks(struct rig *rig)
{
    rig->blocks = rig->count / LINEAR_COUNT;
    for (int b = 0; b < rig->blocks; b++) {
        struct qtensor items[LINEAR_COUNT];
        char hex[65];
        for (int i = 0; i < LINEAR_COUNT; i++) {
            const struct format_module *m = &rig->modules[b * LINEAR_COUNT + i];
            qtensor_random(m->name, &m->scheme, m->rows, m->cols, (uint32_t)(b * 100 + i), &items[i]);
        }
        snprintf(rig->paths[b], sizeof(rig->paths[b]), "%s/block-%d", rig->dir, b);
        rig->files[b] = rig->paths[b];
        ck_assert_rc_ok(qtensor_save(rig->paths[b], items, LINEAR_COUNT, hex));
        for (int i = 0; i < LINEAR_COUNT; i++) {
            qtensor_deinit(&items[i]);
        }
    }
}

/* source NULL: the checkpoint made on the spot; else a folder of the test data. */
static void rig_init(struct rig *rig, const char *source, const char *format, int bits, int64_t group, bool sym)
{
    char path[300];

    *rig = (struct rig){0};
    scratch_make(rig->dir);
    if (source == NULL) {
        snprintf(path, sizeof(path), "%s/source", rig->dir);
        checkpoint_make(path);
    }
    rig->model = checkpoint_open(source == NULL ? rig->dir : TEST_DATA, source == NULL ? "source" : source);
    enum dtype scale = format_find(format)->scale_dtype(model_dtype(rig->model));
    rig->count = checkpoint_modules(rig->model, bits, group, sym, scale, &rig->modules);
    make_blocks(rig);
}

static void rig_deinit(struct rig *rig)
{
    free(rig->modules);
    model_close(rig->model);
    scratch_remove(rig->dir);
}

static int export_to(struct rig *rig, const char *format, const char *folder, int64_t shard,
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
        .provenance = provenance,
        .tick = tick,
        .tick_data = data};
    int rc = format_export(&request, files);
    json_decref(provenance);
    return rc;
}

static json_t *load(const struct rig *rig, const char *folder, const char *name)
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

static struct safetensors *open_shard(const struct rig *rig, const char *folder, const char *name)
{
    struct safetensors *file;
    char path[512];

    snprintf(path, sizeof(path), "%s/%s/%s", rig->dir, folder, name);
    ck_assert_rc_ok(safetensors_open_fd_take(open(path, O_RDONLY | O_CLOEXEC), name, &file));
    return file;
}

/* The list is true of the directory: every file there, no other, sizes and digests right, sorted. */
static void check_files(const struct rig *rig, const char *folder, const json_t *files)
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

/* Module m out of the artifact's shards. */
static void load_module(struct safetensors *const *shards, int shard_count, const char *module, struct stored *out)
{
    size_t length = strlen(module);

    *out = (struct stored){0};
    for (int s = 0; s < shard_count; s++) {
        for (size_t i = 0; i < safetensors_count(shards[s]); i++) {
            const struct safetensors_entry *e = safetensors_at(shards[s], i);
            if (strncmp(e->name, module, length) == 0 && e->name[length] == '.') {
                size_t bytes = (size_t)(e->end - e->begin);
                int at = out->count++;
                ck_assert_int_lt(at, 8);
                out->items[at].suffix = e->name + length;
                out->items[at].dtype = e->dtype;
                out->items[at].rank = e->rank;
                memcpy(out->items[at].shape, e->shape, sizeof(e->shape));
                out->items[at].data = malloc(bytes);
                ck_assert_rc_ok(safetensors_read(shards[s], e, 0, out->items[at].data, bytes));
            }
        }
    }
}

static void check_modules(const struct rig *rig, const char *format, struct safetensors *const *shards, int count)
{
    for (int i = 0; i < rig->count; i++) {
        const struct format_module *m = &rig->modules[i];
        float *w = malloc((size_t)(m->rows * m->cols) * sizeof(*w));
        struct stored stored;
        struct qtensor q;

        load_module(shards, count, m->name, &stored);
        decoder_of(format)(&stored, &m->scheme, m->rows, m->cols, w);
        qtensor_random(m->name, &m->scheme, m->rows, m->cols, (uint32_t)(i / LINEAR_COUNT * 100 + i % LINEAR_COUNT),
                       &q);
        assert_same_weights(w, &q);
        qtensor_deinit(&q);
        for (int k = 0; k < stored.count; k++) {
            free(stored.items[k].data);
        }
        free(w);
    }
}

/* What is not a module's weight is there byte for byte, but for a tied head. */
static void check_copies(const struct rig *rig, struct safetensors *const *shards, int count)
{
    bool tied = model_config(rig->model)->tie_word_embeddings;

    for (size_t i = 0; i < model_tensor_count(rig->model); i++) {
        const struct model_tensor source = model_tensor_at(rig->model, i);
        const struct safetensors_entry *found = NULL;
        int shard = 0;
        bool module = strstr(source.name, "_proj.weight") != NULL;
        while (found == NULL && shard < count) {
            found = safetensors_find(shards[shard++], source.name);
        }
        ck_assert((found != NULL) == !(module || (tied && strcmp(source.name, "lm_head.weight") == 0)));
        if (found != NULL) {
            size_t bytes = (size_t)(found->end - found->begin);
            char *a = malloc(bytes), *b = malloc(bytes);
            ck_assert_int_eq(found->dtype, source.entry->dtype);
            ck_assert_uint_eq(source.entry->end - source.entry->begin, bytes);
            ck_assert_rc_ok(safetensors_read(source.file, source.entry, 0, a, bytes));
            ck_assert_rc_ok(safetensors_read(shards[shard - 1], found, 0, b, bytes));
            ck_assert_int_eq(memcmp(a, b, bytes), 0);
            free(a);
            free(b);
        }
    }
}

static bool listed(const json_t *files, const char *path)
{
    size_t i;
    json_t *file;

    json_array_foreach((json_t *)files, i, file)
    {
        if (strcmp(text_at(file, "path"), path) == 0) {
            return true;
        }
    }
    return false;
}

START_TEST(a_single_file_artifact)
{
    static const char *const formats[] = {"compressed-tensors", "gptq", "gptq_v2"};

    for (int f = 0; f < 3; f++) {
        struct rig rig;
        json_t *files;
        rig_init(&rig, NULL, formats[f], 4, 32, f != 2);
        ck_assert_rc_ok(export_to(&rig, formats[f], "out", 0, NULL, NULL, &files));
        check_files(&rig, "out", files);
        struct safetensors *shard = open_shard(&rig, "out", "model.safetensors");
        ck_assert_str_eq(safetensors_metadata(shard, "format"), "pt");
        check_modules(&rig, formats[f], &shard, 1);
        check_copies(&rig, &shard, 1);
        safetensors_close(shard);
        ck_assert(listed(files, "generation_config.json") && listed(files, "tokenizer_config.json"));
        ck_assert(listed(files, "LICENSE") && !listed(files, ".gitattributes"));
        ck_assert(!listed(files, "model.safetensors.index.json"));
        json_t *config = load(&rig, "out", "config.json");
        const json_t *quantization = json_object_get(config, "quantization_config");
        ck_assert_ptr_nonnull(quantization);
        ck_assert(listed(files, "quantize_config.json") == (f > 0)); /* a stale one of the source does not come along */
        if (f > 0) {
            json_t *side = load(&rig, "out", "quantize_config.json");
            ck_assert(json_equal(side, quantization));
            json_decref(side);
        }
        json_object_del(config, "quantization_config");
        ck_assert(json_equal(config, model_config_json(rig.model)));
        json_decref(config);
        json_decref(files);
        rig_deinit(&rig);
    }
}
END_TEST

START_TEST(a_sharded_artifact)
{
    enum { LIMIT = 8000 };
    struct rig rig;
    struct safetensors *shards[32];
    json_t *files, *index;
    char name[64];
    int count = 0;
    int64_t total = 0;
    size_t tensors = 0;

    rig_init(&rig, NULL, "compressed-tensors", 3, -1, true);
    ck_assert_rc_ok(export_to(&rig, "compressed-tensors", "out", LIMIT, NULL, NULL, &files));
    check_files(&rig, "out", files);
    ck_assert(!listed(files, "model.safetensors"));
    index = load(&rig, "out", "model.safetensors.index.json");
    const json_t *map = json_object_get(index, "weight_map");
    json_t *file;
    size_t i;
    json_array_foreach(files, i, file)
    {
        count += strncmp(text_at(file, "path"), "model-", 6) == 0;
    }
    ck_assert_int_gt(count, 3);
    ck_assert_int_le(count, 32);
    for (int s = 0; s < count; s++) {
        snprintf(name, sizeof(name), "model-%05d-of-%05d.safetensors", s + 1, count);
        shards[s] = open_shard(&rig, "out", name);
        int64_t bytes = 0;
        for (size_t t = 0; t < safetensors_count(shards[s]); t++) {
            const struct safetensors_entry *e = safetensors_at(shards[s], t);
            ck_assert_str_eq(text_at(map, e->name), name);
            bytes += (int64_t)(e->end - e->begin);
            tensors++;
        }
        ck_assert(bytes <= LIMIT || safetensors_count(shards[s]) == 1);
        total += bytes;
    }
    ck_assert_uint_eq(json_object_size(map), tensors);
    ck_assert_int_eq(int_at(json_object_get(index, "metadata"), "total_size"), total);
    check_modules(&rig, "compressed-tensors", shards, count);
    check_copies(&rig, shards, count);
    for (int s = 0; s < count; s++) {
        safetensors_close(shards[s]);
    }
    json_decref(index);
    json_decref(files);
    rig_deinit(&rig);
}
END_TEST

START_TEST(bytes_do_not_vary)
{
    struct rig rig;
    json_t *a, *b;

    rig_init(&rig, NULL, "gptq", 2, 32, true);
    ck_assert_rc_ok(export_to(&rig, "gptq", "one", 9000, NULL, NULL, &a));
    ck_assert_rc_ok(export_to(&rig, "gptq", "another-place", 9000, NULL, NULL, &b));
    ck_assert(json_equal(a, b)); /* digests of every file, the manifest's own too */
    json_decref(a);
    json_decref(b);
    rig_deinit(&rig);
}
END_TEST

START_TEST(the_bundled_checkpoint)
{
    struct rig rig;
    json_t *files;

    rig_init(&rig, "tiny-llama", "gptq_v2", 8, 64, false);
    ck_assert_rc_ok(export_to(&rig, "gptq_v2", "out", 0, NULL, NULL, &files));
    check_files(&rig, "out", files);
    struct safetensors *shard = open_shard(&rig, "out", "model.safetensors");
    check_modules(&rig, "gptq_v2", &shard, 1);
    check_copies(&rig, &shard, 1); /* its lm_head is its own */
    ck_assert_ptr_nonnull(safetensors_find(shard, "lm_head.weight"));
    ck_assert(listed(files, "tokenizer.json") && listed(files, "tokenizer_config.json"));
    safetensors_close(shard);
    json_decref(files);
    rig_deinit(&rig);
}
END_TEST

struct ticks {
    int count, stop_at;
    double last;
};

static int on_tick(void *data, double fraction)
{
    struct ticks *ticks = data;
    ck_assert(fraction >= ticks->last && fraction <= 1);
    ticks->last = fraction;
    return ++ticks->count == ticks->stop_at ? err_raise(ERR_CANCELLED, "enough") : 0;
}

START_TEST(progress_and_cancellation)
{
    struct rig rig;
    struct ticks ticks = {0};
    json_t *files = NULL;

    rig_init(&rig, NULL, "gptq", 4, 32, true);
    ck_assert_rc_ok(export_to(&rig, "gptq", "out", 0, on_tick, &ticks, &files));
    ck_assert_double_eq(ticks.last, 1);
    json_decref(files);
    files = NULL;
    for (int stop = 1; stop <= ticks.count; stop += 7) {
        struct ticks again = {.stop_at = stop};
        ck_assert_int_eq(export_to(&rig, "gptq", "stopped", 9000, on_tick, &again, &files), ERR_CANCELLED);
        ck_assert_ptr_null(files);
    }
    rig_deinit(&rig);
}
END_TEST

static void save_one(struct rig *rig, const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols,
                     int zero, int code)
{
    struct qtensor q;
    char hex[65];

    qtensor_random(name, scheme, rows, cols, 1, &q);
    q.zeros[0] = (uint8_t)(zero >= 0 ? zero : q.zeros[0]);
    q.codes[0] = (uint8_t)(code >= 0 ? code : q.codes[0]);
    ck_assert_rc_ok(qtensor_save(rig->paths[0], &q, 1, hex));
    qtensor_deinit(&q);
}

/* Checkpoints that are not what the job asked for: an error, never an artifact. */
START_TEST(wrong_blocks_are_refused)
{
    struct rig rig;
    json_t *files = NULL;

    rig_init(&rig, NULL, "gptq", 4, 32, true);
    const struct format_module m = rig.modules[0];
    struct qscheme other = m.scheme;
    other.bits = 8;
    rig.count = 1; /* the other weights stay in float */
    rig.blocks = 1;
    save_one(&rig, m.name, &m.scheme, m.rows, m.cols, -1, -1);
    ck_assert_rc_ok(export_to(&rig, "gptq", "right", 0, NULL, NULL, &files));
    json_decref(files);
    files = NULL;
    save_one(&rig, m.name, &other, m.rows, m.cols, -1, -1);
    ck_assert_int_eq(export_to(&rig, "gptq", "w1", 0, NULL, NULL, &files), ERR_SOURCE_CORRUPT);
    save_one(&rig, m.name, &m.scheme, m.rows, m.cols * 2, -1, -1);
    ck_assert_int_eq(export_to(&rig, "gptq", "w2", 0, NULL, NULL, &files), ERR_SOURCE_CORRUPT);
    save_one(&rig, "model.layers.0.mlp.down_proj", &m.scheme, m.rows, m.cols, -1, -1);
    ck_assert_int_eq(export_to(&rig, "gptq", "w3", 0, NULL, NULL, &files), ERR_SOURCE_CORRUPT);
    save_one(&rig, m.name, &m.scheme, m.rows, m.cols, 3, -1); /* symmetric, and a zero point that is not the middle */
    ck_assert_int_lt(export_to(&rig, "gptq", "w4", 0, NULL, NULL, &files), 0);
    rig.blocks = 0;
    ck_assert_int_eq(export_to(&rig, "gptq", "w5", 0, NULL, NULL, &files), ERR_SOURCE_CORRUPT);
    rig.blocks = 1;
    rig.files[0] = "no such file";
    ck_assert_int_lt(export_to(&rig, "gptq", "w6", 0, NULL, NULL, &files), 0);
    ck_assert_ptr_null(files);
    rig_deinit(&rig);
}
END_TEST

UNIT_MAIN("export", a_single_file_artifact, a_sharded_artifact, bytes_do_not_vary, the_bundled_checkpoint,
          progress_and_cancellation, wrong_blocks_are_refused)
