/* What an artifact carries in addition to the quantized modules: a head that is not the embedding, and nothing that is
 * not finite, in every container. */

#include "tests/unit/formats/decode_gguf.h"
#include "tests/unit/formats/export_rig.h"

static const char *const formats[] = {"compressed-tensors", "gptq", "dense", "gguf"};
#define FORMATS (sizeof(formats) / sizeof(formats[0]))

static void read_gguf(const struct rig *rig, const char *folder, struct gguf_file *file)
{
    char path[320], *data;
    size_t size;

    snprintf(path, sizeof(path), "%s/%s/model.gguf", rig->dir, folder);
    ck_assert_rc_ok(fs_read_file(path, (size_t)1 << 26, &data, &size));
    gguf_read((unsigned char *)data, size, file);
}

/* The head as the source has it. */
static unsigned char *source_head(const struct rig *rig, size_t *size)
{
    const struct model_tensor head = model_find(rig->model, "lm_head.weight");
    unsigned char *bytes;

    *size = (size_t)(head.entry->end - head.entry->begin);
    bytes = malloc(*size);
    ck_assert_rc_ok(safetensors_read(head.file, head.entry, 0, bytes, *size));
    return bytes;
}

static void check_gguf_head(const struct rig *rig, bool own)
{
    struct gguf_file file;

    read_gguf(rig, "gguf", &file);
    const struct gguf_info *info = gguf_find_tensor(&file, "output.weight");
    ck_assert_int_eq(info != NULL, own);
    if (own) {
        size_t size;
        unsigned char *expected = source_head(rig, &size);
        ck_assert_uint_le(file.start + info->offset + size, file.size);
        ck_assert_int_eq(memcmp(file.data + file.start + info->offset, expected, size), 0);
        free(expected);
    }
    free(file.data);
}

static void check_head(const struct rig *rig, const char *folder, bool own)
{
    struct safetensors *shard = open_shard(rig, folder, "model.safetensors");
    const struct safetensors_entry *entry = safetensors_find(shard, "lm_head.weight");
    json_t *config = load(rig, folder, "config.json");

    ck_assert_int_eq(entry != NULL, own);
    ck_assert_int_eq(json_is_true(json_object_get(config, "tie_word_embeddings")), !own);
    ck_assert(json_is_boolean(json_object_get(config, "tie_word_embeddings")));
    if (own) {
        size_t size;
        unsigned char *expected = source_head(rig, &size), *found = malloc(size);
        ck_assert_rc_ok(safetensors_read(shard, entry, 0, found, size));
        ck_assert_int_eq(memcmp(found, expected, size), 0);
        free(expected);
        free(found);
    }
    json_decref(config);
    safetensors_close(shard);
}

/* The config says tied; the values of the head decide. */
START_TEST(a_head_of_its_own_is_kept)
{
    for (int own = 0; own < 2; own++) {
        for (size_t f = 0; f < FORMATS; f++) {
            const struct checkpoint_fault fault = {.own_head = own == 1};
            struct rig rig;
            json_t *files;
            rig_init_faulty(&rig, &fault, formats[f], 4, 32, true);
            ck_assert_rc_ok(export_to(&rig, formats[f], formats[f], 0, NULL, NULL, &files));
            json_decref(files);
            if (strcmp(formats[f], "gguf") == 0) {
                check_gguf_head(&rig, own == 1);
            } else {
                check_head(&rig, formats[f], own == 1);
            }
            rig_deinit(&rig);
        }
    }
}
END_TEST

START_TEST(a_nan_does_not_leave)
{
    static const char *const names[] = {"model.norm.weight", "model.embed_tokens.weight", "lm_head.weight",
                                        "model.layers.1.post_attention_layernorm.weight"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        for (size_t f = 0; f < FORMATS; f++) {
            const struct checkpoint_fault fault = {.own_head = true, .nan = names[i]};
            struct rig rig;
            json_t *files = NULL;
            rig_init_faulty(&rig, &fault, formats[f], 4, 32, true);
            rig.threads = 2;
            ck_assert_int_eq(export_to(&rig, formats[f], "out", 0, NULL, NULL, &files), ERR_NON_FINITE_VALUE);
            ck_assert_msg(strstr(err_last()->message, names[i]) != NULL, "%s: %s", formats[f], err_last()->message);
            ck_assert_ptr_null(files);
            rig_deinit(&rig);
        }
    }
}
END_TEST

/* A float tensor that the job changed, to a value that the model's type cannot hold. */
START_TEST(a_changed_norm_that_overflows)
{
    struct rig rig;
    json_t *files = NULL;
    char hex[65];

    for (int wide = 0; wide < 2; wide++) {
        rig_init(&rig, NULL, "gptq", 4, 32, true);
        const struct format_module m = rig.modules[0];
        const struct qscheme dense = {.kind = QTENSOR_DENSE, .scale_dtype = DTYPE_BF16};
        struct qtensor items[2];
        rig.count = 1; /* the other weights stay in float */
        rig.blocks = 1;
        qtensor_random(m.name, &m.scheme, m.rows, m.cols, 1, &items[0]);
        ck_assert_rc_ok(qtensor_new("model.layers.0.input_layernorm.weight", &dense, 1, 64, &items[1]));
        for (int i = 0; i < 64; i++) {
            items[1].tables[i] = i == 63 && wide == 1 ? 3.4028234e38f : 1.0f; /* F32's largest; Inf as BF16 */
        }
        ck_assert_rc_ok(qtensor_save(rig.paths[0], items, 2, NULL, hex));
        qtensor_deinit(&items[0]);
        qtensor_deinit(&items[1]);
        int rc = export_to(&rig, "gptq", "out", 0, NULL, NULL, &files);
        ck_assert_int_eq(rc, wide == 1 ? ERR_NON_FINITE_VALUE : 0);
        if (wide == 1) {
            ck_assert_ptr_nonnull(strstr(err_last()->message, "model.layers.0.input_layernorm.weight"));
            ck_assert_ptr_nonnull(strstr(err_last()->message, "element 63"));
        } else {
            json_decref(files);
            files = NULL;
        }
        rig_deinit(&rig);
    }
}
END_TEST

UNIT_MAIN("export_copies", a_head_of_its_own_is_kept, a_nan_does_not_leave, a_changed_norm_that_overflows)
