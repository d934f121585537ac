/* config.json: what each family's file means, and what is refused with which words. */

#include "models/parts.h"
#include "models/plan.h"
#include "tests/unit/models/small_config.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <string.h>

static bool has_module(const struct model_config *c, const char *path, int64_t rows, int64_t cols, bool bias)
{
    struct plans *plans;

    ck_assert_rc_ok(plans_new(c, &plans));
    const struct plan *plan = plans_layer(plans, 0);
    int i = plan_find_module(plan, path);
    bool has =
        i >= 0 && plan->modules[i].rows == rows && plan->modules[i].cols == cols && plan->modules[i].bias == bias;
    plans_free(plans);
    return has;
}

START_TEST(test_llama)
{
    struct model_config c;

    ck_assert_rc_ok(small_config("LlamaForCausalLM", "{}", &c));
    ck_assert_int_eq(c.head_dim, 16);
    ck_assert_int_eq(c.max_position, 2048);
    ck_assert(!c.qkv_bias && !c.o_bias && !c.mlp_bias && !c.tie_word_embeddings);
    ck_assert_int_eq(c.ropes[0].type, ROPE_DEFAULT);
    ck_assert_double_eq(c.ropes[0].theta, 10000);
    ck_assert_double_eq(c.rms_norm_eps, 1e-6);
    ck_assert_int_eq(arch_window(&c, 3), 0);
    ck_assert(has_module(&c, "self_attn.k_proj", 32, 64, false));
    ck_assert(has_module(&c, "mlp.down_proj", 64, 96, false));

    ck_assert_rc_ok(
        small_config("LlamaForCausalLM",
                     "{\"attention_bias\":true,\"mlp_bias\":true,\"head_dim\":24,\"tie_word_embeddings\":true,"
                     "\"num_key_value_heads\":null,\"rms_norm_eps\":1e-5,\"sliding_window\":7}",
                     &c));
    ck_assert(c.qkv_bias && c.o_bias && c.mlp_bias && c.tie_word_embeddings);
    ck_assert_int_eq(c.num_kv_heads, 4);
    ck_assert_int_eq(arch_window(&c, 0), 0);
    ck_assert(has_module(&c, "self_attn.o_proj", 64, 96, true));
    ck_assert(has_module(&c, "self_attn.v_proj", 96, 64, true) && has_module(&c, "mlp.up_proj", 96, 64, true));
}
END_TEST

START_TEST(test_windows)
{
    struct model_config c;

    ck_assert_rc_ok(small_config("MistralForCausalLM", "{\"sliding_window\":11}", &c));
    ck_assert_int_eq(arch_window(&c, 0), 11);
    ck_assert_rc_ok(small_config("MistralForCausalLM", "{\"sliding_window\":null}", &c));
    ck_assert_int_eq(arch_window(&c, 0), 0);
    ck_assert_rc_ok(small_config("MistralForCausalLM", "{}", &c));
    ck_assert_int_eq(arch_window(&c, 0), 4096);

    ck_assert_rc_ok(small_config("Qwen2ForCausalLM", "{\"sliding_window\":9,\"max_window_layers\":2}", &c));
    ck_assert_int_eq(arch_window(&c, 3), 0);
    ck_assert_rc_ok(small_config("Qwen2ForCausalLM",
                                 "{\"sliding_window\":9,\"max_window_layers\":2,\"use_sliding_window\":true}", &c));
    ck_assert_int_eq(arch_window(&c, 1), 0);
    ck_assert_int_eq(arch_window(&c, 2), 9);
    ck_assert(c.qkv_bias && !c.o_bias && !c.mlp_bias);

    static const char types[] =
        "{\"sliding_window\":9,\"max_window_layers\":0,\"use_sliding_window\":true,\"layer_types\":[\"full_attention\","
        "\"full_attention\",\"full_attention\",\"sliding_attention\"]}";
    ck_assert_rc_ok(small_config("Qwen3ForCausalLM", types, &c));
    ck_assert_int_eq(arch_window(&c, 2), 0);
    ck_assert_int_eq(arch_window(&c, 3), 9);
    static const char mixed[] =
        "{\"sliding_window\":9,\"use_sliding_window\":true,\"layer_types\":[\"sliding_attention\","
        "\"full_attention\",\"full_attention\",\"sliding_attention\"]}";
    ck_assert_rc_ok(small_config("Qwen3ForCausalLM", mixed, &c));
    ck_assert(arch_window(&c, 0) == 9 && arch_window(&c, 1) == 0 && arch_window(&c, 3) == 9);
    ck_assert_rc_ok(small_config("Olmo3ForCausalLM", "{\"sliding_window\":5}", &c));
    ck_assert(arch_window(&c, 0) == 5 && arch_window(&c, 2) == 5 && arch_window(&c, 3) == 0);
    ck_assert(arch_rope(&c, 0) == 1 && arch_rope(&c, 3) == 0);
    ck_assert_rc_ok(small_config("SmolLM3ForCausalLM", "{}", &c));
    ck_assert(arch_rotates(&c, 2) && !arch_rotates(&c, 3) && c.tie_word_embeddings);
    ck_assert_rc_ok(small_config("SmolLM3ForCausalLM", "{\"no_rope_layers\":[0,1,1,1]}", &c));
    ck_assert(!arch_rotates(&c, 0) && arch_rotates(&c, 3));
    ck_assert_rc_ok(small_config("Qwen3ForCausalLM", "{\"head_dim\":24}", &c));
    ck_assert(c.head_dim == 24 && !c.qkv_bias);
    ck_assert_rc_ok(small_config("Qwen3ForCausalLM", "{}", &c));
    ck_assert_int_eq(c.head_dim, 128);
}
END_TEST

START_TEST(test_rope)
{
    struct model_config c;

    ck_assert_rc_ok(small_config("LlamaForCausalLM", "{\"rope_theta\":500000,\"rope_scaling\":null}", &c));
    ck_assert_double_eq(c.ropes[0].theta, 500000);
    ck_assert_rc_ok(small_config("LlamaForCausalLM", "{\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}}", &c));
    ck_assert_int_eq(c.ropes[0].type, ROPE_LINEAR);
    ck_assert_double_eq(c.ropes[0].factor, 4);
    ck_assert_rc_ok(
        small_config("LlamaForCausalLM",
                     "{\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":5e5,\"factor\":8.0,"
                     "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":8192}}",
                     &c));
    ck_assert_int_eq(c.ropes[0].type, ROPE_LLAMA3);
    ck_assert_double_eq(c.ropes[0].theta, 5e5);
    ck_assert_double_eq(c.ropes[0].original_max, 8192);

    float cosine[4 * 8], sine[4 * 8];
    struct rope_spec rope = {.dims = 16, .theta = 10000};
    rope_tables(&rope, 4, cosine, sine);
    for (int t = 0; t < 4; t++) {
        for (int i = 0; i < 8; i++) {
            double angle = t * pow(10000, -i / 8.0);
            ck_assert_float_eq(cosine[t * 8 + i], (float)cos(angle));
            ck_assert_float_eq(sine[t * 8 + i], (float)sin(angle));
        }
    }
    rope.type = ROPE_LINEAR;
    rope.factor = 2;
    rope_tables(&rope, 4, cosine, sine);
    ck_assert_float_eq(cosine[2 * 8], (float)cos(1.0));
    /* Wavelengths 2 pi and 2 pi / 0.001: the first turns often within 64 positions, the last never. */
    rope = (struct rope_spec){
        .dims = 4, .theta = 1e6, .type = ROPE_LLAMA3, .factor = 8, .low_freq = 1, .high_freq = 4, .original_max = 64};
    rope_tables(&rope, 4, cosine, sine);
    ck_assert_float_eq(sine[3 * 2], (float)sin(3.0));
    ck_assert_float_eq(sine[3 * 2 + 1], (float)sin(3 * 0.001 / 8));
}
END_TEST

/* rope_scaling replaces rope_parameters, as transformers 5 reads them. */
START_TEST(test_two_ropes)
{
    struct model_config c;

    ck_assert_rc_ok(small_config("LlamaForCausalLM",
                                 "{\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":10000.0},"
                                 "\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":4}}",
                                 &c));
    ck_assert_int_eq(c.ropes[0].type, ROPE_LINEAR);
    ck_assert_double_eq(c.ropes[0].factor, 4);
    ck_assert_rc_ok(small_config("LlamaForCausalLM",
                                 "{\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4,\"rope_theta\":5e5},"
                                 "\"rope_scaling\":{\"rope_type\":\"default\",\"rope_theta\":5e5}}",
                                 &c));
    ck_assert_int_eq(c.ropes[0].type, ROPE_DEFAULT);
    ck_assert_double_eq(c.ropes[0].theta, 5e5);
    /* What is empty is not there. */
    ck_assert_rc_ok(small_config(
        "LlamaForCausalLM",
        "{\"rope_parameters\":{\"type\":\"linear\",\"factor\":2,\"rope_theta\":7000},\"rope_scaling\":{}}", &c));
    ck_assert_int_eq(c.ropes[0].type, ROPE_LINEAR);
    ck_assert_double_eq(c.ropes[0].theta, 7000);
    ck_assert_rc_ok(small_config("LlamaForCausalLM",
                                 "{\"rope_parameters\":{},\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}}", &c));
    ck_assert_int_eq(c.ropes[0].type, ROPE_LINEAR);
    /* The theta of either place is fine where both mean the same. */
    ck_assert_rc_ok(
        small_config("LlamaForCausalLM",
                     "{\"rope_theta\":5e5,\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":5e5},"
                     "\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":4}}",
                     &c));
    ck_assert_double_eq(c.ropes[0].theta, 5e5);
}
END_TEST

#define FOUR_FULL "\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\",\"full_attention\"]"

/* Layers with windows rotate, and those of full attention where there is no window. */
START_TEST(test_exaone4)
{
    struct model_config c;

    ck_assert_rc_ok(small_config("Exaone4ForCausalLM", "{\"sliding_window\":5}", &c));
    ck_assert(arch_window(&c, 0) == 5 && arch_window(&c, 2) == 5 && arch_window(&c, 3) == 0);
    ck_assert(arch_rotates(&c, 0) && arch_rotates(&c, 2) && !arch_rotates(&c, 3));
    ck_assert(c.rms_norm_eps == 1e-5 && c.head_dim == 16 && !c.qkv_bias && !c.tie_word_embeddings);
    ck_assert_rc_ok(small_config("Exaone4ForCausalLM",
                                 "{\"attention_bias\":true,\"num_attention_heads\":null,"
                                 "\"num_key_value_heads\":8,\"hidden_size\":128}",
                                 &c));
    ck_assert(c.num_heads == 32 && c.sliding_window == 4096 && !c.qkv_bias);
    /* As published: one with windows has a pattern in letters next to the list, one without says null of both. */
    static const char letters[] =
        "{\"sliding_window\":5,\"sliding_window_pattern\":\"LG\",\"layer_types\":[\"sliding_attention\","
        "\"full_attention\",\"sliding_attention\",\"full_attention\"]}";
    ck_assert_rc_ok(small_config("Exaone4ForCausalLM", letters, &c));
    ck_assert(arch_window(&c, 1) == 0 && arch_window(&c, 2) == 5 && !arch_rotates(&c, 1) && arch_rotates(&c, 2));
    ck_assert_rc_ok(small_config("Exaone4ForCausalLM",
                                 "{\"sliding_window\":null,\"sliding_window_pattern\":null," FOUR_FULL "}", &c));
    ck_assert(arch_window(&c, 0) == 0 && arch_rotates(&c, 0) && arch_rotates(&c, 3));
    ck_assert_rc_ok(small_config("Exaone4ForCausalLM", "{\"sliding_window\":null}", &c));
    ck_assert(arch_window(&c, 0) == 0 && arch_rotates(&c, 3));
}
END_TEST

static const struct refused_config refused[] = {
    {"BertLMHeadModel", "{}", ERR_UNSUPPORTED_ARCHITECTURE, "BertLMHeadModel"},
    {"LlamaForCausalLM", "{\"architectures\":[]}", ERR_UNSUPPORTED_ARCHITECTURE, "without a name"},
    {"LlamaForCausalLM", "{\"architectures\":null}", ERR_UNSUPPORTED_ARCHITECTURE, "without a name"},
    {"LlamaForCausalLM", "{\"architectures\":[3]}", ERR_UNSUPPORTED_ARCHITECTURE, "without a name"},
    {"LlamaForCausalLM", "{\"hidden_act\":\"gelu\"}", ERR_UNSUPPORTED_ARCHITECTURE, "gelu"},
    {"LlamaForCausalLM", "{\"hidden_act\":[\"gelu\"]}", ERR_INVALID_MODEL, "hidden_act"},
    {"LlamaForCausalLM", "{\"hidden_act\":5}", ERR_INVALID_MODEL, "hidden_act"},
    {"LlamaForCausalLM", "{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}}", ERR_INVALID_MODEL,
     "yarn rope needs original_max_position_embeddings"},
    {"LlamaForCausalLM", "{\"rope_scaling\":{\"type\":\"dynamic\"}}", ERR_INVALID_MODEL, "factor"},
    {"LlamaForCausalLM", "{\"rope_scaling\":{\"type\":\"spiral\"}}", ERR_UNSUPPORTED_ARCHITECTURE, "spiral"},
    {"LlamaForCausalLM", "{\"rope_parameters\":{\"rope_type\":\"longrope\",\"original_max_position_embeddings\":64}}",
     ERR_INVALID_MODEL, "longrope needs short_factor, a list of 8 numbers"},
    {"LlamaForCausalLM", "{\"rope_parameters\":{\"rope_type\":\"default\",\"attn_factor\":2}}",
     ERR_UNSUPPORTED_ARCHITECTURE, "rope_parameters with the member \"attn_factor\""},
    {"LlamaForCausalLM", "{\"rope_parameters\":{\"rope_type\":\"default\",\"llama_4_scaling_beta\":0.1}}",
     ERR_UNSUPPORTED_ARCHITECTURE, "llama_4_scaling_beta"},
    {"LlamaForCausalLM",
     "{\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1e4},"
     "\"rope_scaling\":{\"rope_type\":\"spiral\",\"factor\":4}}",
     ERR_UNSUPPORTED_ARCHITECTURE, "rope_scaling: rope type \"spiral\""},
    {"LlamaForCausalLM", "{\"rope_parameters\":{},\"rope_scaling\":{\"type\":\"spiral\",\"factor\":4}}",
     ERR_UNSUPPORTED_ARCHITECTURE, "spiral"},
    {"LlamaForCausalLM",
     "{\"rope_parameters\":{\"rope_type\":\"spiral\",\"factor\":4},\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}"
     "}",
     ERR_UNSUPPORTED_ARCHITECTURE, "rope_parameters: rope type \"spiral\""},
    {"LlamaForCausalLM", "{\"rope_scaling\":{\"type\":\"mrope\",\"rope_type\":\"default\"}}",
     ERR_UNSUPPORTED_ARCHITECTURE, "mrope"},
    {"LlamaForCausalLM", "{\"rope_scaling\":{\"type\":\"linear\",\"rope_type\":\"default\",\"factor\":4}}",
     ERR_INVALID_MODEL, "two types"},
    {"LlamaForCausalLM", "{\"rope_scaling\":{\"rope_type\":4,\"factor\":4}}", ERR_INVALID_MODEL,
     "rope_scaling.rope_type is not a string"},
    {"LlamaForCausalLM", "{\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}}",
     ERR_UNSUPPORTED_ARCHITECTURE, "full_attention"},
    {"LlamaForCausalLM",
     "{\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1e6},"
     "\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":4}}",
     ERR_INVALID_MODEL, "rope_theta = 1e+06 by 10000"},
    {"LlamaForCausalLM",
     "{\"original_max_position_embeddings\":4096,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
     "\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":8192}}",
     ERR_INVALID_MODEL, "original_max_position_embeddings is 4096, and 8192"},
    {"LlamaForCausalLM", "{\"partial_rotary_factor\":0.5}", ERR_UNSUPPORTED_ARCHITECTURE, "partial_rotary_factor"},
    {"Qwen2ForCausalLM", "{\"layer_types\":[\"a\",\"b\",\"c\",\"d\"]}", ERR_UNSUPPORTED_ARCHITECTURE,
     "layer_types with \"a\""},
    {"Qwen2ForCausalLM", "{\"layer_types\":\"full_attention\"}", ERR_INVALID_MODEL, "layer_types is not a list"},
    {"Qwen2ForCausalLM",
     "{\"layer_types\":[\"full_attention\",\"linear_attention\",\"full_attention\",\"full_attention\"]}",
     ERR_UNSUPPORTED_ARCHITECTURE, "linear_attention"},
    {"SmolLM3ForCausalLM", "{\"no_rope_layers\":[1,1]}", ERR_INVALID_MODEL, "no_rope_layers has 2 entries"},
    {"SmolLM3ForCausalLM", "{\"no_rope_layers\":[1,1,2,0]}", ERR_INVALID_MODEL, "no_rope_layers[2]"},
    {"Olmo3ForCausalLM", "{\"rope_parameters\":{\"rope_type\":\"default\"}}", ERR_INVALID_MODEL, "by layer type"},
    {"Olmo3ForCausalLM", "{\"sliding_window_pattern\":\"LLLG\"}", ERR_INVALID_MODEL,
     "sliding_window_pattern must be an integer"},
    {"Exaone4ForCausalLM", "{\"sliding_window_pattern\":\"LLLG\"}", ERR_INVALID_MODEL,
     "sliding_window_pattern must be an integer"},
    {"Exaone4ForCausalLM", "{\"sliding_window_pattern\":0}", ERR_INVALID_MODEL, "sliding_window_pattern"},
    {"Exaone4ForCausalLM", "{\"sliding_window_pattern\":null}", ERR_INVALID_MODEL, "sliding_window_pattern is null"},
    {"Exaone4ForCausalLM", "{\"sliding_window\":5," FOUR_FULL "}", ERR_INVALID_MODEL, "no layer has a window"},
    {"Exaone4ForCausalLM", "{\"sliding_window_pattern\":1}", ERR_INVALID_MODEL, "no layer has a window"},
    {"Exaone4ForCausalLM",
     "{\"sliding_window\":null,\"layer_types\":[\"sliding_attention\",\"full_attention\",\"full_attention\","
     "\"full_attention\"]}",
     ERR_INVALID_MODEL, "asks for a window"},
    {"Exaone4ForCausalLM", "{\"hidden_act\":\"gelu\"}", ERR_UNSUPPORTED_ARCHITECTURE, "gelu"},
    {"Exaone4ForCausalLM", "{\"model_type\":\"exaone\"}", ERR_INVALID_MODEL, "contradicts"},
    {"GraniteForCausalLM", "{\"residual_multiplier\":-1}", ERR_INVALID_MODEL, "residual_multiplier"},
    {"Mistral3ForConditionalGeneration", "{}", ERR_INVALID_MODEL, "text_config"},
    {"Mistral3ForConditionalGeneration", "{\"text_config\":{\"model_type\":\"qwen2\"}}", ERR_UNSUPPORTED_ARCHITECTURE,
     "text_config.model_type \"qwen2\""},
    {"Mistral3ForConditionalGeneration", "{\"model_type\":\"llava\"}", ERR_INVALID_MODEL, "contradicts"},
    {"Qwen3VLForConditionalGeneration", "{}", ERR_INVALID_MODEL, "text_config"},
    {"Qwen2VLForConditionalGeneration", "{\"text_config\":{\"model_type\":\"qwen2\"}}", ERR_UNSUPPORTED_ARCHITECTURE,
     "text_config.model_type \"qwen2\""},
    {"Qwen2VLForConditionalGeneration", "{\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[2,3,4]}}",
     ERR_INVALID_MODEL, "mrope_section is not three numbers of columns that are 8 together"},
    {"Qwen2VLForConditionalGeneration", "{\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[9,-1,0]}}",
     ERR_INVALID_MODEL, "mrope_section"},
    {"Qwen2VLForConditionalGeneration", "{\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[8]}}",
     ERR_INVALID_MODEL, "mrope_section"},
    {"Qwen2VLForConditionalGeneration", "{\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":8}}",
     ERR_INVALID_MODEL, "mrope_section"},
    {"SmolVLMForConditionalGeneration", "{\"text_config\":{\"model_type\":\"mistral\"}}", ERR_UNSUPPORTED_ARCHITECTURE,
     "text_config.model_type \"mistral\""},
    {"DeepseekV3ForCausalLM", "{\"model_type\":\"kimi_k3\"}", ERR_INVALID_MODEL, "contradicts"},
    {"LlamaForCausalLM", "{\"quantization_config\":{\"quant_method\":\"awq\"}}", ERR_ALREADY_QUANTIZED, "awq"},
    {"LlamaForCausalLM", "{\"quantization_config\":{}}", ERR_ALREADY_QUANTIZED, "unknown"},
    {"LlamaForCausalLM", "{\"hidden_size\":null}", ERR_INVALID_MODEL, "hidden_size is missing"},
    {"LlamaForCausalLM", "{\"hidden_size\":0}", ERR_INVALID_MODEL, "hidden_size"},
    {"LlamaForCausalLM", "{\"hidden_size\":-64}", ERR_INVALID_MODEL, "hidden_size"},
    {"LlamaForCausalLM", "{\"hidden_size\":64.5}", ERR_INVALID_MODEL, "hidden_size"},
    {"LlamaForCausalLM", "{\"hidden_size\":\"64\"}", ERR_INVALID_MODEL, "hidden_size"},
    {"LlamaForCausalLM", "{\"hidden_size\":9223372036854775807}", ERR_INVALID_MODEL, "hidden_size"},
    {"LlamaForCausalLM", "{\"num_hidden_layers\":1000000000}", ERR_INVALID_MODEL, "num_hidden_layers"},
    {"LlamaForCausalLM", "{\"vocab_size\":4611686018427387904}", ERR_INVALID_MODEL, "vocab_size"},
    {"LlamaForCausalLM", "{\"num_key_value_heads\":3}", ERR_INVALID_MODEL, "num_key_value_heads"},
    {"LlamaForCausalLM", "{\"num_key_value_heads\":8}", ERR_INVALID_MODEL, "num_key_value_heads"},
    {"LlamaForCausalLM", "{\"head_dim\":15}", ERR_INVALID_MODEL, "even"},
    {"LlamaForCausalLM", "{\"num_attention_heads\":8192,\"head_dim\":4096}", ERR_INVALID_MODEL, "all heads"},
    {"LlamaForCausalLM", "{\"num_attention_heads\":128}", ERR_INVALID_MODEL, "head_dim"},
    {"LlamaForCausalLM", "{\"rms_norm_eps\":-1}", ERR_INVALID_MODEL, "rms_norm_eps"},
    {"LlamaForCausalLM", "{\"rope_theta\":0}", ERR_INVALID_MODEL, "rope_theta"},
    {"LlamaForCausalLM", "{\"rope_theta\":1e-300}", ERR_INVALID_MODEL, "rope_theta"},
    {"LlamaForCausalLM", "{\"rope_theta\":\"x\"}", ERR_INVALID_MODEL, "rope_theta"},
    {"LlamaForCausalLM", "{\"rope_scaling\":7}", ERR_INVALID_MODEL, "not an object"},
    {"LlamaForCausalLM", "{\"rope_scaling\":{\"type\":\"linear\"}}", ERR_INVALID_MODEL, "factor"},
    {"LlamaForCausalLM", "{\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8}}", ERR_INVALID_MODEL, "low_freq_factor"},
    {"LlamaForCausalLM", "{\"tie_word_embeddings\":1}", ERR_INVALID_MODEL, "tie_word_embeddings"},
    {"MistralForCausalLM", "{\"sliding_window\":0}", ERR_INVALID_MODEL, "sliding_window"},
    {"Qwen3ForCausalLM", "{\"layer_types\":[\"full_attention\"]}", ERR_INVALID_MODEL, "layer_types"},
    {"Qwen3ForCausalLM",
     "{\"layer_types\":[\"full_attention\",\"full_attention\",\"full_attention\",\"sliding_attention\"]}",
     ERR_INVALID_MODEL, "window"},
    {"LlamaForCausalLM", "{\"model_type\":\"qwen2\"}", ERR_INVALID_MODEL,
     "model_type \"qwen2\" contradicts architectures, LlamaForCausalLM"},
    {"LlamaForCausalLM", "{\"model_type\":7}", ERR_INVALID_MODEL, "model_type is not a string"},
    {"Phi3ForCausalLM", "{\"partial_rotary_factor\":0.1}", ERR_INVALID_MODEL, "partial_rotary_factor"},
    {"Phi3ForCausalLM", "{\"hidden_act\":\"mish\"}", ERR_UNSUPPORTED_ARCHITECTURE, "mish"},
    {"FalconForCausalLM", "{\"alibi\":true}", ERR_UNSUPPORTED_ARCHITECTURE, "alibi"},
    {"FalconForCausalLM", "{\"new_decoder_architecture\":true,\"num_kv_heads\":3}", ERR_INVALID_MODEL,
     "num_kv_heads 3"},
    {"FalconForCausalLM", "{\"new_decoder_architecture\":true,\"parallel_attn\":false}", ERR_UNSUPPORTED_ARCHITECTURE,
     "parallel_attn"},
    {"FalconForCausalLM", "{\"num_ln_in_parallel_attn\":2}", ERR_UNSUPPORTED_ARCHITECTURE, "num_ln_in_parallel_attn"},
    {"GPT2LMHeadModel", "{\"add_cross_attention\":true}", ERR_UNSUPPORTED_ARCHITECTURE, "add_cross_attention"},
    {"GPT2LMHeadModel", "{\"scale_attn_by_inverse_layer_idx\":true}", ERR_UNSUPPORTED_ARCHITECTURE,
     "scale_attn_by_inverse_layer_idx"},
    {"GPT2LMHeadModel", "{\"scale_attn_weights\":false}", ERR_UNSUPPORTED_ARCHITECTURE, "scale_attn_weights"},
    {"GPT2LMHeadModel", "{\"n_head\":0}", ERR_INVALID_MODEL, "num_attention_heads"},
    {"OPTForCausalLM", "{\"do_layer_norm_before\":false}", ERR_UNSUPPORTED_ARCHITECTURE, "do_layer_norm_before"},
    {"OPTForCausalLM", "{\"layer_norm_elementwise_affine\":false}", ERR_UNSUPPORTED_ARCHITECTURE,
     "layer_norm_elementwise_affine"},
    {"OPTForCausalLM", "{\"_remove_final_layer_norm\":true}", ERR_UNSUPPORTED_ARCHITECTURE, "_remove_final_layer_norm"},
    {"OPTForCausalLM", "{\"word_embed_proj_dim\":32}", ERR_UNSUPPORTED_ARCHITECTURE, "word_embed_proj_dim"},
    {"OPTForCausalLM", "{\"activation_function\":\"tanh\"}", ERR_UNSUPPORTED_ARCHITECTURE, "tanh"},
    {"Starcoder2ForCausalLM", "{\"use_bias\":7}", ERR_INVALID_MODEL, "use_bias"},
    {"PhiForCausalLM", "{\"qk_layernorm\":true}", ERR_UNSUPPORTED_ARCHITECTURE, "qk_layernorm"},
    {"PhiForCausalLM", "{\"partial_rotary_factor\":0.2}", ERR_INVALID_MODEL, "partial_rotary_factor"},
    {"NemotronForCausalLM", "{\"norm_eps\":-1}", ERR_INVALID_MODEL, "norm_eps"},
};

START_TEST(test_refused)
{
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct model_config c = {.num_layers = -7};
        int rc = check_refused(&refused[i], &c);
        ck_assert_int_eq(c.num_layers, -7);
        if (rc == ERR_UNSUPPORTED_ARCHITECTURE) {
            ck_assert_ptr_nonnull(strstr(err_last()->hint, "GET /v1/"));
        }
    }
    struct model_config c;
    json_t *list = json_array();
    ck_assert_int_eq(arch_parse_config(list, &c), ERR_INVALID_MODEL);
    json_decref(list);
}
END_TEST

/* Plans are made before a tensor is looked at: what no checkpoint has is refused long before it is all named. */
START_TEST(test_too_many_modules)
{
    struct model_config c;
    struct plans *plans = NULL;

    ck_assert_rc_ok(small_config("MixtralForCausalLM", "{\"model_type\":\"mixtral\",\"num_local_experts\":4096}", &c));
    ck_assert_rc_ok(plans_new(&c, &plans));
    ck_assert_uint_eq(plans_modules(plans), 4 * (4 + 1 + 3 * 4096));
    plans_free(plans);
    plans = NULL;
    ck_assert_rc_ok(small_config("MixtralForCausalLM", "{\"num_hidden_layers\":4096,\"num_local_experts\":4096}", &c));
    ck_assert_int_eq(plans_new(&c, &plans), ERR_INVALID_MODEL);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "num_hidden_layers 4096 with 4096 experts"));
    ck_assert_ptr_null(plans);
}
END_TEST

/* Every row is described; a new one that needs a member which the sample lacks adds it there. */
START_TEST(test_parts)
{
    for (const struct arch *const *row = arch_list(); *row != NULL; row++) {
        struct arch_parts parts = {.count = 0};
        ck_assert_msg(arch_parts(*row, &parts), "%s: %s", (*row)->name, err_last()->message);
        ck_assert_uint_gt(parts.count, 2);
        ck_assert_int_eq(parts.experts, (*row)->experts != NULL);
    }
}
END_TEST

START_TEST(test_fused_families)
{
    struct model_config c;

    ck_assert_rc_ok(small_config("Phi3ForCausalLM", "{\"partial_rotary_factor\":0.75}", &c));
    ck_assert(c.ropes[0].dims == 12 && c.activation == ACTIVATION_SILU && c.rms_norm_eps == 1e-5);
    ck_assert(has_module(&c, "self_attn.qkv_proj", 64 + 2 * 32, 64, false));
    ck_assert(has_module(&c, "mlp.gate_up_proj", 2 * 96, 64, false));

    ck_assert_rc_ok(small_config("GPTNeoXForCausalLM", "{\"num_key_value_heads\":4,\"layer_norm_eps\":1e-4}", &c));
    ck_assert(c.ropes[0].dims == 4 && c.activation == ACTIVATION_GELU && c.rms_norm_eps == 1e-4 && c.parallel);
    ck_assert(has_module(&c, "attention.query_key_value", 192, 64, true));
    ck_assert(has_module(&c, "mlp.dense_4h_to_h", 64, 96, true));
    ck_assert_rc_ok(small_config("GPTNeoXForCausalLM",
                                 "{\"num_key_value_heads\":4,\"rotary_pct\":1,\"rotary_emb_base\":500,"
                                 "\"attention_bias\":false,\"use_parallel_residual\":false}",
                                 &c));
    ck_assert(c.ropes[0].dims == 16 && c.ropes[0].theta == 500 && !c.parallel && !c.qkv_bias && c.mlp_bias);

    ck_assert_rc_ok(small_config("FalconForCausalLM", "{\"num_key_value_heads\":null,\"intermediate_size\":null}", &c));
    ck_assert(c.num_kv_heads == 1 && c.intermediate_size == 256 && c.tie_word_embeddings && c.parallel_norms == 1);
    ck_assert(has_module(&c, "self_attention.query_key_value", 64 + 2 * 16, 64, false));
    ck_assert_rc_ok(small_config("FalconForCausalLM",
                                 "{\"new_decoder_architecture\":true,\"num_kv_heads\":2,\"bias\":true,"
                                 "\"ffn_hidden_size\":80,\"activation\":\"relu\"}",
                                 &c));
    ck_assert(c.num_kv_heads == 2 && c.parallel_norms == 2 && c.activation == ACTIVATION_RELU);
    ck_assert(has_module(&c, "mlp.dense_h_to_4h", 80, 64, true));

    ck_assert_rc_ok(small_config("GPT2LMHeadModel",
                                 "{\"hidden_size\":null,\"n_embd\":32,\"n_head\":2,\"n_layer\":3,\"n_inner\":null,"
                                 "\"n_positions\":50,\"num_key_value_heads\":null}",
                                 &c));
    ck_assert(c.hidden_size == 32 && c.num_heads == 2 && c.num_layers == 3 && c.intermediate_size == 128);
    ck_assert(c.max_position == 50 && c.rope_count == 0 && c.activation == ACTIVATION_GELU_TANH);
    ck_assert(has_module(&c, "attn.c_attn", 96, 32, true) && has_module(&c, "mlp.c_fc", 128, 32, true));
}
END_TEST

#define TEXT                                                                                                        \
    "\"hidden_size\":32,\"intermediate_size\":48,\"num_hidden_layers\":2,\"num_attention_heads\":2,\"vocab_size\":" \
    "50"

/* Language models within others: next to their members, or in a member of its own. */
START_TEST(test_vision)
{
    struct model_config c;

    ck_assert_rc_ok(small_config("Qwen2VLForConditionalGeneration",
                                 "{\"model_type\":\"qwen2_vl\",\"num_key_value_heads\":null,\"vision_config\":{},"
                                 "\"rope_scaling\":{\"type\":\"mrope\",\"mrope_section\":[2,3,3]}}",
                                 &c));
    ck_assert_str_eq(c.composite->name, "Qwen2VLForConditionalGeneration");
    ck_assert_str_eq(c.arch->model_type, "qwen2_vl_text");
    ck_assert(c.ropes[0].type == ROPE_DEFAULT && c.ropes[0].dims == 16 && c.ropes[0].theta == 1e6);
    ck_assert(c.rms_norm_eps == 1e-5 && c.qkv_bias && !c.o_bias && c.num_kv_heads == 4 && c.hidden_size == 64);
    ck_assert_rc_ok(small_config("Qwen2_5_VLForConditionalGeneration",
                                 "{\"text_config\":{\"num_key_value_heads\":1,\"use_sliding_window\":true," TEXT "}}",
                                 &c));
    ck_assert(c.hidden_size == 32 && c.num_kv_heads == 1 && arch_window(&c, 1) == 0); /* from layer 80 on */

    ck_assert_rc_ok(small_config("Qwen3VLMoeForConditionalGeneration",
                                 "{\"text_config\":{\"num_key_value_heads\":1,\"model_type\":\"qwen3_vl_moe_text\","
                                 "\"num_local_experts\":8,\"mlp_only_layers\":[1]," TEXT "}}",
                                 &c));
    ck_assert(c.num_experts == 8 && c.experts_per_token == 4 && c.expert_size == 1408 && c.normalize_experts);
    ck_assert(arch_has_experts(&c, 0) && !arch_has_experts(&c, 1) && c.head_dim == 16 && c.ropes[0].theta == 5e5);

    ck_assert_rc_ok(
        small_config("DeepseekV3ForCausalLM", "{\"model_type\":\"kimi_k2\",\"num_key_value_heads\":4}", &c));
    ck_assert_rc_ok(small_config("KimiK25ForConditionalGeneration",
                                 "{\"text_config\":{\"model_type\":\"kimi_k2\",\"num_key_value_heads\":2," TEXT "}}",
                                 &c));
    ck_assert_str_eq(c.arch->name, "DeepseekV3ForCausalLM");
}
END_TEST

UNIT_MAIN("arch", test_parts, test_llama, test_windows, test_exaone4, test_rope, test_two_ropes, test_refused,
          test_too_many_modules, test_fused_families, test_vision)
