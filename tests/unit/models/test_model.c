/* Checkpoints opened whole, sharded, through symlinks; spoiled ones refused with the tensor's name. */

#include "tests/unit/models/support.h"

#include <sys/stat.h>
#include <sys/time.h>

static const char config[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"vocab_size\":10,\"max_position_embeddings\":32}";
static const char tied[] =
    "{\"architectures\":[\"Qwen2ForCausalLM\"],\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"vocab_size\":10,\"tie_word_embeddings\":true}";

static void expect(const struct support *s, int code, const char *word)
{
    struct model *model = NULL;
    int rc = support_open(s, ".", &model);

    ck_assert_msg(rc == code, "%d, not %d: %s", rc, code, err_last()->message);
    ck_assert_msg(strstr(err_last()->message, word) != NULL, "says: %s", err_last()->message);
    ck_assert_ptr_null(model);
}

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

/* An index over shards a, b: `extra` is put inside weight_map, behind the true entries. */
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

/* A file that readers of the artifact need is there and readable, or is not there: never left out without a word. */
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

static void rename_to(struct support *s, const char *from, const char *to)
{
    struct support_tensor *t = support_find(s, from);
    snprintf(t->name, sizeof(t->name), "%s", to);
}

START_TEST(test_contradictions)
{
    struct support s;

    support_init(&s, config);
    expect(&s, ERR_INVALID_MODEL, "config.json");
    support_write_text(&s, "config.json", "{");
    expect(&s, ERR_INVALID_MODEL, "config.json");
    support_write_text(&s, "config.json", "{\"a\":1,\"a\":2}");
    expect(&s, ERR_INVALID_MODEL, "config.json");
    support_write_text(&s, "config.json", config);
    expect(&s, ERR_INVALID_MODEL, "no weights: no model.safetensors and no model.safetensors.index.json");

    support_find(&s, "model.layers.1.mlp.up_proj.weight")->shape[0] = 13;
    support_write(&s);
    expect(&s, ERR_INVALID_MODEL, "model.layers.1.mlp.up_proj.weight has shape [13, 8]; config.json asks for [12, 8]");
    support_find(&s, "model.layers.1.mlp.up_proj.weight")->shape[0] = 12;

    struct support_tensor *norm = support_find(&s, "model.norm.weight");
    *norm = (struct support_tensor){.name = "model.norm.weight", .rank = 2, .shape = {8, 1}};
    support_write(&s);
    expect(&s, ERR_INVALID_MODEL, "[8, 1]");
    norm->rank = 1;

    rename_to(&s, "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.k.weight");
    support_write(&s);
    expect(&s, ERR_INVALID_MODEL, "k_proj.weight is missing");
    rename_to(&s, "model.layers.0.self_attn.k.weight", "model.layers.0.self_attn.k_proj.weight");

    static const char *const unknown[] = {"model.layers.0.self_attn.q_proj.bias",
                                          "model.layers.2.input_layernorm.weight",
                                          "model.layers.0.self_attn.q_norm.weight",
                                          "score.weight",
                                          "rotary_emb.inv_freq",
                                          "model.rotary_emb.weight",
                                          "model.layers.0.rotary_emb.inv_freq",
                                          "model.layers.0.self_attn.rotary_emb.inv_freq.weight",
                                          "model.layers.00.input_layernorm.weight",
                                          "model.layers.x.input_layernorm.weight"};
    struct model *model;
    support_write(&s);
    ck_assert_rc_ok(support_open(&s, ".", &model));
    int64_t parameters = model_parameters(model);
    model_close(model);
    static const char *const tables[] = {"model.layers.0.self_attn.rotary_emb.inv_freq",
                                         "model.layers.1.self_attn.rotary_emb.cos_cached",
                                         "model.layers.1.self_attn.rotary_emb.sin_cached",
                                         "model.rotary_emb.inv_freq",
                                         "model.rotary_emb.cos_cached",
                                         "model.rotary_emb.sin_cached"};
    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
        support_add(&s, tables[i], 2, i % 2);
    }
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
        support_add(&s, unknown[i], 8, 0);
        support_write(&s);
        expect(&s, ERR_INVALID_MODEL, unknown[i]);
        s.count--;
    }
    support_write(&s);
    ck_assert_rc_ok(support_open(&s, ".", &model)); /* rotary tables alone are fine */
    ck_assert_int_eq(model_parameters(model), parameters);
    model_close(model);
    support_deinit(&s);
}
END_TEST

START_TEST(test_integer_weights)
{
    struct safetensors_writer *writer;
    struct support s;
    char path[512];

    support_init(&s, tied);
    support_write_text(&s, "config.json", tied);
    snprintf(path, sizeof(path), "%s/model.safetensors", s.folder);
    ck_assert_rc_ok(safetensors_writer_new(path, &writer));
    for (int i = 0; i < s.count; i++) {
        const struct support_tensor *t = &s.tensors[i];
        enum dtype dtype = strstr(t->name, "down_proj") != NULL ? DTYPE_I8 : DTYPE_F32;
        ck_assert_rc_ok(safetensors_writer_declare(writer, t->name, dtype, t->rank, t->shape));
    }
    ck_assert_rc_ok(safetensors_writer_begin(writer));
    safetensors_writer_free(writer); /* sized already: headers are all that open looks at */
    expect(&s, ERR_INVALID_MODEL, "down_proj.weight is I8");
    support_deinit(&s);
}
END_TEST

static void expect_tied(const struct support *s, bool wanted)
{
    struct model *model;
    bool found;
    int64_t without, head = 0;

    support_write(s);
    ck_assert_rc_ok(support_open(s, ".", &model));
    without = model_parameters(model);
    for (int pass = 0; pass < 2; pass++) { /* the second answer is remembered */
        ck_assert_rc_ok(model_tied(model, &found));
        ck_assert_msg(found == wanted, "%s", s->config);
        head = wanted ? 0 : 80;
        ck_assert_int_eq(model_parameters(model), without + head);
    }
    model_close(model);
}

/* tie_word_embeddings beside a head: the values decide. */
START_TEST(test_tied_heads)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    struct support s;

    for (int i = 0; i < 3; i++) {
        support_init(&s, tied);
        s.dtype = dtypes[i];
        expect_tied(&s, true); /* there is none */
        int64_t rows = support_find(&s, "model.embed_tokens.weight")->shape[0];
        int64_t cols = support_find(&s, "model.embed_tokens.weight")->shape[1];
        struct support_tensor *head = support_add(&s, "lm_head.weight", rows, cols);
        ck_assert_int_eq(rows * cols, 80);
        expect_tied(&s, false);
        head->as = "model.embed_tokens.weight";
        expect_tied(&s, true);
        head->widened = true; /* the same values in another type */
        expect_tied(&s, true);
        head->value = 0.75f; /* one value alone */
        expect_tied(&s, false);
        head->widened = false;
        expect_tied(&s, false);
        support_find(&s, "model.embed_tokens.weight")->value = 0.75f;
        expect_tied(&s, true);
        head->shape[0]++;
        support_write(&s);
        expect(&s, ERR_INVALID_MODEL, "lm_head.weight has shape");
        support_deinit(&s);
    }
}
END_TEST

static int stop_at_once(void *data)
{
    return ++*(int *)data, ERR_CANCELLED;
}

/* What lies outside the blocks is copied and may never be loaded. */
START_TEST(test_outside_is_finite)
{
    static const char *const names[] = {"model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"};
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    struct support s;
    struct model *model;
    int ticks = 0;

    for (int i = 0; i < 3; i++) {
        support_init(&s, config);
        s.dtype = dtypes[i];
        support_write(&s);
        ck_assert_rc_ok(support_open(&s, ".", &model));
        ck_assert_rc_ok(model_check_outside(model, NULL, NULL));
        ck_assert_int_eq(model_check_outside(model, stop_at_once, &ticks), ERR_CANCELLED);
        ck_assert_int_eq(ticks, i + 1);
        model_close(model);
        for (int k = 0; k < 3; k++) {
            support_find(&s, names[k])->value = k == 1 ? -INFINITY : NAN;
            support_write(&s);
            ck_assert_rc_ok(support_open(&s, ".", &model));
            ck_assert_int_eq(model_check_outside(model, NULL, NULL), ERR_NON_FINITE_VALUE);
            ck_assert_ptr_nonnull(strstr(err_last()->message, names[k]));
            ck_assert_ptr_nonnull(strstr(err_last()->message, "element 1"));
            model_close(model);
            support_find(&s, names[k])->value = 0;
        }
        support_deinit(&s);
    }
}
END_TEST

START_TEST(test_loads_values)
{
    struct gpu gpu;
    struct gpu_stream *stream;

    ck_assert_rc_ok(gpu_open("cpu", 2, &gpu));
    ck_assert_rc_ok(gpu.ops->stream_new(gpu.device, &stream));
    for (int pass = 0; pass < 3; pass++) {
        static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
        struct support s;
        struct model *model;
        struct tensor wide, kept;
        float values[120];

        support_init(&s, config);
        s.dtype = dtypes[pass];
        support_find(&s, "model.layers.1.mlp.down_proj.weight")->value = INFINITY;
        support_find(&s, "model.layers.0.mlp.down_proj.weight")->value = NAN;
        support_write(&s);
        ck_assert_rc_ok(support_open(&s, ".", &model));
        ck_assert_rc_ok(model_load_tensor(model, "lm_head.weight", DTYPE_F32, &gpu, stream, &wide));
        ck_assert_rc_ok(model_load_tensor(model, "lm_head.weight", DTYPE_COUNT, &gpu, stream, &kept));
        ck_assert(wide.dtype == DTYPE_F32 && kept.dtype == s.dtype && kept.shape[0] == 10 && wide.shape[1] == 8);
        support_fill(support_find(&s, "lm_head.weight"), values, 80);
        for (int i = 0; i < 80; i++) {
            ck_assert_float_eq(((const float *)wide.data)[i], dtype_round(values[i], s.dtype));
        }
        gpu_tensor_free(&gpu, &wide);
        gpu_tensor_free(&gpu, &kept);
        for (int layer = 0; layer < 2; layer++) {
            char name[128];
            snprintf(name, sizeof(name), "model.layers.%d.mlp.down_proj.weight", layer);
            ck_assert_int_eq(model_load_tensor(model, name, DTYPE_F32, &gpu, stream, &wide), ERR_NON_FINITE_VALUE);
            ck_assert_ptr_nonnull(strstr(err_last()->message, name));
            ck_assert_ptr_nonnull(strstr(err_last()->message, "element 1"));
        }
        ck_assert_int_eq(model_load_tensor(model, "nothing", DTYPE_F32, &gpu, stream, &wide), ERR_INVALID_MODEL);
        model_close(model);
        support_deinit(&s);
    }
    gpu.ops->stream_free(stream);
    gpu_close(&gpu);
}
END_TEST

START_TEST(test_bundled_checkpoint)
{
    struct model *model;
    int root = open(TEST_DATA, O_RDONLY | O_DIRECTORY);

    ck_assert_int_ge(root, 0);
    ck_assert_rc_ok(model_open(root, "tiny-llama", &model));
    close(root);
    ck_assert_int_eq(model_config(model)->num_layers, 4);
    ck_assert_int_eq(model_dtype(model), DTYPE_BF16);
    ck_assert_int_eq(model_parameters(model), 4196608);
    model_close(model);
}
END_TEST

UNIT_MAIN("model", test_opens, test_no_tokenizer, test_shards, test_headers_are_bounded, test_config_is_bounded,
          test_bad_index, test_symlinks, test_needed_files, test_contradictions, test_integer_weights, test_tied_heads,
          test_outside_is_finite, test_loads_values, test_bundled_checkpoint)
