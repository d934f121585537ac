/* Classes of checkpoints around a language model, by the configuration classes of transformers. */

#include "models/arch.h"

#include <stddef.h>

/* A model of its own within the other, the model with towers next to it, and under another name. */
static const struct arch_layout inside[2] = {{"model.language_model.", ""},
                                             {"language_model.model.", "language_model."}};
static const struct arch_layout beside[2] = {{"model.language_model.", ""}, {"model.", ""}};
static const struct arch_layout below_text[2] = {{"model.text_model.", ""}, {NULL, NULL}};

static const struct arch_composite composites[] = {
    {"AyaVisionForConditionalGeneration", "aya_vision", "text_config", {"cohere2"}, inside, false},
    {"Gemma3ForConditionalGeneration", "gemma3", "text_config", {"gemma3_text"}, inside, false},
    {"Gemma4ForConditionalGeneration", "gemma4", "text_config", {"gemma4_text"}, inside, false},
    {"Idefics3ForConditionalGeneration", "idefics3", "text_config", {"llama"}, below_text, false},
    {"InternVLForConditionalGeneration", "internvl", "text_config", {"qwen2", "qwen3", "llama"}, inside, false},
    {"KimiK25ForConditionalGeneration", "kimi_k25", "text_config", {"deepseek_v3", "kimi_k2"}, inside, false},
    {"Kimi_K25ForConditionalGeneration", "kimi_k25", "text_config", {"deepseek_v3", "kimi_k2"}, inside, false},
    {"Llama4ForConditionalGeneration", "llama4", "text_config", {"llama4_text"}, inside, false},
    {"LlavaForConditionalGeneration", "llava", "text_config", {"llama", "mistral", "qwen2", "qwen3"}, inside, false},
    {"LlavaNextForConditionalGeneration", "llava_next", "text_config", {"llama", "mistral", "qwen2"}, inside, false},
    {"LlavaOnevisionForConditionalGeneration", "llava_onevision", "text_config", {"qwen2", "qwen3"}, inside, false},
    {"Mistral3ForConditionalGeneration", "mistral3", "text_config", {"mistral", "ministral3"}, inside, false},
    {"Qwen2VLForConditionalGeneration", "qwen2_vl", "text_config", {"qwen2_vl_text"}, beside, true},
    {"Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", "text_config", {"qwen2_5_vl_text"}, beside, true},
    {"Qwen3VLForConditionalGeneration", "qwen3_vl", "text_config", {"qwen3_vl_text"}, inside, false},
    {"Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe", "text_config", {"qwen3_vl_moe_text"}, inside, false},
    {"Qwen3_5ForConditionalGeneration", "qwen3_5", "text_config", {"qwen3_5_text"}, inside, false},
    {"Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", "text_config", {"qwen3_5_moe_text"}, inside, false},
    {"SmolVLMForConditionalGeneration", "smolvlm", "text_config", {"llama"}, below_text, false},
    {"VoxtralForConditionalGeneration", "voxtral", "text_config", {"llama", "mistral"}, inside, false},
    {0},
};

const struct arch_composite *arch_composites(void)
{
    return composites;
}
