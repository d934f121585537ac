/* Checkpoints opened: complete, sharded, through symlinks; files that are missing, too large or not readable. */

#include "tests/unit/models/small_models.h"

#include <sys/stat.h>
#include <sys/time.h>

START_TEST(test_opens)
{
    struct support s;
    struct model *model;
    char name[128];
    int64_t layer = -1;

    support_init(&s, config);
    support_write(&s);
    support_write_text(&s, "tokenizer.json", "{}");
    support_write_text(&s, "generation_config.json", "{}");
    support_write_text(&s, "pytorch_model.bin", "x");
    support_write_text(&s, "old.safetensors.index.json", "{}");
    support_write_text(&s, "consolidated.safetensors", "x");
    support_write_text(&s, ".hidden", "x");
    ck_assert_rc_ok(support_open(&s, "", &model));
    ck_assert_int_eq(model_config(model)->num_layers, 2);
    ck_assert_uint_eq(model_tensor_count(model), (size_t)s.count);
    ck_assert_int_eq(model_dtype(model), DTYPE_F32);
    int64_t parameters = 0;
    for (size_t i = 0; i < model_tensor_count(model); i++) {
        struct model_tensor tensor = model_tensor_at(model, i);
        parameters += (int64_t)(tensor.entry->end - tensor.entry->begin) / 4;
        ck_assert_ptr_eq(model_find(model, tensor.name).entry, tensor.entry);
    }
    ck_assert_int_eq(model_parameters(model), parameters);
    ck_assert_int_eq(model_bytes(model), 4 * parameters);
    ck_assert_ptr_null(model_find(model, "nothing").file);
    ck_assert_str_eq(model_side_files(model)[0], "generation_config.json");
    ck_assert_str_eq(model_side_files(model)[1], "tokenizer.json");
    ck_assert_ptr_null(model_side_files(model)[2]);
    ck_assert_uint_eq(strlen(model_digest(model)), 64);
    ck_assert_ptr_nonnull(json_object_get(model_config_json(model), "architectures"));

    int gate = plan_find_module(plans_layer(model_plans(model), 1), "mlp.gate_proj");
    model_module_name(model, 1, gate, name);
    ck_assert_str_eq(name, "model.layers.1.mlp.gate_proj");
    ck_assert_int_eq(model_find_module(model, name, &layer), gate);
    ck_assert_int_eq(layer, 1);
    ck_assert_int_eq(model_find_module(model, "model.layers.2.mlp.gate_proj", &layer), -1);
    ck_assert_int_eq(model_find_module(model, "model.layers.-1.mlp.gate_proj", &layer), -1);
    ck_assert_int_eq(model_find_module(model, "model.layers.0.mlp.gate_proj.weight", &layer), -1);
    ck_assert_int_eq(model_find_module(model, "lm_head", &layer), -1);

    char *json;
    size_t size;
    int fd;
    ck_assert_rc_ok(model_read_tokenizer(model, &json, &size));
    ck_assert_str_eq(json, "{}");
    free(json);
    ck_assert_rc_ok(model_open_file(model, "tokenizer.json", &fd));
    close(fd);
    ck_assert_int_eq(model_open_file(model, "../x", &fd), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(model_open_file(model, "additional_chat_templates/", &fd), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(model_open_file(model, "additional_chat_templates/../x", &fd), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(model_open_file(model, "none", &fd), ERR_NOT_FOUND);

    ck_assert_rc_ok(model_check_unchanged(model));
    char path[512];
    snprintf(path, sizeof(path), "%s/model.safetensors", s.folder);
    ck_assert_int_eq(utimes(path, (const struct timeval[2]){{1, 0}, {1, 0}}), 0);
    ck_assert_int_eq(model_check_unchanged(model), ERR_SOURCE_CHANGED);
    model_close(model);
    support_deinit(&s);
}
END_TEST

START_TEST(test_no_tokenizer)
{
    struct support s;
    struct model *model;
    char *json;
    size_t size;

    support_init(&s, tied);
    support_write(&s);
    ck_assert_rc_ok(support_open(&s, ".", &model));
    ck_assert_int_eq(model_read_tokenizer(model, &json, &size), ERR_NOT_FOUND);
    model_close(model);
    support_deinit(&s);
}
END_TEST

/* An index over shards a, b: `extra` is put inside weight_map, after the real entries. */
static void write_index(const struct support *s, int cut, const char *extra)
{
    char *text = calloc(1, 65536);
    size_t used = (size_t)snprintf(text, 65536, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");

    for (int i = 0; i < s->count; i++) {
        used += (size_t)snprintf(text + used, 65536 - used, "%s\"%s\":\"model-%s.safetensors\"", i > 0 ? "," : "",
                                 s->tensors[i].name, i < cut ? "a" : "b");
    }
    snprintf(text + used, 65536 - used, "%s}}", extra);
    support_write_text(s, "model.safetensors.index.json", text);
    free(text);
}

START_TEST(test_shards)
{
    struct support s;
    struct model *model, *single;

    support_init(&s, config);
    s.dtype = DTYPE_BF16;
    support_write_text(&s, "config.json", config);
    support_write_shard(&s, "model-a.safetensors", 0, 7);
    support_write_shard(&s, "model-b.safetensors", 7, s.count);
    support_write_shard(&s, "model-stale.safetensors", 0, s.count); /* not in the index */
    write_index(&s, 7, "");
    ck_assert_rc_ok(support_open(&s, ".", &model));
    ck_assert_uint_eq(model_tensor_count(model), (size_t)s.count);
    ck_assert_int_eq(model_dtype(model), DTYPE_BF16);

    support_write_shard(&s, "model.safetensors", 0, s.count);
    expect(&s, ERR_INVALID_MODEL, "both");
    char path[512];
    snprintf(path, sizeof(path), "%s/model.safetensors.index.json", s.folder);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_rc_ok(support_open(&s, ".", &single));
    ck_assert_int_eq(model_bytes(single), model_bytes(model));
    ck_assert_str_ne(model_digest(single), model_digest(model));
    model_close(single);
    model_close(model);
    support_deinit(&s);
}
END_TEST

/* One large header under many names. */
START_TEST(test_headers_are_bounded)
{
    const size_t size = (size_t)45 << 20;
    const int64_t shape[1] = {1};
    struct safetensors_writer *writer;
    struct support s;
    char path[512], link[512], *text = malloc(size + 1);

    support_init(&s, config);
    support_write_text(&s, "config.json", config);
    memset(text, 'x', size);
    text[size] = '\0';
    snprintf(path, sizeof(path), "%s/model-a.safetensors", s.folder);
    ck_assert_rc_ok(safetensors_writer_new(path, &writer));
    ck_assert_rc_ok(safetensors_writer_metadata(writer, "text", text));
    ck_assert_rc_ok(safetensors_writer_declare(writer, "x", DTYPE_F32, 1, shape));
    ck_assert_rc_ok(safetensors_writer_begin(writer));
    safetensors_writer_free(writer);
    free(text);
    for (const char *name = "bcd"; *name != '\0'; name++) {
        snprintf(link, sizeof(link), "%s/model-%c.safetensors", s.folder, *name);
        ck_assert_int_eq(symlink("model-a.safetensors", link), 0);
    }
    support_write_text(&s, "model.safetensors.index.json",
                       "{\"weight_map\":{\"a\":\"model-a.safetensors\",\"b\":\"model-b.safetensors\","
                       "\"c\":\"model-c.safetensors\",\"d\":\"model-d.safetensors\"}}");
    expect(&s, ERR_INVALID_MODEL, "the headers of the first 3 of 4 shards");
    support_deinit(&s);
}
END_TEST

/* A tree of hundreds of megabytes in a file of four. */
START_TEST(test_config_is_bounded)
{
    const size_t size = (size_t)4 << 20;
    char *text = malloc(size);
    struct support s;

    support_init(&s, config);
    support_write(&s);
    size_t at = strlen(config) - 1; /* less its brace */
    memcpy(text, config, at);
    at += (size_t)snprintf(text + at, 32, ",\"extra\":[");
    while (at < size - 16) {
        memcpy(text + at, "{},", 3);
        at += 3;
    }
    snprintf(text + at, 16, "{}]}");
    support_write_text(&s, "config.json", text);
    expect(&s, ERR_INVALID_MODEL, "at most 16 MiB");
    free(text);
    support_deinit(&s);
}
END_TEST

START_TEST(test_bad_index)
{
    static const struct {
        const char *extra, *word;
    } rows[] = {
        {",\"x\":\"../model-a.safetensors\"", "plain name"},
        {",\"x\":\"/model-a.safetensors\"", "plain name"},
        {",\"x\":\"sub/model-a.safetensors\"", "plain name"},
        {",\"x\":\"..\"", "plain name"},
        {",\"x\":\"\"", "plain name"},
        {",\"x\":\"model.bin\"", "plain name"},
        {",\"x\":\"model-a\\u0000.safetensors\"", "plain name"},
        {",\"x\":\"model-a.safetensors\"", "is not in"},
        {",\"x\":\"model-c.safetensors\"", "missing"},
        {",\"model.norm.weight\":\"model-a.safetensors\"", "twice"},
        {",\"model.norm.weight\":\"model-b.safetensors\"", "twice"},
        {",\"x\":1", "another type"},
        {",", "member"},
        {"},\"weight_map\":{", "twice"},
        {"}} x {{", "follows"},
    };
    struct support s;

    support_init(&s, config);
    support_write_text(&s, "config.json", config);
    support_write_shard(&s, "model-a.safetensors", 0, 7);
    support_write_shard(&s, "model-b.safetensors", 7, s.count);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        write_index(&s, 7, rows[i].extra);
        expect(&s, ERR_INVALID_MODEL, rows[i].word);
    }
    write_index(&s, 6, ""); /* the seventh lies in a, the index says b */
    expect(&s, ERR_INVALID_MODEL, s.tensors[6].name);
    support_write_text(&s, "model.safetensors.index.json", "{}");
    expect(&s, ERR_INVALID_MODEL, "lists no tensors");
    support_write_text(&s, "model.safetensors.index.json", "[]");
    expect(&s, ERR_INVALID_MODEL, "index.json");
    support_write_shard(&s, "model-a.safetensors", 0, 8);
    write_index(&s, 7, "");
    expect(&s, ERR_INVALID_MODEL, "two shards");
    support_deinit(&s);
}
END_TEST

/* snapshots/x/model.safetensors -> ../../blobs/y, as download caches lay it out; but never out of the root. */
START_TEST(test_symlinks)
{
    struct support s;
    struct model *model = NULL;
    char path[512], target[512];

    support_init(&s, tied);
    support_write(&s);
    snprintf(path, sizeof(path), "%s/snapshots", s.folder);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    snprintf(path, sizeof(path), "%s/snapshots/x", s.folder);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    snprintf(path, sizeof(path), "%s/snapshots/x/model.safetensors", s.folder);
    ck_assert_int_eq(symlink("../../model.safetensors", path), 0);
    snprintf(path, sizeof(path), "%s/snapshots/x/config.json", s.folder);
    ck_assert_int_eq(symlink("../../config.json", path), 0);
    ck_assert_rc_ok(support_open(&s, "snapshots/x", &model));
    model_close(model);

    model = NULL;
    ck_assert_int_eq(support_open(&s, "../", &model), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(support_open(&s, "/etc", &model), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(support_open(&s, "none", &model), ERR_NOT_FOUND);
    ck_assert_int_eq(support_open(&s, "config.json", &model), ERR_NOT_FOUND);

    char outside[256];
    scratch_make(outside);
    snprintf(target, sizeof(target), "%s/config.json", outside);
    ck_assert_rc_ok(fs_write_atomic(target, tied, strlen(tied)));
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(symlink(target, path), 0);
    ck_assert_int_eq(support_open(&s, "snapshots/x", &model), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(mkfifo(path, 0600), 0); /* must not block */
    ck_assert_int_eq(support_open(&s, "snapshots/x", &model), ERR_INVALID_MODEL);
    ck_assert_ptr_null(model);
    scratch_remove(outside);
    support_deinit(&s);
}
END_TEST

/* A file that readers of the artifact need is there and readable, or is not there: never left out without an error. */
START_TEST(test_needed_files)
{
    static const char *const names[] = {"tokenizer_config.json", "generation_config.json", "chat_template.jinja",
                                        "special_tokens_map.json", "additional_chat_templates"};
    struct support s;
    struct model *model = NULL;
    char path[512], outside[256], target[512];

    support_init(&s, tied);
    support_write(&s);
    scratch_make(outside);
    snprintf(target, sizeof(target), "%s/file", outside);
    ck_assert_rc_ok(fs_write_atomic(target, "{}", 2));
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", s.folder, names[i]);
        unlink(path);
        ck_assert_int_eq(mkfifo(path, 0600), 0);
        ck_assert_int_eq(support_open(&s, ".", &model), ERR_INVALID_MODEL);
        ck_assert_ptr_nonnull(strstr(err_last()->message, names[i]));
        ck_assert_int_eq(unlink(path), 0);
        ck_assert_int_eq(symlink(target, path), 0); /* out of the root */
        ck_assert_int_eq(support_open(&s, ".", &model), ERR_INVALID_MODEL);
        ck_assert_int_eq(unlink(path), 0);
        ck_assert_int_eq(symlink("nowhere", path), 0);
        ck_assert_int_eq(support_open(&s, ".", &model), ERR_INVALID_MODEL);
        ck_assert_int_eq(unlink(path), 0);
    }
    snprintf(path, sizeof(path), "%s/README.md", s.folder); /* what nobody needs may lead nowhere */
    ck_assert_int_eq(symlink("nowhere", path), 0);
    ck_assert_rc_ok(support_open(&s, ".", &model));
    model_close(model);
    scratch_remove(outside);
    support_deinit(&s);
}
END_TEST

UNIT_MAIN("model", test_opens, test_no_tokenizer, test_shards, test_headers_are_bounded, test_config_is_bounded,
          test_bad_index, test_symlinks, test_needed_files)
