/* A checkpoint of which only names, types and shapes are known: which weights are modules, which stay in float, and the
 * runs that they are divided into. */

#include "models/bare.h"
#include "tests/unit/models/support.h"

#include "base/err.h"

static const char invented[] = "{\"architectures\": [\"LumenForCausalLM\"], \"model_type\": \"lumen\", \"width\": 4}";

static void begin(struct support *s)
{
    memset(s, 0, sizeof(*s));
    scratch_make(s->folder);
    s->config = invented;
    s->dtype = DTYPE_BF16;
}

static int open_as(const struct support *s, enum model_reading reading, struct model **out)
{
    int root = open(s->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ck_assert_int_ge(root, 0);
    int rc = model_open_as(root, "", reading, out);
    close(root);
    return rc;
}

static void check_rule(const char *path, const char *what)
{
    const struct bare_rule *rule = bare_rule_of(path);

    if (what == NULL) {
        ck_assert_msg(rule == NULL, "%s is left in float as one of the %s", path, rule->what);
    } else {
        ck_assert_msg(rule != NULL && strcmp(rule->what, what) == 0, "%s: %s instead of %s", path,
                      rule != NULL ? rule->what : "quantized", what);
    }
}

START_TEST(names_that_stay)
{
    check_rule("model.layers.0.self_attn.q_norm", "norms");
    check_rule("transformer.h.3.ln_1", "norms");
    check_rule("model.embed_tokens", "embeddings and positions");
    check_rule("model.layers.1.Per_Layer_Embedding", "embeddings and positions");
    check_rule("encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "embeddings and positions");
    check_rule("model.layers.0.mlp.gate", "routers and gates");
    check_rule("model.layers.0.mlp.gate.wg", "routers and gates");
    check_rule("model.layers.0.block_sparse_moe.router.layer", "routers and gates");
    check_rule("model.layers.0.mlp.shared_expert_gate", "routers and gates");
    check_rule("model.layers.0.linear_attn.in_proj_ba", "routers and gates");
    check_rule("backbone.layers.0.mixer.conv1d", "convolutions");
    check_rule("model.visual.blocks.0.attn.qkv", "towers");
    check_rule("model.vision_tower.encoder.layers.0.mlp.fc1", "towers");
    check_rule("audio_model.layers.0.fc1", "towers");
    check_rule("multi_modal_projector.linear_1", "projectors");
    check_rule("model.layers.0.merger.mlp", "projectors");
    check_rule("language_model.lm_head", "heads");
    check_rule("model.layers.0.score", "heads");
    check_rule("mtp.layers.0.mlp.up_proj", "prediction layers and indexers");
    check_rule("model.layers.0.self_attn.indexer.wq_b", "prediction layers and indexers");
    check_rule("model.output", "whatever lies outside of numbered layers");
    check_rule("model.layers.0.mlp.gate_proj", NULL);
    check_rule("model.layers.0.mlp.gate_up_proj", NULL);
    check_rule("model.layers.0.mlp.experts.3.w1", NULL);
    check_rule("model.layers.0.self_attn.kv_b_proj", NULL);
    check_rule("transformer.h.11.attn.c_attn", NULL);
    check_rule("backbone.layers.0.mixer.in_proj", NULL);
}
END_TEST

START_TEST(modules_and_names)
{
    struct support s;
    struct model *model = NULL;
    char name[MODEL_NAME_MAX];
    int64_t layer = -1;

    begin(&s);
    support_add(&s, "m.0.a.weight", 8, 16);
    support_add(&s, "m.0.a.bias", 8, 0);
    support_add(&s, "m.0.norm.weight", 8, 0);
    support_add(&s, "m.0.row.weight", 1, 16);
    support_add(&s, "m.0.table", 8, 16);
    support_add(&s, "m.1.b.weight", 16, 8);
    support_add(&s, "head.weight", 8, 16);
    support_write(&s);
    ck_assert_int_eq(open_as(&s, MODEL_KNOWN, &model), ERR_UNSUPPORTED_ARCHITECTURE);
    ck_assert_rc_ok(open_as(&s, MODEL_AUTO, &model));
    ck_assert(model_is_bare(model));
    ck_assert_ptr_nonnull(strstr(model_bare_reason(model), "LumenForCausalLM"));
    ck_assert_str_eq(model_config(model)->arch->name, "LumenForCausalLM");
    ck_assert_int_eq(model_dtype(model), DTYPE_BF16);
    ck_assert_uint_eq(plans_modules(model_plans(model)), 3);
    ck_assert_int_eq(model_config(model)->num_layers, 1); /* they are small, and of one shard */
    int module = model_find_module(model, "m.1.b", &layer);
    ck_assert_int_ge(module, 0);
    ck_assert_int_eq(layer, 0);
    const struct plan *plan = plans_layer(model_plans(model), 0);
    ck_assert(plan_is_listed(plan));
    ck_assert_int_eq(plan->group_count, plan->module_count);
    ck_assert(plan->modules[module].rows == 16 && plan->modules[module].cols == 8 && !plan->modules[module].optional);
    ck_assert_int_eq(plan->groups[module].modules[0], module);
    model_tensor_name(model, 0, plan->modules[module].path, "weight", name);
    ck_assert_str_eq(name, "m.1.b.weight");
    ck_assert(plan->modules[model_find_module(model, "head", &layer)].optional);
    ck_assert_int_eq(model_find_module(model, "m.0.table", &layer), -1);
    ck_assert_int_eq(model_find_module(model, "m.0.row", &layer), -1);
    ck_assert_rc_ok(model_check_outside(model, NULL, NULL));
    model_close(model);
    support_deinit(&s);
}
END_TEST

START_TEST(runs_end_with_shards_and_sizes)
{
    struct support s;
    struct model *model = NULL;
    int64_t layer;

    begin(&s);
    for (int i = 0; i < 6; i++) {
        char name[32];
        snprintf(name, sizeof(name), "m.%d.a.weight", i);
        support_add(&s, name, i == 3 ? 2048 : 1024, 1024); /* runs have up to 2 Mi elements */
    }
    support_write_text(&s, "config.json", s.config);
    support_write_text(&s, "model.safetensors.index.json",
                       "{\"weight_map\": {\"m.0.a.weight\": \"model-1.safetensors\", \"m.1.a.weight\": "
                       "\"model-1.safetensors\", \"m.2.a.weight\": \"model-1.safetensors\", \"m.3.a.weight\": "
                       "\"model-1.safetensors\", \"m.4.a.weight\": \"model-1.safetensors\", \"m.5.a.weight\": "
                       "\"model-2.safetensors\"}}");
    support_write_shard(&s, "model-1.safetensors", 0, 5);
    support_write_shard(&s, "model-2.safetensors", 5, 6);
    ck_assert_rc_ok(open_as(&s, MODEL_AUTO, &model));
    static const int64_t expected[] = {0, 0, 1, 2, 3, 4}; /* 0 1 | 2 | 3 | 4, and the next shard */
    ck_assert_int_eq(model_config(model)->num_layers, 5);
    for (int i = 0; i < 6; i++) {
        char name[32];
        snprintf(name, sizeof(name), "m.%d.a", i);
        ck_assert_int_ge(model_find_module(model, name, &layer), 0);
        ck_assert_int_eq(layer, expected[i]);
    }
    model_close(model);
    support_deinit(&s);
}
END_TEST

START_TEST(known_ones_when_asked)
{
    struct support s;
    struct model *model = NULL;
    int64_t layer;

    support_init(&s, "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 8, \"intermediate_size\": 16, "
                     "\"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"vocab_size\": 32}");
    s.dtype = DTYPE_F32;
    support_write(&s);
    ck_assert_rc_ok(open_as(&s, MODEL_AUTO, &model));
    ck_assert(!model_is_bare(model));
    char digest[DIGEST_HEX_SIZE];
    snprintf(digest, sizeof(digest), "%s", model_digest(model));
    model_close(model);
    ck_assert_rc_ok(open_as(&s, MODEL_BARE, &model));
    ck_assert(model_is_bare(model));
    ck_assert_str_eq(model_digest(model), digest);
    ck_assert_int_ge(model_find_module(model, "model.layers.1.mlp.down_proj", &layer), 0);
    model_close(model);
    support_write_text(&s, "config.json", "{\"architectures\": [\"LlamaForCausalLM\"], \"quantization_config\": {}}");
    ck_assert_int_eq(open_as(&s, MODEL_BARE, &model), ERR_ALREADY_QUANTIZED);
    support_deinit(&s);
}
END_TEST

START_TEST(refused)
{
    struct support s;
    struct model *model = NULL;

    begin(&s);
    support_add(&s, "m.0.norm.weight", 8, 0);
    support_write(&s);
    ck_assert_int_eq(open_as(&s, MODEL_AUTO, &model), ERR_UNSUPPORTED_ARCHITECTURE);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "LumenForCausalLM"));
    /* A known name with a value that its row refuses is not read as a bare model. */
    support_write_text(&s, "config.json",
                       "{\"architectures\": [\"LlamaForCausalLM\"], \"hidden_size\": 8, \"intermediate_size\": 16, "
                       "\"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"vocab_size\": 32, "
                       "\"hidden_act\": \"gelu_fast\"}");
    ck_assert_int_eq(open_as(&s, MODEL_AUTO, &model), ERR_UNSUPPORTED_ARCHITECTURE);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "gelu_fast"));
    ck_assert_ptr_nonnull(strstr(err_last()->hint, "model_free"));
    ck_assert_int_eq(open_as(&s, MODEL_KNOWN, &model), ERR_UNSUPPORTED_ARCHITECTURE);
    ck_assert_int_eq(open_as(&s, MODEL_ANY, &model), ERR_UNSUPPORTED_ARCHITECTURE); /* there is nothing to quantize */
    support_add(&s, "model.layers.0.mlp.up_proj.weight", 16, 8);
    support_write_shard(&s, "model.safetensors", 0, s.count);
    ck_assert_rc_ok(open_as(&s, MODEL_ANY, &model));
    ck_assert(model_is_bare(model));
    ck_assert_ptr_nonnull(strstr(model_bare_reason(model), "gelu_fast"));
    model_close(model);
    support_deinit(&s);
}
END_TEST

UNIT_MAIN("bare", names_that_stay, modules_and_names, runs_end_with_shards_and_sizes, known_ones_when_asked, refused)
