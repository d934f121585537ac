/* Gemma 4: what its configuration means, what is refused with which words, and what follows from the plans of its
 * layers: heads by type, keys that are values as well, an MLP next to experts, and factors from the checkpoint. */

#include "models/block.h"
#include "tests/unit/models/small_config.h"
#include "tests/unit/models/support.h"

#include <string.h>

#define NONE "\"hidden_size_per_layer_input\":0"
#define TYPES "\"layer_types\":[\"sliding_attention\",\"full_attention\",\"sliding_attention\",\"full_attention\"]"
#define FULL "\"full_attention\":{\"rope_type\":\"proportional\",\"rope_theta\":5e5,\"partial_rotary_factor\":0.5}"
#define SLIDING "\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":7000}"
#define ROPES "\"rope_parameters\":{" FULL "," SLIDING "}"
#define HEADS "\"head_dim\":16,\"global_head_dim\":32,\"num_global_key_value_heads\":1"
#define MIXTURE "\"enable_moe_block\":true,\"num_experts\":4,\"top_k_experts\":2,\"moe_intermediate_size\":40"
#define BOTH "{" NONE "," HEADS "," TYPES ",\"attention_k_eq_v\":true," MIXTURE "}"
#define GEMMA4 "Gemma4ForCausalLM"

static int gemma4(const char *more, struct model_config *c)
{
    return small_config(GEMMA4, more, c);
}

START_TEST(test_configurations)
{
    struct model_config c;

    ck_assert_rc_ok(gemma4("{" NONE "," HEADS "," TYPES "," ROPES
                           ",\"sliding_window\":9,\"final_logit_softcapping\":30,"
                           "\"use_bidirectional_attention\":\"vision\",\"use_double_wide_mlp\":true}",
                           &c));
    ck_assert(arch_head_dim(&c, 0) == 16 && arch_head_dim(&c, 1) == 32);
    ck_assert(arch_kv_heads(&c, 0) == 2 && arch_kv_heads(&c, 1) == 2); /* without attention_k_eq_v */
    ck_assert(arch_window(&c, 2) == 9 && arch_window(&c, 3) == 0);
    ck_assert(arch_rope(&c, 1) == 0 && arch_rope(&c, 2) == 1);
    ck_assert(c.ropes[0].type == ROPE_PROPORTIONAL && c.ropes[0].dims == 32 && c.ropes[0].turned == 0.5);
    ck_assert(c.ropes[1].type == ROPE_DEFAULT && c.ropes[1].dims == 16 && c.ropes[1].theta == 7000);
    ck_assert_double_eq(rope_frequency(&c.ropes[0], 8, 7), pow(5e5, -14 / 32.0));
    ck_assert_double_eq(rope_frequency(&c.ropes[0], 8, 8), 0);
    ck_assert(c.embedding_scale == 8 && c.attention_scale == 1 && c.attention_cap == 0 && c.logit_cap == 30);
    ck_assert(c.tie_word_embeddings && c.activation == ACTIVATION_GELU_TANH && c.num_experts == 0);
    ck_assert(c.token_columns == 0 && c.taking_layers == 0 && c.wide_taking); /* of which no layer makes use */
    ck_assert_rc_ok(gemma4("{\"num_kv_shared_layers\":1,\"num_hidden_layers\":7}", &c));
    ck_assert(c.token_columns == 256 && c.token_rows == 262144 && c.taking_layers == 1);

    /* What is missing: five layers of a window before one of full attention, and the last one is; tables. */
    ck_assert_rc_ok(gemma4("{" NONE ",\"num_hidden_layers\":8,\"attention_k_eq_v\":true}", &c));
    ck_assert(arch_window(&c, 4) == 512 && arch_window(&c, 5) == 0 && arch_window(&c, 6) == 512);
    ck_assert(arch_window(&c, 7) == 0 && arch_head_dim(&c, 7) == 512 && arch_head_dim(&c, 6) == 256);
    ck_assert(arch_kv_heads(&c, 7) == 2 && c.keys_are_values);
    ck_assert(c.ropes[0].type == ROPE_PROPORTIONAL && c.ropes[0].theta == 1e6 && c.ropes[0].dims == 512);
    ck_assert_double_eq(rope_frequency(&c.ropes[0], 8, 63), pow(1e6, -126 / 512.0));
    ck_assert_double_eq(rope_frequency(&c.ropes[0], 8, 64), 0);
    ck_assert(c.ropes[1].theta == 1e4 && c.ropes[1].dims == 256);

    /* As newer files say it. */
    ck_assert_rc_ok(gemma4("{" NONE "," TYPES ",\"head_dim\":16,\"per_layer_config\":{\"01\":{\"head_dim\":24,"
                           "\"num_key_value_heads\":4},\"03\":{\"num_key_value_heads\":4,\"head_dim\":24}}}",
                           &c));
    ck_assert(arch_head_dim(&c, 2) == 16 && arch_head_dim(&c, 3) == 24);
    ck_assert(arch_kv_heads(&c, 2) == 2 && arch_kv_heads(&c, 1) == 4);
    ck_assert_rc_ok(gemma4("{" NONE "," TYPES ",\"head_dim\":16,\"per_layer_config\":{}}", &c));
    ck_assert(arch_head_dim(&c, 3) == 16 && arch_kv_heads(&c, 3) == 2 && c.ropes[0].dims == 16);

    ck_assert_rc_ok(gemma4(BOTH, &c));
    ck_assert(c.num_experts == 4 && c.experts_per_token == 2 && c.expert_size == 40 && c.normalize_experts);
    ck_assert(arch_has_experts(&c, 0) && arch_has_experts(&c, 3));
}
END_TEST

static const struct refused_config refused[] = {
    {GEMMA4, "{\"vocab_size_per_layer_input\":99}", ERR_INVALID_MODEL,
     "vocab_size_per_layer_input 99 is less than vocab_size 100"},
    {GEMMA4, "{\"hidden_size_per_layer_input\":-1}", ERR_INVALID_MODEL, "hidden_size_per_layer_input"},
    {GEMMA4, "{" NONE ",\"num_kv_shared_layers\":4}", ERR_INVALID_MODEL,
     "num_kv_shared_layers 4 leaves none of 4 layers"},
    {GEMMA4, "{" NONE ",\"num_kv_shared_layers\":1}", ERR_INVALID_MODEL, "no layer of the type of layer 3"},
    {GEMMA4, "{" NONE "," TYPES ",\"num_kv_shared_layers\":3}", ERR_INVALID_MODEL, "no layer of the type of layer 1"},
    {GEMMA4, "{" NONE ",\"use_double_wide_mlp\":7}", ERR_INVALID_MODEL, "use_double_wide_mlp"},
    {GEMMA4, "{" NONE ",\"use_bidirectional_attention\":\"all\"}", ERR_UNSUPPORTED_ARCHITECTURE,
     "use_bidirectional_attention"},
    {GEMMA4, "{" NONE ",\"use_bidirectional_attention\":true}", ERR_UNSUPPORTED_ARCHITECTURE,
     "use_bidirectional_attention"},
    {GEMMA4, "{" NONE ",\"attn_logit_softcapping\":50}", ERR_UNSUPPORTED_ARCHITECTURE, "attn_logit_softcapping"},
    {GEMMA4, "{" NONE ",\"rope_theta\":5e5}", ERR_UNSUPPORTED_ARCHITECTURE, "rope_theta"},
    {GEMMA4, "{" NONE ",\"rope_local_base_freq\":5e5}", ERR_UNSUPPORTED_ARCHITECTURE, "rope_local_base_freq"},
    {GEMMA4, "{" NONE ",\"sliding_window_pattern\":2}", ERR_UNSUPPORTED_ARCHITECTURE, "sliding_window_pattern"},
    {GEMMA4, "{" NONE ",\"rope_parameters\":{" FULL "}}", ERR_INVALID_MODEL, "sliding_attention.rope_theta is missing"},
    {GEMMA4, "{" NONE ",\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}," SLIDING "}}",
     ERR_INVALID_MODEL, "full_attention.rope_theta is missing"},
    {GEMMA4,
     "{" NONE ",\"rope_parameters\":{" FULL ",\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":1e4,"
     "\"partial_rotary_factor\":0.5}}}",
     ERR_UNSUPPORTED_ARCHITECTURE, "partial_rotary_factor below 1"},
    {GEMMA4, "{" NONE ",\"sliding_window\":null}", ERR_INVALID_MODEL, "sliding_window is null"},
    {GEMMA4, "{" NONE ",\"global_head_dim\":33}", ERR_INVALID_MODEL, "4 heads of 33 for full attention"},
    {GEMMA4, "{" NONE ",\"attention_k_eq_v\":true,\"num_global_key_value_heads\":3}", ERR_INVALID_MODEL,
     "3 key heads of full attention"},
    {GEMMA4, "{" NONE ",\"per_layer_config\":[]}", ERR_INVALID_MODEL, "per_layer_config is not an object"},
    {GEMMA4, "{" NONE ",\"per_layer_config\":{\"4\":{}}}", ERR_INVALID_MODEL, "\"4\" is not a layer, 0 to 3"},
    {GEMMA4, "{" NONE ",\"per_layer_config\":{\"x\":{}}}", ERR_INVALID_MODEL, "\"x\" is not a layer"},
    {GEMMA4, "{" NONE ",\"per_layer_config\":{\"3\":7}}", ERR_INVALID_MODEL, "per_layer_config.3 is not an object"},
    {GEMMA4, "{" NONE ",\"per_layer_config\":{\"3\":{\"intermediate_size\":7}}}", ERR_UNSUPPORTED_ARCHITECTURE,
     "per_layer_config with the member \"intermediate_size\""},
    {GEMMA4, "{" NONE ",\"per_layer_config\":{\"0\":{\"head_dim\":8}}}", ERR_UNSUPPORTED_ARCHITECTURE,
     "for layer \"0\""},
    {GEMMA4, "{" NONE "," TYPES ",\"per_layer_config\":{\"1\":{\"head_dim\":8}}}", ERR_UNSUPPORTED_ARCHITECTURE,
     "for layer \"3\""},
    {GEMMA4, "{" NONE ",\"global_head_dim\":64,\"per_layer_config\":{\"3\":{\"head_dim\":32}}}", ERR_INVALID_MODEL,
     "2 key heads of 64, per_layer_config 2 of 32"},
    {GEMMA4, "{" NONE ",\"enable_moe_block\":true,\"num_experts\":4,\"top_k_experts\":2}", ERR_INVALID_MODEL,
     "moe_intermediate_size is missing"},
    {GEMMA4, "{" NONE ",\"enable_moe_block\":true,\"num_experts\":null}", ERR_INVALID_MODEL, "num_experts is missing"},
};

START_TEST(test_refused)
{
    struct model_config c;

    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        check_refused(&refused[i], &c);
    }
}
END_TEST

static const struct plan_module *module_of(const struct plan *plan, const char *path)
{
    int module = plan_find_module(plan, path);

    ck_assert_msg(module >= 0, "no module %s", path);
    return &plan->modules[module];
}

static const struct plan_norm *fold_norm(const struct plan *plan, const char *path)
{
    const struct plan_fold *fold = &plan->groups[module_of(plan, path)->group].fold;

    ck_assert_int_eq(fold->kind, FOLD_NORM);
    return &plan->norms[fold->norm];
}

START_TEST(test_plan)
{
    struct model_config c;
    struct plans *plans;

    ck_assert_rc_ok(gemma4("{" NONE "," HEADS "," TYPES ",\"attention_k_eq_v\":true}", &c));
    ck_assert_rc_ok(plans_new(&c, &plans));
    ck_assert_int_eq(plans_kinds(plans), 2);
    const struct plan *window = plans_layer(plans, 0), *full = plans_layer(plans, 3);
    ck_assert_int_eq(module_of(window, "self_attn.v_proj")->rows, 2 * 16);
    ck_assert_int_eq(plan_find_module(full, "self_attn.v_proj"), -1);
    ck_assert(module_of(full, "self_attn.k_proj")->rows == 32 && module_of(full, "self_attn.q_proj")->rows == 4 * 32);
    ck_assert_int_eq(module_of(full, "self_attn.o_proj")->cols, 4 * 32);
    ck_assert(window->fused[0].count == 3 && full->fused[0].count == 2);
    /* Keys are rotated and scored, also where they are values too; values have a norm without a weight. */
    ck_assert(module_of(window, "self_attn.k_proj")->rotated && module_of(window, "self_attn.k_proj")->scores);
    ck_assert(module_of(full, "self_attn.k_proj")->rotated && module_of(full, "self_attn.k_proj")->scores);
    ck_assert(!module_of(window, "self_attn.v_proj")->rotated);
    const struct plan_step *attention = &full->steps[plan_find_step(full, STEP_ATTENTION)];
    ck_assert(attention->attention.scale == 1 && attention->attention.head_dim == 32 &&
              attention->attention.window == 0);
    const struct plan_step *value = &full->steps[full->values[attention->in[2]].producer];
    ck_assert(value->kind == STEP_NORM && full->norms[value->norm].path == NULL && full->norms[value->norm].size == 32);
    /* Nothing before attention takes up its output's factors, since values are normed. */
    ck_assert_int_eq(full->groups[module_of(full, "self_attn.o_proj")->group].fold.kind, FOLD_NONE);
    ck_assert_str_eq(fold_norm(full, "self_attn.q_proj")->path, "input_layernorm");
    ck_assert_str_eq(fold_norm(window, "mlp.up_proj")->path, "pre_feedforward_layernorm");
    /* A layer ends in its own factor. */
    const struct plan_step *last = &full->steps[full->values[full->output].producer];
    ck_assert(last->kind == STEP_SCALE && last->has_parameter && last->factor == 1);
    ck_assert_str_eq(full->parameters[last->parameter].path, "layer_scalar");
    ck_assert(full->values[full->output].residual && full->parameters[last->parameter].shape[0] == 1);
    plans_free(plans);
}
END_TEST

/* Layers 2 and 3 take what 0 and 1 give; each gets something of its tokens. */
START_TEST(test_sources)
{
    struct model_config c;
    struct plans *plans;
    plan_set steps, used;

    ck_assert_rc_ok(gemma4("{\"hidden_size_per_layer_input\":8," HEADS "," TYPES
                           ",\"num_kv_shared_layers\":2,\"use_double_wide_mlp\":true}",
                           &c));
    ck_assert_rc_ok(plans_new(&c, &plans));
    ck_assert_int_eq(plans_kinds(plans), 4);
    for (int64_t layer = 0; layer < 4; layer++) {
        const struct plan *plan = plans_layer(plans, layer);
        const int *in = plan->steps[plan_find_step(plan, STEP_ATTENTION)].in;
        plan_set both = PLAN_BIT(in[1]) | PLAN_BIT(in[2]);
        bool takes = layer >= 2;
        int number = layer % 2 == 1 ? 0 : 2; /* of the keys of its type */
        ck_assert_uint_eq(plan->given, takes ? 0 : both);
        ck_assert_uint_eq(plan->inputs, PLAN_BIT(0) | (takes ? both : 0));
        ck_assert_uint_eq(plan_taken(plan), takes ? both : 0);
        for (int i = 1; i < 3; i++) {
            const struct plan_value *value = &plan->values[in[i]];
            ck_assert_int_eq(value->shared, number + i);
            ck_assert_int_eq(value->width, layer % 2 == 1 ? 64 : 32);
            ck_assert_int_eq(plan->storages[value->storage].store, PLAN_SHARED_STORE + number + i - 1);
        }
        ck_assert((plan_find_module(plan, "self_attn.k_proj") < 0) == takes);
        ck_assert((plan_find_module(plan, "self_attn.v_proj") < 0) == takes);
        ck_assert_int_eq(module_of(plan, "mlp.up_proj")->rows, takes ? 192 : 96);
        /* Given values are kept to the layer's end, taken ones until attention has read them. */
        const struct plan_group *q = &plan->groups[module_of(plan, "self_attn.q_proj")->group];
        const struct plan_group *o = &plan->groups[module_of(plan, "self_attn.o_proj")->group];
        ck_assert_uint_eq(q->kept, plan->inputs);
        ck_assert_uint_eq(o->kept, PLAN_BIT(0) | PLAN_BIT(o->input) | plan->given);
        ck_assert_uint_eq(plan->groups[plan->group_count - 1].kept & both, plan->given);
        ck_assert(plan_steps(plan, plan->inputs, PLAN_BIT(plan->output), &steps, &used) && used == plan->inputs);
        ck_assert(plan_steps(plan, PLAN_BIT(0), PLAN_BIT(plan->output), &steps, &used) == !takes);
        ck_assert_int_eq(q->branch, plan->groups[module_of(plan, "self_attn.o_proj")->group].branch);
        ck_assert_int_ge(q->branch, 0);
        /* What a layer gets of its tokens is made when it is read. */
        const struct plan_step *tokens = &plan->steps[plan_find_step(plan, STEP_TOKENS)];
        const struct plan_group *last = &plan->groups[module_of(plan, "per_layer_projection")->group];
        ck_assert(tokens->inputs == 0 && plan->values[tokens->out].width == 8);
        for (int g = 0; g < plan->group_count; g++) {
            ck_assert_uint_eq(plan->groups[g].kept & PLAN_BIT(tokens->out), 0);
        }
        ck_assert(last->columns == 8 && last->fold.kind == FOLD_NONE);
        ck_assert(plan->values[plan->groups[module_of(plan, "per_layer_input_gate")->group].input].residual);
    }
    plans_free(plans);
}
END_TEST

START_TEST(test_mixture)
{
    struct model_config c;
    struct plans *plans;

    ck_assert_rc_ok(gemma4(BOTH, &c));
    ck_assert_rc_ok(plans_new(&c, &plans));
    const struct plan *plan = plans_layer(plans, 0);
    const struct plan_experts *experts = plan->steps[plan_find_step(plan, STEP_EXPERTS)].experts;
    ck_assert(experts->count == 4 && experts->top_k == 2 && experts->normalize && !experts->has_bias);
    ck_assert(experts->has_scale && experts->scores == SCORES_SOFTMAX_ALL);
    ck_assert_str_eq(plan->parameters[experts->scale].path, "router.per_expert_scale");
    ck_assert_int_eq(plan->parameters[experts->scale].shape[0], 4);
    const struct plan_module *up = module_of(plan, "experts.2.up_proj");
    ck_assert(up->rows == 40 && up->stored->entries == 4 && up->stored->entry == 2 && up->stored->rows.first == 40);
    ck_assert_str_eq(up->stored->weight, "experts.gate_up_proj");
    /* The router reads a norm without a weight, times a parameter. */
    const struct plan_module *router = module_of(plan, "router.proj");
    const struct plan_group *alone = &plan->groups[router->group];
    ck_assert(router->fixed && alone->count == 1 && alone->fold.kind == FOLD_NONE && alone->branch == -1);
    const struct plan_step *scale = &plan->steps[plan->values[alone->input].producer];
    ck_assert(scale->kind == STEP_SCALE && scale->factor == 0.125 && scale->has_parameter);
    ck_assert_str_eq(plan->parameters[scale->parameter].path, "router.scale");
    ck_assert_str_eq(fold_norm(plan, "mlp.gate_proj")->path, "pre_feedforward_layernorm");
    /* The MLP is judged by its normed output: what is added to the stream needs the experts. */
    const struct plan_step *end =
        &plan->steps[plan->values[plan->groups[module_of(plan, "mlp.up_proj")->group].branch].producer];
    ck_assert_str_eq(plan->norms[end->norm].path, "post_feedforward_layernorm_1");
    plans_free(plans);
}
END_TEST

/* The scale of a chosen expert, and of a layer, in a block: an output of the layer at half of its factor is half. */
START_TEST(test_factors)
{
    struct model_config c;
    struct plans *plans;
    struct gpu gpu;
    struct gpu_stream *stream;
    struct block_scratch *scratch;
    struct block_values values;
    static float before[5 * 64];
    float first = 0;
    uint64_t seed = 7;

    ck_assert_rc_ok(gemma4(BOTH, &c));
    ck_assert_rc_ok(plans_new(&c, &plans));
    ck_assert_rc_ok(gpu_open("cpu", 2, &gpu));
    ck_assert_rc_ok(gpu.ops->stream_new(gpu.device, &stream));
    const struct plan *plan = plans_layer(plans, 1);
    struct block block = {.config = plans_config(plans), .plan = plan};
    block.modules = calloc((size_t)plan->module_count, sizeof(*block.modules));
    block.norms = calloc((size_t)plan->norm_count, sizeof(*block.norms));
    block.parameters = calloc((size_t)plan->parameter_count, sizeof(*block.parameters));
    for (int i = 0; i < plan->module_count; i++) {
        const int64_t shape[] = {plan->modules[i].rows, plan->modules[i].cols};
        ck_assert_rc_ok(gpu_tensor_new(&gpu, DTYPE_F32, 2, shape, &block.modules[i].weight));
        for (int64_t k = 0; k < shape[0] * shape[1]; k++) {
            ((float *)block.modules[i].weight.data)[k] = support_unit(&seed) * 0.3f;
        }
    }
    int scale = -1, whole = -1;
    for (int i = 0; i < plan->parameter_count; i++) {
        ck_assert_rc_ok(gpu_tensor_new(&gpu, DTYPE_F32, 1, plan->parameters[i].shape, &block.parameters[i]));
        for (int64_t k = 0; k < plan->parameters[i].shape[0]; k++) {
            ((float *)block.parameters[i].data)[k] = 1;
        }
        scale = strcmp(plan->parameters[i].path, "router.per_expert_scale") == 0 ? i : scale;
        whole = strcmp(plan->parameters[i].path, "layer_scalar") == 0 ? i : whole;
    }
    ck_assert_rc_ok(block_scratch_new(plans, 1, 5, &gpu, stream, &scratch));
    int sum = plan->steps[plan_find_step(plan, STEP_EXPERTS)].out;
    for (int run = 0; run < 3; run++) {
        ck_assert_rc_ok(block_values_init(&values, plan, scratch, NULL));
        float *x = block_value(&values, 0).data;
        seed = 9;
        for (int64_t i = 0; i < 5 * 64; i++) {
            x[i] = 2 * support_unit(&seed);
        }
        for (int64_t k = 0; run == 1 && k < 4; k++) {
            ((float *)block.parameters[scale].data)[k] = 0.5f; /* gone with the norm of the experts' sum */
        }
        if (run == 2) {
            *(float *)block.parameters[whole].data = 0.5f;
        }
        plan_set steps = 0;
        for (int s = 0; s < plan->step_count; s++) {
            steps |= plan->steps[s].out <= sum ? PLAN_BIT(s) : 0;
        }
        ck_assert_rc_ok(block_run(&block, &values, steps));
        float experts = ((const float *)block_value(&values, sum).data)[3];
        ck_assert_rc_ok(block_run(&block, &values, ~steps));
        const float *out = block_value(&values, plan->output).data;
        first = run == 0 ? experts : first;
        ck_assert_float_eq_tol(experts, run == 0 ? first : first / 2, 1e-6f * fabsf(first));
        for (int64_t i = 0; i < 5 * 64; i++) {
            double want = run < 2 ? (double)out[i] : (double)before[i] / 2;
            ck_assert(isfinite(out[i]) && fabs((double)out[i] - want) <= 1e-6 * (1 + fabs(want)));
        }
        memcpy(before, out, sizeof(before));
    }
    block_scratch_free(scratch);
    block_deinit(&block, &gpu);
    gpu.ops->stream_free(stream);
    gpu_close(&gpu);
    plans_free(plans);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("gemma");
    TCase *tcase = tcase_create("gemma");

    tcase_add_test(tcase, test_configurations);
    tcase_add_test(tcase, test_refused);
    tcase_add_test(tcase, test_plan);
    tcase_add_test(tcase, test_sources);
    tcase_add_test(tcase, test_mixture);
    tcase_add_test(tcase, test_factors);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
