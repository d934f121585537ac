/* Tensors of a checkpoint: those that contradict the configuration are refused by name; tied heads; values. */

#include "tests/unit/models/small_models.h"

#include <sys/time.h>

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

static void expect_tied(const struct support *s, bool expected)
{
    struct model *model;
    bool found;
    int64_t without, head = 0;

    support_write(s);
    ck_assert_rc_ok(support_open(s, ".", &model));
    without = model_parameters(model);
    for (int pass = 0; pass < 2; pass++) { /* the second answer is remembered */
        ck_assert_rc_ok(model_tied(model, &found));
        ck_assert_msg(found == expected, "%s", s->config);
        head = expected ? 0 : 80;
        ck_assert_int_eq(model_parameters(model), without + head);
    }
    model_close(model);
}

/* tie_word_embeddings with a head of its own: the values decide. */
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

/* "model." of every name becomes `prefix`; the head is below `head`. */
static void rename_all(struct support *s, const char *prefix, const char *head)
{
    char name[sizeof(s->tensors[0].name)];

    for (int i = 0; i < s->count; i++) {
        bool inside = strncmp(s->tensors[i].name, "model.", 6) == 0;
        snprintf(name, sizeof(name), "%s%.90s", inside ? prefix : head, s->tensors[i].name + (inside ? 6 : 0));
        snprintf(s->tensors[i].name, sizeof(name), "%s", name);
    }
}

#define COMPOSITE(class, type, text)                                                                                   \
    "{\"architectures\":[\"" class "\"],\"model_type\":\"" type "\",\"text_config\":{\"model_type\":\"" text           \
                                   "\",\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":2,\"num_"      \
                                   "attention_heads\":2,"                                                              \
                                   "\"num_key_value_heads\":1,\"vocab_size\":10,\"max_position_embeddings\":32,\"num_" \
                                   "nextn_predict_layers\":1}}"
#define LLAVA COMPOSITE("LlavaForConditionalGeneration", "llava", "llama")
#define QWEN2_VL COMPOSITE("Qwen2VLForConditionalGeneration", "qwen2_vl", "qwen2_vl_text")
#define SMOLVLM COMPOSITE("SmolVLMForConditionalGeneration", "smolvlm", "llama")

/* What is not the language model passes through; what is in it and not asked for does not. */
START_TEST(test_composite)
{
    static const struct {
        const char *config, *prefix, *head, *spelling; /* NULL: there is no other */
        int heads;                                     /* spellings of the head */
    } layouts[] = {{LLAVA, "model.language_model.", "", "language_model.model.", 2},
                   {LLAVA, "language_model.model.", "language_model.", "model.language_model.", 2},
                   {QWEN2_VL, "model.language_model.", "", "model.", 1},
                   {QWEN2_VL, "model.", "", "model.language_model.", 1},
                   {SMOLVLM, "model.text_model.", "", NULL, 1}};

    for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++) {
        struct support s;
        struct model *model;
        char name[PLAN_NAME_MAX], spellings[MODEL_SPELLINGS_MAX][PLAN_NAME_MAX], layer[128], first[128], other[128];
        int64_t number;
        support_init(&s, layouts[i].config);
        rename_all(&s, layouts[i].prefix, layouts[i].head);
        support_add(&s, "vision_tower.layers.0.weight", 3, 2);
        support_add(&s, "vision_tower.norm.weight", 3, 0);
        support_add(&s, "mtp.fc.weight", 3, 2);
        snprintf(layer, sizeof(layer), "%slayers.2.eh_proj.weight", layouts[i].prefix);
        support_add(&s, layer, 3, 2);
        support_write(&s);
        ck_assert_rc_ok(support_open(&s, ".", &model));
        const char *const *extras = model_extras(model);
        int count = 0;
        while (extras[count] != NULL) {
            count++;
        }
        ck_assert_int_eq(count, 3);
        snprintf(first, sizeof(first), "%slayers.1.mlp.up_proj", layouts[i].prefix);
        int module = model_find_module(model, first, &number);
        ck_assert_int_ge(module, 0);
        model_module_name(model, 1, module, name);
        ck_assert_str_eq(name, first);
        ck_assert_int_eq(model_spellings(model, name, spellings), layouts[i].spelling != NULL ? 2 : 1);
        snprintf(other, sizeof(other), "%slayers.1.mlp.up_proj",
                 layouts[i].spelling != NULL ? layouts[i].spelling : "");
        ck_assert(layouts[i].spelling == NULL || strcmp(spellings[1], other) == 0);
        ck_assert_int_eq(model_spellings(model, model_head_module(model), spellings), layouts[i].heads);
        model_close(model);

        snprintf(layer, sizeof(layer), "%slayers.3.eh_proj.weight", layouts[i].prefix);
        support_add(&s, layer, 3, 2);
        support_write(&s);
        expect(&s, ERR_INVALID_MODEL, layer);
        support_deinit(&s);
    }
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

UNIT_MAIN("model_tensors", test_contradictions, test_integer_weights, test_tied_heads, test_outside_is_finite,
          test_loads_values, test_composite, test_bundled_checkpoint)
