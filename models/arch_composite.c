/* Classes of checkpoints around a language model, by the configuration classes of transformers. */

#include "models/arch.h"

#include <stddef.h>

static const struct arch_composite composites[] = {
    {"AyaVisionForConditionalGeneration", "aya_vision", "text_config", {"cohere2"}},
    {"Gemma3ForConditionalGeneration", "gemma3", "text_config", {"gemma3_text"}},
    {"InternVLForConditionalGeneration", "internvl", "text_config", {"qwen2", "qwen3", "llama"}},
    {"LlavaForConditionalGeneration", "llava", "text_config", {"llama", "mistral", "qwen2", "qwen3"}},
    {"LlavaNextForConditionalGeneration", "llava_next", "text_config", {"llama", "mistral", "qwen2"}},
    {"LlavaOnevisionForConditionalGeneration", "llava_onevision", "text_config", {"qwen2", "qwen3"}},
    {"Mistral3ForConditionalGeneration", "mistral3", "text_config", {"mistral", "ministral3"}},
    {"Qwen3_5ForConditionalGeneration", "qwen3_5", "text_config", {"qwen3_5_text"}},
    {"Qwen3_5MoeForConditionalGeneration", "qwen3_5_moe", "text_config", {"qwen3_5_moe_text"}},
    {"VoxtralForConditionalGeneration", "voxtral", "text_config", {"llama", "mistral"}},
    {0},
};

const struct arch_composite *arch_composites(void)
{
    return composites;
}
