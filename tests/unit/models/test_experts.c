/* Families of experts and of latent attention: what their configurations mean, what is refused with which words, and
 * what follows from the plans of their layers. */

#include "models/plan.h"
#include "tests/unit/models/small_config.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <string.h>

#define RANK "\"kv_lora_rank\":32"
#define HEADS "\"num_key_value_heads\":4"
#define ROTATED "\"qk_rope_head_dim\":8"
#define COLUMNS "\"qk_nope_head_dim\":16,\"v_head_dim\":20"
#define EIGHT "\"n_routed_experts\":8,\"moe_intermediate_size\":40"
#define TWO "\"num_experts_per_tok\":2"
#define LATENT RANK "," HEADS "," ROTATED "," COLUMNS
#define SMALL LATENT "," EIGHT "," TWO

START_TEST(test_configurations)
{
    struct model_config c;

    ck_assert_rc_ok(
        small_config("DeepseekV3ForCausalLM", "{" SMALL ",\"q_lora_rank\":24,\"n_group\":4,\"topk_group\":2}", &c));
    ck_assert_int_eq(c.num_experts, 8);
    ck_assert_int_eq(c.expert_groups, 4);
    ck_assert_int_eq(c.expert_group_top_k, 2);
    ck_assert_int_eq(c.shared_size, 40);
    ck_assert_double_eq(c.experts_factor, 2.5);
    ck_assert(c.normalize_experts && c.latent.interleaved);
    ck_assert(!arch_has_experts(&c, 2) && arch_has_experts(&c, 3));
    ck_assert_int_eq(c.latent.query_rank, 24);
    ck_assert_double_eq(c.latent.scale, 1 / sqrt(24));

    ck_assert_rc_ok(
        small_config("DeepseekV2ForCausalLM",
                     "{" SMALL ",\"q_lora_rank\":null,\"n_group\":4,\"topk_group\":2,\"n_shared_experts\":0}", &c));
    ck_assert_int_eq(c.latent.query_rank, 0);
    ck_assert_int_eq(c.expert_groups, 1); /* greedy, without a method */
    ck_assert_int_eq(c.shared_size, 0);
    ck_assert(arch_has_experts(&c, 0));

    ck_assert_rc_ok(small_config("Glm4MoeLiteForCausalLM",
                                 "{" SMALL ",\"rope_interleave\":false,\"mlp_layer_types\":[\"sparse\",\"dense\","
                                 "\"sparse\",\"dense\"]}",
                                 &c));
    ck_assert(arch_has_experts(&c, 0) && !arch_has_experts(&c, 1) && arch_has_experts(&c, 2) &&
              !arch_has_experts(&c, 3));
    ck_assert(!c.latent.interleaved);

    ck_assert_rc_ok(
        small_config("Ernie4_5_MoeForCausalLM",
                     "{\"moe_k\":2,\"moe_num_experts\":8,\"moe_layer_end_index\":2,\"moe_layer_interval\":2}", &c));
    ck_assert(!arch_has_experts(&c, 0) && arch_has_experts(&c, 1) && !arch_has_experts(&c, 2) &&
              !arch_has_experts(&c, 3));
    ck_assert_int_eq(c.shared_size, 2 * 1536);
    ck_assert(c.tie_word_embeddings && c.normalize_experts);
}
END_TEST

static const struct refused_config refused[] = {
    {"DeepseekV3ForCausalLM", "{" SMALL ",\"n_group\":3}", ERR_INVALID_MODEL, "n_group 3 does not divide 8 experts"},
    {"DeepseekV3ForCausalLM", "{" SMALL ",\"n_group\":4,\"topk_group\":5}", ERR_INVALID_MODEL, "topk_group 5"},
    {"DeepseekV3ForCausalLM", "{" SMALL ",\"n_group\":4,\"topk_group\":0}", ERR_INVALID_MODEL, "topk_group 0"},
    {"DeepseekV3ForCausalLM", "{" LATENT "," EIGHT ",\"num_experts_per_tok\":3,\"n_group\":4,\"topk_group\":1}",
     ERR_INVALID_MODEL, "more than the 2 experts of topk_group 1"},
    {"DeepseekV3ForCausalLM", "{" SMALL ",\"n_group\":8,\"topk_group\":4}", ERR_INVALID_MODEL, "have one expert each"},
    {"DeepseekV3ForCausalLM", "{" SMALL ",\"scoring_func\":\"softmax\"}", ERR_UNSUPPORTED_ARCHITECTURE, "softmax"},
    {"DeepseekV3ForCausalLM", "{" SMALL ",\"moe_layer_freq\":2}", ERR_UNSUPPORTED_ARCHITECTURE, "moe_layer_freq"},
    {"DeepseekV3ForCausalLM", "{" RANK "," ROTATED "," COLUMNS "," EIGHT "," TWO ",\"num_key_value_heads\":2}",
     ERR_INVALID_MODEL, "num_key_value_heads 2"},
    {"DeepseekV3ForCausalLM", "{" RANK "," HEADS "," COLUMNS "," EIGHT "," TWO ",\"qk_rope_head_dim\":7}",
     ERR_INVALID_MODEL, "qk_rope_head_dim 7 is odd"},
    {"DeepseekV3ForCausalLM", "{" HEADS "," ROTATED "," COLUMNS "," EIGHT "," TWO ",\"kv_lora_rank\":0}",
     ERR_INVALID_MODEL, "kv_lora_rank"},
    {"DeepseekV3ForCausalLM", "{" LATENT "," EIGHT ",\"num_experts_per_tok\":9}", ERR_INVALID_MODEL,
     "num_experts_per_tok 9"},
    {"DeepseekV2ForCausalLM", "{" SMALL ",\"norm_topk_prob\":true}", ERR_UNSUPPORTED_ARCHITECTURE, "norm_topk_prob"},
    {"DeepseekV2ForCausalLM", "{" SMALL ",\"topk_method\":\"noaux_tc\"}", ERR_UNSUPPORTED_ARCHITECTURE, "noaux_tc"},
    {"DeepseekV2ForCausalLM", "{" SMALL ",\"mlp_bias\":true}", ERR_UNSUPPORTED_ARCHITECTURE, "mlp_bias"},
    {"DeepseekV2ForCausalLM", "{" LATENT ",\"n_routed_experts\":8}", ERR_INVALID_MODEL,
     "num_experts_per_tok is missing"},
    {"Glm4MoeLiteForCausalLM", "{" SMALL ",\"mlp_layer_types\":[\"dense\"]}", ERR_INVALID_MODEL,
     "mlp_layer_types has 1"},
    {"Glm4MoeLiteForCausalLM", "{" SMALL ",\"mlp_layer_types\":[\"dense\",\"dense\",\"wide\",\"dense\"]}",
     ERR_UNSUPPORTED_ARCHITECTURE, "wide"},
    {"Ernie4_5_MoeForCausalLM", "{\"moe_k\":65}", ERR_INVALID_MODEL, "moe_k 65"},
    {"Ernie4_5_MoeForCausalLM", "{\"use_bias\":true}", ERR_UNSUPPORTED_ARCHITECTURE, "use_bias"},
    {"Qwen2MoeForCausalLM", "{\"use_sliding_window\":true}", ERR_UNSUPPORTED_ARCHITECTURE, "use_sliding_window"},
    {"Qwen2MoeForCausalLM", "{\"routed_scaling_factor\":2}", ERR_UNSUPPORTED_ARCHITECTURE, "routed_scaling_factor = 2"},
    {"Qwen2MoeForCausalLM", "{\"n_group\":4}", ERR_UNSUPPORTED_ARCHITECTURE, "n_group = 4"},
    {"OlmoeForCausalLM", "{\"clip_qkv\":8.0}", ERR_UNSUPPORTED_ARCHITECTURE, "clip_qkv"},
    {"OlmoeForCausalLM", "{\"shared_expert_intermediate_size\":64}", ERR_UNSUPPORTED_ARCHITECTURE, "shared_expert"},
};

START_TEST(test_refused)
{
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct model_config c;
        check_refused(&refused[i], &c);
    }
}
END_TEST

static const struct plan_group *group_of(const struct plan *plan, const char *path)
{
    int module = plan_find_module(plan, path);

    ck_assert_msg(module >= 0, "no module %s", path);
    return &plan->groups[plan->modules[module].group];
}

/* The norm before experts feeds the shared expert, its gate, the router and every expert: all take up its factors. */
START_TEST(test_shared_experts)
{
    struct model_config c;
    struct plans *plans;

    ck_assert_rc_ok(small_config("Qwen2MoeForCausalLM", "{\"num_experts\":4,\"num_experts_per_tok\":2}", &c));
    ck_assert_rc_ok(plans_new(&c, &plans));
    const struct plan *plan = plans_layer(plans, 0);
    const struct plan_group *group = group_of(plan, "mlp.shared_expert.up_proj");
    ck_assert_int_eq(group->count, 4);
    ck_assert_int_eq(group->fold.kind, FOLD_NORM);
    ck_assert(plan_reads(plan, group, plan_find_module(plan, "mlp.gate")));
    ck_assert(plan_reads(plan, group, plan_find_module(plan, "mlp.shared_expert_gate")));
    ck_assert(plan_reads(plan, group, plan_find_module(plan, "mlp.experts.3.gate_proj")));
    ck_assert(!plan_reads(plan, group, plan_find_module(plan, "mlp.experts.3.down_proj")));
    ck_assert(plan->modules[plan_find_module(plan, "mlp.shared_expert_gate")].fixed);
    ck_assert(!plan->modules[plan_find_module(plan, "mlp.shared_expert.up_proj")].fixed);
    group = group_of(plan, "mlp.shared_expert.down_proj");
    ck_assert_int_eq(group->fold.kind, FOLD_ROWS);
    plans_free(plans);
}
END_TEST

START_TEST(test_latent_attention)
{
    struct model_config c;
    struct plans *plans;

    ck_assert_rc_ok(
        small_config("DeepseekV3ForCausalLM", "{" SMALL ",\"q_lora_rank\":24,\"n_group\":4,\"topk_group\":2}", &c));
    ck_assert_rc_ok(plans_new(&c, &plans));
    ck_assert_int_eq(plans_kinds(plans), 2); /* dense and sparse */
    const struct plan *plan = plans_layer(plans, 3);
    const struct plan_group *first = group_of(plan, "self_attn.q_a_proj");
    ck_assert_ptr_eq(first, group_of(plan, "self_attn.kv_a_proj_with_mqa"));
    ck_assert_int_eq(first->fold.kind, FOLD_NORM);
    ck_assert_int_eq(group_of(plan, "self_attn.q_b_proj")->fold.kind, FOLD_NORM);
    const struct plan_group *keys = group_of(plan, "self_attn.kv_b_proj");
    ck_assert_int_eq(keys->columns, 32);
    ck_assert_str_eq(plan->norms[keys->fold.norm].path, "self_attn.kv_a_layernorm");
    ck_assert_int_eq(plan->modules[plan_find_module(plan, "self_attn.kv_b_proj")].rows, 4 * (16 + 20));
    ck_assert_int_eq(plan->modules[plan_find_module(plan, "self_attn.o_proj")].cols, 4 * 20);
    ck_assert_int_eq(plan->parameter_count, 1);
    ck_assert_str_eq(plan->parameters[0].path, "mlp.gate.e_score_correction_bias");
    ck_assert_int_eq(plan->parameters[0].shape[0], 8);
    const struct plan_experts *experts = plan->steps[plan_find_step(plan, STEP_EXPERTS)].experts;
    ck_assert(experts->has_bias && experts->group_pairs && experts->scores == SCORES_SIGMOID);
    plans_free(plans);
}
END_TEST

UNIT_MAIN("models/experts", test_configurations, test_refused, test_shared_experts, test_latent_attention)
