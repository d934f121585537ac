/* Complete artifacts: what is in them, that a reader gets the quantized weights back, and that the bytes never vary. */

#include "tests/unit/formats/export_rig.h"

#include <sys/stat.h>

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
        qtensor_random(m->name, &m->scheme, m->rows, m->cols, (uint32_t)(i / LLAMA_MODULES * 100 + i % LLAMA_MODULES),
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
        ck_assert(listed(files, "additional_chat_templates/rag.jinja"));
        ck_assert(!listed(files, "additional_chat_templates/.hidden") && !listed(files, "additional_chat_templates"));
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

static void save_one(struct rig *rig, const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols,
                     int zero, int code)
{
    struct qtensor q;
    char hex[65];

    qtensor_random(name, scheme, rows, cols, 1, &q);
    q.zeros[0] = (uint8_t)(zero >= 0 ? zero : q.zeros[0]);
    q.codes[0] = (uint8_t)(code >= 0 ? code : q.codes[0]);
    ck_assert_rc_ok(qtensor_save(rig->paths[0], &q, 1, NULL, hex));
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
          wrong_blocks_are_refused)
